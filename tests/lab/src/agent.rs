// SPDX-License-Identifier: GPL-3.0-or-later
//! The agent's protocol and its client.
//!
//! Every lab machine runs `lab-agent`, which serves one request per TCP connection. A request
//! is one header line, then as many raw bytes as the header says:
//!
//! | header | then | answer |
//! |---|---|---|
//! | `exec LEN` | a shell command | `done STATUS OUT ERR`, then stdout and stderr |
//! | `put MODE PATHLEN LEN` | the path, the file's contents | `done 0 0 0` |
//! | `get PATHLEN` | the path | `done 0 LEN 0`, then the contents |
//! | `clock [NS]` | nothing | the machine's CLOCK_REALTIME, after setting it if NS is given |
//! | `relay ADDRESS` | another request | whatever the machine at ADDRESS answers |
//!
//! A serial console would need quoting, would mix with the kernel's messages and would stop
//! while a guest migrates; a connection per request simply fails and says so.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::progress::patience;
use anyhow::{Context, Result, bail};

/// The TCP port the agent listens on inside every machine.
pub const AGENT_PORT: u16 = 2323;

/// What a command in a machine left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit status; 128 + signal when it was killed.
    pub status: i32,
    /// Standard output, lossily decoded.
    pub stdout: String,
    /// Standard error, lossily decoded.
    pub stderr: String,
}

impl Output {
    /// Standard output of a command that must succeed.
    pub fn ok(self, what: &str) -> Result<String> {
        if self.status != 0 {
            bail!(
                "{what}: exit status {}\n{}{}",
                self.status,
                self.stdout,
                self.stderr
            );
        }
        Ok(self.stdout)
    }
}

/// A way to one machine's agent: directly, or through another machine's.
#[derive(Debug, Clone)]
pub struct Agent {
    /// Name for messages.
    pub name: String,
    /// Where to connect on loopback.
    pub address: SocketAddr,
    /// Address of the agent behind that one, for guests.
    pub relay: Option<SocketAddr>,
}

impl Agent {
    fn connect(&self, timeout: Duration) -> Result<TcpStream> {
        let mut stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(5))
            .with_context(|| format!("{}: agent at {}", self.name, self.address))?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        stream.set_nodelay(true)?;
        if let Some(next) = self.relay {
            stream.write_all(format!("relay {next}\n").as_bytes())?;
        }
        Ok(stream)
    }

    fn request(
        &self,
        header: &str,
        parts: &[&[u8]],
        timeout: Duration,
    ) -> Result<(i32, Vec<u8>, Vec<u8>)> {
        let mut stream = self.connect(timeout)?;
        let mut message = format!("{header}\n").into_bytes();
        for part in parts {
            message.extend_from_slice(part);
        }
        stream
            .write_all(&message)
            .with_context(|| format!("{}: sending {header}", self.name))?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).with_context(|| {
            format!("{}: no answer to `{header}` within {timeout:?}", self.name)
        })?;
        let fields: Vec<&str> = line.split_whitespace().collect();
        let ["done", status, out_len, err_len] = fields.as_slice() else {
            bail!("{}: the agent answered {line:?} to `{header}`", self.name);
        };
        let mut stdout = vec![0; out_len.parse()?];
        reader.read_exact(&mut stdout)?;
        let mut stderr = vec![0; err_len.parse()?];
        reader.read_exact(&mut stderr)?;
        Ok((status.parse()?, stdout, stderr))
    }

    /// Run a shell command and wait for it, at most `timeout`.
    pub fn exec_for(&self, command: &str, timeout: Duration) -> Result<Output> {
        let (status, stdout, stderr) = self.request(
            &format!("exec {}", command.len()),
            &[command.as_bytes()],
            timeout,
        )?;
        Ok(Output {
            status,
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        })
    }

    /// Run a shell command and wait for it, at most two minutes.
    pub fn exec(&self, command: &str) -> Result<Output> {
        self.exec_for(command, patience(120))
    }

    /// Run a shell command that must succeed; its standard output.
    pub fn must(&self, command: &str) -> Result<String> {
        self.exec(command)?
            .ok(&format!("{}: `{command}`", self.name))
    }

    /// Write a file into the machine, replacing it in one step.
    pub fn put(&self, path: &str, mode: u32, contents: &[u8]) -> Result<()> {
        let (status, _, stderr) = self.request(
            &format!("put {mode:o} {} {}", path.len(), contents.len()),
            &[path.as_bytes(), contents],
            patience(180),
        )?;
        if status != 0 {
            bail!(
                "{}: writing {path}: {}",
                self.name,
                String::from_utf8_lossy(&stderr)
            );
        }
        Ok(())
    }

    /// Read a file of the machine.
    pub fn get(&self, path: &str) -> Result<Vec<u8>> {
        let (status, stdout, stderr) = self.request(
            &format!("get {}", path.len()),
            &[path.as_bytes()],
            patience(180),
        )?;
        if status != 0 {
            bail!(
                "{}: reading {path}: {}",
                self.name,
                String::from_utf8_lossy(&stderr)
            );
        }
        Ok(stdout)
    }

    /// How far the machine's wall clock is ahead of this machine's, in nanoseconds, by the
    /// quickest of a few round trips; `set` first makes it right.
    pub fn clock_offset(&self, set: bool) -> Result<i64> {
        let mut best = (Duration::MAX, 0);
        for _ in 0..5 {
            let before = Instant::now();
            let wall = now_ns();
            let header = if set {
                format!("clock {wall}")
            } else {
                "clock".to_owned()
            };
            let (_, stdout, _) = self.request(&header, &[], Duration::from_secs(20))?;
            let trip = before.elapsed();
            let theirs: i64 = String::from_utf8_lossy(&stdout).trim().parse()?;
            if trip < best.0 {
                best = (trip, theirs - (wall as i64 + (trip.as_nanos() / 2) as i64));
            }
        }
        Ok(best.1)
    }

    /// Wait until the machine answers and has finished its start-up.
    pub fn wait_ready(&self, timeout: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            let answer = self.exec_for("test -e /run/ready", Duration::from_secs(10));
            match answer {
                Ok(output) if output.status == 0 => return Ok(()),
                _ if start.elapsed() > timeout => {
                    let why = match answer {
                        Ok(_) => "its start-up has not finished".to_owned(),
                        Err(error) => format!("{error:#}"),
                    };
                    bail!("{}: not ready after {timeout:?}: {why}", self.name);
                }
                _ => std::thread::sleep(Duration::from_millis(300)),
            }
        }
    }
}

/// Nanoseconds since the epoch by this machine's clock.
pub fn now_ns() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_nanos() as u64)
}

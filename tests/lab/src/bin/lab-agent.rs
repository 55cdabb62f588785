// SPDX-License-Identifier: GPL-3.0-or-later
//! The agent inside every lab machine: runs commands, moves files, relays to guests.
//! The protocol is described in `xen_vusb_lab::agent`.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use xen_vusb_lab::agent::AGENT_PORT;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", AGENT_PORT))?;
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        thread::spawn(move || {
            // The client is told everything it can be told; a broken connection is its to notice.
            let _ = serve(stream);
        });
    }
    Ok(())
}

fn serve(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    let mut header = String::new();
    reader.read_line(&mut header)?;
    let fields: Vec<&str> = header.split_whitespace().collect();
    let result = match fields.as_slice() {
        ["exec", len] => exec(&take(&mut reader, len)?),
        ["put", mode, path_len, len] => {
            let path = take(&mut reader, path_len)?;
            let contents = take(&mut reader, len)?;
            put(&path, mode, &contents).map(|()| (0, Vec::new(), Vec::new()))
        }
        ["get", path_len] => {
            let path = take(&mut reader, path_len)?;
            fs::read(text(&path)).map(|contents| (0, contents, Vec::new()))
        }
        ["clock"] => Ok(clock()),
        ["clock", ns] => set_clock(ns).map(|()| clock()),
        ["relay", address] => return relay(reader, writer, address),
        _ => Err(io::Error::other(format!("unknown request {header:?}"))),
    };
    let (status, stdout, stderr) = match result {
        Ok(answer) => answer,
        Err(error) => (255, Vec::new(), error.to_string().into_bytes()),
    };
    writer.write_all(format!("done {status} {} {}\n", stdout.len(), stderr.len()).as_bytes())?;
    writer.write_all(&stdout)?;
    writer.write_all(&stderr)
}

fn take(reader: &mut impl Read, len: &str) -> io::Result<Vec<u8>> {
    let len: usize = len.parse().map_err(io::Error::other)?;
    let mut bytes = vec![0; len];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn exec(command: &[u8]) -> io::Result<(i32, Vec<u8>, Vec<u8>)> {
    let output = Command::new("/bin/sh")
        .arg("-c")
        .arg(text(command))
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .stdin(Stdio::null())
        .output()?;
    let status = output
        .status
        .code()
        .unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
    Ok((status, output.stdout, output.stderr))
}

fn put(path: &[u8], mode: &str, contents: &[u8]) -> io::Result<()> {
    let path = text(path);
    let mode = u32::from_str_radix(mode, 8).map_err(io::Error::other)?;
    if let Some((directory, _)) = path.rsplit_once('/') {
        fs::create_dir_all(directory)?;
    }
    // A running program's file cannot be written ("text file busy"), but it can be replaced.
    let temporary = format!("{path}.new");
    fs::write(&temporary, contents)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(mode))?;
    fs::rename(&temporary, &path)
}

fn clock() -> (i32, Vec<u8>, Vec<u8>) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    (
        0,
        now.map_or(0, |elapsed| elapsed.as_nanos())
            .to_string()
            .into_bytes(),
        Vec::new(),
    )
}

fn set_clock(ns: &str) -> io::Result<()> {
    let ns: i64 = ns.parse().map_err(io::Error::other)?;
    let time = libc::timespec {
        tv_sec: ns / 1_000_000_000,
        tv_nsec: ns % 1_000_000_000,
    };
    // SAFETY: the call reads one timespec, which lives until it returns.
    match unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn relay(mut reader: BufReader<TcpStream>, mut writer: TcpStream, address: &str) -> io::Result<()> {
    let mut onward = TcpStream::connect_timeout(
        &address.parse().map_err(io::Error::other)?,
        std::time::Duration::from_secs(5),
    )?;
    onward.set_nodelay(true)?;
    let mut back = onward.try_clone()?;
    let answers = thread::spawn(move || {
        let _ = io::copy(&mut back, &mut writer);
        let _ = writer.shutdown(Shutdown::Both);
    });
    let _ = io::copy(&mut reader, &mut onward);
    let _ = onward.shutdown(Shutdown::Write);
    let _ = answers.join();
    Ok(())
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! QEMU's machine protocol on a Unix socket: the one persistent way to reach a monitor.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// A session with one QEMU.
pub struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Connect and leave the negotiation mode.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("QEMU's monitor at {}", socket.display()))?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        let mut qmp = Self {
            reader: BufReader::new(stream),
        };
        let mut greeting = String::new();
        qmp.reader.read_line(&mut greeting)?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Run a command; its return value.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let message = json!({ "execute": command, "arguments": arguments });
        self.reader
            .get_mut()
            .write_all(format!("{message}\n").as_bytes())?;
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line)? == 0 {
                bail!("QEMU closed its monitor during {command}");
            }
            let answer: Value = serde_json::from_str(&line)?;
            if let Some(error) = answer.get("error") {
                bail!(
                    "QEMU refused {command}: {}",
                    error["desc"].as_str().unwrap_or("no reason given")
                );
            }
            // Everything else is an event.
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
        }
    }

    /// Run a command of the human monitor, which answers in words and fails in words too.
    pub fn human(&mut self, command: &str) -> Result<String> {
        let value = self.execute("human-monitor-command", json!({ "command-line": command }))?;
        let text = value.as_str().unwrap_or_default().trim().to_owned();
        if text.to_ascii_lowercase().contains("error") {
            bail!("QEMU: {command}: {text}");
        }
        Ok(text)
    }
}

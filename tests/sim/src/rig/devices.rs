// SPDX-License-Identifier: GPL-3.0-or-later
//! The simulated devices of a rig's exporter, as they are handled from outside.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Presses keys, pulls plugs, lets time pass: see the exporter's `sim/control.rs`.
#[derive(Debug)]
pub struct Devices(BufReader<UnixStream>);

impl Devices {
    pub(super) fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path)
            .with_context(|| format!("no simulated devices at {}", path.display()))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Has a command carried out on a device, which is named by its place. Gives the answer.
    ///
    /// # Errors
    /// The reason why not.
    pub fn tell(&mut self, device: &str, command: &str) -> Result<String> {
        self.0
            .get_mut()
            .write_all(format!("{device} {command}\n").as_bytes())?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        match line.trim_end().strip_prefix("ok") {
            Some(answer) => Ok(answer.trim_start().to_owned()),
            None => bail!("{device} {command}: {}", line.trim_end()),
        }
    }

    /// What a device has counted.
    ///
    /// # Errors
    /// When it is not plugged in.
    pub fn counters(&mut self, device: &str) -> Result<BTreeMap<String, u64>> {
        let answer = self.tell(device, "counters")?;
        let pairs = answer.split_whitespace().map(|pair| {
            let (name, value) = pair.split_once('=').context("no counter")?;
            Ok((name.to_owned(), value.parse()?))
        });
        pairs.collect()
    }

    /// How many transfers of an endpoint wait at a device.
    ///
    /// # Errors
    /// When it is not plugged in.
    pub fn waiting(&mut self, device: &str, endpoint: u8) -> Result<usize> {
        Ok(self
            .tell(device, &format!("waiting {endpoint:02x}"))?
            .parse()?)
    }
}

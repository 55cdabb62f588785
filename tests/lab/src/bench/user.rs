// SPDX-License-Identifier: GPL-3.0-or-later
//! A machine that uses a device through the nodes of its class driver, with our test program.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::agent::Agent;
use crate::progress::patience;
use crate::traffic::Tally;

/// A machine that uses a device.
#[derive(Debug, Clone)]
pub struct User {
    /// Its agent.
    pub agent: Agent,
    /// The device's name in its sysfs, `1-3`.
    pub device: String,
    /// Of a guest: controller and port.
    pub plug: (usize, u64),
}

impl User {
    /// Wait until the device is configured.
    pub fn wait_configured(&self) -> Result<()> {
        let start = Instant::now();
        while self
            .agent
            .exec(&format!(
                "test -s /sys/bus/usb/devices/{0}/bConfigurationValue && ls -d /sys/bus/usb/devices/{0}:*",
                self.device
            ))?
            .status
            != 0
        {
            if start.elapsed() > patience(40) {
                bail!(
                    "{} has no configured USB device {}; the end of its kernel log:\n{}",
                    self.agent.name,
                    self.device,
                    self.agent.must("dmesg | tail -n 12")?
                );
            }
            std::thread::sleep(Duration::from_millis(300));
        }
        Ok(())
    }

    /// Path of the first directory of that name pattern below the device, waited for.
    fn find(&self, pattern: &str) -> Result<String> {
        let start = Instant::now();
        loop {
            let found = self.agent.exec(&format!(
                "find \"$(readlink -f /sys/bus/usb/devices/{})\" -type d -name '{pattern}' | head -n 1",
                self.device
            ))?;
            let path = found.stdout.trim();
            if !path.is_empty() {
                return Ok(path.to_owned());
            }
            if start.elapsed() > patience(40) {
                bail!(
                    "{}: no {pattern} of USB device {}; drivers {}; the end of the kernel log:\n{}",
                    self.agent.name,
                    self.device,
                    self.drivers()?,
                    self.agent.must("dmesg | tail -n 12")?
                );
            }
            std::thread::sleep(Duration::from_millis(400));
        }
    }

    /// Device node of that name pattern, in a directory of /dev.
    pub fn node(&self, directory: &str, pattern: &str) -> Result<String> {
        let path = self.find(pattern)?;
        let name = path.rsplit('/').next().unwrap_or_default();
        Ok(format!("{directory}/{name}"))
    }

    /// Its usbfs node.
    pub fn usbfs(&self) -> Result<String> {
        let text = self.agent.must(&format!(
            "cd /sys/bus/usb/devices/{} && printf '/dev/bus/usb/%03d/%03d' $(cat busnum) $(cat devnum)",
            self.device
        ))?;
        Ok(text.trim().to_owned())
    }

    /// The drivers of its interfaces.
    pub fn drivers(&self) -> Result<String> {
        let text = self.agent.must(&format!(
            "for i in /sys/bus/usb/devices/{}:*; do basename \"$(readlink $i/driver || echo none)\"; done | sort -u",
            self.device
        ))?;
        Ok(text.split_whitespace().collect::<Vec<_>>().join("+"))
    }

    /// The same once they had time to be bound; "none (usbfs)" where programs are the driver.
    pub fn node_drivers(&self) -> Result<String> {
        let start = Instant::now();
        loop {
            let drivers = self.drivers()?;
            if drivers != "none" {
                return Ok(drivers);
            }
            if start.elapsed() > patience(3) {
                return Ok("none (usbfs)".to_owned());
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Start a program that runs on.
    pub fn background(&self, command: &str, log: &str) -> Result<()> {
        self.agent.must(&format!(
            "setsid {command} </dev/null >/run/{log}.out 2>/run/{log}.err &"
        ))?;
        Ok(())
    }

    /// What a program here says of itself.
    pub fn tally(&self, name: &str) -> Result<Tally> {
        Ok(serde_json::from_slice(
            &self.agent.get(&format!("/run/{name}.json"))?,
        )?)
    }

    /// Wait until a program has begun its report.
    pub fn started(&self, name: &str) -> Result<()> {
        let start = Instant::now();
        while self
            .agent
            .exec(&format!("test -s /run/{name}.json"))?
            .status
            != 0
        {
            if start.elapsed() > patience(20) {
                bail!(
                    "{name} has not begun on {}: {}",
                    self.agent.name,
                    self.agent.exec(&format!("cat /run/{name}.err"))?.stdout
                );
            }
            std::thread::sleep(Duration::from_millis(300));
        }
        Ok(())
    }

    /// Ask a program to stop; its last report.
    pub(super) fn stopped(&self, name: &str) -> Result<Tally> {
        self.agent.must(&format!("touch /run/{name}.json.stop"))?;
        let start = Instant::now();
        loop {
            let tally = self.tally(name)?;
            if tally.finished {
                return Ok(tally);
            }
            // A slow headset plays its buffer to the end, and then as much silence.
            if start.elapsed() > patience(120) {
                bail!("{name} does not end on {}: {tally:?}", self.agent.name);
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    pub(super) fn run<T: serde::de::DeserializeOwned>(&self, command: &str) -> Result<T> {
        let text = self.agent.exec_for(command, patience(300))?.ok(command)?;
        serde_json::from_str(&text).with_context(|| format!("{command}: {text:?}"))
    }

    /// A removable disk has no size before its first question.
    pub fn wait_for_medium(&self, disk: &str) -> Result<()> {
        let name = disk.trim_start_matches("/dev/");
        let start = Instant::now();
        while self
            .agent
            .exec(&format!("test $(cat /sys/block/{name}/size) -gt 0"))?
            .status
            != 0
        {
            if start.elapsed() > patience(30) {
                bail!(
                    "{disk} has no medium: {}",
                    self.agent.must("dmesg | tail -n 8")?
                );
            }
            std::thread::sleep(Duration::from_millis(300));
        }
        Ok(())
    }
}

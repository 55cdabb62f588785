// SPDX-License-Identifier: GPL-3.0-or-later
//! The exporter of a rig: the real program, with a simulated disk.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Devices, RigOptions, tls_section};
use crate::process::Process;
use crate::programs;

/// Its name in the pool.
pub const EXPORTER: &str = "exporter";
/// The name of another one, where a scenario has two.
pub const SECOND_EXPORTER: &str = "exporter-b";

/// A running `vusb-exporter`.
#[derive(Debug)]
pub struct Exporter {
    process: Process,
    config: PathBuf,
    log: PathBuf,
    port: u16,
    disk: PathBuf,
    control: PathBuf,
    state_dir: PathBuf,
}

impl Exporter {
    pub(super) fn start(dir: &Path, logs: &Path, port: u16, options: &RigOptions) -> Result<Self> {
        let disk = disk_of(dir, options)?;
        let devices = format!(
            "[[simulated]]\nkind = \"disk\"\nfile = \"{}\"\nsize_mib = 64\n{}",
            disk.display(),
            options.devices
        );
        Self::start_with(EXPORTER, dir, logs, port, options, &devices)
    }

    /// The one with [`RigOptions::second_exporter`]'s devices.
    pub(super) fn start_second(
        dir: &Path,
        logs: &Path,
        port: u16,
        options: &RigOptions,
        devices: &str,
    ) -> Result<Self> {
        let disk = disk_of(dir, options)?;
        let devices = devices.replace("{disk}", &disk.display().to_string());
        Self::start_with(SECOND_EXPORTER, dir, logs, port, options, &devices)
    }

    fn start_with(
        name: &str,
        dir: &Path,
        logs: &Path,
        port: u16,
        options: &RigOptions,
        devices: &str,
    ) -> Result<Self> {
        let disk = disk_of(dir, options)?;
        let config = dir.join(format!("{name}.toml"));
        let control = dir.join(format!("{name}.sock"));
        let state_dir = dir.join(format!("{name}-state"));
        let hold = options.hold_seconds;
        let hold = hold.map_or_else(String::new, |s| format!("hold_seconds = {s}\n"));
        let saved_hold = options.saved_hold_seconds.as_deref();
        let saved_hold =
            saved_hold.map_or_else(String::new, |s| format!("saved_hold_seconds = {s}\n"));
        let takeover = options.takeover_seconds;
        let takeover = takeover.map_or_else(String::new, |s| format!("takeover_seconds = {s}\n"));
        let disconnected = options.disconnected_hold_seconds;
        let disconnected = disconnected.map_or_else(String::new, |s| {
            format!("disconnected_hold_seconds = {s}\n")
        });
        let text = format!(
            "{hold}{saved_hold}{takeover}{disconnected}name = \"{name}\"\nlisten = \"127.0.0.1:{port}\"\nstate_dir = \"{}\"\n\
             simulated_control = \"{}\"\n{}{}\
             [usb]\nenabled = false\n{devices}",
            state_dir.display(),
            control.display(),
            tls_section(dir, name),
            options.policy,
        );
        std::fs::write(&config, text)?;
        let log = logs.join(format!("{name}.log"));
        let process = run(&config, &log, port)?;
        Ok(Self {
            process,
            config,
            log,
            port,
            disk,
            control,
            state_dir,
        })
    }

    /// `HOST:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its simulated devices, to be handled from outside.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn devices(&self) -> Result<Devices> {
        Devices::connect(&self.control)
    }

    /// The disk's image.
    pub fn disk(&self) -> &Path {
        &self.disk
    }

    /// Kills it as a crash would, and starts it again.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        self.start_again()
    }

    /// Kills it as a crash would.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill(&mut self) -> Result<()> {
        self.process.signal(libc::SIGKILL);
        self.process.wait().map(drop)
    }

    /// Starts it after it has ended.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_again(&mut self) -> Result<()> {
        self.process = run(&self.config, &self.log, self.port)?;
        Ok(())
    }

    /// Its machine is restarted: everything that is plugged into it is plugged in anew.
    ///
    /// # Errors
    /// When it does not start.
    pub fn reboot(&mut self) -> Result<()> {
        self.kill()?;
        std::fs::write(self.state_dir.join("boot"), "another boot\n")?;
        self.start_again()
    }

    /// Stops it in its tracks (SIGSTOP), or lets it go on: an exporter that does not answer.
    pub fn pause(&self, paused: bool) {
        let signal = if paused { libc::SIGSTOP } else { libc::SIGCONT };
        self.process.signal(signal);
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }

    pub(super) fn stop(self) -> Result<()> {
        self.process.terminate().map(drop)
    }
}

fn disk_of(dir: &Path, options: &RigOptions) -> Result<PathBuf> {
    Ok(match &options.disk {
        Some(disk) => std::path::absolute(disk)?,
        None => dir.join("disk.img"),
    })
}

fn run(config: &Path, log: &Path, port: u16) -> Result<Process> {
    let mut command = Command::new(programs::path("vusb-exporter")?);
    command.arg("--config").arg(config);
    let mut process = Process::start("vusb-exporter", command, log)?;
    process
        .wait_until("listening", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        })
        .context("the exporter does not start")?;
    Ok(process)
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! A guest of a rig: a domain, and the process that runs in it.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use xen::DomId;
use xen_sim::toolstack::DomainConfig;

use super::Rig;
use crate::guest::{Report, Said, Told};
use crate::process::Process;
use crate::programs;

/// The first controller that vusbd makes, where the toolstack makes none.
pub(super) const OWN: u32 = 64;

/// How a guest is made.
#[derive(Clone, Debug)]
pub struct GuestOptions {
    /// The domain.
    pub config: DomainConfig,
    /// Seed of its workload.
    pub seed: u64,
    /// Whether its frontend is the stock one.
    pub stock: bool,
    /// The port of its disk.
    pub port: u8,
    /// How long a command may go nowhere before its driver resets the disk, which counts as an error; for
    /// ever without.
    pub patience: Option<Duration>,
}

impl GuestOptions {
    /// A guest with our module, one controller and a disk at port 1.
    pub fn new(name: &str) -> Self {
        Self {
            config: DomainConfig::new(name),
            seed: 1,
            stock: false,
            port: 1,
            patience: None,
        }
    }
}

/// A running guest.
#[derive(Debug)]
pub struct Guest {
    name: String,
    /// Index of the host that it is on.
    pub host: usize,
    /// Its domain there.
    pub domid: DomId,
    process: Process,
    orders: ChildStdin,
    said: Receiver<Said>,
    last: Report,
}

impl Guest {
    /// `xl create`, and boots the guest; returns when its controller is connected.
    ///
    /// # Errors
    /// Those of the toolstack, or what the guest complains about.
    pub fn start(rig: &Rig, host: usize, options: &GuestOptions) -> Result<Self> {
        let toolstack = &rig.hosts[host].xl;
        let domid = toolstack.create(&options.config)?;
        if !toolstack.dialect().makes_controllers() {
            let wanted = options.config.usbctrl.first().copied().unwrap_or_default();
            let (domid, ports) = (domid.to_string(), wanted.ports.to_string());
            let version = wanted.version.to_string();
            let add = [
                "controller",
                "add",
                &domid,
                "--ports",
                &ports,
                "--usb",
                &version,
            ];
            rig.xl_vusb_json(host, &add)?;
        }
        Self::boot(rig, host, domid, options)
    }

    /// Boots a guest in a domain that `xl create -p` has made for it; returns when its controller is
    /// connected.
    ///
    /// # Errors
    /// Those of the toolstack, or what the guest complains about.
    pub fn boot(rig: &Rig, host: usize, domid: DomId, options: &GuestOptions) -> Result<Self> {
        rig.hosts[host].xl.unpause(domid)?;
        let name = &options.config.name;
        let mut command = Command::new(programs::path("sim-guest")?);
        command.arg("--host-dir").arg(rig.hosts[host].dir());
        command.args(["--domid", &domid.to_string()]);
        command.args(["--seed", &options.seed.to_string()]);
        command.args(["--port", &options.port.to_string()]);
        if !rig.hosts[host].xl.dialect().makes_controllers() {
            command.args(["--devid", &OWN.to_string()]);
        }
        if options.stock {
            command.arg("--stock");
        }
        if let Some(patience) = options.patience {
            command.args(["--patience-ms", &patience.as_millis().to_string()]);
        }
        command.stdout(Stdio::piped());
        let log = rig.logs().join(format!("guest-{name}.log"));
        let mut process = Process::start("sim-guest", command, &log)?;
        let orders = process.take_stdin().context("no pipe to the guest")?;
        let stdout = process.take_stdout().context("no pipe from the guest")?;
        let (sender, said) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let Ok(event) = serde_json::from_str(&line) else {
                    return;
                };
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        let mut guest = Self {
            name: name.clone(),
            host,
            domid,
            process,
            orders,
            said,
            last: Report::default(),
        };
        let connected = |said: &Said| matches!(said, Said::Connected);
        guest.wait_for("connects", Duration::from_secs(20), connected)?;
        Ok(guest)
    }

    /// Starts one at the first host, attaches the rig's disk to it, and waits until it works on it.
    ///
    /// # Errors
    /// As [`start`](Self::start), or the message of `xl-vusb`.
    pub fn start_working(rig: &Rig, options: &GuestOptions) -> Result<Self> {
        let mut guest = Self::start(rig, 0, options)?;
        rig.attach_disk(&guest)?;
        guest.wait_working()?;
        Ok(guest)
    }

    /// The domain's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it last said of itself.
    pub fn last_report(&self) -> &Report {
        &self.last
    }

    /// Waits until it says something that `wanted` accepts.
    ///
    /// # Errors
    /// When it fails, ends, or is silent about it for too long.
    pub fn wait_for(
        &mut self,
        what: &str,
        limit: Duration,
        mut wanted: impl FnMut(&Said) -> bool,
    ) -> Result<Said> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let said = match self.said.recv_timeout(left) {
                Ok(said) => said,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("guest {} never {what} within {limit:?}", self.name)
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("guest {} ended: {}", self.name, self.process.log_tail())
                }
            };
            match &said {
                Said::Progress(report) | Said::Stopped(report) => self.last = report.clone(),
                Said::Failed { reason, report } => {
                    self.last = report.clone();
                    if !wanted(&said) {
                        bail!("guest {} failed: {reason}", self.name);
                    }
                }
                _ => {}
            }
            if wanted(&said) {
                return Ok(said);
            }
        }
    }

    /// Waits until it has found the disk and read it.
    ///
    /// # Errors
    /// As [`wait_for`](Self::wait_for).
    pub fn wait_ready(&mut self) -> Result<()> {
        let ready = |said: &Said| matches!(said, Said::Ready { .. });
        self.wait_for("finds its disk", Duration::from_secs(60), ready)
            .map(drop)
    }

    /// Waits until it has found the disk and worked on it.
    ///
    /// # Errors
    /// As [`wait_for`](Self::wait_for).
    pub fn wait_working(&mut self) -> Result<()> {
        self.wait_ready()?;
        self.wait_commands(5)
    }

    /// Looks for so long whether its workload stands still, apart from a command that was answered already.
    ///
    /// # Errors
    /// When it goes on, or as [`wait_for`](Self::wait_for).
    pub fn stands_still(&mut self, time: Duration) -> Result<()> {
        let before = self.report()?.commands;
        std::thread::sleep(time);
        let after = self.report()?.commands;
        if after > before + 1 {
            bail!(
                "guest {} went on from command {before} to {after}",
                self.name
            );
        }
        Ok(())
    }

    /// Waits until its workload has carried out so many commands more.
    ///
    /// # Errors
    /// As [`wait_for`](Self::wait_for).
    pub fn wait_commands(&mut self, more: u64) -> Result<()> {
        let goal = self.report()?.commands + more;
        let reached =
            |said: &Said| matches!(said, Said::Progress(report) if report.commands >= goal);
        self.wait_for("goes on working", Duration::from_secs(30), reached)
            .map(drop)
    }

    /// Waits for the end of a suspend; gives whether it was cancelled, and its blackout.
    ///
    /// # Errors
    /// As [`wait_for`](Self::wait_for).
    pub fn wait_resumed(&mut self) -> Result<(bool, Duration)> {
        let resumed = |said: &Said| matches!(said, Said::Resumed { .. });
        match self.wait_for(
            "goes on after its suspend",
            Duration::from_secs(30),
            resumed,
        )? {
            Said::Resumed {
                cancelled,
                blackout_us,
                ..
            } => Ok((cancelled, Duration::from_micros(blackout_us))),
            _ => unreachable!("only this was waited for"),
        }
    }

    /// What it has seen so far.
    ///
    /// # Errors
    /// As [`wait_for`](Self::wait_for).
    pub fn report(&mut self) -> Result<Report> {
        // What it says from now on is new.
        while let Ok(said) = self.said.try_recv() {
            if let Said::Failed { reason, .. } = said {
                bail!("guest {} failed: {reason}", self.name);
            }
        }
        self.tell(Told::Report)?;
        let progress = |said: &Said| matches!(said, Said::Progress(_));
        self.wait_for("reports", Duration::from_secs(20), progress)?;
        Ok(self.last.clone())
    }

    /// Has it finish and unload its driver, and destroys the domain. Gives its last words.
    ///
    /// # Errors
    /// When it fails at the end, or its domain cannot be destroyed.
    pub fn stop(mut self, rig: &Rig) -> Result<Report> {
        self.tell(Told::Stop)?;
        let stopped = |said: &Said| matches!(said, Said::Stopped(_));
        self.wait_for("stops", Duration::from_secs(30), stopped)?;
        let status = self.process.wait()?;
        if !status.success() {
            bail!("guest {}: {status}: {}", self.name, self.process.log_tail());
        }
        rig.hosts[self.host].xl.destroy(self.domid)?;
        Ok(self.last)
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }

    fn tell(&mut self, told: Told) -> Result<()> {
        let mut line = serde_json::to_string(&told)?;
        line.push('\n');
        self.orders
            .write_all(line.as_bytes())
            .with_context(|| format!("guest {} ended: {}", self.name, self.process.log_tail()))
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! A guest with a disk: the workload, and what becomes of it in a suspend.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use frontend_shim::storage::Disk;
use frontend_shim::{ResumeMode, TransferError};
use usbif::{PortNumber, Speed};
use xen::DomId;

use super::driver::{self, Data, Driver};
use super::kernel::{FREEZE_TIMEOUT, Kernel};
use super::meter::Meter;
use super::model::{Model, Operation};
use super::patience::Patience;
use super::{Report, Said, Told};
use crate::random::Random;

/// Longest wait for the backend's signal, to look at the rest of the world.
const LOOK_AROUND: Duration = Duration::from_millis(5);
/// How long after "no such device" the port may still say that there is one.
const NEWS_TIMEOUT: Duration = Duration::from_secs(1);
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// Largest disk that the model keeps in memory.
const MAX_DISK_BYTES: u64 = 1 << 30;

/// Where a guest runs and what it does.
#[derive(Clone, Debug)]
pub struct Options {
    /// The host's directory.
    pub host_dir: PathBuf,
    /// Its domain.
    pub domid: u16,
    /// Its controller.
    pub devid: u32,
    /// The disk's port.
    pub port: u8,
    /// Seed of the workload.
    pub seed: u64,
    /// What the frontend does on resume.
    pub mode: ResumeMode,
    /// How long a command may go nowhere before it is given up and its device reset; for ever without.
    pub patience: Option<Duration>,
}

/// The running guest.
pub struct Machine {
    kernel: Kernel,
    port: PortNumber,
    seed: u64,
    orders: Receiver<Told>,
    report: Report,
    meter: Meter,
    model: Option<Model>,
    driver: Option<Driver>,
    /// What is being carried out, or is to be again.
    operation: Option<Operation>,
    /// The next block to learn; the workload begins when all are known.
    learning: u32,
    stopping: bool,
    /// The device is gone by what its answers say; the news on the port may come a moment later.
    gone: Option<(Instant, anyhow::Error)>,
    /// A transfer failed, and with it the command: the device is reset and the command repeated, as
    /// Linux's usb-storage does.
    broken: bool,
    patience: Patience,
}

impl Machine {
    /// Boots: waits until the domain is unpaused, and connects the frontend.
    ///
    /// # Errors
    /// What failed.
    pub fn boot(options: &Options) -> Result<Self> {
        let Options {
            host_dir,
            domid,
            devid,
            mode,
            ..
        } = options;
        let kernel = Kernel::boot_with(host_dir, DomId(*domid), *devid, *mode)?;
        say(&Said::Connected)?;
        Ok(Self {
            kernel,
            port: PortNumber::new(options.port).context("ports are 1 to 31")?,
            seed: options.seed,
            orders: listen(),
            report: Report::default(),
            meter: Meter::new(Instant::now()),
            model: None,
            driver: None,
            operation: None,
            learning: 0,
            stopping: false,
            gone: None,
            broken: false,
            patience: Patience::new(options.patience, Instant::now()),
        })
    }

    /// Runs until it is told to stop, or cannot go on.
    ///
    /// # Errors
    /// Why it could not go on; it was said, too.
    pub fn run(mut self) -> Result<()> {
        let result = self.work();
        let report = self.report();
        match &result {
            Ok(()) => say(&Said::Stopped(report))?,
            Err(e) => say(&Said::Failed {
                reason: format!("{e:#}"),
                report,
            })?,
        }
        if result.is_ok() {
            // A guest that shuts down unloads its drivers; the host checks what is still mapped.
            self.kernel.shut_down()?;
        }
        result
    }

    fn work(&mut self) -> Result<()> {
        let mut said = Instant::now();
        loop {
            self.take_orders()?;
            if self.advance()? {
                return Ok(());
            }
            // Sent first, so that a suspend always comes in the middle of a command.
            self.kernel.host().step()?;
            if self.kernel.suspend_requested()? {
                self.suspend()?;
            }
            self.kernel.host().wait(LOOK_AROUND)?;
            self.take_completions()?;
            self.look_stuck();
            if self.kernel.host().front().is_dead() {
                bail!(
                    "the backend broke the protocol: {:?}",
                    self.report().violations
                );
            }
            let now = Instant::now();
            if let Some(blackout) = self.meter.take_blackout(now) {
                say(&Said::Resumed {
                    cancelled: blackout.cancelled,
                    domid: self.kernel.domid().0,
                    blackout_us: blackout.longest.as_micros() as u64,
                })?;
            }
            if now - said > PROGRESS_EVERY {
                said = now;
                say(&Said::Progress(self.report()))?;
            }
        }
    }

    fn take_orders(&mut self) -> Result<()> {
        while let Ok(order) = self.orders.try_recv() {
            match order {
                Told::Report => say(&Said::Progress(self.report()))?,
                Told::Stop => self.stopping = true,
            }
        }
        Ok(())
    }

    fn report(&mut self) -> Report {
        let counters = self.kernel.host().counters();
        let wrongs = self.kernel.wrongs();
        Report {
            disconnects: counters.disconnects,
            duplicated: wrongs.duplicated,
            unlinked: self.report.unlinked + counters.recalled,
            violations: wrongs.texts,
            ..self.report.clone()
        }
    }

    // ---- the disk

    /// Starts what is next. True when there is nothing more to do.
    fn advance(&mut self) -> Result<bool> {
        let Some(driver) = &mut self.driver else {
            let plugged = self.kernel.host().front().speed(self.port) != Speed::None;
            if plugged && let Err(e) = self.open_disk() {
                self.patience.failed(e)?;
            }
            return Ok(self.stopping && !plugged);
        };
        if driver.in_flight() > 0 || self.gone.is_some() {
            return Ok(false);
        }
        if std::mem::take(&mut self.broken) {
            if let Some(driver) = self.driver.take() {
                driver.close(self.kernel.host());
            }
            // The next look finds it, and begins with it.
            return Ok(false);
        }
        if let Some(operation) = self.operation {
            if !driver.is_done(self.kernel.host())? {
                self.report.urbs += driver.submit(self.kernel.host())?;
                return Ok(false);
            }
            self.operation = None;
            self.finished(operation)?;
        }
        let Some(next) = self.next_operation() else {
            return Ok(true);
        };
        self.start(next)?;
        Ok(false)
    }

    fn open_disk(&mut self) -> Result<()> {
        let host = self.kernel.host();
        let device = host.enumerate(self.port)?;
        let disk = Disk::open(host, &device)?;
        let capacity = disk.capacity();
        disk.close(host);
        if capacity.len_bytes() > MAX_DISK_BYTES {
            bail!("a disk of more than {MAX_DISK_BYTES} bytes");
        }
        self.driver = Some(Driver::open(host, &device)?);
        if self.model.is_none() {
            let block_bytes = capacity.block_bytes as usize;
            self.model = Some(Model::new(capacity.blocks, block_bytes, self.seed));
        }
        if let Some(operation) = self.operation {
            // What was interrupted is done again on the new device.
            self.start(operation)?;
        }
        Ok(())
    }

    fn next_operation(&mut self) -> Option<Operation> {
        let model = self.model.as_mut()?;
        let blocks = (model.len_bytes() / model.block_bytes()) as u32;
        if self.learning < blocks {
            let most = (driver::MAX_DATA_BYTES / model.block_bytes()) as u32;
            return Some(Operation::Read {
                block: self.learning,
                count: most.min(blocks - self.learning) as u16,
            });
        }
        if !self.stopping {
            return Some(model.next_operation());
        }
        // The last command is a sync; with its end everything is on the disk.
        match self.report.sha256 {
            None => {
                self.report.sha256 = Some(model.sha256());
                Some(Operation::Sync)
            }
            Some(_) => None,
        }
    }

    fn start(&mut self, operation: Operation) -> Result<()> {
        let (Some(driver), Some(model)) = (&mut self.driver, &self.model) else {
            bail!("no disk");
        };
        let host = self.kernel.host();
        let bytes = |count: u16| usize::from(count) * model.block_bytes();
        match operation {
            Operation::Read { block, count } => {
                let command = driver::ten(driver::READ_10, block, count);
                driver.start(host, &command, Data::In(bytes(count)))?;
            }
            Operation::Write { block, count, seed } => {
                let mut data = vec![0; bytes(count)];
                Random::new(seed).fill(&mut data);
                host.write_buffer(driver.data(), 0, &data)?;
                let command = driver::ten(driver::WRITE_10, block, count);
                driver.start(host, &command, Data::Out(data.len()))?;
            }
            Operation::Sync => {
                let command = driver::ten(driver::SYNCHRONIZE_CACHE_10, 0, 0);
                driver.start(host, &command, Data::None)?;
            }
        }
        self.report.urbs += driver.submit(host)?;
        self.operation = Some(operation);
        Ok(())
    }

    /// A command was carried out.
    fn finished(&mut self, operation: Operation) -> Result<()> {
        let (Some(driver), Some(model)) = (&self.driver, &mut self.model) else {
            bail!("no disk");
        };
        self.report.commands += 1;
        match operation {
            Operation::Read { block, count } => {
                let mut data = vec![0; usize::from(count) * model.block_bytes()];
                let host = self.kernel.host();
                host.read_buffer(driver.data(), 0, &mut data)?;
                self.report.bytes_read += data.len() as u64;
                if block >= self.learning {
                    model.learn(block, &data);
                    self.learning += u32::from(count);
                    if self.learning as usize * model.block_bytes() == model.len_bytes() {
                        let len_bytes = model.len_bytes() as u64;
                        say(&Said::Ready { len_bytes })?;
                    }
                } else if !model.matches(block, &data) {
                    self.report.mismatches += 1;
                }
            }
            Operation::Write { block, count, seed } => {
                model.written(block, count, seed);
                self.report.bytes_written += (usize::from(count) * model.block_bytes()) as u64;
            }
            Operation::Sync => {}
        }
        Ok(())
    }

    fn take_completions(&mut self) -> Result<()> {
        let now = Instant::now();
        while let Some(completion) = self.kernel.host().next_completion() {
            self.patience.moved(now);
            match completion.result {
                Ok(()) => self.meter.completed(now),
                Err(TransferError::Unlinked) => self.report.unlinked += 1,
                // Given back by the frontend itself, because no answer can come any more.
                Err(TransferError::Shutdown) => self.report.lost += 1,
                Err(_) => self.report.errors += 1,
            }
            let Some(driver) = &mut self.driver else {
                continue;
            };
            if let Err(e) = driver.completed(&completion) {
                match completion.result {
                    Err(TransferError::NoDevice) => drop(self.gone.get_or_insert((now, e))),
                    Err(error) if !self.broken && self.patience.resets_after(error) => {
                        self.broken = true;
                        driver.unlink(self.kernel.host());
                    }
                    _ if self.broken => {}
                    _ => return Err(e),
                }
            }
        }
        let mut pulled = false;
        while let Some(change) = self.kernel.host().next_port_change() {
            pulled |= change.port == self.port && change.was != Speed::None;
        }
        if pulled {
            self.gone = None;
            self.broken = false;
            say(&Said::Unplugged)?;
            return self.drop_disk();
        }
        if self
            .gone
            .as_ref()
            .is_some_and(|(since, _)| since.elapsed() > NEWS_TIMEOUT)
            && let Some((_, error)) = self.gone.take()
        {
            return Err(error);
        }
        Ok(())
    }

    /// A command that goes nowhere is given up, and its device reset.
    fn look_stuck(&mut self) {
        let now = Instant::now();
        match &self.driver {
            Some(driver) if driver.in_flight() > 0 && !self.broken => {
                if self.patience.is_over(now) {
                    self.broken = true;
                    self.report.errors += 1;
                    driver.unlink(self.kernel.host());
                }
            }
            _ => self.patience.moved(now),
        }
    }

    /// The device is gone: waits until everything is given back.
    fn drop_disk(&mut self) -> Result<()> {
        let Some(mut driver) = self.driver.take() else {
            return Ok(());
        };
        let deadline = Instant::now() + FREEZE_TIMEOUT;
        while driver.in_flight() > 0 {
            if Instant::now() > deadline {
                bail!("URBs of a device that is gone are not answered");
            }
            self.kernel.host().wait(LOOK_AROUND)?;
            while let Some(completion) = self.kernel.host().next_completion() {
                // Whatever became of it.
                let _ = driver.completed(&completion);
            }
        }
        driver.close(self.kernel.host());
        Ok(())
    }

    // ---- suspend

    fn suspend(&mut self) -> Result<()> {
        self.meter.suspending();
        self.kernel.acknowledge_suspend()?;
        if let Some(driver) = self.driver.as_ref().filter(|_| !self.kernel.is_unnoticed()) {
            driver.unlink(self.kernel.host());
        }
        self.kernel.freeze()?;
        self.take_completions()?;
        // A command that has failed does not go on.
        let driver = self.driver.as_mut().filter(|_| !self.broken);
        let mut submitted = Ok(0);
        let mut resumed_at = None;
        let cancelled = self.kernel.suspend(|host| {
            resumed_at = Some(Instant::now());
            if let Some(driver) = driver {
                submitted = driver.submit(host);
            }
        })?;
        self.report.urbs += submitted?;
        self.patience.moved(Instant::now());
        self.meter
            .resumed(resumed_at.unwrap_or_else(Instant::now), cancelled);
        Ok(())
    }
}

fn say(said: &Said) -> Result<()> {
    let mut line = serde_json::to_string(said)?;
    line.push('\n');
    std::io::stdout().write_all(line.as_bytes())?;
    Ok(())
}

/// Reads orders in a thread of its own, until the input ends.
fn listen() -> Receiver<Told> {
    let (sender, orders) = mpsc::channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let Ok(told) = serde_json::from_str(&line) else {
                eprintln!("not understood: {line}");
                continue;
            };
            if sender.send(told).is_err() {
                return;
            }
        }
    });
    orders
}

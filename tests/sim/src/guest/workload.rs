// SPDX-License-Identifier: GPL-3.0-or-later
//! Drivers at work in a guest of this process, on a thread of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use frontend_shim::{Completion, UsbHost};
use usbif::Speed;
use xen_sim::SimGuest;

use super::kernel::Kernel;

/// Longest wait for the backend's signal, to look at the rest of the world.
const LOOK_AROUND: Duration = Duration::from_millis(5);
/// How long a scenario waits for something that is to happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a driver does with data that comes with an IN URB which it has unlinked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnlinkedData {
    /// As Linux's drivers: it does not look.
    Dropped,
    /// It takes it.
    Taken,
}

/// A driver of one device. Blocking operations are not for it: others work beside it.
pub trait Driver: Send {
    /// Submits what is to be in flight now. When not `busy`, it begins nothing new.
    ///
    /// # Errors
    /// Why it cannot go on.
    fn submit(&mut self, host: &mut UsbHost<SimGuest>, busy: bool) -> Result<()>;

    /// Takes everything back, the last first, as the USB core does before a suspend.
    fn unlink(&mut self, host: &mut UsbHost<SimGuest>);

    /// A suspend is about to happen that it does not notice. For what it counts.
    fn suspended(&mut self) {}

    /// A URB is over; answers whether it was this driver's.
    ///
    /// # Errors
    /// What is wrong with it.
    fn completed(&mut self, host: &mut UsbHost<SimGuest>, completion: &Completion) -> Result<bool>;
}

/// What the thread and the scenario tell each other.
#[derive(Debug, Default)]
pub struct Shared {
    stop: AtomicBool,
    /// Drivers begin nothing new.
    quiet: AtomicBool,
    /// From the request to suspend until drivers have submitted again.
    blackout: AtomicBool,
    /// Suspends that are over, and those of them that were cancelled.
    suspends: AtomicU64,
    cancelled: AtomicU64,
    /// Devices pulled out.
    disconnects: AtomicU64,
}

impl Shared {
    /// Whether the guest is on its way through a suspend.
    pub fn is_blackout(&self) -> bool {
        self.blackout.load(Ordering::SeqCst)
    }

    /// Suspends that are over.
    pub fn suspends(&self) -> u64 {
        self.suspends.load(Ordering::SeqCst)
    }

    /// Those of [`suspends`](Self::suspends) that were cancelled.
    pub fn cancelled(&self) -> u64 {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// Devices that were pulled out.
    pub fn disconnects(&self) -> u64 {
        self.disconnects.load(Ordering::SeqCst)
    }

    /// Has the drivers finish what they have begun, or begin new things again.
    pub fn set_quiet(&self, quiet: bool) {
        self.quiet.store(quiet, Ordering::SeqCst);
    }
}

/// The guest at work.
pub struct Workload {
    shared: Arc<Shared>,
    thread: JoinHandle<Result<Kernel>>,
}

impl Workload {
    /// Sets the drivers to work.
    pub fn start(kernel: Kernel, drivers: Vec<Box<dyn Driver>>) -> Self {
        let shared = Arc::new(Shared::default());
        let worker = Worker {
            kernel,
            drivers,
            shared: shared.clone(),
        };
        let thread = std::thread::spawn(move || worker.run());
        Self { shared, thread }
    }

    /// What the thread and the scenario tell each other.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Waits until `done`.
    ///
    /// # Errors
    /// When the guest ends before, or nothing comes of it. [`finish`](Self::finish) has the reason.
    pub fn wait_until(&self, what: &str, done: impl FnMut() -> bool) -> Result<()> {
        self.wait_while(what, || 0, done)
    }

    /// Waits until `done`, however long it takes on a busy machine, as long as what `so_far` counts
    /// goes on.
    ///
    /// # Errors
    /// As [`wait_until`](Self::wait_until).
    pub fn wait_while(
        &self,
        what: &str,
        mut so_far: impl FnMut() -> u64,
        mut done: impl FnMut() -> bool,
    ) -> Result<()> {
        let mut deadline = Instant::now() + PATIENCE;
        let mut before = so_far();
        while !done() {
            if self.thread.is_finished() {
                bail!("the guest ended before {what}");
            }
            let now = so_far();
            if now != before {
                before = now;
                deadline = Instant::now() + PATIENCE;
            }
            if Instant::now() > deadline {
                bail!("never {what}");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Has the drivers take back what is in flight, and gives the kernel back.
    ///
    /// # Errors
    /// Why it could not go on before.
    pub fn finish(self) -> Result<Kernel> {
        self.shared.stop.store(true, Ordering::SeqCst);
        let result = self.thread.join();
        result.map_err(|_| anyhow!("the guest's thread panicked"))?
    }
}

struct Worker {
    kernel: Kernel,
    drivers: Vec<Box<dyn Driver>>,
    shared: Arc<Shared>,
}

impl Worker {
    fn run(mut self) -> Result<Kernel> {
        while !self.shared.stop.load(Ordering::SeqCst) {
            self.submit()?;
            self.kernel.host().step()?;
            if self.kernel.suspend_requested()? {
                self.suspend()?;
            }
            self.kernel.host().wait(LOOK_AROUND)?;
            self.take_completions()?;
            if self.kernel.host().front().is_dead() {
                let texts = self.kernel.wrongs().texts;
                bail!("the backend broke the protocol: {texts:?}");
            }
        }
        self.quiesce()?;
        self.kernel.host().thaw();
        Ok(self.kernel)
    }

    fn submit(&mut self) -> Result<()> {
        let busy = !self.shared.quiet.load(Ordering::SeqCst);
        let host = self.kernel.host();
        for driver in &mut self.drivers {
            driver.submit(host, busy)?;
        }
        Ok(())
    }

    fn take_completions(&mut self) -> Result<()> {
        let host = self.kernel.host();
        while let Some(completion) = host.next_completion() {
            let mut taken = false;
            for driver in &mut self.drivers {
                taken = taken || driver.completed(host, &completion)?;
            }
            if !taken {
                bail!("a completion of nobody's URB: {completion:?}");
            }
        }
        while let Some(change) = host.next_port_change() {
            if change.was != Speed::None {
                self.shared.disconnects.fetch_add(1, Ordering::SeqCst);
            }
        }
        Ok(())
    }

    fn quiesce(&mut self) -> Result<()> {
        for driver in &mut self.drivers {
            driver.unlink(self.kernel.host());
        }
        self.kernel.freeze()?;
        self.take_completions()
    }

    fn suspend(&mut self) -> Result<()> {
        self.shared.blackout.store(true, Ordering::SeqCst);
        self.kernel.acknowledge_suspend()?;
        if self.kernel.is_unnoticed() {
            self.kernel.freeze()?;
            self.take_completions()?;
            self.drivers.iter_mut().for_each(|d| d.suspended());
        } else {
            self.quiesce()?;
        }
        let busy = !self.shared.quiet.load(Ordering::SeqCst);
        let (drivers, mut submitted) = (&mut self.drivers, Ok(()));
        let cancelled = self.kernel.suspend(|host| {
            submitted = drivers.iter_mut().try_for_each(|d| d.submit(host, busy));
        })?;
        submitted.context("a driver that resumes")?;
        if cancelled {
            self.submit()?;
            self.shared.cancelled.fetch_add(1, Ordering::SeqCst);
        }
        self.kernel.host().step()?;
        self.shared.blackout.store(false, Ordering::SeqCst);
        self.shared.suspends.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

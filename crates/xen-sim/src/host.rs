// SPDX-License-Identifier: GPL-3.0-or-later
//! One simulated host: its sockets and threads.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::hypervisor::{self, Hypervisor};
use crate::seqpacket::Listener;
use crate::signal::StopSignals;
use crate::violations::Violations;
use crate::xenstored::Server;

/// How a host behaves.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// Its name, for messages.
    pub name: String,
    /// The first domain's number. Different hosts should start differently.
    pub first_domid: u16,
    /// Seed of what happens at random.
    pub seed: u64,
    /// Spurious events a second, over all bound event channels; 0 for none.
    pub spurious_per_s: u32,
}

impl HostOptions {
    /// A host with some spurious events.
    pub fn new(name: &str) -> HostOptions {
        HostOptions {
            name: name.to_owned(),
            first_domid: 1,
            seed: 1,
            spurious_per_s: 20,
        }
    }
}

/// A running host. Stopped when dropped.
#[derive(Debug)]
pub struct SimHost {
    dir: PathBuf,
    hypervisor: Arc<Hypervisor>,
    xenstored: Arc<Server>,
    listener: Arc<Listener>,
    stopping: Arc<AtomicBool>,
    stop: Mutex<Receiver<()>>,
}

impl SimHost {
    /// Starts a host with its sockets in `dir`, which is made if it does not exist. The path must
    /// be short: socket paths end at 107 bytes.
    pub fn start(dir: &Path, options: &HostOptions) -> io::Result<SimHost> {
        std::fs::create_dir_all(dir)?;
        let dir = dir.canonicalize()?;
        if dir.to_str().is_none() {
            // The guest is told of it in a JSON document.
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the directory's name is not UTF-8",
            ));
        }
        let violations = Violations::open(&dir, &options.name)?;
        let (exception, exceptions) = mpsc::channel();
        let (stop_sender, stop) = mpsc::channel();
        let hypervisor = Arc::new(Hypervisor::new(
            dir.clone(),
            violations,
            options.first_domid,
            exception,
            stop_sender,
        ));
        let xenstored = Server::start(dir.clone(), hypervisor.clone())?;
        let listener = Arc::new(Listener::bind(&dir.join("hypervisor.sock"))?);
        let stopping = Arc::new(AtomicBool::new(false));
        let host = SimHost {
            dir,
            hypervisor,
            xenstored,
            listener,
            stopping,
            stop: Mutex::new(stop),
        };
        host.start_threads(exceptions, options)?;
        Ok(host)
    }

    fn start_threads(&self, exceptions: Receiver<()>, options: &HostOptions) -> io::Result<()> {
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.to_owned()).spawn(run)
        };
        let (hypervisor, listener) = (self.hypervisor.clone(), self.listener.clone());
        spawn(
            "hypervisor",
            Box::new(move || hypervisor::serve(&hypervisor, &listener)),
        )?;
        // Ends with the hypervisor, which holds the sender.
        let xenstored = Arc::downgrade(&self.xenstored);
        spawn(
            "virq",
            Box::new(move || {
                for () in exceptions {
                    let Some(xenstored) = xenstored.upgrade() else {
                        break;
                    };
                    xenstored.check_domains();
                }
            }),
        )?;
        if options.spurious_per_s > 0 {
            let interval = Duration::from_secs(1) / options.spurious_per_s;
            let (hypervisor, stopping) = (self.hypervisor.clone(), self.stopping.clone());
            let mut random = options.seed | 1;
            let run = move || {
                while !stopping.load(Ordering::Relaxed) {
                    std::thread::sleep(interval);
                    hypervisor.fire_spurious(next_random(&mut random));
                }
            };
            spawn("spurious", Box::new(run))?;
        }
        Ok(())
    }

    /// Where its sockets are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What was observed that must not be.
    pub fn violations(&self) -> Vec<String> {
        self.hypervisor.violations.list()
    }

    /// Stops the host at a signal.
    pub fn stop_on(&self, signals: StopSignals) -> io::Result<()> {
        let hypervisor = self.hypervisor.clone();
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                signals.wait();
                hypervisor.request_stop();
            })?;
        Ok(())
    }

    /// Waits until the toolstack or a signal asks the host to stop.
    pub fn wait_for_stop(&self) {
        let _ = self.stop.lock().expect("no holder panics").recv();
    }

    /// Closes everything and makes the last checks. Gives all violations.
    pub fn stop(self) -> Vec<String> {
        self.hypervisor.check_zombies();
        self.violations()
    }
}

impl Drop for SimHost {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.listener.shutdown();
        self.hypervisor.cut_off_guests();
        self.xenstored.stop();
    }
}

/// Xorshift: random enough to pick a victim, and the same for the same seed.
fn next_random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

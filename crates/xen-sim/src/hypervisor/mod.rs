// SPDX-License-Identifier: GPL-3.0-or-later
//! The hypervisor of one host: domains, event channels, and who has mapped what.

mod domain;
mod ports;
mod service;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use xen::{Access, DomId, GrantRef};

use crate::grant_table::{DomainView, Locker};
use crate::maptrack::Maptrack;
use crate::violations::Violations;

pub(crate) use ports::{fire, take};
pub(crate) use service::serve;

use domain::Domain;
use ports::Ports;

/// One host's hypervisor, shared by all threads that serve it.
#[derive(Debug)]
pub(crate) struct Hypervisor {
    /// Where the host's sockets are: a guest that is resumed here is told.
    pub(crate) dir: PathBuf,
    pub(crate) violations: Violations,
    machine: Mutex<Machine>,
    /// Signalled when a domain is unpaused or gone.
    changed: Condvar,
    /// `VIRQ_DOM_EXC`: tells xenstored that a domain has shut down or is gone.
    exception: Sender<()>,
    /// Tells the main thread to end.
    stop: Sender<()>,
}

#[derive(Debug)]
struct Machine {
    next_domid: u16,
    next_connection: Locker,
    domains: BTreeMap<DomId, Domain>,
    ports: Ports,
    backends: HashMap<Locker, BackendProcess>,
    /// Domains that ended while a backend still had their pages mapped.
    zombies: Vec<Arc<DomainView>>,
}

#[derive(Debug)]
struct BackendProcess {
    maptrack: Maptrack,
    pid: i32,
}

impl BackendProcess {
    fn is_gone(&self) -> bool {
        !std::path::Path::new(&format!("/proc/{}", self.pid)).exists()
    }
}

impl Hypervisor {
    pub(crate) fn new(
        dir: PathBuf,
        violations: Violations,
        first_domid: u16,
        exception: Sender<()>,
        stop: Sender<()>,
    ) -> Hypervisor {
        Hypervisor {
            dir,
            violations,
            machine: Mutex::new(Machine {
                next_domid: first_domid.max(1),
                next_connection: 1,
                domains: BTreeMap::new(),
                ports: Ports::default(),
                backends: HashMap::new(),
                zombies: Vec::new(),
            }),
            changed: Condvar::new(),
            exception,
            stop,
        }
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().expect("no holder panics")
    }

    /// What xenstored asks about a domain: `None` when there is none, else whether it has shut
    /// down.
    pub(crate) fn domain_state(&self, dom: DomId) -> Option<bool> {
        let machine = self.machine();
        machine
            .domains
            .get(&dom)
            .map(|domain| domain.shutdown.is_some())
    }

    /// Fires some bound event channel without a reason.
    pub(crate) fn fire_spurious(&self, choice: u64) {
        self.machine().ports.fire_spurious(choice);
    }

    /// A new backend connection, with its track record.
    fn add_backend(&self, pid: i32) -> io::Result<(Locker, std::os::fd::OwnedFd)> {
        // On Xen a process that is gone has left nothing behind; here a thread has to get round to
        // it. A backend that was started in its place finds everything as it would there.
        while self
            .machine()
            .backends
            .values()
            .any(BackendProcess::is_gone)
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        let fd = Maptrack::create()?;
        let maptrack = Maptrack::map(&fd)?;
        let process = BackendProcess { maptrack, pid };
        let mut machine = self.machine();
        let connection = machine.next_connection;
        machine.next_connection += 1;
        machine.backends.insert(connection, process);
        Ok((connection, fd))
    }

    /// What Xen and the kernel do when a backend's process is gone: its event channels are
    /// closed and its grants unmapped.
    fn remove_backend(&self, connection: Locker) {
        let mut machine = self.machine();
        machine.ports.close_owned_by(connection);
        machine.backends.remove(&connection);
        let views: Vec<Arc<DomainView>> = machine
            .domains
            .values()
            .map(|domain| domain.view.clone())
            .chain(machine.zombies.iter().cloned())
            .collect();
        // A table's lock is never taken with the machine's held: its holder may be dead, and
        // whoever sees to that needs the machine.
        drop(machine);
        for view in views {
            // The lock first: under it no backend changes its record for this domain.
            let table = view.lock_from_dead(connection);
            let uses = self.machine().uses_of(view.domid);
            table.recover(&uses);
        }
        self.prune_zombies();
    }

    /// Forgets dead domains whose pages nobody has mapped any more.
    fn prune_zombies(&self) {
        self.machine()
            .zombies
            .retain(|view| !view.is_dying() || !view.in_use().is_empty());
    }

    /// Asks the main thread to end.
    pub(crate) fn request_stop(&self) {
        // Without a receiver it has ended already.
        let _ = self.stop.send(());
    }

    /// The last check, when the host ends.
    pub(crate) fn check_zombies(&self) {
        self.prune_zombies();
        for view in &self.machine().zombies {
            self.violations.report(format!(
                "domain {} is gone but {} of its grants are still mapped",
                view.domid,
                view.in_use().len()
            ));
        }
    }

    /// Wakes every guest process with the end of its domain.
    pub(crate) fn cut_off_guests(&self) {
        let mut machine = self.machine();
        for domain in machine.domains.values_mut() {
            domain.power_off();
        }
        self.changed.notify_all();
    }
}

impl Machine {
    /// (readers, writers) of each grant of a domain, by the records of the living backends.
    fn uses_of(&self, dom: DomId) -> HashMap<GrantRef, (u32, u32)> {
        let mut counts: HashMap<GrantRef, (u32, u32)> = HashMap::new();
        for used in self
            .backends
            .values()
            .flat_map(|process| process.maptrack.uses())
        {
            if used.domid == dom {
                let count = counts.entry(used.gref).or_default();
                match used.access {
                    Access::ReadOnly => count.0 += 1,
                    Access::ReadWrite => count.1 += 1,
                }
            }
        }
        counts
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! The hosts that are or were connected, for the forecasts of `xl-vusb check`.

use std::cell::{Cell, RefCell};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use session::VmUuid;
use session::control::Refusal;
use session::hosts::{HostTable, KnownHost, Software};
use slog::{Logger, warn};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::Hub;
use crate::store::Store;

/// Pause between two saves. A host may connect again and again, and each save wears the disk.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);
/// How often it is noted that hosts are still connected: after a crash the exporter is wrong by so much
/// about when it saw them last.
const NOTE_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// The hosts, and what of them is saved.
pub(super) struct Hosts {
    table: RefCell<HostTable>,
    /// [`HostTable::changes`] of what was saved last.
    saved: Cell<u64>,
    changed: Notify,
}

impl Hosts {
    /// What was saved. Without it the exporter does its work all the same: a file that cannot be read is no
    /// reason not to start.
    pub(super) fn load(store: &Store, log: &Logger) -> Self {
        let hosts = store.load_hosts().unwrap_or_else(|e| {
            warn!(
                log,
                "which hosts were connected before is not known, so xl-vusb check does not list them: {:#}", e
            );
            Vec::new()
        });
        Self {
            table: RefCell::new(HostTable::restore(hosts)),
            saved: Cell::new(0),
            changed: Notify::new(),
        }
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

impl Hub {
    /// A control connection of this host has begun.
    pub(crate) fn host_connected(&self, host: &str) {
        self.hosts.table.borrow_mut().connected(host, now());
        self.hosts.changed.notify_one();
    }

    /// It has ended.
    pub(crate) fn host_disconnected(&self, host: &str) {
        self.hosts.table.borrow_mut().disconnected(host, now());
        self.hosts.changed.notify_one();
    }

    pub(super) fn introduced(&self, host: &str, software: Software) -> Result<(), Refusal> {
        software.check()?;
        self.hosts.table.borrow_mut().introduced(host, software);
        self.hosts.changed.notify_one();
        Ok(())
    }

    pub(super) fn known_hosts(&self, vm: Option<VmUuid>, asking: &str) -> Vec<KnownHost> {
        let table = self.table.borrow();
        let refused = |host: &str| match vm {
            Some(vm) => table.refused_at(vm, asking, host),
            None => Vec::new(),
        };
        self.hosts.table.borrow().known(now(), refused)
    }

    pub(super) fn forget_host(&self, host: &str) -> Result<(), Refusal> {
        self.hosts.table.borrow_mut().forget(host)?;
        self.hosts.changed.notify_one();
        Ok(())
    }

    /// Saves the hosts when something has changed, and from time to time. Never ends.
    pub(crate) async fn keep_hosts(&self) {
        loop {
            let changed = timeout(NOTE_INTERVAL, self.hosts.changed.notified()).await;
            let due = {
                let table = self.hosts.table.borrow();
                let is_new = table.changes() != self.hosts.saved.get();
                is_new || (changed.is_err() && table.any_connected())
            };
            if due {
                self.save_hosts().await;
                sleep(SAVE_INTERVAL).await;
            }
        }
    }

    /// Saves the hosts. A failure is in the log, and the next change tries again.
    pub(crate) async fn save_hosts(&self) {
        let (changes, hosts) = {
            let table = self.hosts.table.borrow();
            (table.changes(), table.saved(now()))
        };
        let store = self.store.clone();
        let written = tokio::task::spawn_blocking(move || store.save_hosts(&hosts)).await;
        match written {
            Ok(Ok(())) => self.hosts.saved.set(changes),
            Ok(Err(e)) => warn!(self.failures, "cannot save the hosts: {}", e),
            // The exporter ends.
            Err(_) => (),
        }
    }
}

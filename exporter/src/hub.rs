// SPDX-License-Identifier: GPL-3.0-or-later
//! Devices, leases, sessions and subscribers: all that connections share.

mod announcements;
mod devices;
mod holders;
mod hosts;
mod in_use;
mod persistent;
mod requests;
mod rules;
mod settings;
mod subscribers;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use session::control::{Event, Refusal};
use session::lease::{AttachRule, HoldTimes, LeaseTable, Policy};
use session::{DeviceId, Lease, LeasePhase};
use slog::{Logger, error, info};
use tokio::sync::{Mutex, Notify};
use tokio::time::sleep;

use self::hosts::Hosts;
use self::in_use::Uses;
use self::rules::Running;
use self::settings::Settings;
pub(crate) use self::subscribers::Events;
use self::subscribers::Subscribers;
use crate::arrivals::Arrivals;
use crate::session_state::Session;
use crate::store::Store;

/// A device and its session.
pub(crate) type SharedSession = Rc<RefCell<Session>>;

/// See the module's documentation.
pub(crate) struct Hub {
    log: Logger,
    started: Instant,
    table: RefCell<LeaseTable>,
    devices: RefCell<BTreeMap<DeviceId, SharedSession>>,
    subscribers: Subscribers,
    arrivals: RefCell<Arrivals>,
    /// VMs of connected hosts.
    running: RefCell<Vec<Running>>,
    rules_due: Notify,
    /// Why rules were not executed, as it was said.
    refused_rules: RefCell<BTreeSet<String>>,
    /// Control connections so far.
    connections: Cell<u64>,
    uses: Uses,
    hosts: Hosts,
    store: Store,
    /// [`LeaseTable::changes`] of what was saved last.
    saved_changes: Arc<Mutex<u64>>,
    deadlines: Notify,
    unsaved: Notify,
    settings: RefCell<Settings>,
    /// Devices whose lease has changed since subscribers were told.
    changed: RefCell<BTreeSet<DeviceId>>,
    unpublished: Notify,
    /// Devices of VMs that are off, which are to be opened.
    to_reserve: RefCell<BTreeSet<DeviceId>>,
    reserves: Notify,
    /// Each host's part of the log. They are never forgotten: only the pool's CA makes new ones.
    logs: RefCell<HashMap<String, Logger>>,
    /// Of failures that happen for every request, when they happen.
    failures: Logger,
}

/// Pause between two rounds in which subscribers are told of leases. A host can change its own thousands
/// of times in a second.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(10);
/// Pause between two saves that nobody waits for: guests and hosts cause them, and each wears the disk.
const SAVE_INTERVAL: Duration = Duration::from_millis(250);

impl Hub {
    pub(crate) fn new(
        log: Logger,
        policy: Policy,
        rules: Vec<AttachRule>,
        hold: HoldTimes,
        store: Store,
    ) -> anyhow::Result<Self> {
        let mut saved = store.load()?;
        match store.was_rebooted() {
            Ok(true) => saved = saved.after_reboot(),
            Ok(false) => (),
            // Nothing says so, and leases end if it is taken for one.
            Err(e) => error!(
                log,
                "a restart of this machine goes unnoticed, so a guest may go on with a \
                device that had lost power: {:#}",
                e
            ),
        }
        let mut table = LeaseTable::restore(policy, hold, saved, 0);
        table.set_rules(rules, 0);
        let hosts = Hosts::load(&store, &log);
        Ok(Self {
            failures: logging::limited(&log),
            log,
            started: Instant::now(),
            table: RefCell::new(table),
            devices: RefCell::default(),
            subscribers: Subscribers::default(),
            arrivals: RefCell::default(),
            running: RefCell::default(),
            rules_due: Notify::new(),
            refused_rules: RefCell::default(),
            connections: Cell::new(0),
            uses: Uses::default(),
            hosts,
            store,
            saved_changes: Arc::default(),
            deadlines: Notify::new(),
            unsaved: Notify::new(),
            settings: RefCell::default(),
            changed: RefCell::default(),
            unpublished: Notify::new(),
            to_reserve: RefCell::default(),
            reserves: Notify::new(),
            logs: RefCell::default(),
        })
    }

    pub(crate) fn log(&self) -> &Logger {
        &self.log
    }

    /// The log of what a host causes, which is limited.
    pub(crate) fn log_of(&self, host: &str) -> Logger {
        let mut logs = self.logs.borrow_mut();
        if let Some(log) = logs.get(host) {
            return log.clone();
        }
        let log = logging::limited(&self.log);
        logs.insert(host.to_owned(), log.clone());
        log
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A lease is over: the device is reset and free.
    fn ended(&self, lease: &Lease, reason: &str) {
        let device = &lease.device.id;
        info!(self.log_of(&lease.holder.host), "returned"; "device" => %device, "vm" => %lease.vm, "reason" => reason);
        // What is plugged in there now may be another lease's.
        if let Some(session) = self.session(device) {
            let mut session = session.borrow_mut();
            if session.server.epoch() == lease.epoch {
                session.end();
            }
        }
        let event = Event::Released {
            device: device.clone(),
            vm: lease.vm,
            reason: reason.to_owned(),
        };
        self.subscribers.publish(&event, |host| {
            self.table.borrow().may_see_lease(lease, host)
        });
        self.subscribers.publish(&Event::Devices, |_| true);
    }

    /// Has the lease's subscribers told, and it saved.
    fn lease_changed(&self, device: &DeviceId) {
        self.unsaved.notify_one();
        let mut changed = self.changed.borrow_mut();
        if !changed.contains(device) {
            changed.insert(device.clone());
            self.unpublished.notify_one();
        }
    }

    fn publish_changed(&self) {
        let changed = std::mem::take(&mut *self.changed.borrow_mut());
        let table = self.table.borrow();
        for lease in changed.iter().filter_map(|device| table.get(device)) {
            let event = Event::Lease(Box::new(lease.clone()));
            self.subscribers
                .publish(&event, |host| table.may_see_lease(lease, host));
        }
    }

    /// Tells subscribers of leases as they are now. Never ends.
    pub(crate) async fn publish_changes(&self) {
        loop {
            self.unpublished.notified().await;
            self.publish_changed();
            sleep(PUBLISH_INTERVAL).await;
        }
    }

    /// Releases what nobody claims. Never ends.
    pub(crate) async fn expire(&self) {
        loop {
            let deadline = self.table.borrow().next_deadline_ms();
            match deadline {
                None => self.deadlines.notified().await,
                Some(at) => {
                    let wait = Duration::from_millis(at.saturating_sub(self.now_ms()));
                    let changed = tokio::time::timeout(wait, self.deadlines.notified()).await;
                    if changed.is_ok() {
                        continue;
                    }
                }
            }
            self.take_unfetched();
            let expired = self.table.borrow_mut().expire(self.now_ms());
            for lease in &expired {
                let why = match lease.phase {
                    LeasePhase::Absent => "it was pulled out and not plugged in again in time",
                    LeasePhase::Disconnected if self.session(&lease.device.id).is_none() => {
                        "it was not there when the exporter was started, and did not come in time"
                    }
                    LeasePhase::Disconnected => "its holder did not connect again in time",
                    _ => "its VM is gone and nobody claimed it in time",
                };
                self.ended(lease, why);
            }
            // On failure there is a log line; the lease expires again after a restart.
            let _ = self.save().await;
        }
    }

    /// Saves the leases if something changed since they were saved last. An answer that depends on
    /// a change waits for this.
    pub(crate) async fn save(&self) -> Result<(), Refusal> {
        self.write(false).await
    }

    /// The same, and what guests have set at their devices, for which nobody waits.
    pub(crate) async fn save_all(&self) -> Result<(), Refusal> {
        self.write(true).await
    }

    async fn write(&self, settings: bool) -> Result<(), Refusal> {
        let wanted = self.table.borrow().changes();
        let mut saved_changes = self.saved_changes.clone().lock_owned().await;
        let set = settings && self.settings.borrow().due().is_some();
        if *saved_changes >= wanted && !set {
            return Ok(());
        }
        // Should this fail, the next change tries again.
        self.settings.borrow_mut().saved(Instant::now());
        let (changes, saved) = {
            let table = self.table.borrow();
            (table.changes(), table.saved())
        };
        let store = self.store.clone();
        // With the lock: whoever waits for this may give up, and the next save must not write beside it.
        let save = move || {
            store.save(&saved)?;
            *saved_changes = changes;
            Ok::<_, std::io::Error>(())
        };
        let result = tokio::task::spawn_blocking(save).await;
        match result {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => {
                error!(self.failures, "cannot save the leases: {}", e);
                Err(Refusal::Limit(format!(
                    "the exporter cannot save its leases: {e}"
                )))
            }
            Err(e) => Err(Refusal::Limit(format!(
                "the exporter is shutting down: {e}"
            ))),
        }
    }

    /// Saves what nobody waits for: cookies, orphans, and, not as often, settings. Never ends.
    pub(crate) async fn save_changes(&self) {
        loop {
            let due = self.settings.borrow().due();
            let settings_due = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            // A failure is in the log, and the next change tries again.
            let _ = tokio::select! {
                () = self.unsaved.notified() => self.save().await,
                () = settings_due => self.save_all().await,
            };
            sleep(SAVE_INTERVAL).await;
        }
    }
}

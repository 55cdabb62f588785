// SPDX-License-Identifier: GPL-3.0-or-later
//! Devices, leases, sessions and subscribers: all that connections share.

mod announcements;
mod devices;
mod holders;
mod in_use;
mod requests;
mod settings;
mod subscribers;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use session::control::{Event, Refusal};
use session::lease::{HoldTimes, LeaseTable, Policy};
use session::{DeviceId, Lease, LeasePhase};
use slog::{Logger, error, info};
use tokio::sync::{Mutex, Notify};

use self::in_use::Uses;
use self::settings::Settings;
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
    /// Control connections so far.
    connections: Cell<u64>,
    uses: Uses,
    store: Store,
    /// [`LeaseTable::changes`] of what was saved last.
    saved_changes: Arc<Mutex<u64>>,
    deadlines: Notify,
    unsaved: Notify,
    settings: RefCell<Settings>,
}

impl Hub {
    pub(crate) fn new(
        log: Logger,
        policy: Policy,
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
        let table = LeaseTable::restore(policy, hold, saved, 0);
        Ok(Self {
            log,
            started: Instant::now(),
            table: RefCell::new(table),
            devices: RefCell::default(),
            subscribers: Subscribers::default(),
            arrivals: RefCell::default(),
            connections: Cell::new(0),
            uses: Uses::default(),
            store,
            saved_changes: Arc::default(),
            deadlines: Notify::new(),
            unsaved: Notify::new(),
            settings: RefCell::default(),
        })
    }

    pub(crate) fn log(&self) -> &Logger {
        &self.log
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A lease is over: the device is reset and free.
    fn ended(&self, lease: &Lease, reason: &str) {
        let device = &lease.device.id;
        info!(self.log, "returned"; "device" => %device, "vm" => %lease.vm, "reason" => reason);
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

    /// Tells the lease's subscribers, and saves it.
    fn lease_changed(&self, device: &DeviceId) {
        self.unsaved.notify_one();
        let table = self.table.borrow();
        if let Some(lease) = table.get(device) {
            let event = Event::Lease(Box::new(lease.clone()));
            self.subscribers
                .publish(&event, |host| table.may_see_lease(lease, host));
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
                error!(self.log, "cannot save the leases: {}", e);
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
        }
    }
}

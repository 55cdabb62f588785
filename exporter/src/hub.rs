// SPDX-License-Identifier: GPL-3.0-or-later
//! Devices, leases, sessions and subscribers: all that connections share.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use session::control::{Acquire, Event, Refusal, Reply, Request, Returns};
use session::lease::{Change, Claimant, HoldTimes, LeaseTable, Unplugged};
use session::open::{How, Open, Opened};
use session::{Configured, DeviceId, DeviceInfo, Epoch, Lease, LeasePhase, VmUuid};
use slog::{Logger, info, warn};
use tokio::sync::{Mutex, Notify, mpsc};

use crate::arrivals::{Arrival, Arrivals};
use crate::executor::Executor;
use crate::session_state::{Connection, Session, forget_later, mind};
use crate::store::Store;

/// Events that a subscriber may be behind; then its connection ends, and it asks anew. More than
/// arrivals, since a new one is told of all of them.
const MAX_EVENTS: usize = 2 * Arrivals::MAX;

/// A device and its session.
pub(crate) type SharedSession = Rc<RefCell<Session>>;

struct Subscriber {
    host: String,
    events: mpsc::Sender<Event>,
}

/// See the module's documentation.
pub(crate) struct Hub {
    log: Logger,
    started: Instant,
    table: RefCell<LeaseTable>,
    devices: RefCell<BTreeMap<DeviceId, SharedSession>>,
    subscribers: RefCell<Vec<Subscriber>>,
    arrivals: RefCell<Arrivals>,
    /// Control connections so far.
    connections: Cell<u64>,
    store: Store,
    /// [`LeaseTable::changes`] of what was saved last.
    saved_changes: Mutex<u64>,
    deadlines: Notify,
    unsaved: Notify,
}

impl Hub {
    pub(crate) fn new(
        log: Logger,
        policy: session::lease::Policy,
        hold: HoldTimes,
        store: Store,
    ) -> anyhow::Result<Self> {
        let mut saved = store.load()?;
        if store.was_rebooted() {
            saved = saved.after_reboot();
        }
        let table = LeaseTable::restore(policy, hold, saved, 0);
        Ok(Self {
            log,
            started: Instant::now(),
            table: RefCell::new(table),
            devices: RefCell::default(),
            subscribers: RefCell::default(),
            arrivals: RefCell::default(),
            connections: Cell::new(0),
            store,
            saved_changes: Mutex::new(0),
            deadlines: Notify::new(),
            unsaved: Notify::new(),
        })
    }

    pub(crate) fn log(&self) -> &Logger {
        &self.log
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    // Devices.

    /// A device was plugged in.
    pub(crate) fn add_device(&self, executor: Executor) {
        let info = executor.info().clone();
        info!(
            self.log,
            "device {}: {:04x}:{:04x} {}", info.id, info.vendor, info.product, info.name
        );
        let mut session = Session::new(executor);
        let mut table = self.table.borrow_mut();
        if let Some(lease) = table.get(&info.id) {
            let lent = &lease.device;
            let same = (lent.vendor, lent.product, &lent.serial)
                == (info.vendor, info.product, &info.serial);
            match same {
                true => {
                    session.lend(lease.epoch);
                    session.server.set_configured(lease.configured.clone());
                    session.executor.restore(&lease.configured);
                }
                // A lease of before a restart; meanwhile somebody plugged in something else.
                false => drop(table.unplugged(&info.id, self.now_ms())),
            }
        }
        drop(table);
        let session = Rc::new(RefCell::new(session));
        self.devices.borrow_mut().insert(info.id, session);
        self.publish(&Event::Devices, |_| true);
    }

    /// A device was unplugged.
    pub(crate) fn remove_device(&self, device: &DeviceId) {
        info!(self.log, "device {device} was unplugged");
        let session = self.session(device);
        let mut table = self.table.borrow_mut();
        if let Some(session) = &session {
            let mut session = session.borrow_mut();
            let Session {
                server, executor, ..
            } = &mut *session;
            // What is over by now is over.
            executor.drain(server);
            table.set_configured(device, server.epoch(), server.configured().clone());
        }
        let left = table.unplugged(device, self.now_ms());
        drop(table);
        match left {
            Some(Unplugged::Ended(lease)) => {
                self.ended(&lease, "it was unplugged from the exporter");
            }
            Some(Unplugged::Waits(lease)) => {
                info!(self.log, "its lease waits for it"; "device" => %device, "vm" => %lease.vm,
                    "seconds" => lease.exchange.map_or(0, |e| e.seconds));
                if let Some(session) = session {
                    session.borrow_mut().end();
                }
                self.deadlines.notify_one();
                let event = Event::Lease(lease.clone());
                self.publish(&event, |host| {
                    self.table.borrow().may_see_lease(&lease, host)
                });
            }
            None => (),
        }
        self.devices.borrow_mut().remove(device);
        self.publish(&Event::Devices, |_| true);
        self.unsaved.notify_one();
    }

    fn device_infos(&self) -> Vec<DeviceInfo> {
        let devices = self.devices.borrow();
        let infos = devices.values().map(|s| s.borrow().executor.info().clone());
        infos.collect()
    }

    /// The session of a device that is plugged in.
    pub(crate) fn session(&self, device: &DeviceId) -> Option<SharedSession> {
        self.devices.borrow().get(device).cloned()
    }

    /// Makes a device ready for its holder. Answers the reason where it cannot be.
    async fn prepare(
        &self,
        session: &SharedSession,
        begin: Option<&Returns>,
    ) -> Result<(), String> {
        let opening = session.borrow().opening.clone();
        let _only_one = opening.lock().await;
        let start = session.borrow_mut().executor.start_opening(begin)?;
        if let Some(opening) = start {
            let open = opening.await?;
            session.borrow_mut().executor.opened(open);
        }
        Ok(())
    }

    /// Ends the restored leases of devices that are not there, but for those that follow them.
    pub(crate) fn drop_absent(&self) {
        let present = |l: &&Lease| self.devices.borrow().contains_key(&l.device.id);
        let absent: Vec<_> = {
            let table = self.table.borrow();
            let absent = table.held().filter(|l| !present(l));
            absent.map(|l| l.device.id.clone()).collect()
        };
        for device in absent {
            let left = self.table.borrow_mut().unplugged(&device, self.now_ms());
            match left {
                Some(Unplugged::Ended(lease)) => warn!(
                    self.log,
                    "device {device} of VM {} is gone; lease released", lease.vm
                ),
                Some(Unplugged::Waits(lease)) => warn!(
                    self.log,
                    "device {device} of VM {} is gone; its lease waits for it", lease.vm
                ),
                None => (),
            }
        }
    }

    // Control requests.

    pub(crate) async fn answer(&self, request: Request, host: &str) -> Reply {
        let result = match request {
            Request::Devices => {
                let devices = self.device_infos();
                Ok(Reply::Devices(
                    self.table.borrow().visible_devices(&devices, host),
                ))
            }
            Request::Leases { vm } => Ok(self.leases(vm, host)),
            Request::Acquire(acquire) => self.acquire(&acquire, host).await,
            Request::Release { device, vm, epoch } => self.release(&device, vm, host, epoch).await,
            Request::Expect { vm, domid } => Ok(self.expect(vm, domid, host)),
            // The connection does it.
            Request::Arriving { .. } => Ok(Reply::Done),
            Request::Note { device, vm, text } => {
                let noted = self.table.borrow_mut().note(&device, vm, host, &text);
                match noted {
                    Ok(()) => {
                        self.lease_changed(&device);
                        self.save().await.map(|()| Reply::Done)
                    }
                    Err(refusal) => Err(refusal),
                }
            }
            // The connection does it.
            Request::Subscribe => Ok(Reply::Done),
        };
        result.unwrap_or_else(|refusal| {
            info!(self.log, "refused"; "host" => host, "reason" => %refusal);
            Reply::Refused(refusal)
        })
    }

    fn leases(&self, vm: Option<VmUuid>, host: &str) -> Reply {
        let mut leases = self.table.borrow().visible_leases(vm, host);
        for lease in &mut leases {
            if lease.phase != LeasePhase::Absent
                && let Some(session) = self.session(&lease.device.id)
            {
                lease.stash = session.borrow().server.stash_counters();
            }
        }
        Reply::Leases(leases)
    }

    async fn acquire(&self, wanted: &Acquire, host: &str) -> Result<Reply, Refusal> {
        let devices = self.device_infos();
        let before = self.table.borrow().changes();
        let lease = self.table.borrow_mut().acquire(wanted, host, &devices)?;
        if self.table.borrow().changes() == before {
            return Ok(Reply::Lease(Box::new(lease)));
        }
        let device = &lease.device.id;
        if let Err(refusal) = self.hand_over(&lease, wanted.returns.as_ref()).await {
            // Unless it was released meanwhile, and perhaps lent again.
            let mut table = self.table.borrow_mut();
            if table.get(device).is_some_and(|l| l.epoch == lease.epoch) {
                table.remove(device);
            }
            drop(table);
            self.take_back_unlent(device);
            self.unsaved.notify_one();
            return Err(refusal);
        }
        info!(self.log, "lent"; "device" => %device, "vm" => %lease.vm, "host" => host,
            "epoch" => lease.epoch.0);
        self.lease_changed(device);
        self.publish(&Event::Devices, |_| true);
        let now = self.table.borrow().get(device).cloned();
        Ok(Reply::Lease(Box::new(now.unwrap_or(lease))))
    }

    /// Makes the device of a new lease ready, and the lease permanent.
    async fn hand_over(&self, lease: &Lease, returns: Option<&Returns>) -> Result<(), Refusal> {
        let device = &lease.device.id;
        let unavailable = |reason| Refusal::Unavailable {
            device: device.clone(),
            reason,
        };
        let unplugged = || unavailable("it was unplugged".to_owned());
        let session = self.session(device).ok_or_else(unplugged)?;
        session.borrow_mut().lend(lease.epoch);
        let anew = Returns::default();
        let begin = returns.unwrap_or(&anew);
        self.prepare(&session, Some(begin))
            .await
            .map_err(unavailable)?;
        self.note_descriptors(lease, &session, begin);
        self.take_back_unlent(device);
        self.save().await
    }

    /// What the device of a new lease turned out to be: what its guest knows, or something new.
    fn note_descriptors(&self, lease: &Lease, session: &SharedSession, begin: &Returns) {
        let device = &lease.device.id;
        let mut session = session.borrow_mut();
        let descriptors = session.executor.descriptors();
        let mut table = self.table.borrow_mut();
        table.set_descriptors(device, lease.epoch, descriptors);
        match descriptors.is_some() && begin.descriptors == descriptors {
            true => session.server.set_configured(begin.configured.clone()),
            false => table.begin_anew(device, lease.epoch),
        }
    }

    /// Opening takes time. If the lease ended meanwhile, the device is to be closed again.
    fn take_back_unlent(&self, device: &DeviceId) {
        if self.table.borrow().get(device).is_none()
            && let Some(session) = self.session(device)
        {
            session.borrow_mut().executor.release();
        }
    }

    async fn release(
        &self,
        device: &DeviceId,
        vm: VmUuid,
        host: &str,
        epoch: Epoch,
    ) -> Result<Reply, Refusal> {
        let lease = self.table.borrow_mut().release(device, vm, host, epoch)?;
        self.ended(&lease, &format!("released by {host}"));
        self.save().await?;
        Ok(Reply::Done)
    }

    /// A number for a control connection.
    pub(crate) fn next_connection(&self) -> u64 {
        let number = self.connections.get() + 1;
        self.connections.set(number);
        number
    }

    /// A host announced, over this connection, that a domain is arriving there, or took it back.
    pub(crate) fn arriving(
        &self,
        connection: u64,
        host: &str,
        vm: VmUuid,
        domid: u16,
        arriving: bool,
    ) {
        if !self.table.borrow().policy().may_expect(vm, host) {
            return;
        }
        let arrival = Arrival {
            connection,
            vm,
            host: host.to_owned(),
            domid,
        };
        if self.arrivals.borrow_mut().set(&arrival, arriving) {
            self.announce(&arrival, arriving);
        }
    }

    /// A control connection has ended: what was announced over it does not hold any more.
    pub(crate) fn control_ended(&self, connection: u64) {
        let ended = self.arrivals.borrow_mut().end(connection);
        for arrival in ended {
            self.announce(&arrival, false);
        }
    }

    fn announce(&self, arrival: &Arrival, arriving: bool) {
        let event = arrival.event(arriving);
        self.publish(&event, |to| {
            self.table.borrow().policy().may_expect(arrival.vm, to)
        });
    }

    fn expect(&self, vm: VmUuid, domid: u16, host: &str) -> Reply {
        if self.table.borrow().policy().may_expect(vm, host) {
            let event = Event::Expected {
                vm,
                host: host.to_owned(),
                domid,
            };
            self.publish(&event, |to| self.table.borrow().policy().may_expect(vm, to));
        }
        self.leases(Some(vm), host)
    }

    /// A lease is over: the device is reset and free.
    fn ended(&self, lease: &Lease, reason: &str) {
        let device = &lease.device.id;
        info!(self.log, "returned"; "device" => %device, "vm" => %lease.vm, "reason" => reason);
        // What is plugged in there now is another lease's.
        if lease.phase != LeasePhase::Absent
            && let Some(session) = self.session(device)
        {
            session.borrow_mut().end();
        }
        let event = Event::Released {
            device: device.clone(),
            vm: lease.vm,
            reason: reason.to_owned(),
        };
        self.publish(&event, |host| {
            self.table.borrow().may_see_lease(lease, host)
        });
        self.publish(&Event::Devices, |_| true);
    }

    // Device connections.

    /// Opens a device connection: the answer, and what to go on with.
    pub(crate) async fn open(
        &self,
        open: &Open,
        host: &str,
    ) -> Result<(Opened, SharedSession, Rc<Connection>), Refusal> {
        let claimant = Claimant {
            host,
            domid: open.domid,
            attempt: open.attempt,
            vm: open.vm,
        };
        let device = &open.device;
        let no_lease = || Refusal::NoLease {
            device: device.clone(),
            vm: open.vm,
        };
        {
            let table = self.table.borrow();
            let held = table.get(device).is_some_and(|l| l.vm == open.vm);
            if !held && table.is_absent(device, open.vm) {
                let device = device.clone();
                return Err(Refusal::Absent { device });
            }
        }
        let session = self.session(device).ok_or_else(no_lease)?;
        self.table.borrow().check(device, open.vm, host)?;
        // It is open, unless we were started again. Its guest goes on where it was: no reset.
        let prepared = self.prepare(&session, None).await;
        self.take_back_unlent(device);
        prepared.map_err(|reason| Refusal::Unavailable {
            device: device.clone(),
            reason,
        })?;
        let (requests_received, connection) = match open.how {
            How::Claim { seen } => {
                let resumes = open.frontend_resumes;
                let claimed = self
                    .table
                    .borrow_mut()
                    .claim(device, &claimant, resumes, seen);
                let epoch = claimed?;
                let connection = session.borrow_mut().claim(epoch);
                forget_later(&session);
                info!(self.log, "claimed"; "device" => %device, "vm" => %open.vm, "host" => host,
                    "domid" => open.domid, "epoch" => epoch.0);
                (0, connection)
            }
            How::Resume {
                epoch,
                completions_received,
            } => {
                let resumes = open.frontend_resumes;
                let mut table = self.table.borrow_mut();
                table.resume(device, &claimant, resumes, epoch)?;
                match session.borrow_mut().resume(completions_received) {
                    Ok(resumed) => {
                        info!(self.log, "resumed"; "device" => %device, "vm" => %open.vm,
                            "host" => host, "epoch" => epoch.0);
                        resumed
                    }
                    Err(e) => {
                        table.apply(device, epoch, Change::Disconnect, self.now_ms());
                        return Err(Refusal::Limit(e.to_string()));
                    }
                }
            }
        };
        self.lease_changed(device);
        let opened = {
            let table = self.table.borrow();
            let lease = table.get(device).ok_or_else(no_lease)?;
            Opened::Ready {
                epoch: lease.epoch,
                requests_received,
                device: Box::new(lease.device.clone()),
                cookie: lease.cookie.clone(),
            }
        };
        if let Err(refusal) = self.save().await {
            let epoch = session.borrow().server.epoch();
            self.disconnected(device, epoch, &session, &connection);
            return Err(refusal);
        }
        Ok((opened, session, connection))
    }

    /// A device connection of `epoch` ended.
    pub(crate) fn disconnected(
        &self,
        device: &DeviceId,
        epoch: Epoch,
        session: &SharedSession,
        connection: &Rc<Connection>,
    ) {
        let was_current = session.borrow_mut().disconnected(connection);
        if was_current {
            mind(session);
            self.apply(device, epoch, Change::Disconnect);
        }
    }

    /// News from a device connection of `epoch`.
    pub(crate) fn apply(&self, device: &DeviceId, epoch: Epoch, change: Change) {
        let now_ms = self.now_ms();
        if self.table.borrow_mut().apply(device, epoch, change, now_ms) {
            self.deadlines.notify_one();
            self.lease_changed(device);
        }
    }

    pub(crate) fn save_cookie(&self, device: &DeviceId, epoch: Epoch, cookie: &[u8]) {
        if self.table.borrow_mut().save_cookie(device, epoch, cookie) {
            self.lease_changed(device);
        }
    }

    /// The guest has set this at its device. Subscribers are not told: a guest does it as often as it
    /// likes.
    pub(crate) fn set_configured(&self, device: &DeviceId, epoch: Epoch, configured: &Configured) {
        let mut table = self.table.borrow_mut();
        table.set_configured(device, epoch, configured.clone());
        self.unsaved.notify_one();
    }

    pub(crate) fn set_frontend_resumes(&self, device: &DeviceId, epoch: Epoch, resumes: bool) {
        let changed = self
            .table
            .borrow_mut()
            .set_frontend_resumes(device, epoch, resumes);
        if changed {
            self.lease_changed(device);
        }
    }

    // Leases.

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
                    _ => "its VM is gone and nobody claimed it in time",
                };
                self.ended(lease, why);
            }
            if !expired.is_empty() {
                // On failure there is a log line; the lease expires again after a restart.
                let _ = self.save().await;
            }
        }
    }

    /// Saves the leases if something changed since they were saved last. An answer that depends on
    /// a change waits for this.
    pub(crate) async fn save(&self) -> Result<(), Refusal> {
        let wanted = self.table.borrow().changes();
        let mut saved_changes = self.saved_changes.lock().await;
        if *saved_changes >= wanted {
            return Ok(());
        }
        let (changes, saved) = {
            let table = self.table.borrow();
            (table.changes(), table.saved())
        };
        let store = self.store.clone();
        let result = tokio::task::spawn_blocking(move || store.save(&saved)).await;
        match result {
            Ok(Ok(())) => {
                *saved_changes = changes;
                Ok(())
            }
            Ok(Err(e)) => {
                slog::error!(self.log, "cannot save the leases: {}", e);
                Err(Refusal::Limit(format!(
                    "the exporter cannot save its leases: {e}"
                )))
            }
            Err(e) => Err(Refusal::Limit(format!(
                "the exporter is shutting down: {e}"
            ))),
        }
    }

    /// Saves what nobody waits for: cookies, orphans. Never ends.
    pub(crate) async fn save_changes(&self) {
        loop {
            self.unsaved.notified().await;
            // A failure is in the log, and the next change tries again.
            let _ = self.save().await;
        }
    }

    // Events.

    /// Subscribes `host`.
    pub(crate) fn subscribe(&self, host: &str) -> mpsc::Receiver<Event> {
        let (events, receiver) = mpsc::channel(MAX_EVENTS);
        for arrival in self.arrivals.borrow().iter() {
            let may_know = self.table.borrow().policy().may_expect(arrival.vm, host);
            if may_know {
                // There is room: fewer may arrive than events wait.
                let _ = events.try_send(arrival.event(true));
            }
        }
        self.subscribers.borrow_mut().push(Subscriber {
            host: host.to_owned(),
            events,
        });
        receiver
    }

    fn lease_changed(&self, device: &DeviceId) {
        self.unsaved.notify_one();
        let table = self.table.borrow();
        if let Some(lease) = table.get(device) {
            let event = Event::Lease(Box::new(lease.clone()));
            self.publish(&event, |host| table.may_see_lease(lease, host));
        }
    }

    fn publish(&self, event: &Event, may_know: impl Fn(&str) -> bool) {
        // Who is too far behind is dropped, which ends its connection.
        self.subscribers.borrow_mut().retain(|s| {
            !s.events.is_closed()
                && (!may_know(&s.host) || s.events.try_send(event.clone()).is_ok())
        });
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! The exporter: the shipping lease table and session, around a device that writes down what it did.

use std::collections::VecDeque;

use session::control::{Acquire, Refusal};
use session::frame::TransferStatus;
use session::lease::{
    Allow, Change, Claimant, DeviceMatch, LeaseTable, Match, Policy, Saved, VmMatch,
};
use session::open::{Evidence, How, Open, Opened};
use session::server::{Event, Order, Outcome, Server};
use session::{
    DeviceId, DeviceInfo, DeviceSelector, DeviceState, Epoch, Lease, OnMigrate, Speed, VmUuid,
};

use crate::Limits;
use crate::history::History;

/// How long a lease waits for its VM after the domain is gone.
const HOLD_MS: u64 = 60_000;

pub(crate) fn host_name(host: usize) -> &'static str {
    ["a", "b"][host]
}

pub(crate) fn vm() -> VmUuid {
    VmUuid(uuid::Uuid::from_u128(7))
}

pub(crate) fn device() -> DeviceId {
    DeviceId("1-2".into())
}

fn policy() -> Policy {
    let all = Allow {
        device: DeviceMatch::Any,
        vm: VmMatch::Any,
        host: Match::Any,
    };
    Policy { allow: vec![all] }
}

/// A transfer that the device has not carried out.
#[derive(Clone, Debug, Hash)]
struct Pending {
    epoch: Epoch,
    request: u64,
    /// Of an OUT transfer.
    value: Option<u16>,
    length: u32,
}

#[derive(Clone, Hash)]
pub(crate) struct Exporter {
    pub(crate) up: bool,
    pub(crate) table: LeaseTable,
    server: Server,
    /// The connection that the session is on.
    current: Option<u8>,
    /// What survives a crash.
    saved: Saved,
    saved_changes: u64,
    /// Answers that wait until the table is saved.
    opening: Vec<(u8, Epoch, Opened)>,
    refused: Vec<(u8, Refusal)>,
    /// Connections that are told so when they were answered, with their last bytes.
    dismissed: Vec<(u8, Vec<u8>)>,
    /// The epoch of every connection that was opened.
    opened: Vec<(u8, Epoch)>,
    pending: VecDeque<Pending>,
    /// What an IN transfer brings next.
    next_in: u16,
    /// Requests that are answered when the table is saved.
    saving: Vec<(Epoch, u64)>,
    /// Whether transfers of any epoch are executed: a planted bug.
    unfenced: bool,
    /// Whether those of `saving` are answered at once, another; and the cookie that waits meanwhile.
    hasty: bool,
    /// Whether no claim needs evidence, another.
    credulous: bool,
    unsaved_cookie: Option<(Epoch, Vec<u8>)>,
}

/// What is to be sent on a connection.
pub(crate) enum Say {
    Opened(u8, Opened),
    Frames(u8, Vec<u8>),
    /// Nothing follows.
    Close(u8),
}

fn refused(connection: u8, refusal: Refusal) -> [Say; 2] {
    let refused = Opened::Refused(refusal);
    [Say::Opened(connection, refused), Say::Close(connection)]
}

impl Exporter {
    pub(crate) fn new(limits: &Limits) -> Self {
        let info = DeviceInfo {
            id: device(),
            vendor: 1,
            product: 2,
            serial: None,
            name: String::new(),
            speed: Speed::High,
            classes: vec![8],
            state: DeviceState::Free,
        };
        let mut table = LeaseTable::new(policy(), HOLD_MS);
        let wanted = Acquire {
            device: DeviceSelector::Place(device()),
            vm: vm(),
            vm_name: "vm".into(),
            domid: 1,
            controller: 0,
            port: 1,
            on_migrate: Some(OnMigrate::Refuse),
            exchange: None,
            own_controller: None,
            persistence: Default::default(),
            returns: None,
        };
        let lease = table.acquire(&wanted, host_name(0), &[info]);
        let epoch = lease.map_or(Epoch(0), |l| l.epoch);
        Self {
            up: true,
            saved: table.saved(),
            saved_changes: table.changes(),
            table,
            server: Server::new(epoch),
            current: None,
            opening: Vec::new(),
            refused: Vec::new(),
            dismissed: Vec::new(),
            opened: Vec::new(),
            pending: VecDeque::new(),
            next_in: 1,
            saving: Vec::new(),
            unfenced: limits.planted_unfenced,
            hasty: limits.planted_hasty,
            credulous: limits.planted_credulous,
            unsaved_cookie: None,
        }
    }

    pub(crate) fn lease(&self) -> Option<&Lease> {
        self.table.get(&device())
    }

    /// A connection's opening; answered when the table is saved.
    pub(crate) fn open(
        &mut self,
        connection: u8,
        open: &Open,
        host: usize,
        now_ms: u64,
    ) -> Vec<Say> {
        let claimant = Claimant {
            host: host_name(host),
            domid: open.domid,
            attempt: open.attempt,
            vm: open.vm,
            evidence: match self.credulous {
                true => Evidence::Arrival,
                false => open.evidence,
            },
            now_ms,
        };
        match self.try_open(connection, open, &claimant) {
            Ok(said) => said,
            Err(refusal) if self.is_saved() => refused(connection, refusal).into(),
            Err(refusal) => {
                self.refused.push((connection, refusal));
                Vec::new()
            }
        }
    }

    fn try_open(
        &mut self,
        connection: u8,
        open: &Open,
        by: &Claimant<'_>,
    ) -> Result<Vec<Say>, Refusal> {
        let device = &open.device;
        self.table.check(device, open.vm, by.host)?;
        let mut said = Vec::new();
        let requests_received = match open.how {
            How::Claim { seen } => {
                let epoch = self.table.claim(device, by, open.frontend_resumes, seen)?;
                let farewell = self.server.claim(epoch);
                if !self.unfenced {
                    self.pending.clear();
                }
                if let Some(old) = self.current.replace(connection) {
                    match self.opening.iter().any(|o| o.0 == old) {
                        // It gets its answer first.
                        true => self.dismissed.push((old, farewell)),
                        false => {
                            said.push(Say::Frames(old, farewell));
                            said.push(Say::Close(old));
                        }
                    }
                }
                0
            }
            How::Resume {
                epoch,
                completions_received,
            } => {
                self.table
                    .resume(device, by, open.frontend_resumes, epoch)?;
                if let Some(old) = self.current.replace(connection) {
                    said.push(Say::Close(old));
                }
                let received = self.server.resume(completions_received);
                received.map_err(|_| Refusal::Fenced {
                    yours: epoch,
                    current: epoch,
                })?
            }
        };
        let no_lease = || Refusal::NoLease {
            device: device.clone(),
            vm: open.vm,
        };
        let lease = self.table.get(device).ok_or_else(no_lease)?;
        let opened = Opened::Ready {
            epoch: lease.epoch,
            requests_received,
        };
        self.opening.push((connection, lease.epoch, opened));
        Ok(said)
    }

    /// Whether what it knows is on its disk. Answers wait for that.
    pub(crate) fn is_saved(&self) -> bool {
        self.saved_changes == self.table.changes()
    }

    pub(crate) fn must_save(&self) -> bool {
        let waited_for = !self.opening.is_empty() || !self.saving.is_empty();
        let changed = !self.is_saved() || self.unsaved_cookie.is_some();
        self.up && (waited_for || changed)
    }

    /// The table is saved: what waited for that is answered.
    pub(crate) fn save(&mut self) -> Vec<Say> {
        if let Some((epoch, cookie)) = self.unsaved_cookie.take() {
            self.table.save_cookie(&device(), epoch, &cookie);
        }
        self.saved = self.table.saved();
        self.saved_changes = self.table.changes();
        let done = Outcome::new(TransferStatus::Completed, 0);
        for (epoch, request) in std::mem::take(&mut self.saving) {
            self.server.complete(epoch, request, done, |_| ());
        }
        let mut said = Vec::new();
        for (connection, epoch, opened) in std::mem::take(&mut self.opening) {
            self.opened.push((connection, epoch));
            said.push(Say::Opened(connection, opened));
        }
        for (connection, refusal) in std::mem::take(&mut self.refused) {
            said.extend(refused(connection, refusal));
        }
        for (connection, farewell) in std::mem::take(&mut self.dismissed) {
            said.push(Say::Frames(connection, farewell));
            said.push(Say::Close(connection));
        }
        said.extend(self.output());
        said
    }

    /// Frames of a connection. `Err` where the exporter ends it.
    pub(crate) fn frames(
        &mut self,
        connection: u8,
        mut bytes: &[u8],
        now_ms: u64,
    ) -> Result<Vec<Say>, String> {
        if self.current != Some(connection) {
            return Ok(Vec::new());
        }
        let Some(&(_, epoch)) = self.opened.iter().find(|(c, _)| *c == connection) else {
            return Ok(Vec::new());
        };
        let id = device();
        while let Some((event, len)) = self.server.next_event(bytes).map_err(|e| e.to_string())? {
            bytes = &bytes[len..];
            match event {
                Event::Submit {
                    request,
                    transfer,
                    body,
                } => self.pending.push_back(Pending {
                    epoch,
                    request,
                    value: body.first_chunk().map(|b| u16::from_le_bytes(*b)),
                    length: transfer.length,
                }),
                Event::Cancel { request } => self.cancel(epoch, request),
                Event::Keep { request } => self.server.keep(request, Some(512)),
                Event::Recall { request } => self.server.recall(request, Some(512)),
                Event::Reset { request } => {
                    let outcome = Outcome::new(TransferStatus::Completed, 0);
                    self.server.complete(epoch, request, outcome, |_| ());
                }
                Event::Cookie(cookie) if self.hasty => {
                    self.unsaved_cookie = Some((epoch, cookie.to_vec()));
                }
                Event::Cookie(cookie) => drop(self.table.save_cookie(&id, epoch, cookie)),
                Event::Save { request } if self.hasty => {
                    let done = Outcome::new(TransferStatus::Completed, 0);
                    self.server.complete(epoch, request, done, |_| ());
                }
                Event::Save { request } => self.saving.push((epoch, request)),
                Event::Freeze => drop(self.table.apply(&id, epoch, Change::Freeze, now_ms)),
                Event::Thaw => drop(self.table.apply(&id, epoch, Change::Thaw, now_ms)),
                Event::Orphan => drop(self.table.apply(&id, epoch, Change::Orphan, now_ms)),
                Event::FrontendResumes(resumes) => {
                    self.table.set_frontend_resumes(&id, epoch, resumes);
                }
                Event::Handled => {}
            }
            self.carry_out(epoch);
        }
        Ok(self.output())
    }

    /// What the session wants of the device by itself.
    fn carry_out(&mut self, epoch: Epoch) {
        while let Some(order) = self.server.next_order() {
            match order {
                Order::Submit { request, transfer } => self.pending.push_back(Pending {
                    epoch,
                    request,
                    value: None,
                    length: transfer.length,
                }),
                Order::Cancel { request } => self.cancel(epoch, request),
            }
        }
    }

    fn cancel(&mut self, epoch: Epoch, request: u64) {
        let before = self.pending.len();
        self.pending.retain(|p| p.request != request);
        if self.pending.len() < before {
            let outcome = Outcome::new(TransferStatus::Cancelled, 0);
            self.server.complete(epoch, request, outcome, |_| ());
        }
    }

    pub(crate) fn can_execute(&self) -> bool {
        // A device goes on without its exporter.
        !self.pending.is_empty()
    }

    /// The device carries out its oldest transfer.
    pub(crate) fn execute(&mut self, history: &mut History) -> Vec<Say> {
        let Some(pending) = self.pending.pop_front() else {
            return Vec::new();
        };
        if self.up && self.lease().is_none_or(|l| l.epoch != pending.epoch) {
            history.violate(format!(
                "a transfer of epoch {} was executed, the lease is at {:?}",
                pending.epoch,
                self.lease().map(|l| l.epoch)
            ));
        }
        let outcome = Outcome::new(TransferStatus::Completed, pending.length);
        let mut data = Vec::new();
        match pending.value {
            Some(value) => history.executed(value.into()),
            None => {
                data.extend(self.next_in.to_le_bytes());
                self.next_in += 1;
            }
        }
        if !self.up {
            return Vec::new();
        }
        self.server
            .complete(pending.epoch, pending.request, outcome, |out| {
                out.extend(data)
            });
        self.carry_out(pending.epoch);
        self.output()
    }

    /// What the current connection is to send.
    fn output(&mut self) -> Vec<Say> {
        let Some(connection) = self.current else {
            return Vec::new();
        };
        if !self.opened.iter().any(|(c, _)| *c == connection) {
            return Vec::new();
        }
        let bytes = self.server.output().to_vec();
        self.server.sent(bytes.len());
        vec![Say::Frames(connection, bytes)]
    }

    /// A connection has ended.
    pub(crate) fn disconnected(&mut self, connection: u8, now_ms: u64) {
        let epoch = self
            .opened
            .iter()
            .find(|(c, _)| *c == connection)
            .map(|o| o.1);
        self.opened.retain(|(c, _)| *c != connection);
        let opening = self.opening.iter().find(|o| o.0 == connection).map(|o| o.1);
        self.opening.retain(|o| o.0 != connection);
        self.dismissed.retain(|d| d.0 != connection);
        self.refused.retain(|r| r.0 != connection);
        if self.current == Some(connection) {
            self.current = None;
            self.server.disconnected();
            if let Some(epoch) = epoch.or(opening) {
                self.table
                    .apply(&device(), epoch, Change::Disconnect, now_ms);
            }
        }
    }

    /// When a hold time is over.
    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        self.table.next_deadline_ms().filter(|_| self.up)
    }

    /// Leases whose hold time is over end; whether one did.
    pub(crate) fn expire(&mut self, now_ms: u64) -> (bool, Vec<Say>) {
        if self.table.expire(now_ms).is_empty() {
            return (false, Vec::new());
        }
        self.pending.clear();
        self.server.abort(TransferStatus::NoDevice);
        self.server.gone();
        let mut said = self.output();
        // Who waits for an answer gets it first: then the lease that it names is over.
        if let Some(current) = self.current.take() {
            said.push(Say::Close(current));
        }
        self.server.disconnected();
        (true, said)
    }

    /// The process dies.
    pub(crate) fn crash(&mut self) {
        self.up = false;
        self.current = None;
        self.opening.clear();
        self.dismissed.clear();
        self.refused.clear();
        self.opened.clear();
        self.saving.clear();
        self.unsaved_cookie = None;
        self.server.disconnected();
    }

    pub(crate) fn restart(&mut self, now_ms: u64) {
        self.up = true;
        self.table = LeaseTable::restore(policy(), HOLD_MS, self.saved.clone(), now_ms);
        // Before it listens.
        (self.saved, self.saved_changes) = (self.table.saved(), self.table.changes());
        let epoch = self.lease().map_or(Epoch(0), |l| l.epoch);
        self.server = Server::new(epoch);
        // What libusb had submitted was cancelled when the process died.
        self.pending.clear();
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! A device while it is lent.

mod bulk;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use session::frame::{Transfer, TransferStatus, TransferType};
use session::server::{Outcome, Server, is_poll};
use session::{Digest, Epoch};
use tokio::sync::Notify;
use usb_present::Intercept;
use usbfs::{Handle, Status, Taken, Urb};

use super::configurations::Configurations;
use super::opening::Opened;
use super::packets::BulkEndpoints;
use super::request::{Operation, Request, classify};
use super::shared::{Finished, Shared, Tag};
use super::transfer::{Job, Slots};

/// See the module's documentation. Belongs to the thread of the sessions; whatever is asked of the device goes into the queue
/// of its own thread, in order.
pub(crate) struct Open {
    handle: Handle<Operation>,
    shared: Arc<Shared>,
    slots: Slots,
    finished: Vec<Finished>,
    /// The device runs at SuperSpeed and is presented as one of high speed.
    presented: Option<BulkEndpoints>,
    /// The guest has sent SET_CONFIGURATION(0).
    unconfigured: bool,
    /// What is being carried out, or waits for its turn, oldest first, each with its name at the device's thread.
    operations: VecDeque<(u64, Tag, Operation)>,
    last_operation: u64,
    configurations: Arc<Configurations>,
    /// bConfigurationValue of the active one.
    configuration: u8,
    descriptors: Option<Digest>,
    note: Option<String>,
}

/// Names of operations at the device's thread; those of transfers are small.
const OPERATIONS: u64 = 1 << 63;

/// What became of a request.
enum Submitted {
    /// There will be a [`Finished`], or it waits.
    Later,
    /// It is over; an IN transfer's data.
    Done(TransferStatus, u32, Data),
}

/// Data of a transfer that is over at once.
#[derive(Clone, Copy)]
enum Data {
    None,
    Byte(u8),
    /// The beginning of what this endpoint has in stock.
    Surplus(u8),
}

const DONE: Submitted = Submitted::Done(TransferStatus::Completed, 0, Data::None);

impl Open {
    pub(super) fn new(opened: Opened) -> Self {
        Self {
            handle: opened.handle,
            shared: opened.shared,
            slots: Slots::default(),
            finished: Vec::new(),
            presented: opened.bulk_only.map(BulkEndpoints::new),
            unconfigured: false,
            operations: VecDeque::new(),
            last_operation: OPERATIONS,
            configurations: opened.configurations,
            configuration: opened.configuration,
            descriptors: opened.descriptors,
            note: opened.note,
        }
    }

    pub(super) fn descriptors(&self) -> Option<Digest> {
        self.descriptors
    }

    /// Something that did not go as it should when it was opened, for the log.
    pub(crate) fn take_note(&mut self) -> Option<String> {
        self.note.take()
    }

    pub(super) fn set_wake(&self, wake: Option<Arc<Notify>>) {
        self.shared.set_wake(wake);
    }

    /// The host that has it: its devices share a part of the kernel's memory.
    pub(super) fn set_owner(&self, host: &str) {
        self.handle.set_owner(host);
    }

    /// wMaxPacketSize of an endpoint.
    pub(super) fn packet_len(&self, endpoint: u8) -> Option<u16> {
        self.configurations.packet_len(self.configuration, endpoint)
    }

    /// The endpoints of an interface, of all its settings.
    pub(super) fn endpoints_of(&self, interface: u8) -> Vec<u8> {
        self.configurations
            .endpoints_of(self.configuration, interface)
    }

    /// Carries out a transfer that `server` handed out. Its thread may not see it before [`Open::flush`].
    pub(super) fn submit(
        &mut self,
        server: &mut Server,
        request: u64,
        transfer: &Transfer,
        body: &[u8],
    ) {
        self.carry_out(server, tag(server, request), transfer, body);
    }

    /// Has the device's thread see what it was asked for.
    pub(super) fn flush(&mut self) {
        self.handle.flush();
    }

    fn carry_out(&mut self, server: &mut Server, tag: Tag, transfer: &Transfer, body: &[u8]) {
        let started = self.start(tag, transfer, body);
        self.conclude(server, tag, started);
    }

    /// Completes what is over at once.
    fn conclude(
        &mut self,
        server: &mut Server,
        tag: Tag,
        started: Result<Submitted, TransferStatus>,
    ) {
        let (status, actual_length, data) = match started {
            Ok(Submitted::Later) => return,
            Ok(Submitted::Done(status, actual_length, data)) => (status, actual_length, data),
            Err(status) => (status, 0, Data::None),
        };
        let outcome = Outcome::new(status, actual_length);
        let presented = self.presented.as_mut();
        let surplus = match (data, presented) {
            (Data::Surplus(endpoint), Some(bulk)) => Some(bulk.input(endpoint)),
            _ => None,
        };
        server.complete(tag.epoch, tag.request, outcome, |out| {
            match (&surplus, data) {
                (Some(input), _) => {
                    let surplus = input.surplus();
                    out.extend_from_slice(&surplus[..surplus.len().min(actual_length as usize)]);
                }
                (None, Data::Byte(byte)) => out.push(byte),
                (None, _) => (),
            }
        });
        if let Some(input) = surplus {
            input.started(None);
        }
    }

    fn start(
        &mut self,
        tag: Tag,
        transfer: &Transfer,
        body: &[u8],
    ) -> Result<Submitted, TransferStatus> {
        match transfer.transfer_type {
            TransferType::Control => {
                if transfer.endpoint & 0x0f != 0 {
                    return Err(TransferStatus::Invalid);
                }
                self.control(tag, transfer, body)
            }
            _ if self.unconfigured => Err(TransferStatus::Invalid),
            TransferType::Bulk if self.presented.is_some() => self.bulk(tag, transfer, body),
            _ => self.send(&Job::new(tag, transfer, body)),
        }
    }

    fn send(&mut self, job: &Job<'_>) -> Result<Submitted, TransferStatus> {
        let urb = self.slots.prepare(job).ok_or(TransferStatus::Invalid)?;
        self.handle.submit(urb);
        Ok(Submitted::Later)
    }

    fn control(
        &mut self,
        tag: Tag,
        transfer: &Transfer,
        body: &[u8],
    ) -> Result<Submitted, TransferStatus> {
        let job = Job::new(tag, transfer, body);
        match classify(transfer.setup) {
            Request::SetAddress => return Ok(DONE),
            Request::Operation(operation) => {
                self.operate(tag, operation);
                return Ok(Submitted::Later);
            }
            Request::GetConfiguration if self.unconfigured => {
                return Ok(match transfer.length {
                    0 => DONE,
                    _ => Submitted::Done(TransferStatus::Completed, 1, Data::Byte(0)),
                });
            }
            Request::GetConfiguration | Request::Device => (),
        }
        if self.presented.is_none() {
            return self.send(&job);
        }
        match usb_present::intercept(transfer.setup) {
            Intercept::Pass => self.send(&job),
            Intercept::Stall => Err(TransferStatus::Stall),
            Intercept::Ask(setup) => self.send(&Job {
                instead: Some(setup),
                ..job
            }),
        }
    }

    /// Cancels a transfer. It completes in any case.
    pub(super) fn cancel(&mut self, server: &mut Server, request: u64) {
        let tag = tag(server, request);
        self.cancel_where(|t, _| t == tag);
        // A reset cannot be taken back.
        let mut operations = self.operations.iter();
        let waiting = operations.find(|(_, t, o)| *t == tag && *o != Operation::Reset);
        if let Some(&(name, ..)) = waiting {
            self.take_back_operation(name);
        }
        if self.presented.as_mut().is_some_and(|b| b.take_back(tag)) {
            cancelled(server, tag);
        }
    }

    /// Cancels the transfers that the device's thread has, or is to have.
    fn cancel_where(&mut self, which: impl Fn(Tag, u8) -> bool) {
        let used = self.slots.used();
        for (name, ..) in used.filter(|(_, tag, endpoint)| which(*tag, *endpoint)) {
            if let Some(Taken::Transfer(urb)) = self.handle.cancel(name) {
                self.finished.push(Finished::Transfer {
                    urb,
                    status: Status::Cancelled,
                });
                self.shared.notify();
            }
        }
    }

    /// Takes an operation back, if it was not begun.
    fn take_back_operation(&mut self, name: u64) {
        if self.handle.cancel(name).is_some() {
            self.finished.push(Finished::Operation {
                context: name,
                outcome: TransferStatus::Cancelled,
            });
            self.shared.notify();
        }
    }

    /// Resets the device for `request`. What is in flight is cancelled, and what waits for its turn.
    pub(super) fn reset(&mut self, server: &mut Server, request: u64) {
        self.cancel_where(|_, _| true);
        for at in 0..self.operations.len() {
            let (name, _, operation) = self.operations[at];
            if operation != Operation::Reset {
                self.take_back_operation(name);
            }
        }
        if let Some(bulk) = &mut self.presented {
            for tag in bulk.take_back_all() {
                cancelled(server, tag);
            }
        }
        self.operate(tag(server, request), Operation::Reset);
    }

    /// Cancels these requests; nobody waits for them any more.
    pub(super) fn abandon(&mut self, epoch: Epoch, requests: &[u64]) {
        for tag in requests.iter().map(|&request| Tag { epoch, request }) {
            self.cancel_where(|t, _| t == tag);
            // One that was begun goes on.
            let handle = &mut self.handle;
            self.operations
                .retain(|(name, t, _)| *t != tag || handle.cancel(*name).is_none());
            if let Some(bulk) = &mut self.presented {
                bulk.take_back(tag);
            }
        }
        self.flush();
    }

    /// Has the device reset and given back. Everything is cancelled. Waits for nothing.
    pub(super) fn release(self) {
        self.set_wake(None);
        self.shared.set_give_back();
    }

    /// Ends what these endpoints, of which 0 is none, carry out.
    fn cancel_endpoints(&mut self, which: impl Fn(u8) -> bool) {
        self.cancel_where(|_, endpoint| endpoint & 0x0f != 0 && which(endpoint));
        if let Some(bulk) = &mut self.presented {
            bulk.restart(which);
        }
    }

    /// Carries out an operation, in order with everything else.
    fn operate(&mut self, tag: Tag, operation: Operation) {
        match operation {
            Operation::Reset | Operation::SetConfiguration(_) | Operation::Unconfigure => {
                self.cancel_endpoints(|_| true);
                self.unconfigured = operation == Operation::Unconfigure;
            }
            Operation::SetInterface { interface, .. } => {
                let endpoints = self.endpoints_of(interface);
                self.cancel_endpoints(|address| endpoints.contains(&address));
            }
            Operation::ClearHalt(endpoint) => {
                if let Some(bulk) = &mut self.presented {
                    bulk.restart(|address| address == endpoint);
                }
            }
        }
        self.last_operation += 1;
        let name = self.last_operation;
        self.operations.push_back((name, tag, operation));
        self.handle.operate(name, operation);
    }

    /// Hands what is over to `server`, and starts what waited for it.
    pub(super) fn drain(&mut self, server: &mut Server) {
        let mut finished = std::mem::take(&mut self.finished);
        let goes_on = self.shared.take_finished(&mut finished);
        for over in finished.drain(..) {
            match over {
                Finished::Operation { context, outcome } => {
                    self.operation_over(server, context, outcome);
                }
                Finished::Transfer { urb, status } => self.transfer_over(server, urb, status),
            }
        }
        if self.finished.is_empty() {
            self.finished = finished;
        }
        if !goes_on {
            self.give_up(server);
        }
    }

    fn operation_over(&mut self, server: &mut Server, name: u64, status: TransferStatus) {
        let at = self.operations.iter().position(|(n, ..)| *n == name);
        let Some((_, tag, operation)) = at.and_then(|at| self.operations.remove(at)) else {
            return;
        };
        if let (Operation::SetConfiguration(value), TransferStatus::Completed) = (operation, status)
        {
            self.configuration = value;
        }
        server.complete(tag.epoch, tag.request, Outcome::new(status, 0), |_| ());
    }

    fn transfer_over(&mut self, server: &mut Server, urb: Urb, status: Status) {
        let Some((at, slot)) = self.slots.take_back(urb) else {
            return;
        };
        let (tag, bulk_endpoint) = (slot.tag(), slot.bulk_endpoint());
        let ended = slot.ended(status);
        server.complete(tag.epoch, tag.request, ended.outcome, |out| {
            ended.write_body(out);
        });
        let mut next = None;
        if let (Some(address), Some(bulk)) = (bulk_endpoint, &mut self.presented) {
            let done = ended.outcome.status == TransferStatus::Completed;
            match address & 0x80 {
                0 if !done => bulk.output(address).restart(),
                0 => (),
                _ => {
                    bulk.input(address).ended(tag, ended.surplus);
                    next = Some(address);
                }
            }
        }
        self.slots.free(at);
        if let Some(address) = next {
            self.next_input(server, address);
        }
    }

    /// The device's thread has ended, though it should not have: nothing comes of what it had.
    fn give_up(&mut self, server: &mut Server) {
        let none = |server: &mut Server, tag: Tag| {
            let outcome = Outcome::new(TransferStatus::NoDevice, 0);
            server.complete(tag.epoch, tag.request, outcome, |_| ());
        };
        let transfers: Vec<Tag> = self.slots.used().map(|(_, tag, _)| tag).collect();
        for tag in transfers {
            // It stays in use: its memory is lost with the thread. The server takes a second answer for none.
            none(server, tag);
        }
        for (_, tag, _) in self.operations.drain(..) {
            none(server, tag);
        }
    }
}

/// Polls of the exporter itself are of no epoch.
fn tag(server: &Server, request: u64) -> Tag {
    let epoch = match is_poll(request) {
        true => Epoch::default(),
        false => server.epoch(),
    };
    Tag { epoch, request }
}

fn cancelled(server: &mut Server, tag: Tag) {
    let outcome = Outcome::new(TransferStatus::Cancelled, 0);
    server.complete(tag.epoch, tag.request, outcome, |_| ());
}

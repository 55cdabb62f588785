// SPDX-License-Identifier: GPL-3.0-or-later
//! A device while it is lent.

mod bulk;

use std::collections::VecDeque;
use std::sync::Arc;

use session::frame::{Transfer, TransferStatus, TransferType};
use session::server::{Outcome, Server, is_poll};
use session::{Digest, Epoch};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use usb_present::Intercept;

use super::handle::Handle;
use super::packets::BulkEndpoints;
use super::pool::{InFlight, Pool};
use super::request::{Operation, Request, classify};
use super::shared::{Finished, Shared, Tag};
use super::transfer::Job;

/// See the module's documentation. Belongs to the thread of the sessions.
pub(crate) struct Open {
    shared: Arc<Shared>,
    in_flight: Vec<InFlight>,
    pool: Pool,
    finished: Vec<Finished>,
    /// The device runs at SuperSpeed and is presented as one of high speed.
    presented: Option<BulkEndpoints>,
    /// The guest has sent SET_CONFIGURATION(0).
    unconfigured: bool,
    /// What is being carried out.
    operation: Option<Operation>,
    /// What has to wait for that, in order.
    waiting: VecDeque<Waiting>,
    descriptors: Option<Digest>,
}

/// A transfer with its body, or an operation, that has to wait.
enum Waiting {
    Transfer(Tag, Transfer, Vec<u8>),
    Reset(Tag),
}

impl Waiting {
    fn tag(&self) -> Tag {
        match self {
            Self::Transfer(tag, ..) | Self::Reset(tag) => *tag,
        }
    }

    fn endpoint(&self) -> u8 {
        match self {
            Self::Transfer(_, transfer, _) => transfer.endpoint,
            Self::Reset(_) => 0,
        }
    }
}

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
    /// `bulk_only`: for a SuperSpeed device, its OUT endpoints of bulk-only mass storage.
    pub(super) fn new(handle: Handle, bulk_only: Option<u16>, descriptors: Option<Digest>) -> Self {
        Self {
            shared: Arc::new(Shared::new(handle)),
            in_flight: Vec::new(),
            pool: Pool::default(),
            finished: Vec::new(),
            presented: bulk_only.map(BulkEndpoints::new),
            unconfigured: false,
            operation: None,
            descriptors,
            waiting: VecDeque::new(),
        }
    }

    pub(super) fn descriptors(&self) -> Option<Digest> {
        self.descriptors
    }

    pub(super) fn set_wake(&self, wake: Option<Arc<Notify>>) {
        self.shared.set_wake(wake);
    }

    /// Carries out a transfer that `server` handed out.
    pub(super) fn submit(
        &mut self,
        server: &mut Server,
        request: u64,
        transfer: &Transfer,
        body: &[u8],
    ) {
        let tag = tag(server, request);
        if self.must_wait(transfer) {
            let waiting = Waiting::Transfer(tag, *transfer, body.to_vec());
            return self.waiting.push_back(waiting);
        }
        self.carry_out(server, tag, transfer, body);
    }

    /// Requests of endpoint 0 are carried out one after the other; and what needs the device as it
    /// will be waits for that.
    fn must_wait(&self, transfer: &Transfer) -> bool {
        let is_control = transfer.transfer_type == TransferType::Control;
        match self.operation {
            Some(Operation::Reset | Operation::SetConfiguration(_)) => true,
            // Also behind what waits for the same endpoint.
            Some(_) => {
                is_control
                    || self
                        .waiting
                        .iter()
                        .any(|w| w.endpoint() == transfer.endpoint)
            }
            None => false,
        }
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
        let in_flight = self.pool.submit(&self.shared, job)?;
        self.in_flight.push(in_flight);
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
            Request::Unconfigure => {
                self.cancel_endpoints(|_| true);
                self.unconfigured = true;
                return Ok(DONE);
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
        for transfer in self.in_flight.iter().filter(|t| t.tag() == tag) {
            transfer.cancel();
        }
        // A reset cannot be taken back.
        let is_it = |w: &Waiting| matches!(w, Waiting::Transfer(..)) && w.tag() == tag;
        let waited = match self.waiting.iter().position(is_it) {
            Some(at) => self.waiting.remove(at).is_some(),
            None => self.presented.as_mut().is_some_and(|b| b.take_back(tag)),
        };
        if waited {
            cancelled(server, tag);
        }
    }

    /// Resets the device for `request`. What is in flight is cancelled.
    pub(super) fn reset(&mut self, server: &mut Server, request: u64) {
        let tag = tag(server, request);
        self.cancel_in_flight();
        self.take_back_waiting(server);
        match self.operation {
            Some(_) => self.waiting.push_back(Waiting::Reset(tag)),
            None => self.operate(tag, Operation::Reset),
        }
    }

    /// Cancels these requests; nobody waits for them any more.
    pub(super) fn abandon(&mut self, epoch: Epoch, requests: &[u64]) {
        for tag in requests.iter().map(|&request| Tag { epoch, request }) {
            for transfer in self.in_flight.iter().filter(|t| t.tag() == tag) {
                transfer.cancel();
            }
            // Those of an operation that goes on are over when it is: its guest waits for them.
            self.waiting.retain(|w| w.tag() != tag);
            if let Some(bulk) = &mut self.presented {
                bulk.take_back(tag);
            }
        }
    }

    /// Cancels everything.
    fn abandon_all(&mut self) {
        self.cancel_in_flight();
        self.waiting.clear();
        if let Some(bulk) = &mut self.presented {
            bulk.take_back_all().for_each(drop);
        }
    }

    /// Gives the device back. Blocks.
    pub(super) fn into_shared(mut self) -> Arc<Shared> {
        self.abandon_all();
        self.set_wake(None);
        self.shared
    }

    fn cancel_in_flight(&self) {
        for transfer in &self.in_flight {
            transfer.cancel();
        }
    }

    /// Answers what waits for its turn.
    fn take_back_waiting(&mut self, server: &mut Server) {
        let waiting = self.waiting.drain(..).map(|w| w.tag());
        let bulk = self.presented.iter_mut();
        for tag in waiting.chain(bulk.flat_map(BulkEndpoints::take_back_all)) {
            cancelled(server, tag);
        }
    }

    /// Ends what these endpoints, of which 0 is none, carry out. libusb would take what the kernel
    /// ends by itself for done.
    fn cancel_endpoints(&mut self, which: impl Fn(u8) -> bool) {
        let of_them = |t: &&InFlight| t.endpoint() & 0x0f != 0 && which(t.endpoint());
        for transfer in self.in_flight.iter().filter(of_them) {
            transfer.cancel();
        }
        if let Some(bulk) = &mut self.presented {
            bulk.restart(which);
        }
    }

    /// Carries out an operation on another thread. Only one is carried out at a time.
    fn operate(&mut self, tag: Tag, operation: Operation) {
        debug_assert!(self.operation.is_none(), "two operations");
        match operation {
            Operation::Reset | Operation::SetConfiguration(_) => self.cancel_endpoints(|_| true),
            Operation::SetInterface { interface, .. } => {
                let endpoints = self.shared.handle().endpoints_of(interface);
                self.cancel_endpoints(|address| endpoints.contains(address));
            }
            Operation::ClearHalt(endpoint) => {
                if let Some(bulk) = &mut self.presented {
                    bulk.restart(|address| address == endpoint);
                }
            }
        }
        if matches!(operation, Operation::Reset | Operation::SetConfiguration(_)) {
            self.unconfigured = false;
        }
        self.operation = Some(operation);
        let shared = self.shared.clone();
        spawn_blocking(move || {
            if operation == Operation::Reset {
                shared.wait_until_idle();
            }
            let status = shared.handle().carry_out(operation);
            shared.finish(Finished::Operation { tag, status });
        });
    }

    /// Hands what is over to `server`, and starts what waited for it.
    pub(super) fn drain(&mut self, server: &mut Server) {
        let mut finished = std::mem::take(&mut self.finished);
        self.shared.take_finished(&mut finished);
        for over in finished.drain(..) {
            match over {
                Finished::Operation { tag, status } => {
                    self.operation = None;
                    server.complete(tag.epoch, tag.request, Outcome::new(status, 0), |_| ());
                    self.go_on(server);
                }
                Finished::Transfer(mut transfer) => {
                    let tag = transfer.tag();
                    self.in_flight.retain(|t| t.tag() != tag);
                    let bulk = transfer.bulk_endpoint();
                    let ended = transfer.ended();
                    server.complete(tag.epoch, tag.request, ended.outcome, |out| {
                        ended.write_body(out);
                    });
                    let mut has_next = false;
                    if let (Some(address), Some(bulk)) = (bulk, &mut self.presented) {
                        let done = ended.outcome.status == TransferStatus::Completed;
                        match address & 0x80 {
                            0 if !done => bulk.output(address).restart(),
                            0 => (),
                            _ => {
                                bulk.input(address).ended(tag, ended.surplus);
                                has_next = true;
                            }
                        }
                    }
                    self.pool.put_back(transfer);
                    if let (true, Some(address)) = (has_next, bulk) {
                        self.next_input(server, address);
                    }
                }
            }
        }
        self.finished = finished;
    }

    /// Starts what waited for an operation.
    fn go_on(&mut self, server: &mut Server) {
        while self.operation.is_none()
            && let Some(waiting) = self.waiting.pop_front()
        {
            match waiting {
                Waiting::Transfer(tag, transfer, body) => {
                    self.carry_out(server, tag, &transfer, &body);
                }
                Waiting::Reset(tag) => self.operate(tag, Operation::Reset),
            }
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

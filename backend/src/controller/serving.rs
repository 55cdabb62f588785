// SPDX-License-Identifier: GPL-3.0-or-later
//! The hot path: between the rings of a frontend and the sessions of its devices.
//!
//! Everything here runs on the controller's own thread, and nothing waits: a wake-up takes all that
//! is on the rings, and what it leads to is sent and published in one go.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use control::Counters;
use handoff::Cookie;
use session::client::Client;
use session::frame::{Completion, Transfer, TransferStatus, TransferType};
use slog::{Logger, warn};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use usbif::{
    BackRing, Conn, ConnResponse, PortNumber, RingCorrupt, RingKind, Speed, Urb, UrbResponse,
    UrbStatus,
};
use vusb_core::{Answers, Controller, Slot, UrbResult, Verdict, urb_status};
use xen::{Access, Backend, DomId, EventChannel, EvtchnPort, GrantError, GrantRef, RingPage};

use super::data;
use crate::totals::Totals;

/// Requests taken in one wake-up before others get their turn. A guest whose requests are answered
/// at once could else keep the thread for itself.
const BUDGET: usize = 64;

/// A bulk transfer of no bytes on endpoint 0: invalid by USB 2.0 §5.8, so nothing happens.
const NOTHING: Transfer = Transfer {
    transfer_type: TransferType::Bulk,
    endpoint: 0x80,
    flags: 0,
    length: 0,
    interval: 0,
    setup: [0; 8],
};

/// What the frontend's directory says of its rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingDetails {
    /// `urb-ring-ref`.
    pub urb: GrantRef,
    /// `conn-ring-ref`.
    pub conn: GrantRef,
    /// `event-channel`.
    pub channel: EvtchnPort,
}

/// Why the rings of a frontend cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// A ring page.
    #[error("cannot map the rings: {0}")]
    Map(#[from] GrantError),
    /// The event channel.
    #[error("cannot bind event channel {port}: {source}")]
    Channel {
        /// The guest's port.
        port: EvtchnPort,
        /// Why.
        source: std::io::Error,
    },
}

struct Rings<B: Backend> {
    urb: BackRing<RingPage<B::Mapping>, Urb>,
    conn: BackRing<RingPage<B::Mapping>, Conn>,
    channel: Rc<B::Channel>,
}

/// Resolves whenever the frontend has signalled.
pub struct Signal<B: Backend> {
    watched: AsyncFd<OwnedFd>,
    channel: Rc<B::Channel>,
}

impl<B: Backend> Signal<B> {
    /// Waits for an event and takes it.
    pub async fn wait(&self) -> std::io::Result<()> {
        let mut guard = self.watched.readable().await?;
        // First, so that an event between the two is not forgotten.
        guard.clear_ready();
        self.channel.take_event().map(drop)
    }
}

/// The device at a port.
pub struct Attached {
    /// Its session, once the lease is claimed.
    pub client: Option<Client>,
    /// Wakes the task that sends the session's output.
    pub wake: Rc<Notify>,
    /// What went through.
    pub counters: Counters,
    /// What was saved last.
    saved: Option<Cookie>,
    /// The device reset under way.
    reset: Option<u64>,
}

/// Requests in flight, the rings they came from, and the sessions they went to.
pub struct Serving<B: Backend> {
    platform: B,
    domid: DomId,
    totals: Arc<Totals>,
    log: Logger,
    /// The ports.
    pub core: Controller,
    rings: Option<Rings<B>>,
    attached: [Option<Attached>; PortNumber::MAX as usize],
    /// Unlinked OUT transfers are given a moment to finish.
    pub quiescing: bool,
    /// Requests taken since it was last asked.
    activity: bool,
}

/// What came of a look at the rings.
#[derive(Debug, Default)]
pub struct Outcome {
    /// There is more to do: come back after others had their turn.
    pub more: bool,
    /// Transfers that the guest wants cancelled, and whether they may have a moment to finish.
    pub unlinked: arrayvec::ArrayVec<(PortNumber, u64), 16>,
}

impl<B: Backend> Serving<B> {
    /// A controller with empty ports and no rings.
    pub fn new(
        platform: B,
        domid: DomId,
        port_count: u8,
        totals: Arc<Totals>,
        log: Logger,
    ) -> Self {
        Self {
            totals,
            platform,
            domid,
            log,
            core: Controller::new(port_count),
            rings: None,
            attached: std::array::from_fn(|_| None),
            quiescing: false,
            activity: false,
        }
    }

    // ---- rings

    /// Maps the rings and binds the event channel.
    pub fn connect(&mut self, details: RingDetails) -> Result<Signal<B>, RingError> {
        let page = |gref| {
            let mapping = self.platform.map(self.domid, &[gref], Access::ReadWrite)?;
            Ok::<_, GrantError>(RingPage::new(mapping, 0))
        };
        let (urb, conn) = (page(details.urb)?, page(details.conn)?);
        let port = details.channel;
        let failed = |source| RingError::Channel { port, source };
        let channel = self
            .platform
            .bind_interdomain(self.domid, port)
            .map_err(failed)?;
        let channel = Rc::new(channel);
        let descriptor = channel.as_fd().try_clone_to_owned().map_err(failed)?;
        // SAFETY: the descriptor is a duplicate of our own, owned by the AsyncFd and so open and
        // the same for as long as that lives.
        let watched = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }
            .map_err(|e| failed(e.into()))?;
        self.rings = Some(Rings {
            urb: BackRing::new(urb),
            conn: BackRing::new(conn),
            channel: channel.clone(),
        });
        self.core.tell_all();
        Ok(Signal { watched, channel })
    }

    /// Unmaps the rings. Transfers in flight are cancelled; their completions find no request.
    pub fn disconnect(&mut self) {
        for port in self.core.ports() {
            let numbers: arrayvec::ArrayVec<u64, 16> = self
                .core
                .unanswered(port)
                .filter_map(|slot| self.core.urb(slot).and_then(|u| u.submitted))
                .collect();
            for number in numbers {
                self.cancel(port, number);
            }
        }
        self.core.forget_requests();
        self.rings = None;
    }

    /// Whether a request was taken since the last call.
    pub fn take_activity(&mut self) -> bool {
        std::mem::take(&mut self.activity)
    }

    /// Takes what is on the rings, as far as the budget goes.
    ///
    /// # Errors
    /// [`RingCorrupt`]: this frontend is beyond help until it connects anew.
    pub fn service(&mut self) -> Result<Outcome, RingCorrupt> {
        let mut outcome = Outcome::default();
        let mut budget = BUDGET;
        loop {
            let Some(rings) = &mut self.rings else {
                return Ok(outcome);
            };
            match rings.urb.next_request()? {
                Some(request) => {
                    self.activity = true;
                    let verdict = self.core.take(request);
                    self.act(verdict, &mut outcome);
                    budget -= 1;
                }
                None if rings.urb.final_check() => {}
                None => break,
            }
            if budget == 0 {
                outcome.more = true;
                break;
            }
        }
        self.tell_connections()?;
        self.save_cookies();
        self.publish();
        Ok(outcome)
    }

    /// Shows the frontend what was answered, and signals it if it wants that.
    pub fn publish(&mut self) {
        let Some(rings) = &mut self.rings else { return };
        let urb = rings.urb.publish();
        let conn = rings.conn.publish();
        if (urb || conn)
            && let Err(e) = rings.channel.notify()
        {
            warn!(self.log, "cannot signal the frontend: {}", e);
        }
    }

    /// Pushes connection events, as far as the frontend has left requests for them.
    fn tell_connections(&mut self) -> Result<(), RingCorrupt> {
        let Some(rings) = &mut self.rings else {
            return Ok(());
        };
        while let Some(event) = self.core.next_event() {
            let Some(request) = rings.conn.next_request()? else {
                if rings.conn.final_check() {
                    continue;
                }
                break;
            };
            let response = ConnResponse {
                id: request.id,
                port: event.port,
                speed: event.speed,
            };
            if rings.conn.push_response(&response).is_ok() {
                self.core.told(event);
            }
        }
        Ok(())
    }

    fn act(&mut self, verdict: Verdict, outcome: &mut Outcome) {
        match verdict {
            Verdict::Answer(response) => self.push(&response),
            Verdict::AnswerBoth(answers) => self.answer(answers),
            Verdict::Submit(slot) => self.submit(slot),
            Verdict::Hold => {}
            Verdict::Reset(port) => self.reset(port),
            Verdict::Cancel(slot) => {
                let Some(urb) = self.core.urb(slot) else {
                    return;
                };
                let (port, finishing) = (urb.port, self.quiescing && !urb.transfer.is_in());
                let Some(number) = urb.submitted else { return };
                self.count(
                    port,
                    Counters {
                        unlinked: 1,
                        ..Counters::default()
                    },
                );
                if !finishing {
                    self.cancel(port, number);
                }
                let _ = outcome.unlinked.try_push((port, number));
            }
        }
    }

    fn push(&mut self, response: &UrbResponse) {
        let Some(rings) = &mut self.rings else { return };
        if rings.urb.push_response(response).is_err() {
            // Each answer belongs to a request taken from this very ring.
            debug_assert!(false, "answer {response:?} without a request");
            warn!(self.log, "answer without a request"; "id" => response.id);
        }
    }

    fn answer(&mut self, answers: Answers) {
        if let Some(unlink) = answers.unlink {
            self.push(&unlink);
        }
        self.push(&answers.urb);
    }

    fn finish(&mut self, slot: Slot, result: UrbResult) {
        let Some(urb) = self.core.urb(slot) else {
            return;
        };
        if urb.submitted.is_some() {
            let bytes = u64::from(result.actual_length);
            let (bytes_in, bytes_out) = if urb.transfer.is_in() {
                (bytes, 0)
            } else {
                (0, bytes)
            };
            let more = Counters {
                answered: 1,
                errors: u64::from(!result.status.is_ok()),
                bytes_in,
                bytes_out,
                ..Counters::default()
            };
            self.count(urb.port, more);
        }
        if let Some(answers) = self.core.complete(slot, result) {
            self.answer(answers);
        }
    }

    // ---- sessions

    /// A device was plugged into the core at this port.
    pub fn attach(&mut self, port: PortNumber, wake: Rc<Notify>) {
        self.attached[port.index()] = Some(Attached {
            client: None,
            wake,
            counters: Counters::default(),
            saved: None,
            reset: None,
        });
    }

    /// Unplugs a device: the guest is told, and everything unanswered is answered.
    pub fn detach(&mut self, port: PortNumber) -> Option<Attached> {
        self.core.unplug(port);
        let slots: arrayvec::ArrayVec<Slot, 16> = self.core.unanswered(port).collect();
        for slot in slots {
            self.finish(slot, UrbResult::failed(UrbStatus::NODEV));
        }
        let attached = self.attached[port.index()].take();
        self.flush();
        attached
    }

    fn count(&mut self, port: PortNumber, more: Counters) {
        self.totals.add(&more);
        if let Some(attached) = self.at_mut(port) {
            attached.counters += more;
        }
    }

    /// The device at a port.
    pub fn at(&self, port: PortNumber) -> Option<&Attached> {
        self.attached[port.index()].as_ref()
    }

    /// The device at a port.
    pub fn at_mut(&mut self, port: PortNumber) -> Option<&mut Attached> {
        self.attached[port.index()].as_mut()
    }

    /// The session of the device at a port.
    pub fn client(&mut self, port: PortNumber) -> Option<&mut Client> {
        self.at_mut(port)?.client.as_mut()
    }

    /// The lease is claimed: requests go to this session from now on, those held first.
    pub fn open(&mut self, port: PortNumber, client: Client) {
        if let Some(attached) = self.at_mut(port) {
            attached.client = Some(client);
            attached.saved = None;
            attached.reset = None;
            self.release(port);
        }
    }

    /// Answers what was submitted in an epoch that has ended with an error: whether the device saw
    /// it is unknown, and it must not see it twice.
    pub fn fail_submitted(&mut self, port: PortNumber) {
        let submitted: arrayvec::ArrayVec<Slot, 16> = self
            .core
            .unanswered(port)
            .filter(|&slot| self.core.urb(slot).is_some_and(|u| u.submitted.is_some()))
            .collect();
        for slot in submitted {
            self.finish(slot, UrbResult::failed(UrbStatus::IOERROR));
        }
    }

    /// The connection is back: sends again what did not arrive.
    pub fn resume(&mut self, port: PortNumber, requests_received: u64) {
        self.count(
            port,
            Counters {
                reconnects: 1,
                ..Counters::default()
            },
        );
        let Some(client) = self.client(port) else {
            return;
        };
        let unsent: arrayvec::ArrayVec<u64, 32> = client.unsent(requests_received).collect();
        for number in unsent {
            self.resend(port, number);
        }
        if let Some(attached) = self.at_mut(port) {
            attached.saved = None;
            if let Some(client) = &mut attached.client {
                client.resend_cancels();
            }
        }
        self.flush();
    }

    /// A transfer is over. Call [`Serving::flush`] after the last of a batch.
    pub fn completed(&mut self, port: PortNumber, completion: &Completion, body: &[u8]) {
        if let Some(attached) = self.at_mut(port)
            && attached.reset == Some(completion.request)
        {
            attached.reset = None;
            if completion.status != TransferStatus::Completed {
                warn!(self.log, "device reset failed"; "status" => ?completion.status);
            }
            self.release(port);
            return;
        }
        let Some(slot) = self.core.by_number(port, completion.request) else {
            return;
        };
        let Some(urb) = self.core.urb(slot) else {
            return;
        };
        let mut result = UrbResult {
            status: urb_status(completion.status),
            actual_length: completion.actual_length,
            error_count: completion.error_count,
            start_frame: completion.start_frame,
        };
        let copied = data::body_to_guest(
            &self.platform,
            self.domid,
            &urb.request,
            &urb.transfer,
            completion.actual_length,
            body,
        );
        if let Err(e) = copied {
            warn!(self.log, "URB's data lost"; "id" => urb.request.id, "error" => %e);
            result = UrbResult::failed(UrbStatus::INVAL);
        }
        self.finish(slot, result);
    }

    /// After a batch of completions: whatever they led to goes out.
    pub fn flush(&mut self) {
        if let Err(e) = self.tell_connections() {
            warn!(self.log, "connection ring is corrupt: {}", e);
        }
        self.save_cookies();
        self.publish();
    }

    /// Cancels a transfer; its completion answers. Nothing happens when it is over.
    pub fn cancel(&mut self, port: PortNumber, number: u64) {
        if let Some(attached) = self.at_mut(port)
            && let Some(client) = &mut attached.client
        {
            client.cancel(number);
            attached.wake.notify_one();
        }
    }

    /// Answers a transfer that was cancelled and has not completed for too long. Its completion,
    /// if one comes, finds no request.
    pub fn give_up(&mut self, port: PortNumber, number: u64) {
        if let Some(slot) = self.core.by_number(port, number) {
            warn!(self.log, "exporter did not answer a cancellation in time";
                "port" => port.get(), "request" => number);
            self.finish(slot, UrbResult::failed(UrbStatus::IOERROR));
            self.publish();
        }
    }

    /// Whether every slot of the URB ring waits for an answer.
    pub fn is_full(&self) -> bool {
        let rings = self.rings.as_ref();
        rings.is_some_and(|r| r.urb.unanswered() >= <Urb as RingKind>::SLOTS)
    }

    /// Cancels every IN transfer but control ones: those that only wait for data. See
    /// [`super::actor`] for when.
    pub fn cancel_waiting(&mut self) {
        for port in self.core.ports() {
            let waiting: arrayvec::ArrayVec<u64, 16> = self
                .core
                .unanswered(port)
                .filter_map(|slot| self.core.urb(slot))
                .filter(|u| u.transfer.is_in())
                .filter(|u| u.transfer.transfer_type != TransferType::Control)
                .filter_map(|u| u.submitted)
                .collect();
            for number in waiting {
                self.cancel(port, number);
            }
        }
    }

    fn release(&mut self, port: PortNumber) {
        self.core.release(port);
        for slot in self.core.held_requests(port) {
            self.submit(slot);
        }
    }

    fn submit(&mut self, slot: Slot) {
        let Some(urb) = self.core.urb(slot) else {
            return;
        };
        let (port, request, transfer) = (urb.port, &urb.request, urb.transfer);
        let attached = self.attached[port.index()].as_mut();
        let Some(attached) = attached.filter(|a| a.client.as_ref().is_some_and(Client::has_room))
        else {
            // A device without a session is held; 16 slots fit into the session's window.
            self.finish(slot, UrbResult::failed(UrbStatus::NODEV));
            return;
        };
        let Some(client) = &mut attached.client else {
            return;
        };
        let submitted = client.submit(&transfer, |out| {
            data::body_from_guest(&self.platform, self.domid, request, &transfer, out)
        });
        match submitted {
            Ok(number) => {
                attached.wake.notify_one();
                self.core.submitted(slot, number);
                self.count(
                    port,
                    Counters {
                        urbs: 1,
                        ..Counters::default()
                    },
                );
            }
            Err(e) => {
                warn!(self.log, "URB refused"; "id" => request.id, "error" => %e);
                self.finish(slot, UrbResult::failed(UrbStatus::INVAL));
            }
        }
    }

    fn resend(&mut self, port: PortNumber, number: u64) {
        let urb = self
            .core
            .by_number(port, number)
            .and_then(|slot| self.core.urb(slot));
        let Some(attached) = self.attached[port.index()].as_mut() else {
            return;
        };
        let Some(client) = &mut attached.client else {
            return;
        };
        if attached.reset == Some(number) {
            client.resend_reset(number);
            return;
        }
        let sent = urb.is_some_and(|urb| {
            let (request, transfer) = (&urb.request, &urb.transfer);
            let sent = client.resend(number, transfer, |out| {
                data::body_from_guest(&self.platform, self.domid, request, transfer, out)
            });
            if let Err(e) = &sent {
                warn!(self.log, "URB lost with its pages"; "id" => urb.request.id, "error" => %e);
            }
            sent.is_ok()
        });
        if !sent {
            // Answered meanwhile, or its pages are gone. Numbers have no gaps, so its place is
            // taken by a transfer that no device can carry out.
            let Ok(()) = client.resend(number, &NOTHING, |_| Ok::<_, Infallible>(()));
        }
    }

    fn reset(&mut self, port: PortNumber) {
        match self.at_mut(port) {
            Some(Attached {
                client: Some(client),
                wake,
                reset,
                ..
            }) if client.has_room() => {
                *reset = Some(client.reset());
                wake.notify_one();
            }
            _ => self.release(port),
        }
    }

    /// Saves what a hand-off needs as soon as it changes, so that it is true also when this host
    /// dies without notice.
    fn save_cookies(&mut self) {
        for port in self.core.ports() {
            let state = self.core.port_state(port);
            if state.speed == Speed::None {
                continue;
            }
            let cookie = Cookie {
                address: state.address.map_or(0, |a| a.get()),
                speed: state.speed.to_wire(),
            };
            let Some(attached) = &mut self.attached[port.index()] else {
                continue;
            };
            let Some(client) = &mut attached.client else {
                continue;
            };
            if attached.saved != Some(cookie) && client.is_connected() {
                client.save_cookie(&cookie.encode());
                attached.saved = Some(cookie);
                attached.wake.notify_one();
            }
        }
    }
}

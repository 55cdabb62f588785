// SPDX-License-Identifier: GPL-3.0-or-later
//! The sessions' side of [`Serving`]: what is submitted, and what completes.

use std::convert::Infallible;
use std::rc::Rc;

use control::Counters;
use handoff::Cookie;
use session::Epoch;
use session::client::{Client, ClientError, Event};
use session::frame::{Completion, Transfer, TransferStatus, TransferType};
use session::open::Attempt;
use slog::warn;
use tokio::sync::Notify;
use usbif::{PortNumber, RingKind, Speed, UrbStatus};
use vusb_core::{Slot, Urb, UrbResult, urb_status};
use xen::Backend;

use super::{Attached, Serving, Unanswered};
use crate::controller::data;

/// How a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nobody is there to hear of it.
    Gone,
    /// The device is gone.
    Unplugged,
    /// Somebody else holds the lease.
    Fenced,
}

/// A bulk transfer of no bytes on endpoint 0: invalid by USB 2.0 §5.8, so nothing happens.
const NOTHING: Transfer = Transfer {
    transfer_type: TransferType::Bulk,
    endpoint: 0x80,
    flags: 0,
    length: 0,
    interval: 0,
    setup: [0; 8],
};

impl<B: Backend> Serving<B> {
    /// A device was plugged into the core at this port.
    pub fn attach(&mut self, port: PortNumber, wake: Rc<Notify>) {
        self.attached[port.index()] = Some(Attached {
            client: None,
            wake,
            counters: Counters::default(),
            saved: None,
            reset: None,
            pauses: false,
            is_storage: false,
            fails_stages: false,
        });
        self.note_ports();
    }

    /// The guest stays connected when this device is pulled out.
    pub fn set_pauses(&mut self, port: PortNumber, is_storage: bool) {
        if let Some(attached) = self.at_mut(port) {
            attached.pauses = true;
            attached.is_storage = is_storage;
        }
    }

    /// Unplugs a device: the guest is told, and everything unanswered is answered.
    pub fn detach(&mut self, port: PortNumber) -> Option<Attached> {
        self.core.unplug(port);
        self.note_ports();
        self.journal.close_session(port);
        let slots: arrayvec::ArrayVec<Slot, 16> = self.core.unanswered(port).collect();
        for slot in slots {
            self.finish(slot, UrbResult::failed(UrbStatus::NODEV));
        }
        let attached = self.attached[port.index()].take();
        self.flush();
        attached
    }

    /// Lets the guest see the port empty, for a while; the session goes on.
    pub fn withdraw(&mut self, port: PortNumber) {
        self.core.unplug(port);
        self.note_ports();
        let slots: arrayvec::ArrayVec<Slot, 16> = self.core.unanswered(port).collect();
        for slot in slots {
            if let Some(number) = self.core.urb(slot).and_then(|urb| urb.submitted) {
                self.cancel(port, number);
            }
            self.finish(slot, UrbResult::failed(UrbStatus::NODEV));
        }
        self.flush();
    }

    /// Lets the guest see a device again that was [withdrawn](Serving::withdraw).
    pub fn give_again(&mut self, port: PortNumber, speed: Speed) {
        // The port is empty: nothing else could be attached to it meanwhile.
        if self.core.plug(port, speed, None).is_ok() && self.client(port).is_some() {
            self.release(port);
        }
        self.flush();
    }

    /// Resets the device; requests to it are held until that is done.
    pub fn start_over(&mut self, port: PortNumber) {
        if self.client(port).is_some() {
            self.core.hold(port);
            self.note_ports();
            self.reset(port);
        }
    }

    pub(super) fn count(&mut self, port: PortNumber, more: Counters) {
        self.place.totals.add(&more);
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

    /// The next attempt to claim or resume the lease of the device at a port, after all those of before,
    /// also of an earlier process.
    pub fn next_attempt(&mut self, port: PortNumber) -> Attempt {
        Attempt {
            life: self.journal.life(),
            number: self.journal.next_attempt(port),
        }
    }

    /// The epoch of the session of the device at a port: request numbers are unique within it.
    pub fn epoch(&self, port: PortNumber) -> Option<Epoch> {
        Some(self.at(port)?.client.as_ref()?.epoch())
    }

    /// The lease is claimed under this epoch: what was submitted under an earlier one has failed, what
    /// is held goes out.
    pub fn claimed(&mut self, port: PortNumber, epoch: Epoch) {
        self.fail_submitted(port);
        self.open(port, Client::new(epoch));
        self.flush();
    }

    /// The connection is back, and the exporter has had the requests up to this one.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn resumed(&mut self, port: PortNumber, requests_received: u64) -> Result<(), ClientError> {
        if let Some(client) = self.client(port) {
            client.resumed(requests_received)?;
        }
        self.resume(port, requests_received);
        Ok(())
    }

    /// Takes whole frames off the input, says how many bytes they were, and publishes what came of
    /// them.
    ///
    /// # Errors
    /// [`ClientError`]: the connection is of no more use.
    pub fn receive(
        &mut self,
        port: PortNumber,
        input: &[u8],
    ) -> Result<(usize, Option<End>), ClientError> {
        let mut taken = 0;
        let mut end = None;
        while end.is_none() {
            let Some(client) = self.client(port) else {
                end = Some(End::Gone);
                break;
            };
            let Some((event, len)) = client.next_event(&input[taken..])? else {
                break;
            };
            taken += len;
            match event {
                Event::Completed { completion, body } => self.completed(port, &completion, body),
                Event::Gone => {
                    if self.pauses(port) {
                        self.pause(port, Unanswered::NotBegun);
                    }
                    end = Some(End::Unplugged);
                }
                Event::Fenced => end = Some(End::Fenced),
                Event::Ping | Event::Pong => {}
            }
        }
        self.flush();
        Ok((taken, end))
    }

    /// The lease is claimed: requests go to this session from now on, those held first.
    fn open(&mut self, port: PortNumber, client: Client) {
        let (epoch, told) = (client.epoch(), self.told);
        if let Some(attached) = self.at_mut(port) {
            let client = attached.client.insert(client);
            told.say_again(client);
            attached.saved = None;
            attached.reset = None;
            attached.fails_stages = false;
            // In this order: a port that is held in an open session is one that is being reset.
            self.core.release(port);
            self.note_ports();
            self.journal.open_session(port, epoch.0);
            self.submit_held(port);
        }
    }

    /// Answers what was submitted in an epoch that has ended with an error: whether the device saw
    /// it is unknown, and it must not see it twice.
    fn fail_submitted(&mut self, port: PortNumber) {
        let submitted: arrayvec::ArrayVec<Slot, 16> = self
            .core
            .unanswered(port)
            .filter(|&slot| self.core.urb(slot).is_some_and(|u| u.submitted.is_some()))
            .collect();
        for slot in submitted {
            match self.core.urb(slot).is_some_and(Urb::sets_address) {
                // No device sees that, however often it is sent.
                true => self.wait_again(port, slot),
                false => self.finish(slot, UrbResult::failed(UrbStatus::IOERROR)),
            }
        }
    }

    /// The connection is back: sends again what did not arrive.
    fn resume(&mut self, port: PortNumber, requests_received: u64) {
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
        if let Some(attached) = self.at_mut(port) {
            attached.saved = None;
        }
        // In this order: a SET_ADDRESS is answered when what came before it is saved.
        self.save_cookies();
        for number in unsent {
            self.resend(port, number);
        }
        let told = self.told;
        if let Some(client) = self.client(port) {
            client.resend_cancels();
            told.say_again(client);
        }
        self.flush();
    }

    /// A transfer is over. Call [`Serving::flush`] after the last of a batch, and before anything is
    /// sent.
    fn completed(&mut self, port: PortNumber, completion: &Completion, body: &[u8]) {
        self.settle(port, completion, body);
        if let Some(client) = self.client(port) {
            let number = client.completions_received();
            self.journal.completed(port, number);
        }
    }

    fn settle(&mut self, port: PortNumber, completion: &Completion, body: &[u8]) {
        if let Some(attached) = self.at_mut(port)
            && attached.reset == Some(completion.request)
        {
            attached.reset = None;
            if completion.status != TransferStatus::Completed {
                warn!(self.place.log, "device reset failed"; "status" => ?completion.status);
            }
            self.core.release(port);
            self.note_ports();
            self.journal.reset_over(port);
            self.submit_held(port);
            return;
        }
        let Some(slot) = self.core.by_number(port, completion.request) else {
            return;
        };
        if self.ended_by_unplugging(port, slot, completion) {
            self.completions.notify_one();
            return;
        }
        let Some(urb) = self.core.urb(slot) else {
            return;
        };
        // Who asked for that may want to know it from a transfer that failed. Linux's xen-hcd does
        // not look at the status of what it has unlinked.
        let was_cancelled =
            completion.status == TransferStatus::Cancelled && urb.unlinked_by.is_some();
        let mut result = UrbResult {
            status: match was_cancelled {
                true => UrbStatus::SHUTDOWN,
                false => urb_status(completion.status),
            },
            actual_length: completion.actual_length,
            error_count: completion.error_count,
            start_frame: completion.start_frame,
        };
        let copied = data::body_to_guest(
            &self.place.platform,
            self.place.domid,
            &urb.request,
            &urb.transfer,
            completion.actual_length,
            body,
        );
        // A device has done it; where the guest has no page for its data, in vain.
        match copied.is_ok() && !urb.sets_address() {
            true => self.spent.useful += 1,
            false => self.spent.useless += 1,
        }
        if let Err(e) = copied {
            warn!(self.place.log, "URB's data lost"; "id" => urb.request.id, "error" => %e);
            result = UrbResult::failed(UrbStatus::INVAL);
        }
        self.finish(slot, result);
        self.completions.notify_one();
    }

    /// After a batch of completions: whatever they led to goes out.
    pub fn flush(&mut self) {
        if let Err(e) = self.tell_connections() {
            warn!(self.place.log, "connection ring is corrupt: {}", e);
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
            warn!(self.place.log, "exporter did not answer a cancellation in time";
                "port" => port.get(), "request" => number);
            self.finish(slot, UrbResult::failed(UrbStatus::IOERROR));
            self.publish();
        }
    }

    /// Whether every slot of the URB ring waits for an answer.
    pub fn is_full(&self) -> bool {
        let rings = self.rings.as_ref();
        rings.is_some_and(|r| r.urb.unanswered() >= <usbif::Urb as RingKind>::SLOTS)
    }

    pub(super) fn release(&mut self, port: PortNumber) {
        self.core.release(port);
        self.note_ports();
        self.submit_held(port);
    }

    fn submit_held(&mut self, port: PortNumber) {
        for slot in self.core.held_requests(port) {
            self.submit(slot);
        }
    }

    pub(super) fn submit(&mut self, slot: Slot) {
        if self.core.urb(slot).is_some_and(Urb::sets_address) {
            // Before it: it is answered when that is saved, so that a guest that knows its device's address
            // does not come to a host that does not.
            self.save_cookies();
        }
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
            data::body_from_guest(
                &self.place.platform,
                self.place.domid,
                request,
                &transfer,
                out,
            )
        });
        match submitted {
            Ok(number) => {
                attached.wake.notify_one();
                let epoch = client.epoch();
                self.core.submitted(slot, number);
                if let Some(record) = self.records[slot.index()].0 {
                    self.journal.submitted(record, port, epoch.0, number);
                }
                self.count(
                    port,
                    Counters {
                        urbs: 1,
                        ..Counters::default()
                    },
                );
            }
            Err(e) => {
                self.spent.useless += 1;
                warn!(self.place.log, "URB refused"; "id" => request.id, "error" => %e);
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
                data::body_from_guest(&self.place.platform, self.place.domid, request, transfer, out)
            });
            if let Err(e) = &sent {
                warn!(self.place.log, "URB lost with its pages"; "id" => urb.request.id, "error" => %e);
            }
            sent.is_ok()
        });
        if !sent {
            // Answered meanwhile, or its pages are gone. Numbers have no gaps, so its place is
            // taken by a transfer that no device can carry out.
            let Ok(()) = client.resend(number, &NOTHING, |_| Ok::<_, Infallible>(()));
        }
    }

    pub(super) fn reset(&mut self, port: PortNumber) {
        match self.at_mut(port) {
            Some(Attached {
                client: Some(client),
                wake,
                reset,
                ..
            }) if client.has_room() => {
                let number = client.reset();
                *reset = Some(number);
                wake.notify_one();
                self.journal.reset(port, number);
            }
            _ => self.release(port),
        }
    }

    /// Saves what a hand-off needs as soon as it changes, so that it is true also when this host
    /// dies without notice.
    pub(super) fn save_cookies(&mut self) {
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

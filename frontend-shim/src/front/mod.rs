// SPDX-License-Identifier: GPL-3.0-or-later
//! The frontend's machine: URBs, request ids, ports. No I/O and no clock.
//!
//! Who owns one calls, in this order: [`Front::handle_response`] and [`Front::handle_event`] for
//! what the rings hold, [`Front::next_request`] while the URB ring has room, then
//! [`Front::next_completion`], [`Front::next_port_change`] and [`Front::next_violation`] until
//! each is `None`.
//!
//! It has the habits of Linux's `xen-hcd` that a backend depends on: sixteen ids, the one freed
//! last is used first; an unlink takes an id of its own; an event whose speed is the known one is
//! ignored; a broken protocol stops it for good.

mod completion;
mod counters;
mod ids;
mod ports;
mod recall;
mod submission;
mod suspend;
mod urbs;
mod violation;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use usbif::{
    BadConnResponse, ConnResponse, PortNumber, RingCorrupt, Speed, UrbKind, UrbRequest, UrbResponse,
};

pub use completion::{Completion, TransferError};
pub use counters::Counters;
pub use ports::PortChange;
pub use submission::{Submission, SubmitError};
pub use urbs::UrbHandle;
pub use violation::Violation;

use completion::{Extent, translate};
use ids::{IdTable, IdUse};
use ports::Ports;
use urbs::{Progress, Unlinking, Urbs};

/// The frontend's machine. See the module.
#[derive(Debug)]
pub struct Front {
    urbs: Urbs,
    ids: IdTable,
    to_submit: VecDeque<UrbHandle>,
    to_unlink: VecDeque<UrbHandle>,
    completions: VecDeque<Completion>,
    ports: Ports,
    violations: VecDeque<Violation>,
    counters: Counters,
    /// URBs sent and not answered.
    in_flight: u32,
    frozen: bool,
    /// URBs wait: the domain is about to be suspended, or was. See [`recall`].
    held: bool,
    /// URBs in flight that were asked for because of that.
    recalled: u32,
    /// A suspend recalls what is in flight.
    recalls: bool,
    dead: bool,
}

impl Front {
    /// A controller with `num_ports` empty ports, 1 to 31.
    pub fn new(num_ports: u8) -> Self {
        Self {
            urbs: Urbs::default(),
            ids: IdTable::new(),
            to_submit: VecDeque::with_capacity(64),
            to_unlink: VecDeque::with_capacity(64),
            completions: VecDeque::with_capacity(64),
            ports: Ports::new(num_ports),
            violations: VecDeque::new(),
            counters: Counters::default(),
            in_flight: 0,
            frozen: false,
            held: false,
            recalled: 0,
            recalls: false,
            dead: false,
        }
    }

    /// A suspend [recalls](Self::recall) what is in flight: one id is kept for that.
    pub fn set_recalls(&mut self, recalls: bool) {
        self.recalls = recalls;
    }

    /// Takes a URB. It waits for a free id if need be.
    ///
    /// # Errors
    /// [`SubmitError`]; there will be no completion then.
    pub fn submit(&mut self, submission: Submission) -> Result<UrbHandle, SubmitError> {
        if self.dead {
            return Err(SubmitError::Dead);
        }
        if self.frozen {
            return Err(SubmitError::Frozen);
        }
        if self.ports.speed(submission.root_port) == Speed::None {
            return Err(SubmitError::NoDevice(submission.root_port));
        }
        let urb = self.urbs.insert(submission);
        self.to_submit.push_back(urb);
        Ok(urb)
    }

    /// Asks for a URB back. It completes with [`TransferError::Unlinked`], but with the bytes that
    /// were transferred, also when it was done before the backend saw the unlink. False: it has
    /// completed already, or is being unlinked.
    pub fn unlink(&mut self, urb: UrbHandle) -> bool {
        let Some(entry) = self.urbs.get_mut(urb) else {
            return false;
        };
        if entry.unlinking != Unlinking::No {
            return false;
        }
        entry.unlinking = Unlinking::Queued;
        match entry.progress {
            Progress::Queued => self.complete(urb, Err(TransferError::Unlinked), Extent::default()),
            // It was asked for already.
            Progress::InFlight(_) if entry.recalled => entry.unlinking = Unlinking::Sent,
            Progress::InFlight(_) => self.to_unlink.push_back(urb),
        }
        true
    }

    /// Asks for every URB back.
    pub fn unlink_all(&mut self) {
        self.unlink_where(|_| true);
    }

    fn unlink_where(&mut self, matches: impl Fn(&Submission) -> bool) {
        for index in 0..self.urbs.capacity() {
            if let Some((urb, entry)) = self.urbs.at(index)
                && matches(&entry.submission)
            {
                self.unlink(urb);
            }
        }
    }

    /// The next request to push. Call it only while the URB ring has a free slot.
    ///
    /// With a slot but no id, ids have been lost: `xen-hcd` runs off its table then. Here it is a
    /// [`Violation`] that ends the controller.
    pub fn next_request(&mut self) -> Option<UrbRequest> {
        if self.dead {
            return None;
        }
        // An unlink first: whoever asked for it waits.
        while let Some(urb) = self.to_unlink.pop_front() {
            // Gone when the URB was answered meanwhile.
            let Some(entry) = self.urbs.get_mut(urb) else {
                continue;
            };
            let Progress::InFlight(victim) = entry.progress else {
                continue;
            };
            if !entry.recalled {
                entry.unlinking = Unlinking::Sent;
            }
            let pipe = entry.submission.request.pipe.with_unlink();
            let kind = UrbKind::Unlink { id: victim };
            let id = self.take_id(IdUse::Unlink)?;
            self.counters.unlinks += 1;
            // Without segments there is nothing to be refused.
            return UrbRequest::new(id, pipe, 0, kind, &[]).ok();
        }
        if !self.may_submit() {
            return None;
        }
        while let Some(urb) = self.to_submit.pop_front() {
            if self.urbs.get_mut(urb).is_none() {
                continue;
            }
            let id = self.take_id(IdUse::Urb(urb))?;
            let entry = self.urbs.get_mut(urb)?;
            entry.progress = Progress::InFlight(id);
            self.in_flight += 1;
            let mut request = entry.submission.request;
            request.id = id;
            return Some(request);
        }
        None
    }

    fn take_id(&mut self, usage: IdUse) -> Option<u16> {
        let id = self.ids.take(usage);
        if id.is_none() {
            self.violate(Violation::IdsExhausted);
        }
        id
    }

    /// Whether [`next_request`](Self::next_request) has something to send.
    pub fn has_requests(&self) -> bool {
        let may_submit = self.may_submit() && !self.to_submit.is_empty();
        !self.dead && (!self.to_unlink.is_empty() || may_submit)
    }

    /// A response from the URB ring.
    pub fn handle_response(&mut self, response: UrbResponse) {
        if self.dead {
            return;
        }
        let urb = match self.ids.release(response.id) {
            IdUse::Free => return self.violate(Violation::UnknownId(response.id)),
            IdUse::Unlink => return,
            IdUse::Urb(urb) => urb,
        };
        self.in_flight -= 1;
        let Some(entry) = self.urbs.get_mut(urb) else {
            return;
        };
        let request = entry.submission.request;
        let unlinked = entry.unlinking != Unlinking::No;
        let mut actual_length = response.actual_length as usize;
        if actual_length > request.buffer_len() {
            actual_length = request.buffer_len();
            self.violate(Violation::LengthBeyondBuffer {
                actual: response.actual_length,
                buffer: request.buffer_len() as u32,
            });
        }
        if !response.status.is_defined() {
            self.violate(Violation::UndefinedStatus(response.status.0));
        }
        if self.taken_back(urb, response.status, actual_length) {
            return;
        }
        let short = request.short_not_ok() && actual_length < request.buffer_len();
        let result = match translate(response.status) {
            _ if unlinked => Err(TransferError::Unlinked),
            // What Linux's __usb_hcd_giveback_urb does.
            Ok(()) if short => Err(TransferError::Short),
            result => result,
        };
        let extent = Extent {
            actual_length,
            error_count: response.error_count,
            start_frame: response.start_frame,
        };
        self.complete(urb, result, extent);
    }

    /// An event from the connection ring.
    pub fn handle_event(&mut self, event: Result<ConnResponse, BadConnResponse>) {
        if self.dead {
            return;
        }
        let event = match event {
            Ok(event) => event,
            Err(bad) => return self.violate(Violation::BadEvent(bad)),
        };
        if event.port.get() > self.ports.count() {
            return self.violate(Violation::NoSuchPort(event.port));
        }
        let Some(change) = self.ports.set_speed(event.port, event.speed) else {
            self.counters.events_ignored += 1;
            return;
        };
        if change.was != Speed::None {
            self.counters.disconnects += 1;
            // The USB core takes back what was submitted to the device.
            self.unlink_where(|submission| submission.root_port == event.port);
        }
        if change.now != Speed::None {
            self.counters.connects += 1;
        }
    }

    /// One of the rings has an impossible index.
    pub fn handle_corrupt_ring(&mut self, corrupt: RingCorrupt) {
        self.violate(Violation::RingCorrupt(corrupt));
    }

    /// A grant was still mapped after the response to the request that it belonged to.
    pub fn handle_grant_in_use(&mut self) {
        self.violate(Violation::GrantInUse);
    }

    /// The next finished URB.
    pub fn next_completion(&mut self) -> Option<Completion> {
        self.completions.pop_front()
    }

    /// The completion of this URB, if it has finished; the others stay in order.
    pub fn take_completion(&mut self, urb: UrbHandle) -> Option<Completion> {
        let at = self.completions.iter().position(|done| done.urb == urb)?;
        self.completions.remove(at)
    }

    /// The next change on a port.
    pub fn next_port_change(&mut self) -> Option<PortChange> {
        self.ports.next_change()
    }

    /// The next breach of the protocol.
    pub fn next_violation(&mut self) -> Option<Violation> {
        self.violations.pop_front()
    }

    /// URBs that have been sent and not answered.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Unlink requests that have been sent and not answered.
    pub fn unlinks_unanswered(&self) -> u32 {
        self.ids.used() - self.in_flight
    }

    /// Whether the backend broke the protocol for good, or the controller was shut down.
    pub fn is_dead(&self) -> bool {
        self.dead
    }

    /// The ports of the controller.
    pub fn port_count(&self) -> u8 {
        self.ports.count()
    }

    /// What is plugged into a port.
    pub fn speed(&self, port: PortNumber) -> Speed {
        self.ports.speed(port)
    }

    /// What has been counted so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn complete(&mut self, urb: UrbHandle, result: Result<(), TransferError>, extent: Extent) {
        let Some(entry) = self.urbs.remove(urb) else {
            return;
        };
        self.counters.completed += 1;
        if result.is_err_and(|error| error != TransferError::Unlinked) {
            self.counters.failed += 1;
        }
        let tag = entry.submission.tag;
        self.completions.push_back(Completion {
            urb,
            tag,
            result,
            actual_length: entry.done + extent.actual_length,
            error_count: extent.error_count,
            start_frame: extent.start_frame,
        });
    }

    fn violate(&mut self, violation: Violation) {
        self.counters.violations += 1;
        self.dead |= violation.is_fatal();
        self.violations.push_back(violation);
    }
}

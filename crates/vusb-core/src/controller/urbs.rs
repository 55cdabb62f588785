// SPDX-License-Identifier: GPL-3.0-or-later
//! The requests without an answer, each in a slot.

use session::frame::Transfer;
use usbif::{PortNumber, UrbRequest, UrbResponse, UrbStatus};

use super::{Controller, SLOTS};
use crate::{Answers, Slot, Urb, UrbResult, transfer_of};

impl Controller {
    /// A request that an earlier process had taken for the device at `port`, and submitted as this
    /// number of its session if there is one. Requests are restored in the order of the ring.
    /// `None` when it cannot have been so; then it is to be refused.
    pub fn restore_urb(
        &mut self,
        request: UrbRequest,
        port: PortNumber,
        submitted: Option<u64>,
    ) -> Option<Slot> {
        let transfer = transfer_of(&request)?;
        let slot = self.add(request, port, transfer)?;
        if let Some(number) = submitted {
            self.submitted(slot, number);
        }
        Some(slot)
    }

    /// Takes a slot for a request. `None` when all are taken.
    pub(super) fn add(
        &mut self,
        request: UrbRequest,
        port: PortNumber,
        transfer: Transfer,
    ) -> Option<Slot> {
        let at = self.urbs.iter().position(Option::is_none)?;
        self.taken += 1;
        self.urbs[at] = Some(Urb {
            order: self.taken,
            request,
            port,
            transfer,
            submitted: None,
            unlinked_by: None,
        });
        Some(Slot(at as u8))
    }

    /// The request in `slot` was submitted as this number of its session.
    pub fn submitted(&mut self, slot: Slot, number: u64) {
        if let Some(urb) = &mut self.urbs[slot.index()] {
            urb.submitted = Some(number);
        }
    }

    /// The device of the request in `slot` is gone, and had not begun it: it waits as if it had not
    /// been submitted. Not for one that is unlinked; answers whether it waits.
    pub fn take_back(&mut self, slot: Slot) -> bool {
        match &mut self.urbs[slot.index()] {
            Some(urb) if urb.unlinked_by.is_none() => {
                urb.submitted = None;
                true
            }
            _ => false,
        }
    }

    /// The unanswered request in `slot`.
    pub fn urb(&self, slot: Slot) -> Option<&Urb> {
        self.urbs[slot.index()].as_ref()
    }

    /// The request that was submitted to `port` as this number.
    pub fn by_number(&self, port: PortNumber, number: u64) -> Option<Slot> {
        self.slots(move |u| u.port == port && u.submitted == Some(number))
            .next()
    }

    /// Every unanswered request to `port`.
    pub fn unanswered(&self, port: PortNumber) -> impl Iterator<Item = Slot> + '_ {
        self.slots(move |u| u.port == port)
    }

    /// Every request to `port` that was not submitted, in the order of the ring.
    pub fn held_requests(&self, port: PortNumber) -> impl Iterator<Item = Slot> + use<> {
        let mut held = [(u64::MAX, Slot(0)); SLOTS];
        for (at, urb) in self.urbs.iter().enumerate() {
            if let Some(urb) = urb
                && urb.port == port
                && urb.submitted.is_none()
            {
                held[at] = (urb.order, Slot(at as u8));
            }
        }
        held.sort_unstable_by_key(|&(order, _)| order);
        held.into_iter()
            .take_while(|&(order, _)| order != u64::MAX)
            .map(|(_, slot)| slot)
    }

    /// Whether no request is unanswered.
    pub fn is_idle(&self) -> bool {
        self.urbs.iter().all(Option::is_none)
    }

    /// Forgets the request in `slot` and says what to answer. `None` when there is none.
    pub fn complete(&mut self, slot: Slot, result: UrbResult) -> Option<Answers> {
        let urb = self.urbs[slot.index()].take()?;
        let failed = !result.status.is_ok() && urb.submitted.is_some();
        if failed && urb.is_to_default_address() {
            // The guest will reset the port and try again. Nothing but this says so: the device has
            // no address that it could lose.
            self.expect_reset(urb.port);
        }
        Some(Answers {
            unlink: urb
                .unlinked_by
                .map(|id| UrbResponse::with_status(id, UrbStatus::OK)),
            urb: UrbResponse {
                id: urb.request.id,
                status: result.status,
                actual_length: result.actual_length,
                error_count: result.error_count,
                start_frame: result.start_frame,
            },
        })
    }

    /// Forgets every request: the ring that they came from is gone.
    pub fn forget_requests(&mut self) {
        for urb in core::mem::replace(&mut self.urbs, [None; SLOTS])
            .into_iter()
            .flatten()
        {
            if urb.is_to_default_address() {
                self.expect_reset(urb.port);
            }
        }
    }

    pub(super) fn find(&self, id: u16) -> Option<Slot> {
        self.slots(move |u| u.request.id == id).next()
    }

    fn slots<'a>(&'a self, which: impl Fn(&Urb) -> bool + 'a) -> impl Iterator<Item = Slot> + 'a {
        self.urbs
            .iter()
            .enumerate()
            .filter_map(move |(at, urb)| urb.as_ref().filter(|u| which(u)).map(|_| Slot(at as u8)))
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! What goes back to the guest: answers and connection events.

use control::Counters;
use journal::Record;
use slog::warn;
use usbif::{ConnResponse, RingCorrupt, UrbResponse};
use vusb_core::{Answers, Slot, UrbResult};
use xen::{Backend, EventChannel};

use super::Serving;

impl<B: Backend> Serving<B> {
    /// Shows the frontend what was answered, and signals it if it wants that.
    pub fn publish(&mut self) {
        let Some(rings) = &mut self.rings else { return };
        let wants_signal = rings.urb.publish();
        self.journal.published();
        if wants_signal {
            self.signal();
        }
    }

    pub(super) fn signal(&self) {
        let Some(rings) = &self.rings else { return };
        if let Err(e) = rings.channel.notify() {
            warn!(self.place.log, "cannot signal the frontend: {}", e);
        }
    }

    /// Pushes connection events, as far as the frontend has left requests for them.
    pub(super) fn tell_connections(&mut self) -> Result<(), RingCorrupt> {
        let mut wants_signal = false;
        while let Some(event) = self.core.next_event() {
            let Some(rings) = &mut self.rings else {
                return Ok(());
            };
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
            // One by one: whoever comes after us must know which event was told.
            self.journal.telling(event.port, rings.conn.indices().rsp);
            if rings.conn.push_response(&response).is_ok() {
                wants_signal |= rings.conn.publish();
                self.core.told(event);
            }
            self.note_ports();
        }
        if wants_signal {
            self.signal();
        }
        Ok(())
    }

    /// Answers the request of this record.
    pub(super) fn push(&mut self, record: Option<Record>, response: &UrbResponse) {
        let Some(rings) = &mut self.rings else { return };
        let index = rings.urb.indices().rsp;
        if rings.urb.push_response(response).is_err() {
            // Each answer belongs to a request taken from this very ring.
            debug_assert!(false, "answer {response:?} without a request");
            warn!(self.place.log, "answer without a request"; "id" => response.id);
        } else if let Some(record) = record {
            self.journal.answered(record, index, response);
        }
    }

    /// Answers the request in a slot, and the unlink of it.
    pub(super) fn answer(&mut self, slot: Slot, answers: Answers) {
        let (urb, unlink) = std::mem::take(&mut self.records[slot.index()]);
        // In this order: of a request whose unlink is answered nobody knows that it was cancelled,
        // while an unlink of one that is answered is answered.
        self.push(urb, &answers.urb);
        if let Some(response) = answers.unlink {
            self.push(unlink, &response);
        }
    }

    /// Answers a request.
    pub(super) fn finish(&mut self, slot: Slot, result: UrbResult) {
        let Some(urb) = self.core.urb(slot) else {
            return;
        };
        let urb = *urb;
        self.note_answered(&urb, result.actual_length > 0);
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
            self.note_ports();
            self.answer(slot, answers);
        }
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! A device is pulled out and may come back: its guest stays connected, and its requests wait.

use session::frame::{Completion, TransferStatus, TransferType};
use usbif::{PortNumber, UrbStatus};
use vusb_core::{Slot, UrbResult};
use xen::Backend;

use super::Serving;

/// What a command begins with (USB Mass Storage Class, Bulk-Only Transport 1.0, §5.1).
const COMMAND_BLOCK_WRAPPER_BYTES: u32 = 31;

/// What the requests are known to have done that have no answer when a device is pulled out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unanswered {
    /// Nothing: the exporter has said what came of all that it ever had.
    NotBegun,
    /// The device may have seen them.
    Unknown,
}

impl<B: Backend> Serving<B> {
    /// Whether the guest stays connected when the device at this port is pulled out. Not one that has
    /// no address: its guest is just finding out what it is.
    pub fn pauses(&self, port: PortNumber) -> bool {
        self.at(port).is_some_and(|a| a.pauses) && self.core.port_state(port).address.is_some()
    }

    /// The device is pulled out: what is not answered, and what comes from now on, waits. Call
    /// [`Serving::flush`] afterwards.
    pub fn pause(&mut self, port: PortNumber, unanswered: Unanswered) {
        self.core.hold(port);
        self.note_ports();
        for slot in self.submitted(port) {
            // A bulk transfer is a part of its class's protocol, whose other parts the next device has not
            // seen: its driver is to know, and to begin again.
            let is_bulk = self.core.urb(slot).is_none_or(|urb| {
                matches!(
                    urb.transfer.transfer_type,
                    TransferType::Bulk | TransferType::Isochronous
                )
            });
            match unanswered == Unanswered::NotBegun && !is_bulk {
                true => self.wait_again(port, slot),
                false => self.finish(slot, UrbResult::failed(UrbStatus::IOERROR)),
            }
        }
        self.journal.close_session(port);
        if let Some(attached) = self.at_mut(port) {
            attached.client = None;
            attached.reset = None;
        }
        self.fail_stages(port);
    }

    /// Until the lease of the device that has come back is claimed: later stages of commands fail, where
    /// it is a mass storage. The next device has not seen their beginning; it would not answer, or stall.
    pub fn fail_stages(&mut self, port: PortNumber) {
        if let Some(attached) = self.at_mut(port) {
            attached.fails_stages = attached.is_storage;
        }
    }

    /// A request was put where it waits: see [`Serving::fail_stages`].
    pub(super) fn fail_stage(&mut self, slot: Slot) {
        let Some(urb) = self.core.urb(slot) else {
            return;
        };
        let transfer = &urb.transfer;
        let begins = !transfer.is_in() && transfer.length == COMMAND_BLOCK_WRAPPER_BYTES;
        let fails = self.at(urb.port).is_some_and(|a| a.fails_stages);
        if fails && transfer.transfer_type == TransferType::Bulk && !begins {
            self.finish(slot, UrbResult::failed(UrbStatus::IOERROR));
        }
    }

    /// A transfer that ended because its device is pulled out. An interrupt endpoint's that brought nothing goes on
    /// where the device is next. Of all others it is not known what the device has seen, and a
    /// guest that stays connected must not be told that its device is gone.
    pub(super) fn ended_by_unplugging(
        &mut self,
        port: PortNumber,
        slot: Slot,
        completion: &Completion,
    ) -> bool {
        if completion.status != TransferStatus::NoDevice || !self.pauses(port) {
            return false;
        }
        let polls = self.core.urb(slot).is_some_and(|urb| {
            urb.transfer.is_in() && urb.transfer.transfer_type == TransferType::Interrupt
        });
        match polls && completion.actual_length == 0 {
            true => self.wait_again(port, slot),
            false => {
                let failed = UrbResult::new(UrbStatus::IOERROR, completion.actual_length);
                self.finish(slot, failed);
            }
        }
        true
    }

    /// Nothing came of it: it waits as if it had just been submitted, or is over as one that was cancelled.
    pub(super) fn wait_again(&mut self, port: PortNumber, slot: Slot) {
        if !self.core.take_back(slot) {
            self.finish(slot, UrbResult::failed(UrbStatus::SHUTDOWN));
        } else if let Some(record) = self.records[slot.index()].0 {
            self.journal.placed(record, port);
        }
    }
}

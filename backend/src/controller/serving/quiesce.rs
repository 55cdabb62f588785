// SPDX-License-Identifier: GPL-3.0-or-later
//! While the guest is being suspended: its IN transfers are taken back, and their data must not be
//! lost.
//!
//! A URB that Linux's USB core has unlinked is given back as unlinked, whatever it is answered
//! (`usb_hcd_giveback_urb`), and its driver throws its data away. So the exporter is asked to keep
//! that data. An unlink may cross with the answer; which one did is known only when it comes off the
//! ring, so completions are acknowledged to the exporter a little later than else.
//!
//! A frontend with `feature-recall` does that itself, below the USB core: what its requests bring it
//! uses, whether they were unlinked or not, and those that were cancelled it sends again. Nothing is
//! kept for it, then, but what the device sends afterwards, to an interrupt endpoint that is polled
//! on.

use std::collections::VecDeque;

use session::frame::{Transfer, TransferType};
use usbif::{BadRequest, PortNumber, UrbKind, UrbRequest};
use vusb_core::Urb;
use xen::Backend;

use super::Serving;

/// Slots of the URB ring.
const SLOTS: usize = 16;

/// Whether the data of such a transfer is kept when the guest unlinks it for a suspend: that of
/// interrupt endpoints. A bulk transfer is a part of its class's protocol, which knows how to go on
/// after an unlinked one; data given twice would break it, and a driver that has looked at an
/// answer that crossed with its unlink (as it may) would have it twice.
pub(super) fn is_kept(transfer: &Transfer) -> bool {
    transfer.is_in() && transfer.transfer_type == TransferType::Interrupt
}

/// IN transfers that were answered with data, the newest last.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Recent(VecDeque<(u16, PortNumber, u64)>);

impl Recent {
    fn add(&mut self, id: u16, port: PortNumber, number: u64) {
        if self.0.len() == SLOTS {
            self.0.pop_front();
        }
        self.0.push_back((id, port, number));
    }

    fn take(&mut self, id: u16) -> Option<(PortNumber, u64)> {
        let at = self.0.iter().position(|r| r.0 == id)?;
        self.0.remove(at).map(|(_, port, number)| (port, number))
    }
}

impl<B: Backend> Serving<B> {
    /// Whether the frontend takes its transfers back itself (`feature-recall`).
    pub fn recalls(&self) -> bool {
        self.recalls
    }

    /// Whether the guest is being suspended.
    pub fn is_quiescing(&self) -> bool {
        self.quiescing
    }

    /// The guest is being suspended, or not any more.
    pub fn set_quiescing(&mut self, quiescing: bool) {
        self.quiescing = quiescing;
        if quiescing {
            // Not yet.
            self.told.begin_anew();
        }
        self.journal.set_quiescing(quiescing);
        self.answered = Recent::default();
        self.hold_acknowledgements();
    }

    /// Whether answers may cross with unlinks, so that the exporters are to keep their data.
    pub(super) fn holds_acknowledgements(&self) -> bool {
        self.quiescing && !self.told.is_suspended()
    }

    pub(super) fn hold_acknowledgements(&mut self) {
        let hold = self.holds_acknowledgements();
        for port in self.core.ports() {
            if let Some(client) = self.client(port) {
                client.hold_acknowledgements(hold);
            }
        }
    }

    /// Nothing can cross any more, and the exporter is to know what we have.
    pub(super) fn acknowledge_all(&mut self) {
        self.answered = Recent::default();
        for port in self.core.ports() {
            if let Some(attached) = self.at_mut(port)
                && let Some(client) = &mut attached.client
            {
                client.hold_acknowledgements(false);
                client.acknowledge();
                attached.wake.notify_one();
            }
        }
    }

    /// A transfer is about to be answered.
    pub(super) fn note_answered(&mut self, urb: &Urb, has_data: bool) {
        if self.quiescing
            && has_data
            && urb.unlinked_by.is_none()
            && is_kept(&urb.transfer)
            && let Some(number) = urb.submitted
        {
            self.answered.add(urb.request.id, urb.port, number);
        }
    }

    /// The transfer whose answer has crossed with this request, an unlink: the guest had unlinked it
    /// before it saw the answer, else it would not send one.
    pub(super) fn crossed(
        &mut self,
        request: &Result<UrbRequest, BadRequest>,
    ) -> Option<(PortNumber, u64)> {
        let request = request.as_ref().ok().filter(|_| self.quiescing)?;
        match request.kind {
            UrbKind::Unlink { id } => self.answered.take(id),
            // A new one with the id of an old one.
            _ => {
                self.answered.take(request.id);
                None
            }
        }
    }

    /// Has the exporter keep the data of a transfer that is unlinked, or what comes after it.
    pub(super) fn keep(&mut self, port: PortNumber, number: u64) {
        let recalls = self.recalls;
        if let Some(attached) = self.at_mut(port)
            && let Some(client) = &mut attached.client
        {
            match recalls {
                true => client.recall(number),
                false => client.keep(number),
            }
            attached.wake.notify_one();
        }
    }

    /// The same where it is answered already.
    pub(super) fn crossed_over(&mut self, port: PortNumber, number: u64) {
        let recalls = self.recalls;
        if let Some(attached) = self.at_mut(port)
            && let Some(client) = &mut attached.client
        {
            match recalls {
                true => client.recall(number),
                false => client.keep_completed(number),
            }
            attached.wake.notify_one();
        }
    }

    /// Cancels every IN transfer but control ones: those that only wait for data. See
    /// [`crate::controller`]'s actor for when.
    pub fn cancel_waiting(&mut self) {
        if self.recalls {
            // It asks for them, one by one if need be.
            return;
        }
        for port in self.core.ports() {
            let waiting: arrayvec::ArrayVec<(u64, bool), SLOTS> = self
                .core
                .unanswered(port)
                .filter_map(|slot| self.core.urb(slot))
                .filter(|u| u.transfer.is_in())
                .filter(|u| u.transfer.transfer_type != TransferType::Control)
                .filter_map(|u| Some((u.submitted?, is_kept(&u.transfer))))
                .collect();
            for (number, is_kept) in waiting {
                match is_kept {
                    true => self.keep(port, number),
                    false => self.cancel(port, number),
                }
            }
        }
    }
}

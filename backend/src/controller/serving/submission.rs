// SPDX-License-Identifier: GPL-3.0-or-later
//! What goes to the devices: requests, resets and cancellations, and what a hand-off needs.

use std::convert::Infallible;

use control::Counters;
use handoff::Cookie;
use session::frame::{Transfer, TransferType};
use slog::warn;
use usbif::{PortNumber, Speed, UrbStatus};
use vusb_core::{Slot, Urb, UrbResult};
use xen::Backend;

use super::{Attached, Serving};
use crate::controller::data;

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
    /// Submits what was held, in the order of the ring.
    pub(super) fn submit_held(&mut self, port: PortNumber) {
        for slot in self.core.held_requests(port) {
            self.submit(slot);
        }
    }

    /// Submits a request to its device.
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
        let Some(attached) = attached.filter(|a| a.client.is_some()) else {
            // A device without a session is held.
            self.finish(slot, UrbResult::failed(UrbStatus::NODEV));
            return;
        };
        let Some(client) = &mut attached.client else {
            return;
        };
        if !client.has_room() {
            // The session is full of requests that the guest has given up and that the exporter has not
            // answered. The guest's device is not gone.
            attached.is_full = true;
            if let Some(record) = self.records[slot.index()].0 {
                self.journal.placed(record, port);
            }
            return;
        }
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

    /// Sends a request again that did not arrive.
    pub(super) fn resend(&mut self, port: PortNumber, number: u64) {
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

    /// Resets the device. Its port is held until that is over.
    pub(super) fn reset(&mut self, port: PortNumber) {
        match self.at_mut(port) {
            Some(Attached {
                client: Some(client),
                wake,
                reset,
                is_full,
                ..
            }) => match client.has_room() {
                true => {
                    let number = client.reset();
                    *reset = Some(number);
                    wake.notify_one();
                    self.journal.reset(port, number);
                }
                false => *is_full = true,
            },
            _ => self.release(port),
        }
    }

    /// Submits what has waited because the session was full.
    pub(super) fn submit_waiting(&mut self, port: PortNumber) {
        let Some(attached) = self.at_mut(port) else {
            return;
        };
        let was_full = std::mem::take(&mut attached.is_full);
        let resets = attached.reset.is_some();
        match (was_full, self.core.is_held(port)) {
            (false, _) => {}
            (true, false) => self.submit_held(port),
            (true, true) if resets => {}
            // A port that is held in an open session is one that is to be reset.
            (true, true) => self.reset(port),
        }
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

// SPDX-License-Identifier: GPL-3.0-or-later
//! The controller: ports, addresses, and the requests in between.

mod ports;
mod stale;
mod urbs;

use usbif::{BadRequest, DeviceAddress, PortNumber, UrbKind, UrbRequest, UrbStatus};

use self::stale::Stale;
use crate::port::Port;
use crate::{ResetDue, Urb, UrbResult, Verdict, transfer_of};

pub use self::ports::PortError;

/// Requests that can be unanswered: the slots of the URB ring.
const SLOTS: usize = 16;

/// One PV USB controller; see the crate's documentation.
#[derive(Clone, Debug, Hash)]
pub struct Controller {
    port_count: u8,
    ports: [Port; PortNumber::MAX as usize],
    addresses: [Option<PortNumber>; DeviceAddress::MAX as usize + 1],
    urbs: [Option<Urb>; SLOTS],
    stale: Stale,
    /// Requests taken so far: held ones are released in the order of the ring.
    taken: u64,
    /// A port may have changed.
    ports_changed: bool,
}

impl Controller {
    /// A controller with ports 1 to `port_count`, at most 31, all empty.
    pub fn new(port_count: u8) -> Self {
        Self {
            port_count: port_count.min(PortNumber::MAX),
            ports: [Port::default(); PortNumber::MAX as usize],
            addresses: [None; DeviceAddress::MAX as usize + 1],
            urbs: [None; SLOTS],
            stale: Stale::default(),
            taken: 0,
            ports_changed: false,
        }
    }

    /// The frontend has come here without a resume callback: it may wait for requests that it put
    /// into a ring which is gone, and will unlink them when their device is disconnected.
    pub fn expect_stale(&mut self) {
        self.stale.expect();
    }

    /// How many requests of a ring that is gone were answered.
    pub fn stale_answered(&self) -> u32 {
        self.stale.answered()
    }

    /// Takes a request off the ring.
    pub fn take(&mut self, request: Result<UrbRequest, BadRequest>) -> Verdict {
        let request = match request {
            Ok(request) => request,
            Err(bad) => return Verdict::answer(bad.id, UrbStatus::INVAL),
        };
        self.stale.saw(request.id);
        if let UrbKind::Unlink { id } = request.kind {
            return self.take_unlink(request.id, id);
        }
        if self.find(request.id).is_some() {
            // Two answers with one id could not be told apart.
            return Verdict::answer(request.id, UrbStatus::INVAL);
        }
        let Some(port) = self.target(&request) else {
            return Verdict::answer(request.id, UrbStatus::NODEV);
        };
        let Some(transfer) = transfer_of(&request) else {
            return Verdict::answer(request.id, UrbStatus::INVAL);
        };
        let new_address = match request.kind {
            UrbKind::Control { setup } if setup.is_set_address() => Some(setup.value()),
            _ => None,
        };
        if let Some(value) = new_address
            && !self.take_set_address(port, value)
        {
            return Verdict::answer(request.id, UrbStatus::STALL);
        }
        let Some(slot) = self.add(request, port, transfer) else {
            // Cannot happen: the ring has as many slots. An answer is right all the same.
            return Verdict::answer(request.id, UrbStatus::INVAL);
        };
        let was_reset = new_address.is_none()
            && request.pipe.device().is_default()
            && (self.port(port).address.is_some() || self.port(port).reset != ResetDue::No);
        if was_reset {
            self.forget_address(port);
            self.port_mut(port).reset = ResetDue::Now;
        }
        match (self.port(port).held, was_reset) {
            (true, _) => Verdict::Hold(slot),
            (false, true) => {
                self.port_mut(port).held = true;
                Verdict::Reset(slot)
            }
            (false, false) => Verdict::Submit(slot),
        }
    }

    fn take_unlink(&mut self, id: u16, unlinked: u16) -> Verdict {
        let Some(slot) = self.find(unlinked) else {
            if self.stale.take(unlinked) {
                // The USB core waits for this one for ever, and for the unlink's own answer not at
                // all. Only one answer fits into the ring for one request.
                return Verdict::answer(unlinked, UrbStatus::IOERROR);
            }
            // Answered already: the two crossed. Or the guest made it up, which harms nobody.
            return Verdict::answer(id, UrbStatus::OK);
        };
        let Some(urb) = &mut self.urbs[slot.index()] else {
            return Verdict::answer(id, UrbStatus::OK);
        };
        if urb.unlinked_by.is_some() || id == unlinked {
            return Verdict::answer(id, UrbStatus::INVAL);
        }
        urb.unlinked_by = Some(id);
        if urb.submitted.is_some() {
            return Verdict::Cancel(slot);
        }
        // No device has seen it: who recalls it for a suspend sends it again.
        match self.complete(slot, UrbResult::failed(UrbStatus::SHUTDOWN)) {
            Some(answers) => Verdict::AnswerBoth(slot, answers),
            None => Verdict::answer(id, UrbStatus::OK),
        }
    }

    /// SET_ADDRESS (USB 2.0 §9.4.6): whether this is an address, which the device then has from now on.
    /// A host gives an address once, so another port that has it was given it by an earlier frontend,
    /// for example by the kernel that a crash kernel has replaced, and loses it. The request goes to the exporter, but not to the device, which has an address on the bus
    /// there: its completion says that the new one is saved for whoever serves the guest next.
    fn take_set_address(&mut self, port: PortNumber, value: u16) -> bool {
        let address = u8::try_from(value).ok().and_then(DeviceAddress::new);
        let Some(address) = address else {
            return false;
        };
        self.forget_address(port);
        if !address.is_default() {
            self.set_address(port, address);
        }
        true
    }

    /// The port that a request is for. Port bits count for address 0 only: else they are the port
    /// of the hub that the device is plugged into.
    fn target(&self, request: &UrbRequest) -> Option<PortNumber> {
        let address = request.pipe.device();
        if !address.is_default() {
            return self.addresses[usize::from(address.get())];
        }
        let port = PortNumber::new(request.pipe.port_bits())?;
        (port.get() <= self.port_count && !self.port(port).is_empty()).then_some(port)
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! The controller: ports, addresses, and the requests in between.

use usbif::{
    BadRequest, DeviceAddress, PortNumber, Speed, UrbKind, UrbRequest, UrbResponse, UrbStatus,
};

use crate::port::Port;
use crate::{ConnEvent, PortSnapshot, PortState, Slot, Urb, transfer_of};

/// Requests that can be unanswered: the slots of the URB ring.
const SLOTS: usize = 16;

/// What is to be done with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a request without an answer blocks the guest"]
pub enum Verdict {
    /// Answer at once.
    Answer(UrbResponse),
    /// Submit it to the device of its port, then say so with [`Controller::submitted`].
    Submit(Slot),
    /// Keep it: [`Controller::release`] will name it again.
    Hold(Slot),
    /// The guest has reset the port of an addressed device, which a real device must be told:
    /// reset it, and call [`Controller::release`] when that is over. The request is held.
    Reset(Slot),
    /// Cancel this transfer in the device's session. Its completion answers both.
    Cancel(Slot),
    /// The cancelled request, which was in this slot, never left: answer both now.
    AnswerBoth(Slot, Answers),
}

/// One or two answers, to be published together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answers {
    /// To the unlink, if there was one.
    pub unlink: Option<UrbResponse>,
    /// To the request.
    pub urb: UrbResponse,
}

/// What a request is answered with, apart from its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UrbResult {
    /// How it went.
    pub status: UrbStatus,
    /// Bytes transferred, 0 to 65,536.
    pub actual_length: u32,
    /// Isochronous: packets with an error.
    pub error_count: u32,
    /// Isochronous: the frame in which it started.
    pub start_frame: u16,
}

impl UrbResult {
    /// Nothing was transferred.
    pub const fn failed(status: UrbStatus) -> Self {
        Self::new(status, 0)
    }

    /// For all but isochronous requests.
    pub const fn new(status: UrbStatus, actual_length: u32) -> Self {
        Self {
            status,
            actual_length,
            error_count: 0,
            start_frame: 0,
        }
    }
}

/// Why a device cannot be plugged in there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// The controller has fewer ports.
    #[error("the controller has ports 1 to {count}, not {port}")]
    NoSuchPort {
        /// The port asked for.
        port: PortNumber,
        /// How many there are.
        count: u8,
    },
    /// Something is plugged in there.
    #[error("port {0} is taken")]
    Taken(PortNumber),
}

/// Requests that a stock `xen-hcd` has put into the ring of before a resume. Nobody can answer them
/// there, and it does not take them back: it waits for answers to their ids.
#[derive(Clone, Copy, Debug, Default, Hash)]
struct Stale {
    /// Whether the frontend may have such.
    expected: bool,
    /// Ids below [`SLOTS`] that came over the ring of now: no stale ones.
    seen: u16,
    /// How many were answered.
    answered: u32,
}

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

    /// How many ports it has.
    pub fn port_count(&self) -> u8 {
        self.port_count
    }

    /// Every port in order.
    pub fn ports(&self) -> impl DoubleEndedIterator<Item = PortNumber> + Clone + use<> {
        PortNumber::first(self.port_count)
    }

    /// The first port with nothing plugged in.
    pub fn free_port(&self) -> Option<PortNumber> {
        self.ports().find(|&p| self.port(p).is_empty())
    }

    // ---- devices

    /// Plugs a device in. With `carried`, the state of a hand-off, the guest is told the speed that
    /// it knows already and the device keeps its address; without, it sees a new device.
    ///
    /// Requests to it are held until [`Controller::release`].
    ///
    /// # Errors
    /// [`PortError`]; nothing has changed then.
    pub fn plug(
        &mut self,
        port: PortNumber,
        speed: Speed,
        carried: Option<PortState>,
    ) -> Result<(), PortError> {
        if port.get() > self.port_count {
            let count = self.port_count;
            return Err(PortError::NoSuchPort { port, count });
        }
        if !self.port(port).is_empty() {
            return Err(PortError::Taken(port));
        }
        let entry = self.port_mut(port);
        entry.speed = speed;
        entry.held = true;
        entry.address = None;
        entry.announce(speed);
        if let Some(address) = carried.and_then(|c| c.address) {
            self.set_address(port, address);
        }
        Ok(())
    }

    /// Puts a disconnect before the connect that is still to be told, so that the guest sees the
    /// device come anew.
    pub fn replug(&mut self, port: PortNumber) {
        self.forget_address(port);
        let entry = self.port_mut(port);
        let speed = entry.speed;
        entry.announce(Speed::None);
        entry.announce(speed);
    }

    /// Unplugs whatever is there. The caller then answers every request of
    /// [`Controller::unanswered`] with [`Controller::complete`].
    pub fn unplug(&mut self, port: PortNumber) {
        self.forget_address(port);
        let entry = self.port_mut(port);
        if !entry.is_empty() {
            entry.speed = Speed::None;
            entry.held = false;
            entry.announce(Speed::None);
        }
    }

    /// What a hand-off carries over.
    pub fn port_state(&self, port: PortNumber) -> PortState {
        let entry = self.port(port);
        PortState {
            speed: entry.speed,
            address: entry.address,
        }
    }

    /// Holds requests to a port until [`Controller::release`].
    pub fn hold(&mut self, port: PortNumber) {
        let entry = self.port_mut(port);
        entry.held = !entry.is_empty();
    }

    /// Ends the holding of a port. The caller now submits every request of
    /// [`Controller::held_requests`].
    pub fn release(&mut self, port: PortNumber) {
        self.port_mut(port).held = false;
    }

    /// Whether requests to a port are held.
    pub fn is_held(&self, port: PortNumber) -> bool {
        self.port(port).held
    }

    // ---- what outlives this process

    /// Whether a [`Controller::snapshot`] may have changed since the last call.
    pub fn take_ports_changed(&mut self) -> bool {
        core::mem::take(&mut self.ports_changed)
    }

    /// All that is known of a port.
    pub fn snapshot(&self, port: PortNumber) -> PortSnapshot {
        let Port {
            speed,
            address,
            held,
            events,
        } = *self.port(port);
        PortSnapshot {
            speed,
            address,
            held,
            events,
        }
    }

    /// A port is as it was in an earlier process. Ports beyond the last one are left alone.
    pub fn restore_port(&mut self, port: PortNumber, snapshot: &PortSnapshot) {
        if port.get() > self.port_count {
            return;
        }
        self.forget_address(port);
        let entry = self.port_mut(port);
        entry.speed = snapshot.speed;
        entry.held = snapshot.held && !entry.is_empty();
        entry.events = snapshot.events;
        if let Some(address) = snapshot.address
            && snapshot.speed != Speed::None
            && self.addresses[usize::from(address.get())].is_none()
        {
            self.set_address(port, address);
        }
    }

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
        let at = self.urbs.iter().position(Option::is_none)?;
        self.taken += 1;
        self.urbs[at] = Some(Urb {
            order: self.taken,
            request,
            port,
            transfer,
            submitted,
            unlinked_by: None,
        });
        Some(Slot(at as u8))
    }

    // ---- connection ring

    /// The next event to tell the guest. Taken off the queue only by [`Controller::told`].
    pub fn next_event(&self) -> Option<ConnEvent> {
        self.ports()
            .find_map(|port| self.port(port).events[0].map(|speed| ConnEvent { port, speed }))
    }

    /// The event of [`Controller::next_event`] was pushed.
    pub fn told(&mut self, event: ConnEvent) {
        let events = &mut self.port_mut(event.port).events;
        debug_assert_eq!(events[0], Some(event.speed));
        *events = [events[1], None];
    }

    /// A frontend has connected with new rings: tell it what is plugged in, also where nothing is,
    /// since a guest that was moved or restored may remember a device that is gone. A disconnect that
    /// was not told yet stays.
    pub fn tell_all(&mut self) {
        self.stale.seen = 0;
        for port in PortNumber::first(self.port_count) {
            let entry = self.port_mut(port);
            let speed = entry.speed;
            entry.announce(speed);
        }
    }

    // ---- requests

    /// The frontend has come here without a resume callback: it may wait for requests that it put
    /// into a ring which is gone, and will unlink them when their device is disconnected.
    pub fn expect_stale(&mut self) {
        self.stale.expected = true;
    }

    /// How many requests of a ring that is gone were answered.
    pub fn stale_answered(&self) -> u32 {
        self.stale.answered
    }

    /// Takes a request off the ring.
    pub fn take(&mut self, request: Result<UrbRequest, BadRequest>) -> Verdict {
        let request = match request {
            Ok(request) => request,
            Err(bad) => return answer(bad.id, UrbStatus::INVAL),
        };
        if usize::from(request.id) < SLOTS {
            self.stale.seen |= 1 << request.id;
        }
        if let UrbKind::Unlink { id } = request.kind {
            return self.take_unlink(request.id, id);
        }
        if self.find(request.id).is_some() {
            // Two answers with one id could not be told apart.
            return answer(request.id, UrbStatus::INVAL);
        }
        let Some(port) = self.target(&request) else {
            return answer(request.id, UrbStatus::NODEV);
        };
        let Some(transfer) = transfer_of(&request) else {
            return answer(request.id, UrbStatus::INVAL);
        };
        if let UrbKind::Control { setup } = request.kind
            && setup.is_set_address()
        {
            return self.take_set_address(port, request.id, setup.value());
        }
        let Some(at) = self.urbs.iter().position(Option::is_none) else {
            // Cannot happen: the ring has as many slots. An answer is right all the same.
            return answer(request.id, UrbStatus::INVAL);
        };
        self.taken += 1;
        self.urbs[at] = Some(Urb {
            order: self.taken,
            request,
            port,
            transfer,
            submitted: None,
            unlinked_by: None,
        });
        let was_reset = request.pipe.device().is_default() && self.port(port).address.is_some();
        if was_reset {
            self.forget_address(port);
        }
        let slot = Slot(at as u8);
        match (self.port(port).held, was_reset) {
            (true, _) => Verdict::Hold(slot),
            (false, true) => {
                self.port_mut(port).held = true;
                Verdict::Reset(slot)
            }
            (false, false) => Verdict::Submit(slot),
        }
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
        self.urbs = [None; SLOTS];
    }

    fn take_unlink(&mut self, id: u16, unlinked: u16) -> Verdict {
        let Some(slot) = self.find(unlinked) else {
            if self.is_stale(unlinked) {
                // The USB core waits for this one for ever, and for the unlink's own answer not at
                // all. Only one answer fits into the ring for one request.
                self.stale.seen |= 1 << unlinked;
                self.stale.answered += 1;
                return answer(unlinked, UrbStatus::IOERROR);
            }
            // Answered already: the two crossed. Or the guest made it up, which harms nobody.
            return answer(id, UrbStatus::OK);
        };
        let Some(urb) = &mut self.urbs[slot.index()] else {
            return answer(id, UrbStatus::OK);
        };
        if urb.unlinked_by.is_some() || id == unlinked {
            return answer(id, UrbStatus::INVAL);
        }
        urb.unlinked_by = Some(id);
        if urb.submitted.is_some() {
            return Verdict::Cancel(slot);
        }
        // No device has seen it: who recalls it for a suspend sends it again.
        match self.complete(slot, UrbResult::failed(UrbStatus::SHUTDOWN)) {
            Some(answers) => Verdict::AnswerBoth(slot, answers),
            None => answer(id, UrbStatus::OK),
        }
    }

    fn is_stale(&self, id: u16) -> bool {
        self.stale.expected && usize::from(id) < SLOTS && self.stale.seen & (1 << id) == 0
    }

    /// SET_ADDRESS (USB 2.0 §9.4.6) never reaches the device, which has an address on its
    /// exporter's bus already.
    fn take_set_address(&mut self, port: PortNumber, id: u16, value: u16) -> Verdict {
        let address = u8::try_from(value).ok().and_then(DeviceAddress::new);
        let Some(address) = address else {
            return answer(id, UrbStatus::STALL);
        };
        match self.addresses[usize::from(address.get())] {
            Some(other) if other != port => return answer(id, UrbStatus::STALL),
            _ => {}
        }
        self.forget_address(port);
        if !address.is_default() {
            self.set_address(port, address);
        }
        answer(id, UrbStatus::OK)
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

    fn find(&self, id: u16) -> Option<Slot> {
        self.slots(move |u| u.request.id == id).next()
    }

    fn slots<'a>(&'a self, which: impl Fn(&Urb) -> bool + 'a) -> impl Iterator<Item = Slot> + 'a {
        self.urbs
            .iter()
            .enumerate()
            .filter_map(move |(at, urb)| urb.as_ref().filter(|u| which(u)).map(|_| Slot(at as u8)))
    }

    fn set_address(&mut self, port: PortNumber, address: DeviceAddress) {
        self.port_mut(port).address = Some(address);
        self.addresses[usize::from(address.get())] = Some(port);
    }

    fn forget_address(&mut self, port: PortNumber) {
        if let Some(address) = self.port_mut(port).address.take() {
            self.addresses[usize::from(address.get())] = None;
        }
    }

    fn port(&self, port: PortNumber) -> &Port {
        &self.ports[port.index()]
    }

    fn port_mut(&mut self, port: PortNumber) -> &mut Port {
        self.ports_changed = true;
        &mut self.ports[port.index()]
    }
}

fn answer(id: u16, status: UrbStatus) -> Verdict {
    Verdict::Answer(UrbResponse::with_status(id, status))
}

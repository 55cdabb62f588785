// SPDX-License-Identifier: GPL-3.0-or-later
//! The guest: a frontend that resumes, and a driver that sends numbered transfers.

use std::hash::{Hash, Hasher};

use usbif::{
    Conn, ConnRequest, DeviceAddress, Direction, FrontRing, Pipe, Segment, Setup, Speed,
    TransferType, Urb, UrbKind, UrbRequest, UrbStatus,
};

use crate::Limits;
use crate::history::History;
use crate::memory::{self, Page};

/// The address that it gives its device.
const ADDRESS: u8 = 5;
/// Forms for connection events that it keeps on the ring.
const FORMS: u16 = 2;
/// Grants of one incarnation of the rings; the first two are the rings.
const GRANTS: u32 = 32;
/// Bytes of a transfer: its value.
const LEN: u16 = 2;

/// What it is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mode {
    /// Not started, or its host died.
    Off,
    Running,
    /// Waits for the answers to what it has unlinked.
    Suspending,
    Suspended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    SetAddress,
    /// By its value.
    Transfer(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct InFlight {
    id: u16,
    kind: Kind,
    answered: bool,
    unlink: Option<u16>,
    /// It was unlinked for a suspend, not by the driver.
    recalled: bool,
}

#[derive(Clone)]
struct Rings {
    urb: FrontRing<Page, Urb>,
    conn: FrontRing<Page, Conn>,
    first_gref: u32,
}

#[derive(Clone)]
pub(crate) struct Guest {
    pub(crate) dom: u16,
    pub(crate) mode: Mode,
    rings: Option<Rings>,
    incarnation: u32,
    /// The device as it was told of.
    speed: Speed,
    addressed: bool,
    /// A transfer was sent to it.
    used: bool,
    in_flight: Vec<InFlight>,
    /// Transfers still to be sent.
    pub(crate) left: u16,
    /// Drivers do not notice a suspend.
    recalls: bool,
    /// Nobody may lose an answer: nothing breaks.
    intact: bool,
    /// Transfers that were recalled and cancelled, oldest first.
    again: Vec<usize>,
}

impl Hash for Guest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.dom, self.mode, self.incarnation, self.left).hash(state);
        (self.speed, self.addressed, self.used).hash(state);
        (&self.in_flight, &self.again).hash(state);
        if let Some(rings) = &self.rings {
            (rings.urb.indices(), rings.conn.indices()).hash(state);
        }
    }
}

impl Guest {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            dom: 0,
            mode: Mode::Off,
            rings: None,
            incarnation: 0,
            speed: Speed::None,
            addressed: false,
            used: false,
            in_flight: Vec::new(),
            left: limits.transfers,
            recalls: limits.recalls,
            intact: limits.cuts == 0 && limits.exporter_crashes == 0 && limits.restarts == 0,
            again: Vec::new(),
        }
    }

    /// For messages.
    pub(crate) fn describe(&self) -> String {
        let Self {
            speed,
            addressed,
            in_flight,
            ..
        } = self;
        format!("guest sees {speed:?}, addressed {addressed}, in flight {in_flight:?}")
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.rings.is_some()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.again.is_empty()
    }

    /// Starts from nothing, in this domain.
    pub(crate) fn boot(&mut self, dom: u16, history: &mut History) {
        self.forget(history);
        *self = Self {
            dom,
            mode: Mode::Running,
            rings: None,
            incarnation: 0,
            speed: Speed::None,
            addressed: false,
            used: false,
            in_flight: Vec::new(),
            again: Vec::new(),
            ..*self
        };
    }

    /// The host died, or the driver was taken away: nobody waits for anything.
    pub(crate) fn forget(&mut self, history: &mut History) {
        for urb in self.in_flight.drain(..) {
            if let Kind::Transfer(value) = urb.kind {
                history.given_up(value);
            }
        }
        for value in self.again.drain(..) {
            history.given_up(value);
        }
        (self.rings, self.speed, self.addressed) = (None, Speed::None, false);
        self.used = false;
    }

    /// Wakes in another domain, with its memory and without grants. Unlinks that crossed with the
    /// answer to what they unlinked are forgotten with the ring, as the module does.
    pub(crate) fn moved(&mut self, dom: u16) {
        self.in_flight.clear();
        (self.dom, self.mode) = (dom, Mode::Running);
        (self.rings, self.incarnation) = (None, 0);
    }

    /// New rings: the grants of the URB ring and the connection ring.
    pub(crate) fn connect(&mut self) -> (u32, u32) {
        let first = 8 + self.incarnation * GRANTS;
        memory::revoke(self.dom, first);
        self.incarnation += 1;
        let urb = FrontRing::new(memory::grant(self.dom, first));
        let mut conn = FrontRing::new(memory::grant(self.dom, first + 1));
        for id in 0..FORMS {
            // The ring has 512 slots.
            let _ = conn.push_request(&ConnRequest { id });
        }
        let _ = conn.publish();
        self.rings = Some(Rings {
            urb,
            conn,
            first_gref: first,
        });
        // The event that the backend finds when it binds the channel.
        memory::channel(self.dom, |c| c.to_backend = true);
        self.go_on();
        (first, first + 1)
    }

    pub(crate) fn can_submit(&self, window: usize) -> bool {
        self.mode == Mode::Running
            && self.is_connected()
            && self.addressed
            && self.left > 0
            && self.in_flight.len() < window
    }

    pub(crate) fn submit(&mut self, history: &mut History) {
        // Three out, one in.
        let is_in = history.operations.len() % 4 == 1;
        let value = history.asked(is_in);
        self.left -= 1;
        self.send(value);
        self.publish();
    }

    /// The suspend is over, cancelled or not: sends again what was recalled and cancelled.
    pub(crate) fn go_on(&mut self) {
        for value in std::mem::take(&mut self.again) {
            self.send(value);
        }
        self.publish();
    }

    fn send(&mut self, value: usize) {
        // Three out, one in.
        let is_in = value % 4 == 1;
        self.used = true;
        let id = self.free_id();
        let gref = self.data_gref(id);
        let page = memory::grant(self.dom, gref);
        if !is_in {
            page.put(0, &(value as u16).to_le_bytes());
        }
        let (endpoint, direction) = match is_in {
            true => (1, Direction::In),
            false => (2, Direction::Out),
        };
        let segment = Segment {
            gref,
            offset: 0,
            length: LEN,
        };
        let pipe = pipe(ADDRESS, endpoint, direction, TransferType::Bulk);
        self.push(id, pipe, UrbKind::Bulk, &[segment]);
        self.add(id, Kind::Transfer(value));
    }

    /// The driver gives up on the oldest transfer that it has not given up on, as at a timeout.
    pub(crate) fn unlink_one(&mut self, history: &mut History) {
        let at = self
            .in_flight
            .iter()
            .position(|u| !u.answered && u.unlink.is_none());
        if let Some(at) = at {
            self.unlink(at, history);
            self.publish();
        }
    }

    pub(crate) fn can_unlink(&self) -> bool {
        self.mode == Mode::Running
            && self.is_connected()
            && self
                .in_flight
                .iter()
                .any(|u| !u.answered && u.unlink.is_none())
    }

    /// Begins to suspend: everything is unlinked, and waited for. Where the driver does not notice,
    /// newest first, and control transfers have time to end. A device that is just being enumerated is
    /// waited for (`hub_wq` is freezable).
    pub(crate) fn freeze(&mut self, history: &mut History) {
        self.mode = Mode::Suspending;
        if self.recalls {
            for at in (0..self.in_flight.len()).rev() {
                let urb = &mut self.in_flight[at];
                if urb.unlink.is_none() && !urb.answered && urb.kind != Kind::SetAddress {
                    urb.recalled = true;
                    self.unlink(at, history);
                }
            }
            return self.publish();
        }
        for at in 0..self.in_flight.len() {
            let urb = &self.in_flight[at];
            if urb.unlink.is_none() && !urb.answered && urb.kind != Kind::SetAddress {
                self.unlink(at, history);
            }
        }
        self.publish();
    }

    /// Whether everything that it unlinked was answered.
    pub(crate) fn may_suspend(&self) -> bool {
        self.mode == Mode::Suspending && self.in_flight.iter().all(|u| u.answered)
    }

    /// Looks at its rings after an event.
    pub(crate) fn wake(&mut self, history: &mut History) {
        loop {
            let Some(rings) = &mut self.rings else { return };
            match rings.urb.next_response() {
                Ok(Some(response)) => {
                    self.answered(response.id, response.status, history);
                }
                Ok(None) if rings.urb.final_check() => {}
                Ok(None) => break,
                Err(e) => return history.violate(format!("URB ring: {e}")),
            }
        }
        loop {
            let Some(rings) = &mut self.rings else { return };
            match rings.conn.next_response() {
                Ok(Some(Ok(event))) => {
                    let _ = rings.conn.push_request(&ConnRequest { id: event.id });
                    let signal = rings.conn.publish();
                    if signal {
                        memory::channel(self.dom, |c| c.to_backend = true);
                    }
                    self.told(event.speed, history);
                }
                Ok(Some(Err(e))) => return history.violate(e.to_string()),
                Ok(None) if rings.conn.final_check() => {}
                Ok(None) => break,
                Err(e) => return history.violate(format!("connection ring: {e}")),
            }
        }
        self.publish();
    }

    fn told(&mut self, speed: Speed, history: &mut History) {
        if speed == self.speed {
            return;
        }
        self.speed = speed;
        if speed == Speed::None {
            self.addressed = false;
            let used = std::mem::take(&mut self.used);
            history.disconnects += 1;
            // One that waits may see it for a moment where it arrives, before its claim is refused.
            if !history.released && !history.unsaid && (used || !history.waited) {
                history.violate("the guest saw its device go");
            }
            return;
        }
        self.set_address();
    }

    fn set_address(&mut self) {
        let id = self.free_id();
        let setup = Setup([0, 5, ADDRESS, 0, 0, 0, 0, 0]);
        let pipe = pipe(0, 0, Direction::Out, TransferType::Control);
        self.push(id, pipe, UrbKind::Control { setup }, &[]);
        self.add(id, Kind::SetAddress);
    }

    fn answered(&mut self, id: u16, status: UrbStatus, history: &mut History) {
        let ok = status.is_ok();
        let Some(at) = self
            .in_flight
            .iter()
            .position(|u| (u.id == id && !u.answered) || u.unlink == Some(id))
        else {
            return history.violate(format!("an answer with id {id}, which nobody waits for"));
        };
        let gref = self.data_gref(id);
        let urb = &mut self.in_flight[at];
        if urb.unlink == Some(id) {
            // Only so that it is not answered again.
            urb.unlink = Some(u16::MAX);
        } else {
            urb.answered = true;
            match urb.kind {
                Kind::SetAddress if ok => self.addressed = self.speed != Speed::None,
                // Taken back by the driver, which tries again (`hub_port_init`).
                Kind::SetAddress if urb.unlink.is_some() && self.speed != Speed::None => {
                    self.set_address();
                }
                Kind::SetAddress if !history.released && !history.waited => {
                    history.violate("no address");
                }
                Kind::SetAddress => {}
                Kind::Transfer(value) if urb.recalled && status == UrbStatus::SHUTDOWN => {
                    let at = self.again.partition_point(|&earlier| earlier < value);
                    self.again.insert(at, value);
                }
                Kind::Transfer(value) => {
                    // Nobody knows; its driver is told so.
                    if urb.recalled && status == UrbStatus::IOERROR && !self.intact {
                        history.given_up(value);
                    }
                    let mut data = [0; 2];
                    let dom = self.dom;
                    Page { dom, gref }.get(0, &mut data);
                    history.answered(value, status, u16::from_le_bytes(data));
                }
            }
        }
        let urb = self.in_flight[at];
        if urb.answered && urb.unlink.is_none_or(|unlink| unlink == u16::MAX) {
            self.in_flight.remove(at);
        }
    }

    fn unlink(&mut self, at: usize, history: &mut History) {
        let (id, kind) = (self.in_flight[at].id, self.in_flight[at].kind);
        if let Kind::Transfer(value) = kind
            && !self.in_flight[at].recalled
        {
            history.given_up(value);
        }
        let unlink = self.free_id();
        self.in_flight[at].unlink = Some(unlink);
        let pipe = pipe(ADDRESS, 2, Direction::Out, TransferType::Bulk).with_unlink();
        self.push(unlink, pipe, UrbKind::Unlink { id }, &[]);
    }

    fn push(&mut self, id: u16, pipe: Pipe, kind: UrbKind, segments: &[Segment]) {
        // Within every limit of the ring's format.
        if let (Some(rings), Ok(request)) = (
            &mut self.rings,
            UrbRequest::new(id, pipe, 0, kind, segments),
        ) {
            let _ = rings.urb.push_request(&request);
        }
    }

    fn publish(&mut self) {
        if self.rings.as_mut().is_some_and(|r| r.urb.publish()) {
            memory::channel(self.dom, |c| c.to_backend = true);
        }
    }

    fn add(&mut self, id: u16, kind: Kind) {
        self.in_flight.push(InFlight {
            id,
            kind,
            answered: false,
            unlink: None,
            recalled: false,
        });
    }

    fn free_id(&self) -> u16 {
        let used = |id: &u16| {
            let of = |u: &InFlight| u.id == *id || u.unlink == Some(*id);
            self.in_flight.iter().any(of)
        };
        // Fewer are in flight than there are slots.
        (0..16).find(|id| !used(id)).unwrap_or_default()
    }

    fn data_gref(&self, id: u16) -> u32 {
        self.rings.as_ref().map_or(0, |r| r.first_gref) + 2 + u32::from(id)
    }
}

fn pipe(device: u8, endpoint: u8, direction: Direction, transfer_type: TransferType) -> Pipe {
    let device = DeviceAddress::new(device).unwrap_or(DeviceAddress::DEFAULT);
    Pipe::new(1, device, endpoint, direction, transfer_type)
}

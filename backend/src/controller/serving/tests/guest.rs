// SPDX-License-Identifier: GPL-3.0-or-later
//! A guest that knows what it is to be answered.

use usbif::{
    Conn, ConnRequest, DeviceAddress, Direction, FrontRing, Pipe, PortNumber, Segment, Setup,
    Speed, TransferType, Urb, UrbKind, UrbRequest, UrbStatus,
};

use super::host::{Page, Random, Xen};

pub(super) const URB_REF: u32 = 1;
pub(super) const CONN_REF: u32 = 2;
pub(super) const CHANNEL: u32 = 3;
const DATA_REF: u32 = 10;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asked {
    /// 8 bytes out or in, and whether it was unlinked.
    Data {
        tag: u64,
        read: bool,
        unlinked: bool,
    },
    Unlink {
        of: u16,
    },
    SetAddress(u8),
}

pub(super) struct Guest {
    urb: FrontRing<Page, Urb>,
    conn: FrontRing<Page, Conn>,
    data: Vec<Page>,
    asked: [Option<Asked>; 16],
    address: u8,
    /// No device is addressed before it has answered.
    enumerating: bool,
    next_tag: u64,
    speed: Speed,
    connects: u32,
    disconnects: u32,
    /// The last word on the ring was "signal me".
    asleep: bool,
}

fn in_or_out(read: bool) -> Direction {
    match read {
        true => Direction::In,
        false => Direction::Out,
    }
}

impl Guest {
    pub(super) fn new(xen: &Xen) -> Self {
        let mut conn = FrontRing::new(xen.page(CONN_REF));
        for id in 0..8 {
            conn.push_request(&ConnRequest { id }).unwrap();
        }
        let _ = conn.publish();
        Self {
            urb: FrontRing::new(xen.page(URB_REF)),
            conn,
            data: (0..16).map(|n| xen.page(DATA_REF + n)).collect(),
            asked: [None; 16],
            address: 0,
            enumerating: false,
            next_tag: 1,
            speed: Speed::None,
            connects: 0,
            disconnects: 0,
            asleep: false,
        }
    }

    /// The address that its device has for it; 0 for none.
    pub(super) fn address(&self) -> u8 {
        self.address
    }

    pub(super) fn has_device(&self) -> bool {
        self.address != 0 && !self.enumerating
    }

    fn free_id(&self) -> Option<u16> {
        (0..16).find(|&id| self.asked[usize::from(id)].is_none())
    }

    fn pipe(&self, direction: Direction, kind: TransferType, endpoint: u8) -> Pipe {
        let address = DeviceAddress::new(self.address).unwrap();
        Pipe::new(1, address, endpoint, direction, kind)
    }

    fn push(&mut self, asked: Asked, request: &UrbRequest) {
        let id = request.id;
        self.urb.push_request(request).unwrap();
        let replaced = self.asked[usize::from(id)].replace(asked);
        assert_eq!(replaced, None);
    }

    /// One to three requests.
    pub(super) fn send(&mut self, random: &mut Random) {
        if self.speed == Speed::None {
            return;
        }
        for _ in 0..1 + random.below(3) {
            match random.below(40) {
                0..6 => self.unlink(random),
                6 => self.enumerate(),
                n => self.transfer(n % 2 == 0),
            }
        }
        // Our signals are the test's steps; only whether the backend reads the ring counts.
        let _ = self.urb.publish();
    }

    /// As after a port reset: a request to the default address, then a new address.
    fn enumerate(&mut self) {
        if self.asked.iter().any(Option::is_some) {
            return;
        }
        self.enumerating = true;
        self.address = 0;
        let tag = self.take_tag();
        let setup = Setup::new(0x80, 6, 0x0100, tag as u16, 8);
        let pipe = self.pipe(Direction::In, TransferType::Control, 0);
        self.push_data(tag, true, pipe, UrbKind::Control { setup });
    }

    fn take_tag(&mut self) -> u64 {
        self.next_tag += 1;
        self.next_tag - 1
    }

    fn transfer(&mut self, read: bool) {
        if self.enumerating || self.address == 0 {
            return self.enumerate();
        }
        if self.free_id().is_none() {
            return;
        }
        let tag = self.take_tag();
        let (kind, pipe) = match read {
            true => (
                UrbKind::Interrupt {
                    interval: tag as u16,
                },
                self.pipe(Direction::In, TransferType::Interrupt, 2),
            ),
            false => (
                UrbKind::Bulk,
                self.pipe(Direction::Out, TransferType::Bulk, 1),
            ),
        };
        self.push_data(tag, read, pipe, kind);
    }

    fn push_data(&mut self, tag: u64, read: bool, pipe: Pipe, kind: UrbKind) {
        let Some(id) = self.free_id() else { return };
        let content = if read { 0 } else { tag };
        self.data[usize::from(id)].put(0, &content.to_le_bytes());
        let segment = Segment {
            gref: DATA_REF + u32::from(id),
            offset: 0,
            length: 8,
        };
        let request = UrbRequest::new(id, pipe, 0, kind, &[segment]).unwrap();
        let unlinked = false;
        let asked = Asked::Data {
            tag,
            read,
            unlinked,
        };
        self.push(asked, &request);
    }

    fn unlink(&mut self, random: &mut Random) {
        let of = random.below(16) as u16;
        let Some(id) = self.free_id() else { return };
        if let Some(Asked::Data {
            unlinked: unlinked @ false,
            ..
        }) = &mut self.asked[usize::from(of)]
        {
            *unlinked = true;
            let pipe = self
                .pipe(in_or_out(true), TransferType::Bulk, 1)
                .with_unlink();
            let request = UrbRequest::new(id, pipe, 0, UrbKind::Unlink { id: of }, &[]).unwrap();
            self.push(Asked::Unlink { of }, &request);
        }
    }

    /// Looks at the rings, unless it sleeps and was not signalled.
    pub(super) fn look(&mut self, signalled: bool, what: &str) {
        if self.asleep && !signalled {
            return;
        }
        loop {
            while let Some(response) = self.urb.next_response().unwrap() {
                let asked = self.asked.get_mut(usize::from(response.id));
                let asked = asked
                    .and_then(Option::take)
                    .unwrap_or_else(|| panic!("{what}: {response:?} answers nothing"));
                self.answered(response.id, asked, response.status, what);
            }
            while let Some(event) = self.conn.next_response().unwrap() {
                self.told(event.unwrap().port, event.unwrap().speed);
            }
            // Both: a frontend's handler asks each ring.
            let more = [self.urb.final_check(), self.conn.final_check()];
            if more == [false, false] {
                break;
            }
        }
        self.asleep = true;
        let _ = self.urb.publish();
        let _ = self.conn.publish();
    }

    fn told(&mut self, port: PortNumber, speed: Speed) {
        self.conn.push_request(&ConnRequest { id: 9 }).unwrap();
        if port.get() != 1 {
            // A frontend that connects is told of empty ports, too.
            assert_eq!(speed, Speed::None, "{port:?}");
            return;
        }
        if self.speed != speed {
            match speed {
                Speed::None => self.disconnects += 1,
                _ => self.connects += 1,
            }
        }
        self.speed = speed;
    }

    fn answered(&mut self, id: u16, asked: Asked, status: UrbStatus, what: &str) {
        match asked {
            Asked::Data {
                tag,
                read,
                unlinked,
            } => {
                assert!(status.is_ok() || unlinked, "{what}: {asked:?}: {status:?}");
                let mut bytes = [0; 8];
                self.data[usize::from(id)].get(0, &mut bytes);
                if read && status.is_ok() {
                    assert_eq!(u64::from_le_bytes(bytes), tag, "{what}: {asked:?}");
                }
                if self.enumerating {
                    self.set_address(unlinked);
                }
            }
            Asked::Unlink { of } => assert!(status.is_ok(), "{what}: unlink of {of}"),
            Asked::SetAddress(address) => {
                assert!(status.is_ok(), "{what}: {asked:?}");
                self.address = address;
                self.enumerating = false;
            }
        }
    }

    fn set_address(&mut self, again: bool) {
        if again {
            // The request was unlinked; the next attempt begins anew.
            self.enumerating = false;
            return;
        }
        let Some(id) = self.free_id() else { return };
        let address = 1 + (self.next_tag % 100) as u8;
        let setup = Setup::new(0, 5, address.into(), 0, 0);
        let pipe = self.pipe(Direction::Out, TransferType::Control, 0);
        let request = UrbRequest::new(id, pipe, 0, UrbKind::Control { setup }, &[]).unwrap();
        self.push(Asked::SetAddress(address), &request);
    }

    /// Gives the number of transfers that it has asked for.
    pub(super) fn check_end(&self, what: &str) -> u64 {
        assert_eq!(self.asked, [None; 16], "{what}: not answered");
        assert_eq!((self.connects, self.disconnects), (1, 0), "{what}");
        self.next_tag - 1
    }
}

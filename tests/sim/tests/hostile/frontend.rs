// SPDX-License-Identifier: GPL-3.0-or-later
//! A frontend that writes into its ring whatever it likes.

use std::time::{Duration, Instant};

use sim_scenarios::rig::Rig;
use xen::{Access, DomId, EventChannel, GrantRef, Guest, Mapping};
use xen_sim::toolstack::{DomainConfig, Store};
use xen_sim::{GuestChannel, GuestPages, SimGuest};

/// Bytes before the first slot: four indices and padding.
const HEADER: usize = 64;
/// A request's slot (`struct usbif_urb_request`).
pub const SLOT: usize = 148;
const SLOTS: u32 = 16;
const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;
const PATIENCE: Duration = Duration::from_secs(20);

/// Direction and type bits of a request's `pipe`.
pub const IN: u32 = 0x80;
pub const CONTROL: u32 = 2 << 30;
/// The SETUP packet that asks for the 18 bytes of a device descriptor.
pub const GET_DEVICE_DESCRIPTOR: [u8; 8] = [0x80, 6, 0, 1, 0, 0, 18, 0];

/// A request, field by field, to be filled in with anything.
#[derive(Clone, Debug, Default)]
pub struct Raw {
    pub id: u16,
    pub segment_count: u16,
    pub pipe: u32,
    pub flags: u16,
    pub buffer_length: u16,
    /// Setup packet, interval, or the id to unlink.
    pub special: [u8; 8],
    /// Grant, offset, length.
    pub segments: Vec<(u32, u16, u16)>,
}

impl Raw {
    /// Asks the device at port 1, at address 0, for its descriptor.
    pub fn descriptor(gref: u32) -> Self {
        Self {
            id: 1,
            segment_count: 1,
            pipe: CONTROL | IN | 1,
            buffer_length: 18,
            special: GET_DEVICE_DESCRIPTOR,
            segments: vec![(gref, 0, 18)],
            ..Self::default()
        }
    }

    fn encode(&self) -> [u8; SLOT] {
        let mut slot = [0; SLOT];
        slot[0..2].copy_from_slice(&self.id.to_le_bytes());
        slot[2..4].copy_from_slice(&self.segment_count.to_le_bytes());
        slot[4..8].copy_from_slice(&self.pipe.to_le_bytes());
        slot[8..10].copy_from_slice(&self.flags.to_le_bytes());
        slot[10..12].copy_from_slice(&self.buffer_length.to_le_bytes());
        slot[12..20].copy_from_slice(&self.special);
        for (n, (gref, offset, length)) in self.segments.iter().enumerate() {
            let at = 20 + 8 * n;
            slot[at..at + 4].copy_from_slice(&gref.to_le_bytes());
            slot[at + 4..at + 6].copy_from_slice(&offset.to_le_bytes());
            slot[at + 6..at + 8].copy_from_slice(&length.to_le_bytes());
        }
        slot
    }
}

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub id: u16,
    pub status: i32,
    pub actual_length: i32,
}

/// The frontend: in a domain of its own, in this process.
pub struct RawFrontend {
    pub domid: DomId,
    guest: SimGuest,
    store: Store,
    urb: GuestPages,
    /// Only kept: the backend maps it.
    conn: GuestPages,
    channel: GuestChannel,
    produced: u32,
    consumed: u32,
    refs: [GrantRef; 2],
}

impl RawFrontend {
    /// Makes a domain, boots in it and connects its controller.
    pub fn connect(rig: &Rig, host: usize, name: &str) -> Self {
        let host = &rig.hosts[host];
        let domid = host.xl.create(&DomainConfig::new(name)).unwrap();
        host.xl.unpause(domid).unwrap();
        let guest = SimGuest::boot(host.dir(), domid).unwrap();
        let store = Store::connect(&guest.xenstore_path()).unwrap();
        let (urb, conn, refs) = rings(&guest);
        let channel = guest.alloc_unbound(DomId(0)).unwrap();
        let mut frontend = Self {
            domid,
            guest,
            store,
            urb,
            conn,
            channel,
            produced: 0,
            consumed: 0,
            refs,
        };
        let port = frontend.channel.local_port();
        frontend.publish(refs[0], refs[1], &port.to_string());
        frontend
    }

    /// Closes the controller and connects it with rings and an event channel of its own anew.
    pub fn reconnect(&mut self) {
        self.switch("6");
        self.wait_for_state(&["6"]);
        self.switch("1");
        self.wait_for_state(&["2"]);
        let (urb, conn, refs) = rings(&self.guest);
        let channel = self.guest.alloc_unbound(DomId(0)).unwrap();
        let port = channel.local_port();
        let old = [
            std::mem::replace(&mut self.urb, urb),
            std::mem::replace(&mut self.conn, conn),
        ];
        self.channel = channel;
        self.refs = refs;
        (self.produced, self.consumed) = (0, 0);
        for page in old {
            assert!(self.guest.end_access(page), "a closed backend has no pages");
        }
        self.publish(refs[0], refs[1], &port.to_string());
        self.wait_for_state(&["4"]);
    }

    /// Connects the controller with other rings and another event channel without closing it, as Linux
    /// resumes a frontend when the guest has slept by itself. The old rings' pages.
    pub fn replace_rings(&mut self) -> [GuestPages; 2] {
        let (urb, conn, refs) = rings(&self.guest);
        let channel = self.guest.alloc_unbound(DomId(0)).unwrap();
        let port = channel.local_port();
        let old = [
            std::mem::replace(&mut self.urb, urb),
            std::mem::replace(&mut self.conn, conn),
        ];
        self.channel = channel;
        self.refs = refs;
        (self.produced, self.consumed) = (0, 0);
        self.publish(refs[0], refs[1], &port.to_string());
        old
    }

    /// Closes the controller and connects it with the same rings and the same channel, without
    /// waiting for anybody.
    pub fn reconnect_blindly(&mut self) {
        self.switch("6");
        self.switch("1");
        (self.produced, self.consumed) = (0, 0);
        let port = self.channel.local_port().to_string();
        self.publish(self.refs[0], self.refs[1], &port);
    }

    /// Takes all answers that there are without looking at them. How many more are to come.
    pub fn skip_answers(&mut self) -> u32 {
        self.consumed = self.urb.load_acquire(RSP_PROD);
        self.produced.wrapping_sub(self.consumed)
    }

    /// Has the next answer signalled.
    pub fn ask_for_event(&self) {
        self.urb
            .store_release(RSP_EVENT, self.consumed.wrapping_add(1));
    }

    /// Sets the frontend's state.
    pub fn switch(&mut self, state: &str) {
        self.store.write("device/vusb/0/state", state).unwrap();
    }

    /// Signals, whatever is on the rings.
    pub fn notify(&self) {
        self.channel.notify().unwrap();
    }

    /// Writes anything anywhere in the URB ring's page.
    pub fn scribble(&self, at: usize, bytes: &[u8]) {
        self.urb.write(at, bytes);
    }

    /// Writes the frontend's nodes and switches to Connected.
    fn publish(&mut self, urb: GrantRef, conn: GrantRef, channel: &str) {
        let nodes = [
            ("urb-ring-ref", urb.to_string()),
            ("conn-ring-ref", conn.to_string()),
            ("event-channel", channel.to_owned()),
            ("feature-resume", "1".to_owned()),
            ("state", "4".to_owned()),
        ];
        for (node, value) in nodes {
            let path = format!("device/vusb/0/{node}");
            self.store.write(&path, &value).unwrap();
        }
    }

    /// Waits until the backend's state is one of these, and gives it.
    pub fn wait_for_state(&mut self, wanted: &[&str]) -> String {
        let backend = self.store.read("device/vusb/0/backend").unwrap().unwrap();
        let path = format!("{backend}/state");
        self.store.watch(&path, "state").unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let state = self.store.read(&path).unwrap().unwrap_or_default();
            if wanted.contains(&state.as_str()) {
                self.store.unwatch(&path, "state").unwrap();
                return state;
            }
            let event = self.store.next_event(deadline).unwrap();
            assert!(event.is_some(), "the backend's state stays {state}");
        }
    }

    /// A page of data that the backend may use.
    pub fn page(&self) -> (GuestPages, u32) {
        let (page, refs) = self
            .guest
            .grant_pages(DomId(0), 1, Access::ReadWrite)
            .unwrap();
        (page, refs[0].0)
    }

    /// So many pages, granted.
    pub fn pages(&self, count: usize) -> (GuestPages, Vec<u32>) {
        let (pages, refs) = self
            .guest
            .grant_pages(DomId(0), count, Access::ReadWrite)
            .unwrap();
        (pages, refs.into_iter().map(|gref| gref.0).collect())
    }

    /// Ends the grants of pages; false when the backend still has them mapped.
    pub fn revoke(&self, pages: GuestPages) -> bool {
        self.guest.end_access(pages)
    }

    /// Writes requests into the next slots, and shows them all at once.
    pub fn push(&mut self, requests: &[Raw]) {
        for request in requests {
            let slot = self.produced % SLOTS;
            let at = HEADER + SLOT * slot as usize;
            self.urb.write(at, &request.encode());
            self.produced = self.produced.wrapping_add(1);
        }
        self.show(self.produced);
    }

    /// Shows so many slots more, whatever is in them.
    pub fn push_unwritten(&mut self, count: u32) {
        self.produced = self.produced.wrapping_add(count);
        self.show(self.produced);
    }

    /// Stores any producer index.
    pub fn show(&mut self, index: u32) {
        self.urb.store_release(REQ_PROD, index);
        self.channel.notify().unwrap();
    }

    /// The next answer.
    pub fn answer(&mut self) -> Answer {
        let deadline = Instant::now() + PATIENCE;
        while self.urb.load_acquire(RSP_PROD) == self.consumed {
            assert!(Instant::now() < deadline, "no answer");
            std::thread::sleep(Duration::from_millis(1));
        }
        let slot = self.consumed % SLOTS;
        let mut bytes = [0; 16];
        self.urb.read(HEADER + SLOT * slot as usize, &mut bytes);
        self.consumed = self.consumed.wrapping_add(1);
        self.urb.store_release(RSP_EVENT, self.consumed + 1);
        let word = |at: usize| {
            i32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Answer {
            id: u16::from_le_bytes([bytes[0], bytes[1]]),
            status: word(4),
            actual_length: word(8),
        }
    }

    /// Sends one request; the status and length of its answer, which has its id.
    pub fn ask(&mut self, request: Raw) -> (i32, i32) {
        let id = request.id;
        self.push(&[request]);
        let answer = self.answer();
        assert_eq!(answer.id, id);
        (answer.status, answer.actual_length)
    }

    /// Whether an answer is waiting that nobody asked for.
    pub fn has_answer(&self) -> bool {
        self.urb.load_acquire(RSP_PROD) != self.consumed
    }
}

/// The two ring pages, empty, and their grants.
fn rings(guest: &SimGuest) -> (GuestPages, GuestPages, [GrantRef; 2]) {
    let page = || guest.grant_pages(DomId(0), 1, Access::ReadWrite).unwrap();
    let (urb, urb_ref) = page();
    let (conn, conn_ref) = page();
    for ring in [&urb, &conn] {
        ring.store_release(REQ_EVENT, 1);
        ring.store_release(RSP_EVENT, 1);
    }
    // All requests for connection events, so that they can be told.
    for id in 0..512u16 {
        conn.write(HEADER + 4 * usize::from(id), &id.to_le_bytes());
    }
    conn.store_release(REQ_PROD, 512);
    (urb, conn, [urb_ref[0], conn_ref[0]])
}

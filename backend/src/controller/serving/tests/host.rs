// SPDX-License-Identifier: GPL-3.0-or-later
//! A host whose power can fail, and the exporter's end.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use handoff::Cookie;
use journal::{Journal, LEN_BYTES, Words};
use session::open::How;
use session::{Epoch, VmUuid};
use slog::{Discard, Logger, o};
use tokio::sync::Notify;
use usbif::{PortNumber, RingMemory, Speed};
use xen::{
    Access, Backend, CopyBuffer, CopyOp, CopyStatus, DomId, EventChannel, EvtchnPort, GrantError,
    GrantRef, Mapping,
};

use super::device::Device;
use super::guest::{CHANNEL, CONN_REF, Guest, URB_REF};
use crate::controller::rings::RingDetails;
use crate::controller::serving::{Place, Serving};

pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, end: u64) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

/// Stores that are left before the process ends. What is stored afterwards never happened.
#[derive(Clone)]
pub(super) struct Power(Arc<(AtomicU64, AtomicU64)>);

impl Power {
    pub(super) fn new(left: u64) -> Self {
        Self(Arc::new((AtomicU64::new(left), AtomicU64::new(0))))
    }

    fn take(&self) -> bool {
        self.0.1.fetch_add(1, Ordering::Relaxed);
        let left = &self.0.0;
        left.try_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
            .is_ok()
    }

    pub(super) fn is_off(&self) -> bool {
        self.0.0.load(Ordering::Relaxed) == 0
    }

    pub(super) fn refill(&self, left: u64) {
        self.0.0.store(left, Ordering::Relaxed);
    }
}

/// A page of the guest's memory.
#[derive(Clone)]
pub(super) struct Page(Arc<Mutex<[u8; 4096]>>);

impl Page {
    fn new() -> Self {
        Self(Arc::new(Mutex::new([0; 4096])))
    }
    pub(super) fn get(&self, at: usize, dst: &mut [u8]) {
        dst.copy_from_slice(&self.0.lock().unwrap()[at..at + dst.len()]);
    }
    pub(super) fn put(&self, at: usize, src: &[u8]) {
        self.0.lock().unwrap()[at..at + src.len()].copy_from_slice(src);
    }
    fn index(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        self.get(at, &mut bytes);
        u32::from_le_bytes(bytes)
    }
}

/// The guest's own view.
impl RingMemory for Page {
    fn read(&self, offset: usize, dst: &mut [u8]) {
        self.get(offset, dst);
    }
    fn write(&self, offset: usize, src: &[u8]) {
        self.put(offset, src);
    }
    fn load_acquire(&self, offset: usize) -> u32 {
        self.index(offset)
    }
    fn store_release(&self, offset: usize, value: u32) {
        self.put(offset, &value.to_le_bytes());
    }
    fn full_barrier(&self) {}
}

/// The backend's view.
pub(super) struct Mapped(Page, Power);

impl Mapping for Mapped {
    fn len_bytes(&self) -> usize {
        4096
    }
    fn read(&self, offset: usize, dst: &mut [u8]) {
        self.0.get(offset, dst);
    }
    fn write(&self, offset: usize, src: &[u8]) {
        // A slot is not written at once either.
        for (at, half) in (0..).zip(src.chunks(8)) {
            if self.1.take() {
                self.0.put(offset + 8 * at, half);
            }
        }
    }
    fn load_acquire(&self, offset: usize) -> u32 {
        self.0.index(offset)
    }
    fn store_release(&self, offset: usize, value: u32) {
        if self.1.take() {
            self.0.put(offset, &value.to_le_bytes());
        }
    }
}

pub(super) struct Channel {
    stream: UnixStream,
    signalled: Arc<AtomicBool>,
    power: Power,
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl EventChannel for Channel {
    fn local_port(&self) -> EvtchnPort {
        EvtchnPort(1)
    }
    fn notify(&self) -> std::io::Result<()> {
        if self.power.take() {
            self.signalled.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
    fn take_event(&self) -> std::io::Result<bool> {
        Ok(true)
    }
}

#[derive(Clone)]
pub(super) struct Xen {
    pages: Arc<Mutex<HashMap<u32, Page>>>,
    signalled: Arc<AtomicBool>,
    power: Power,
}

impl Xen {
    pub(super) fn new(power: Power) -> Self {
        Self {
            pages: Arc::default(),
            signalled: Arc::default(),
            power,
        }
    }

    pub(super) fn page(&self, gref: u32) -> Page {
        let mut pages = self.pages.lock().unwrap();
        pages.entry(gref).or_insert_with(Page::new).clone()
    }

    /// Whether the backend has signalled since the last call.
    pub(super) fn take_signal(&self) -> bool {
        self.signalled.swap(false, Ordering::Relaxed)
    }
}

impl Backend for Xen {
    type Mapping = Mapped;
    type Channel = Channel;

    fn map(&self, _: DomId, refs: &[GrantRef], _: Access) -> Result<Mapped, GrantError> {
        Ok(Mapped(self.page(refs[0].0), self.power.clone()))
    }

    fn copy(&self, _: DomId, ops: &mut [CopyOp<'_>]) -> Result<(), GrantError> {
        for op in ops {
            let page = self.page(op.gref.0);
            match &mut op.buffer {
                CopyBuffer::FromGuest(dst) => page.get(op.offset.into(), dst),
                CopyBuffer::ToGuest(src) => {
                    if self.power.take() {
                        page.put(op.offset.into(), src);
                    }
                }
            }
            op.status = CopyStatus::Done;
        }
        Ok(())
    }

    fn bind_interdomain(&self, _: DomId, _: EvtchnPort) -> std::io::Result<Channel> {
        let (stream, _) = UnixStream::pair()?;
        stream.set_nonblocking(true)?;
        Ok(Channel {
            stream,
            signalled: self.signalled.clone(),
            power: self.power.clone(),
        })
    }
}

/// The memory that outlives the process.
#[derive(Clone)]
struct Kept(Arc<Vec<AtomicU64>>, Power);

impl Words for Kept {
    fn load(&self, at: usize) -> u64 {
        self.0[at].load(Ordering::Relaxed)
    }
    fn store(&self, at: usize, value: u64) {
        if self.1.take() {
            self.0[at].store(value, Ordering::Relaxed);
        }
    }
}

/// Everything.
pub(super) struct Host {
    /// For messages of assertions.
    pub(super) what: String,
    pub(super) power: Power,
    pub(super) crashes: u32,
    /// Crashes still to come soon after the one before, mostly in the middle of a recovery.
    pub(super) more_crashes: u32,
    random: Random,
    xen: Xen,
    kept: Kept,
    serving: Option<Serving<Xen>>,
    guest: Guest,
    device: Device,
    /// On their way to the exporter, and back.
    to_device: Vec<u8>,
    from_device: Vec<u8>,
}

fn port() -> PortNumber {
    PortNumber::new(1).unwrap()
}

impl Host {
    pub(super) fn new(seed: u64, stores: u64) -> Self {
        let power = Power::new(u64::MAX);
        let xen = Xen::new(power.clone());
        let words = (0..LEN_BYTES / 8).map(|_| AtomicU64::new(0));
        let mut host = Self {
            what: format!("seed {seed}"),
            random: Random(seed),
            kept: Kept(Arc::new(words.collect()), power.clone()),
            serving: None,
            guest: Guest::new(&xen),
            device: Device::default(),
            to_device: Vec::new(),
            from_device: Vec::new(),
            crashes: 0,
            more_crashes: 0,
            power,
            xen,
        };
        let words = Box::new(host.kept.clone()) as Box<dyn Words + Send>;
        let mut serving = host.process(Journal::create(words, 1));
        serving.core.plug(port(), Speed::High, None).unwrap();
        serving.attach(port(), Rc::new(Notify::new()));
        host.serving = Some(serving);
        host.power.refill(stores);
        host.power.0.1.store(0, Ordering::Relaxed);
        host.connect();
        host
    }

    pub(super) fn stores(&self) -> u64 {
        self.power.0.1.load(Ordering::Relaxed)
    }

    fn process(&self, journal: crate::state::ControllerJournal) -> Serving<Xen> {
        let place = Place {
            platform: self.xen.clone(),
            domid: DomId(7),
            devid: 0,
            vm: VmUuid(uuid::Uuid::nil()),
            totals: Arc::default(),
            log: Logger::root(Discard, o!()),
        };
        Serving::keeping(place, 2, journal)
    }

    fn serving(&mut self) -> &mut Serving<Xen> {
        self.serving.as_mut().unwrap()
    }

    /// Maps the rings; if that is where the power fails, again.
    fn connect(&mut self) {
        let details = RingDetails {
            urb: GrantRef(URB_REF),
            conn: GrantRef(CONN_REF),
            channel: EvtchnPort(CHANNEL),
            recalls: false,
        };
        let connected = self.serving().connect(details);
        if !self.power.is_off() {
            connected
                .map(drop)
                .unwrap_or_else(|e| panic!("{}: {e}", self.what));
            self.reach_device();
        }
        self.look_for_crash();
    }

    fn look_for_crash(&mut self) {
        if !self.power.is_off() {
            return;
        }
        self.crashes += 1;
        self.serving = None;
        self.to_device.clear();
        self.from_device.clear();
        self.device.server.disconnected();
        self.power.refill(match self.more_crashes {
            0 => u64::MAX,
            _ => self.random.below(120),
        });
        self.more_crashes = self.more_crashes.saturating_sub(1);
        // A new process.
        let journal = Journal::open(Box::new(self.kept.clone()) as Box<dyn Words + Send>).unwrap();
        let mut serving = self.process(journal);
        serving.adopt();
        if serving.core.snapshot(port()).speed == Speed::None {
            serving.core.plug(port(), Speed::High, None).unwrap();
        }
        serving.attach(port(), Rc::new(Notify::new()));
        self.serving = Some(serving);
        self.connect();
    }

    /// Resumes the session, or claims the lease, as the device's task does.
    fn reach_device(&mut self) {
        let what = self.what.clone();
        self.device.server.disconnected();
        self.to_device.clear();
        self.from_device.clear();
        let server = &mut self.device.server;
        let serving = self.serving.as_mut().unwrap();
        let current = server.epoch();
        match serving.client(port()).map(|client| client.resume()) {
            Some(How::Resume {
                epoch,
                completions_received,
            }) if epoch == current => {
                let received = server
                    .resume(completions_received)
                    .unwrap_or_else(|e| panic!("{what}: {e}"));
                serving
                    .resumed(port(), received)
                    .unwrap_or_else(|e| panic!("{what}: {e}"));
            }
            other => {
                assert_eq!(other, None, "{what}");
                let epoch = Epoch(current.0 + 1);
                self.device.claim(epoch);
                serving.claimed(port(), epoch);
            }
        }
    }

    /// Until the guest has found its device.
    pub(super) fn boot(&mut self) {
        for _ in 0..50 {
            if self.guest.has_device() {
                return;
            }
            self.guest.send(&mut self.random);
            self.serve();
            self.network();
            self.device.work_all();
            self.network();
            self.guest_looks();
        }
        panic!("{}: the guest does not find its device", self.what);
    }

    /// So many random steps.
    pub(super) fn live(&mut self, steps: u32) {
        for _ in 0..steps {
            match self.random.below(16) {
                0..5 => self.guest.send(&mut self.random),
                5..8 => self.serve(),
                8..11 => self.network(),
                11..13 => self.device.work(&mut self.random),
                13 => self.cut(),
                _ => self.guest_looks(),
            }
        }
    }

    /// Everything comes to its end, without another crash but the one that is due. Gives the number
    /// of transfers.
    pub(super) fn finish(&mut self) -> u64 {
        for _ in 0..2 {
            for _ in 0..200 {
                self.serve();
                self.network();
                self.device.work_all();
                self.network();
                self.guest_looks();
            }
            if self.power.0.0.load(Ordering::Relaxed) > 1 << 60 {
                break;
            }
            // The crash had not come yet, and everything is answered: it comes now.
            self.power.refill(0);
            self.look_for_crash();
        }
        let account = self.serving().place.totals.get();
        assert_eq!(account.urbs, account.answered, "{}", self.what);
        self.device.check_end(&self.what);
        self.guest.check_end(&self.what)
    }

    fn guest_looks(&mut self) {
        let signalled = self.xen.take_signal();
        self.guest.look(signalled, &self.what);
        // Wherever it went now, its device would be known there.
        if self.guest.has_device() {
            let saved = Cookie::decode(&self.device.saved).unwrap().unwrap();
            assert_eq!(saved.address, self.guest.address(), "{}", self.what);
        }
    }

    fn serve(&mut self) {
        let outcome = self.serving().service();
        if !self.power.is_off() {
            outcome.unwrap_or_else(|e| panic!("{}: {e}", self.what));
        }
        self.look_for_crash();
    }

    fn cut(&mut self) {
        if self.random.below(3) == 0 {
            self.serving().client(port()).unwrap().lost();
            self.reach_device();
            self.look_for_crash();
        }
    }

    /// Bytes travel in both directions, not always all of them.
    fn network(&mut self) {
        let what = self.what.clone();
        let serving = self.serving.as_mut().unwrap();
        self.to_device
            .append(serving.client(port()).unwrap().output());
        let taken = self.device.receive(&self.to_device, &what);
        self.to_device.drain(..taken);
        let server = &mut self.device.server;
        let some = self.random.below(server.output().len() as u64 + 1) as usize;
        self.from_device.extend_from_slice(&server.output()[..some]);
        server.sent(some);
        let (taken, end) = serving
            .receive(port(), &self.from_device)
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(end, None, "{what}");
        self.from_device.drain(..taken);
        if !self.power.is_off() && self.random.below(2) == 0 {
            self.serving().client(port()).unwrap().acknowledge();
        }
        self.look_for_crash();
    }
}

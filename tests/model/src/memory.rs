// SPDX-License-Identifier: GPL-3.0-or-later
//! Granted pages, event channels and journals: what outlives a `vusbd`. They belong to a
//! [`crate::World`]; while one of its steps runs they are at hand for [`Xen`], the platform of its
//! controllers, and for their journals ([`Kept`]).
//!
//! A process can be made to end at any store ([`set_power`]): what it stores after that never happened.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::{self, Stdin};
use std::os::fd::{AsFd, BorrowedFd};

use journal::Words;
use session::Lease;
use usbif::RingMemory;
use xen::{
    Access, Backend, CopyBuffer, CopyOp, CopyStatus, DomId, EventChannel, EvtchnPort, GrantError,
    GrantRef, Mapping, PAGE_SIZE,
};

/// `GNTST_bad_gntref`.
const BAD_GRANT: i16 = -3;

/// Who has been signalled and has not looked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Channel {
    pub(crate) to_backend: bool,
    pub(crate) to_frontend: bool,
}

/// What guests grant. Domids are never used twice in a world.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct Memory {
    /// Only as long as what was ever written, so that copies are cheap.
    pages: BTreeMap<(u16, u32), Vec<u8>>,
    channels: BTreeMap<u16, Channel>,
    /// The words of each domain's journal that are not 0.
    journals: BTreeMap<u16, BTreeMap<u16, u64>>,
    /// The list of devices of each domain's controller.
    devices: BTreeMap<u16, Vec<KeptDevice>>,
    /// A planted bug, for which `replaced` is needed.
    late_journal: bool,
    /// What the last store to a journal has replaced.
    replaced: Option<(u16, u16, u64)>,
}

thread_local! {
    static AT_HAND: RefCell<Memory> = RefCell::default();
    /// Stores left; `None` for any number.
    static POWER: Cell<Option<u16>> = const { Cell::new(None) };
}

/// From now on only so many stores happen.
pub(crate) fn set_power(stores: Option<u16>) {
    POWER.set(stores);
}

/// How many are left.
pub(crate) fn power() -> Option<u16> {
    POWER.get()
}

/// Something is about to happen that others will see; false where it does not happen any more.
pub(crate) fn take_power() -> bool {
    match POWER.get() {
        None => true,
        Some(0) => false,
        Some(left) => {
            POWER.set(Some(left - 1));
            true
        }
    }
}

fn set(words: &mut BTreeMap<u16, u64>, at: u16, value: u64) -> u64 {
    let before = match value {
        0 => words.remove(&at),
        value => words.insert(at, value),
    };
    before.unwrap_or(0)
}

/// See [`crate::Limits::planted_late_journal`].
pub(crate) fn plant_late_journal(planted: bool) {
    AT_HAND.with_borrow_mut(|memory| memory.late_journal = planted);
}

/// The last store to a journal has not happened.
pub(crate) fn forget_last_store() {
    AT_HAND.with_borrow_mut(|memory| {
        if let Some((dom, at, before)) = memory.replaced.take()
            && let Some(words) = memory.journals.get_mut(&dom)
        {
            set(words, at, before);
        }
    });
}

/// The domains of which something is kept.
pub(crate) fn kept() -> Vec<u16> {
    AT_HAND.with_borrow(|memory| memory.devices.keys().copied().collect())
}

/// A device of a controller, and whether another domain holds it.
pub(crate) type KeptDevice = (Lease, bool);

/// What is kept of a domain's controller for a later `vusbd`: the words of its journal, and a list of its
/// devices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept(pub(crate) u16);

impl Kept {
    /// Nothing any more.
    pub(crate) fn remove(self) {
        AT_HAND.with_borrow_mut(|memory| {
            memory.journals.remove(&self.0);
            memory.devices.remove(&self.0);
        });
    }

    /// Writes the list of devices.
    pub(crate) fn save_devices(self, devices: Vec<KeptDevice>) {
        if take_power() {
            AT_HAND.with_borrow_mut(|memory| memory.devices.insert(self.0, devices));
        }
    }

    /// The list of devices, where there is one.
    pub(crate) fn devices(self) -> Option<Vec<KeptDevice>> {
        AT_HAND.with_borrow(|memory| memory.devices.get(&self.0).cloned())
    }
}

impl Words for Kept {
    fn load(&self, at: usize) -> u64 {
        AT_HAND.with_borrow(|memory| {
            let words = memory.journals.get(&self.0);
            words
                .and_then(|w| w.get(&(at as u16)))
                .copied()
                .unwrap_or(0)
        })
    }

    fn store(&self, at: usize, value: u64) {
        if self.load(at) == value || !take_power() {
            return;
        }
        AT_HAND.with_borrow_mut(|memory| {
            let words = memory.journals.entry(self.0).or_default();
            let before = set(words, at as u16, value);
            memory.replaced = memory.late_journal.then_some((self.0, at as u16, before));
        });
    }
}

impl Memory {
    /// Makes this one the one at hand, and gives back the other.
    pub(crate) fn exchange(&mut self) {
        AT_HAND.with_borrow_mut(|memory| std::mem::swap(memory, self));
    }
}

/// Looks at the channel of a domain.
pub(crate) fn channel<R>(dom: u16, look: impl FnOnce(&mut Channel) -> R) -> R {
    AT_HAND.with_borrow_mut(|memory| look(memory.channels.entry(dom).or_default()))
}

/// Grants a zeroed page.
pub(crate) fn grant(dom: u16, gref: u32) -> Page {
    AT_HAND.with_borrow_mut(|memory| memory.pages.insert((dom, gref), Vec::new()));
    Page { dom, gref }
}

/// Ends every grant of a domain below `end`.
pub(crate) fn revoke(dom: u16, end: u32) {
    AT_HAND.with_borrow_mut(|memory| {
        memory.pages.retain(|&(d, gref), _| d != dom || gref >= end);
        if end == u32::MAX {
            memory.channels.remove(&dom);
        }
    });
}

/// A granted page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Page {
    pub(crate) dom: u16,
    pub(crate) gref: u32,
}

impl Page {
    fn with<R>(self, look: impl FnOnce(Option<&mut Vec<u8>>) -> R) -> R {
        AT_HAND.with_borrow_mut(|memory| look(memory.pages.get_mut(&(self.dom, self.gref))))
    }

    pub(crate) fn get(self, offset: usize, dst: &mut [u8]) {
        dst.fill(0);
        self.with(|page| {
            let Some(from) = page.and_then(|p| p.get(offset..)) else {
                return;
            };
            let len = from.len().min(dst.len());
            dst[..len].copy_from_slice(&from[..len]);
        });
    }

    pub(crate) fn put(self, offset: usize, src: &[u8]) {
        self.with(|page| {
            let Some(page) = page else { return };
            let end = offset + src.len();
            if page.len() < end {
                page.resize(end, 0);
            }
            page[offset..end].copy_from_slice(src);
        });
    }
}

impl RingMemory for Page {
    fn read(&self, offset: usize, dst: &mut [u8]) {
        self.get(offset, dst);
    }
    fn write(&self, offset: usize, src: &[u8]) {
        self.put(offset, src);
    }
    fn load_acquire(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.get(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }
    fn store_release(&self, offset: usize, value: u32) {
        self.put(offset, &value.to_le_bytes());
    }
    fn full_barrier(&self) {}
}

impl Mapping for Page {
    fn len_bytes(&self) -> usize {
        PAGE_SIZE
    }
    fn read(&self, offset: usize, dst: &mut [u8]) {
        self.get(offset, dst);
    }
    fn write(&self, offset: usize, src: &[u8]) {
        // A slot is not written at once.
        for (at, part) in (offset..).step_by(8).zip(src.chunks(8)) {
            if take_power() {
                self.put(at, part);
            }
        }
    }
    fn load_acquire(&self, offset: usize) -> u32 {
        RingMemory::load_acquire(self, offset)
    }
    fn store_release(&self, offset: usize, value: u32) {
        if take_power() {
            RingMemory::store_release(self, offset, value);
        }
    }
}

/// A backend's end of a domain's event channel.
#[derive(Debug)]
pub struct Port {
    dom: u16,
    /// Nobody waits for it; the scheduler looks at the channel.
    descriptor: Stdin,
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl EventChannel for Port {
    fn local_port(&self) -> EvtchnPort {
        EvtchnPort(u32::from(self.dom))
    }
    fn notify(&self) -> io::Result<()> {
        if take_power() {
            channel(self.dom, |c| c.to_frontend = true);
        }
        Ok(())
    }
    fn take_event(&self) -> io::Result<bool> {
        Ok(channel(self.dom, |c| std::mem::take(&mut c.to_backend)))
    }
}

/// The platform of the controllers.
#[derive(Clone, Copy, Debug)]
pub struct Xen;

impl Backend for Xen {
    type Mapping = Page;
    type Channel = Port;

    fn map(&self, dom: DomId, refs: &[GrantRef], _: Access) -> Result<Page, GrantError> {
        let gref = refs[0];
        let page = Page {
            dom: dom.0,
            gref: gref.0,
        };
        match page.with(|p| p.is_some()) {
            true => Ok(page),
            false => Err(GrantError::Refused {
                dom,
                gref,
                status: BAD_GRANT,
            }),
        }
    }

    fn copy(&self, dom: DomId, ops: &mut [CopyOp<'_>]) -> Result<(), GrantError> {
        for op in ops {
            let page = Page {
                dom: dom.0,
                gref: op.gref.0,
            };
            if page.with(|p| p.is_none()) {
                op.status = CopyStatus::Refused(BAD_GRANT);
                continue;
            }
            match &mut op.buffer {
                CopyBuffer::FromGuest(into) => page.get(op.offset.into(), into),
                CopyBuffer::ToGuest(from) => {
                    if take_power() {
                        page.put(op.offset.into(), from);
                    }
                }
            }
            op.status = CopyStatus::Done;
        }
        Ok(())
    }

    fn bind_interdomain(&self, dom: DomId, _: EvtchnPort) -> io::Result<Port> {
        channel(dom.0, |c| c.to_backend = true);
        Ok(Port {
            dom: dom.0,
            descriptor: io::stdin(),
        })
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! A page on the heap. Panics on accesses outside it, and counts reads of slots.

use std::cell::{Cell, RefCell};

use crate::{PAGE_BYTES, RING_HEADER_BYTES, RingMemory};

pub(super) struct Page {
    bytes: RefCell<[u8; PAGE_BYTES]>,
    slot_reads: Cell<u32>,
}

impl Page {
    pub(super) fn zeroed() -> Self {
        Self {
            bytes: RefCell::new([0; PAGE_BYTES]),
            slot_reads: Cell::new(0),
        }
    }

    pub(super) fn poke(&self, offset: usize, bytes: &[u8]) {
        self.bytes.borrow_mut()[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    pub(super) fn poke_u32(&self, offset: usize, value: u32) {
        self.poke(offset, &value.to_le_bytes());
    }

    pub(super) fn bytes(&self) -> [u8; PAGE_BYTES] {
        *self.bytes.borrow()
    }

    /// Reads of slots since the last call.
    pub(super) fn take_slot_reads(&self) -> u32 {
        self.slot_reads.replace(0)
    }
}

impl RingMemory for Page {
    fn read(&self, offset: usize, dst: &mut [u8]) {
        assert!(offset >= RING_HEADER_BYTES, "indices are loaded, not read");
        self.slot_reads.set(self.slot_reads.get() + 1);
        dst.copy_from_slice(&self.bytes.borrow()[offset..offset + dst.len()]);
    }
    fn write(&self, offset: usize, src: &[u8]) {
        assert!(
            offset >= RING_HEADER_BYTES,
            "indices are stored, not written"
        );
        self.poke(offset, src);
    }
    fn load_acquire(&self, offset: usize) -> u32 {
        assert!(offset.is_multiple_of(4) && offset < 16);
        let bytes = self.bytes.borrow();
        u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
    }
    fn store_release(&self, offset: usize, value: u32) {
        assert!(offset.is_multiple_of(4) && offset < 16);
        self.poke_u32(offset, value);
    }
    fn full_barrier(&self) {}
}

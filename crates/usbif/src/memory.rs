// SPDX-License-Identifier: GPL-3.0-or-later
//! The page that both ends share.

/// One shared ring page, 4,096 bytes.
///
/// The peer may write to any byte of it at any time, so it is never a slice. Offsets come from
/// this crate only and are always within the page; an implementation may panic on others.
pub trait RingMemory {
    /// Copies `dst.len()` bytes from byte `offset`, reading every byte exactly once.
    fn read(&self, offset: usize, dst: &mut [u8]);
    /// Copies `src` to byte `offset`.
    fn write(&self, offset: usize, src: &[u8]);
    /// Loads a 32-bit index with acquire ordering. `offset` is a multiple of four.
    fn load_acquire(&self, offset: usize) -> u32;
    /// Stores a 32-bit index with release ordering. `offset` is a multiple of four.
    fn store_release(&self, offset: usize, value: u32);
    /// A full memory barrier, Xen's `xen_mb()`.
    fn full_barrier(&self);
}

impl<M: RingMemory + ?Sized> RingMemory for &M {
    fn read(&self, offset: usize, dst: &mut [u8]) {
        (**self).read(offset, dst);
    }
    fn write(&self, offset: usize, src: &[u8]) {
        (**self).write(offset, src);
    }
    fn load_acquire(&self, offset: usize) -> u32 {
        (**self).load_acquire(offset)
    }
    fn store_release(&self, offset: usize, value: u32) {
        (**self).store_release(offset, value);
    }
    fn full_barrier(&self) {
        (**self).full_barrier();
    }
}

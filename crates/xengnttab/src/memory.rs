// SPDX-License-Identifier: GPL-3.0-or-later
//! Memory that another domain writes to while we look at it.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::Access;

const WORD: usize = size_of::<u64>();

/// A mapped range that is shared with another domain. Unmapped when dropped.
///
/// It is never a slice, because the peer may change it at any time. Offsets count bytes from its
/// start. Every method panics when its range is outside the mapping, and when it would store to
/// one that is read-only: offsets must come from the caller's own code, never from the peer.
#[derive(Debug)]
pub struct SharedMemory {
    start: NonNull<u8>,
    len_bytes: usize,
    access: Access,
}

// SAFETY: the mapping belongs to the process, not to a thread, and every access through a shared
// reference is volatile or atomic, as it must be towards the peer anyway.
unsafe impl Send for SharedMemory {}
// SAFETY: as above.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// # Safety
    /// The range was mapped by mmap with this access, is aligned to pages, and nobody else
    /// unmaps it.
    pub(crate) unsafe fn from_raw(
        start: NonNull<u8>,
        len_bytes: usize,
        access: Access,
    ) -> SharedMemory {
        SharedMemory {
            start,
            len_bytes,
            access,
        }
    }

    /// Bytes in the mapping.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// What the mapping may be used for.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The start of the mapping, for other means of access to it. Valid until the mapping is
    /// dropped.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Copies `dst.len()` bytes from `offset`. Each aligned word of eight bytes is loaded once.
    pub fn read(&self, offset: usize, dst: &mut [u8]) {
        let mut from = self.range(offset, dst.len());
        let (head, body, tail) = split(from, dst.len());
        let (dst_head, rest) = dst.split_at_mut(head);
        let (dst_body, dst_tail) = rest.split_at_mut(body);
        debug_assert_eq!(dst_tail.len(), tail);
        for byte in dst_head {
            // SAFETY: `range` checked that all of it is mapped; volatile because of the peer.
            unsafe {
                *byte = from.read_volatile();
                from = from.add(1);
            }
        }
        for chunk in dst_body.chunks_exact_mut(WORD) {
            // SAFETY: as above, and `split` put the start of the words on a word boundary.
            let word = unsafe {
                let word = from.cast::<u64>().read_volatile();
                from = from.add(WORD);
                word
            };
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        for byte in dst_tail {
            // SAFETY: as for the head. One past the end of the mapping may be pointed to.
            unsafe {
                *byte = from.read_volatile();
                from = from.add(1);
            }
        }
    }

    /// Copies `src` to `offset`. Each aligned word of eight bytes is stored once.
    pub fn write(&self, offset: usize, src: &[u8]) {
        self.assert_writable();
        let mut to = self.range(offset, src.len());
        let (head, body, tail) = split(to, src.len());
        let (src_head, rest) = src.split_at(head);
        let (src_body, src_tail) = rest.split_at(body);
        debug_assert_eq!(src_tail.len(), tail);
        for byte in src_head {
            // SAFETY: `range` checked that all of it is mapped, `assert_writable` that it may be
            // stored to; volatile because of the peer.
            unsafe {
                to.write_volatile(*byte);
                to = to.add(1);
            }
        }
        let (words, _) = src_body.as_chunks::<WORD>();
        for word in words {
            // SAFETY: as above, and `split` put the start of the words on a word boundary.
            unsafe {
                to.cast::<u64>().write_volatile(u64::from_ne_bytes(*word));
                to = to.add(WORD);
            }
        }
        for byte in src_tail {
            // SAFETY: as for the head. One past the end of the mapping may be pointed to.
            unsafe {
                to.write_volatile(*byte);
                to = to.add(1);
            }
        }
    }

    /// Loads a 32-bit word with acquire ordering. `offset` is a multiple of four.
    pub fn load_acquire(&self, offset: usize) -> u32 {
        self.word(offset).load(Ordering::Acquire)
    }

    /// Stores a 32-bit word with release ordering. `offset` is a multiple of four.
    pub fn store_release(&self, offset: usize, value: u32) {
        self.assert_writable();
        self.word(offset).store(value, Ordering::Release);
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        assert!(
            offset.is_multiple_of(size_of::<u32>()),
            "offset {offset} of a 32-bit word is not a multiple of four"
        );
        let word = self.range(offset, size_of::<u32>());
        // SAFETY: mapped for as long as `self`, aligned as just checked, and accessed only with
        // atomics and volatiles.
        unsafe { AtomicU32::from_ptr(word.cast()) }
    }

    fn range(&self, offset: usize, len: usize) -> *mut u8 {
        let end = offset.checked_add(len);
        assert!(
            end.is_some_and(|end| end <= self.len_bytes),
            "{len} bytes at offset {offset} of a mapping of {} bytes",
            self.len_bytes
        );
        // SAFETY: just checked to be inside the mapping.
        unsafe { self.start.as_ptr().add(offset) }
    }

    fn assert_writable(&self) {
        assert!(
            self.access == Access::ReadWrite,
            "a store to a mapping that is read-only"
        );
    }
}

/// Cuts `len` bytes from `start` into bytes up to a word boundary, whole words, and the bytes
/// after the last of them.
fn split(start: *const u8, len: usize) -> (usize, usize, usize) {
    let to_boundary = start.addr().wrapping_neg() % WORD;
    let head = to_boundary.min(len);
    let body = (len - head) / WORD * WORD;
    (head, body, len - head - body)
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: mapped by us in one piece, and no reference into it outlives `self`.
        let result = unsafe { libc::munmap(self.start.as_ptr().cast(), self.len_bytes) };
        debug_assert_eq!(result, 0, "munmap of our own mapping");
    }
}

#[cfg(test)]
mod tests;

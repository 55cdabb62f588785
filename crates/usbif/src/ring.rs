// SPDX-License-Identifier: GPL-3.0-or-later
//! The layout of a shared ring page (`io/ring.h`).
//!
//! A header of 64 bytes (four indices, rest unused), then a power of two of slots. A slot holds a
//! request or, later, a response: both travel through the same slots, so a response may only be
//! written to a slot whose request has been read.

use core::fmt;

use crate::RingMemory;

/// Bytes of a ring page.
pub const PAGE_BYTES: usize = 4096;
/// Bytes before the first slot.
pub const RING_HEADER_BYTES: usize = 64;

pub(crate) const REQ_PROD: usize = 0;
pub(crate) const REQ_EVENT: usize = 4;
pub(crate) const RSP_PROD: usize = 8;
pub(crate) const RSP_EVENT: usize = 12;

/// The number of slots of `slot_bytes` in one page: as many as fit, rounded down to a power of
/// two (`__CONST_RING_SIZE`).
pub const fn ring_slots(slot_bytes: usize) -> u32 {
    let fitting = ((PAGE_BYTES - RING_HEADER_BYTES) / slot_bytes) as u32;
    1 << (u32::BITS - 1 - fitting.leading_zeros())
}

/// What travels on a ring: [`crate::Urb`] or [`crate::Conn`].
pub trait RingKind {
    /// What a frontend writes.
    type Request;
    /// What a backend reads: a request, checked.
    type ReadRequest;
    /// What a backend writes.
    type Response;
    /// What a frontend reads: a response, checked.
    type ReadResponse;

    /// Bytes of a request on the wire.
    const REQUEST_BYTES: usize;
    /// Bytes of a response on the wire.
    const RESPONSE_BYTES: usize;
    /// Bytes of a slot.
    const SLOT_BYTES: usize;
    /// Slots of the ring.
    const SLOTS: u32 = ring_slots(Self::SLOT_BYTES);

    /// Copies the request at byte `offset`, once, then decodes the copy.
    fn read_request<M: RingMemory + ?Sized>(memory: &M, offset: usize) -> Self::ReadRequest;
    /// Writes a request at byte `offset`.
    fn write_request<M: RingMemory + ?Sized>(memory: &M, offset: usize, request: &Self::Request);
    /// Copies the response at byte `offset`, once, then decodes the copy.
    fn read_response<M: RingMemory + ?Sized>(memory: &M, offset: usize) -> Self::ReadResponse;
    /// Writes a response at byte `offset`.
    fn write_response<M: RingMemory + ?Sized>(memory: &M, offset: usize, response: &Self::Response);
}

/// The byte offset of the slot of a free-running index.
pub(crate) fn slot_offset<R: RingKind>(index: u32) -> usize {
    RING_HEADER_BYTES + (index & (R::SLOTS - 1)) as usize * R::SLOT_BYTES
}

/// `RING_PUSH_*_AND_CHECK_NOTIFY`: publishes `new` at `prod_offset` and says whether the peer
/// asked to be notified about an entry in `old..new`.
pub(crate) fn publish_index<M: RingMemory>(
    memory: &M,
    prod_offset: usize,
    event_offset: usize,
    old: u32,
    new: u32,
) -> bool {
    memory.store_release(prod_offset, new);
    // The peer must see the entries before we look at its event index, or both sides sleep.
    memory.full_barrier();
    let event = memory.load_acquire(event_offset);
    new.wrapping_sub(event) < new.wrapping_sub(old)
}

/// The indices of one end, free-running (they wrap at 2^32).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct RingIndices {
    /// The next request: to be read by a backend, to be written by a frontend.
    pub req: u32,
    /// The next response: to be written by a backend, to be read by a frontend.
    pub rsp: u32,
}

/// The peer published an index that cannot be: the ring must not be used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingCorrupt {
    /// The peer's producer index as it was read.
    pub published: u32,
    /// Our indices.
    pub indices: RingIndices,
}

impl fmt::Display for RingCorrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ring corrupt: the peer's producer index is {}, ours are requests {}, responses {}",
            self.published, self.indices.req, self.indices.rsp
        )
    }
}

impl core::error::Error for RingCorrupt {}

// SPDX-License-Identifier: GPL-3.0-or-later
//! A transfer with its buffer.

use std::ffi::{c_int, c_void};
use std::fmt;
use std::ops::Range;
use std::ptr::{self, NonNull};

use crate::Status;
use crate::sys::{self, MAX_PACKETS, RawPacket, RawUrb};

/// The type of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Control. The buffer begins with the SETUP packet, of 8 bytes; its wLength is at most what follows.
    Control,
    /// Isochronous, in the next frame that is free. The packets lie one after the other in the buffer.
    Isochronous,
    /// Bulk.
    Bulk,
    /// Interrupt.
    Interrupt,
}

/// An isochronous packet that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Bytes that were asked for.
    pub length: u32,
    /// Bytes that were moved.
    pub actual_length: u32,
    /// How it ended.
    pub status: Status,
}

/// Bytes of a SETUP packet.
const SETUP_LEN: usize = 8;
/// What the kernel counts for a transfer besides its data, in bytes: more than any version does.
const OVERHEAD: usize = 1024;

/// What the kernel sees, and what belongs to it. Nothing of it moves while the kernel has it.
#[repr(C)]
struct Block {
    raw: RawUrb,
    // The kernel looks for them behind the header (`iso_frame_desc`).
    packets: [RawPacket; MAX_PACKETS],
    buffer: NonNull<u8>,
    buffer_len: usize,
    context: u64,
    /// What the transfer may touch of the buffer, all its pieces together.
    range: Range<usize>,
    /// Bytes of the pieces that are over.
    moved: usize,
    zero_packet: bool,
}

/// A transfer with its buffer, owned by whoever has it: the caller, a queue, or, between submission and reaping, the kernel's
/// side of a [`Device`](crate::Device). Nothing is allocated when it is used again.
pub struct Urb(NonNull<Block>);

// SAFETY: the memory behind it belongs to it alone, and nothing in there is tied to a thread.
unsafe impl Send for Urb {}

impl Urb {
    /// One with a buffer of this many bytes.
    pub fn new(buffer_len: usize) -> Self {
        let buffer = Box::into_raw(vec![0_u8; buffer_len].into_boxed_slice());
        // SAFETY: a box is not at null.
        let buffer = unsafe { NonNull::new_unchecked(buffer.cast::<u8>()) };
        let block = Box::new(Block {
            raw: RawUrb {
                kind: sys::TYPE_BULK,
                endpoint: 0,
                status: 0,
                flags: 0,
                buffer: ptr::null_mut(),
                buffer_length: 0,
                actual_length: 0,
                start_frame: 0,
                number_of_packets: 0,
                error_count: 0,
                signr: 0,
                usercontext: ptr::null_mut(),
            },
            packets: [RawPacket::default(); MAX_PACKETS],
            buffer,
            buffer_len,
            context: 0,
            range: 0..0,
            moved: 0,
            zero_packet: false,
        });
        Self(NonNull::from(Box::leak(block)))
    }

    /// Where the kernel finds it: its name there.
    pub(crate) fn address(&self) -> NonNull<RawUrb> {
        self.0.cast()
    }

    fn block(&self) -> &Block {
        // SAFETY: the block lives as long as we do. The kernel writes to it only within a call that reaps
        // it, and whoever has a reference to us is not within one.
        unsafe { self.0.as_ref() }
    }

    fn block_mut(&mut self) -> &mut Block {
        // SAFETY: as in `block`; and we are borrowed exclusively.
        unsafe { self.0.as_mut() }
    }

    /// What the caller knows it by.
    pub fn context(&self) -> u64 {
        self.block().context
    }

    /// Sets what the caller knows it by: one that no other transfer of the same device has meanwhile.
    pub fn set_context(&mut self, context: u64) {
        self.block_mut().context = context;
    }

    /// Its buffer.
    pub fn buffer(&self) -> &[u8] {
        let block = self.block();
        // SAFETY: it has this many bytes, all initialised, and belongs to us, see `block`.
        unsafe { std::slice::from_raw_parts(block.buffer.as_ptr(), block.buffer_len) }
    }

    /// Its buffer.
    pub fn buffer_mut(&mut self) -> &mut [u8] {
        let block = self.block_mut();
        // SAFETY: it has this many bytes, all initialised, and belongs to us, see `block_mut`.
        unsafe { std::slice::from_raw_parts_mut(block.buffer.as_ptr(), block.buffer_len) }
    }

    /// Makes it a transfer of `kind` with this bEndpointAddress, for which `range` of the buffer is used.
    /// The data of isochronous packets is set with [`Urb::set_packets`].
    ///
    /// # Panics
    /// The buffer is not that long, or longer than the kernel's numbers (2 GiB).
    pub fn prepare(&mut self, kind: Kind, endpoint: u8, range: Range<usize>) {
        assert!(
            range.start <= range.end && range.end <= self.block().buffer_len,
            "outside of the buffer"
        );
        assert!(c_int::try_from(range.len()).is_ok(), "too long");
        let block = self.block_mut();
        block.raw.kind = match kind {
            Kind::Control => sys::TYPE_CONTROL,
            Kind::Isochronous => sys::TYPE_ISO,
            Kind::Bulk => sys::TYPE_BULK,
            Kind::Interrupt => sys::TYPE_INTERRUPT,
        };
        // Both directions are of one endpoint; the SETUP packet says which.
        block.raw.endpoint = match kind {
            Kind::Control => endpoint & 0x0f,
            _ => endpoint,
        };
        block.raw.actual_length = 0;
        block.raw.error_count = 0;
        block.raw.number_of_packets = 0;
        block.range = range;
        block.moved = 0;
        block.zero_packet = false;
    }

    /// An OUT transfer that is to end with a packet of no bytes, if it would end with one that is full.
    pub fn set_zero_packet(&mut self) {
        self.block_mut().zero_packet = true;
    }

    /// Sets the lengths of isochronous packets.
    ///
    /// # Panics
    /// There are none, or more than [`MAX_PACKETS`], or they are longer than what was given to [`Urb::prepare`].
    pub fn set_packets(&mut self, lengths: impl IntoIterator<Item = u32>) {
        let block = self.block_mut();
        let mut sum = 0_usize;
        let mut count = 0;
        for length in lengths {
            assert!(count < MAX_PACKETS, "too many packets");
            block.packets[count] = RawPacket {
                length,
                actual_length: 0,
                // Its turn has not come.
                status: (-libc::EINPROGRESS) as u32,
            };
            count += 1;
            sum += length as usize;
        }
        assert!(
            count > 0 && sum <= block.range.len(),
            "no packets, or too long"
        );
        block.raw.number_of_packets = count as c_int;
    }

    /// bEndpointAddress.
    pub fn endpoint(&self) -> u8 {
        self.block().raw.endpoint
    }

    /// Bytes that were moved; of a control transfer, without the SETUP packet.
    pub fn actual_length(&self) -> usize {
        self.block().moved
    }

    /// Isochronous: packets that failed.
    pub fn error_count(&self) -> u32 {
        u32::try_from(self.block().raw.error_count).unwrap_or(0)
    }

    /// Isochronous: the packets, as they ended.
    pub fn packets(&self) -> impl ExactSizeIterator<Item = Packet> + Clone {
        let block = self.block();
        let count = usize::try_from(block.raw.number_of_packets).unwrap_or(0);
        block.packets[..count.min(MAX_PACKETS)]
            .iter()
            .map(|raw| Packet {
                length: raw.length,
                actual_length: raw.actual_length.min(raw.length),
                // The field is unsigned, what is in it is not.
                status: Status::of_transfer(raw.status as i32),
            })
    }

    /// Whether all its data fits into one piece of at most `max_piece` bytes. Only bulk transfers can be divided.
    pub(crate) fn is_divided(&self, max_piece: usize) -> bool {
        let block = self.block();
        block.raw.kind == sys::TYPE_BULK && block.range.len() > max_piece
    }

    /// What the kernel counts for its next piece, in bytes.
    pub(crate) fn cost(&self, max_piece: usize) -> usize {
        let block = self.block();
        let piece = match block.raw.kind {
            sys::TYPE_BULK => (block.range.len() - block.moved).min(max_piece),
            _ => block.range.len(),
        };
        let packets = usize::try_from(block.raw.number_of_packets).unwrap_or(0);
        piece + OVERHEAD + packets * size_of::<RawPacket>() * 2
    }

    /// Writes the header for the next piece. The pointer is for the kernel, which may use it until the transfer
    /// is reaped, or the device is closed.
    pub(crate) fn start_piece(&mut self, max_piece: usize) -> NonNull<RawUrb> {
        let pointer = self.address();
        let block = self.block_mut();
        let rest = block.range.len() - block.moved;
        let (start, len) = match block.raw.kind {
            sys::TYPE_BULK => (block.range.start + block.moved, rest.min(max_piece)),
            _ => (block.range.start, block.range.len()),
        };
        let is_last = len == rest;
        block.raw.flags = match block.raw.kind {
            sys::TYPE_ISO => sys::FLAG_ISO_ASAP,
            sys::TYPE_BULK if is_last && block.zero_packet => sys::FLAG_ZERO_PACKET,
            _ => 0,
        };
        // SAFETY: `start` is within the buffer, or at its end: `prepare` has seen to it.
        block.raw.buffer = unsafe { block.buffer.as_ptr().add(start) }.cast::<c_void>();
        block.raw.buffer_length = len as c_int;
        block.raw.actual_length = 0;
        block.raw.error_count = 0;
        block.raw.status = 0;
        pointer
    }

    /// A piece of it was reaped: how it ended, and whether another one is due.
    pub(crate) fn end_piece(&mut self) -> (Status, bool) {
        let block = self.block_mut();
        let asked = usize::try_from(block.raw.buffer_length).unwrap_or(0);
        let data = match block.raw.kind {
            sys::TYPE_CONTROL => asked.saturating_sub(SETUP_LEN),
            _ => asked,
        };
        let actual = usize::try_from(block.raw.actual_length)
            .unwrap_or(0)
            .min(data);
        block.moved += actual;
        let status = Status::of_transfer(block.raw.status);
        let goes_on = status == Status::Completed
            && block.raw.kind == sys::TYPE_BULK
            && actual == asked
            && asked > 0
            && block.moved < block.range.len();
        (status, goes_on)
    }

    /// For kernels that are not one: begins its next piece, of at most `max_piece` bytes where it can be divided.
    pub fn begin_piece(&mut self, max_piece: usize) {
        self.start_piece(max_piece);
    }

    /// For kernels that are not one: what its piece asks for.
    pub fn piece(&mut self) -> &mut [u8] {
        let block = self.block_mut();
        let Some(start) = NonNull::new(block.raw.buffer.cast::<u8>()) else {
            return &mut [];
        };
        let len = usize::try_from(block.raw.buffer_length).unwrap_or(0);
        // SAFETY: `start_piece` has set both so that they lie in the buffer, whose bytes are initialised; and we are
        // borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), len) }
    }

    /// For kernels that are not one: ends its piece with this error number, 0 for none, and so many bytes.
    pub fn finish_piece(&mut self, errno: i32, actual_length: usize) {
        let block = self.block_mut();
        block.raw.status = -errno;
        block.raw.actual_length = c_int::try_from(actual_length).unwrap_or(c_int::MAX);
    }
}

impl Drop for Urb {
    fn drop(&mut self) {
        // SAFETY: made by `new` out of a box, and nobody else frees it.
        let block = unsafe { Box::from_raw(self.0.as_ptr()) };
        let buffer = ptr::slice_from_raw_parts_mut(block.buffer.as_ptr(), block.buffer_len);
        // SAFETY: made by `new` out of a box of this length.
        drop(unsafe { Box::from_raw(buffer) });
    }
}

impl fmt::Debug for Urb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let block = self.block();
        f.debug_struct("Urb")
            .field("context", &block.context)
            .field("raw", &block.raw)
            .field("range", &block.range)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_lie_where_the_kernel_looks_for_them() {
        assert_eq!(std::mem::offset_of!(Block, raw), 0);
        assert_eq!(std::mem::offset_of!(Block, packets), 56);
    }

    #[test]
    fn a_bulk_transfer_is_divided_and_put_together() {
        let mut urb = Urb::new(100);
        for (at, byte) in urb.buffer_mut().iter_mut().enumerate() {
            *byte = at as u8;
        }
        urb.prepare(Kind::Bulk, 0x02, 10..60);
        urb.set_zero_packet();
        assert!(urb.is_divided(20) && !urb.is_divided(50));
        let mut pieces = Vec::new();
        loop {
            let raw = urb.start_piece(20);
            // SAFETY: it points to the header of a transfer that is there, and nobody changes it.
            let flags = unsafe { raw.as_ref() }.flags;
            pieces.push((urb.piece().to_vec(), flags));
            let len = urb.piece().len();
            urb.finish_piece(0, len);
            let (status, goes_on) = urb.end_piece();
            assert_eq!(status, Status::Completed);
            if !goes_on {
                break;
            }
        }
        let bytes = |range: Range<u8>| range.collect::<Vec<_>>();
        assert_eq!(
            pieces,
            [
                (bytes(10..30), 0),
                (bytes(30..50), 0),
                (bytes(50..60), sys::FLAG_ZERO_PACKET)
            ]
        );
        assert_eq!(urb.actual_length(), 50);
    }

    #[test]
    fn a_short_or_failed_piece_ends_it() {
        for (errno, actual, status) in
            [(0, 19, Status::Completed), (libc::EPIPE, 20, Status::Stall)]
        {
            let mut urb = Urb::new(64);
            urb.prepare(Kind::Bulk, 0x81, 0..64);
            urb.start_piece(20);
            urb.finish_piece(errno, actual);
            assert_eq!(urb.end_piece(), (status, false));
            assert_eq!(urb.actual_length(), actual);
        }
    }

    #[test]
    fn no_kernel_makes_it_longer_than_it_is() {
        let mut urb = Urb::new(16);
        urb.prepare(Kind::Control, 0, 0..16);
        urb.start_piece(4);
        assert_eq!(urb.piece().len(), 16, "only bulk is divided");
        urb.finish_piece(0, 1000);
        assert_eq!(urb.end_piece(), (Status::Completed, false));
        assert_eq!(urb.actual_length(), 8, "without its SETUP packet");
    }

    #[test]
    fn packets_are_within_their_bounds() {
        let mut urb = Urb::new(64);
        urb.prepare(Kind::Isochronous, 0x81, 0..64);
        urb.set_packets([32, 0, 32]);
        assert_eq!(urb.packets().len(), 3);
        for wrong in [vec![], vec![64, 1], vec![0; MAX_PACKETS + 1]] {
            let result = std::panic::catch_unwind(|| {
                let mut urb = Urb::new(64);
                urb.prepare(Kind::Isochronous, 0x81, 0..64);
                urb.set_packets(wrong);
            });
            assert!(result.is_err());
        }
    }

    #[test]
    #[should_panic(expected = "outside of the buffer")]
    fn a_range_is_within_the_buffer() {
        Urb::new(8).prepare(Kind::Bulk, 1, 4..9);
    }
}

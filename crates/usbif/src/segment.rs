// SPDX-License-Identifier: GPL-3.0-or-later
//! Where a request's data lies in the guest's memory.

use crate::PAGE_BYTES;
use crate::wire::{get_u16, get_u32, put_u16, put_u32};

/// Segments in one request (`XENUSB_MAX_SEGMENTS_PER_REQUEST`).
pub const MAX_SEGMENTS: usize = 16;

/// Bytes of a segment on the wire.
pub(crate) const SEGMENT_BYTES: usize = 8;

/// A piece of one granted page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Segment {
    /// The grant reference of the page.
    pub gref: u32,
    /// The first byte in the page.
    pub offset: u16,
    /// Bytes. `offset + length` is at most a page.
    pub length: u16,
}

impl Segment {
    /// Whether it stays within its page.
    pub const fn is_within_page(self) -> bool {
        self.offset as usize + self.length as usize <= PAGE_BYTES
    }

    pub(crate) fn decode(bytes: &[u8], at: usize) -> Self {
        Self {
            gref: get_u32(bytes, at),
            offset: get_u16(bytes, at + 4),
            length: get_u16(bytes, at + 6),
        }
    }

    pub(crate) fn encode(self, bytes: &mut [u8], at: usize) {
        put_u32(bytes, at, self.gref);
        put_u16(bytes, at + 4, self.offset);
        put_u16(bytes, at + 6, self.length);
    }
}

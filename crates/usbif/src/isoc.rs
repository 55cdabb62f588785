// SPDX-License-Identifier: GPL-3.0-or-later
//! Frame descriptors of isochronous requests.

use crate::wire::{get_u32, put_u32};

/// Bytes of one frame descriptor.
pub const ISOC_PACKET_BYTES: usize = 16;

/// One packet of an isochronous request, as it lies in the frame-descriptor segments: Linux's
/// `struct usb_iso_packet_descriptor`. The backend reads `offset` and `length` and writes
/// `actual_length` and `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IsocPacket {
    /// The packet's first byte in the buffer. Unchecked.
    pub offset: u32,
    /// Bytes asked for. Unchecked.
    pub length: u32,
    /// Bytes transferred.
    pub actual_length: u32,
    /// 0 or a negative errno of Linux.
    pub status: i32,
}

impl IsocPacket {
    /// From its bytes.
    pub fn decode(bytes: &[u8; ISOC_PACKET_BYTES]) -> Self {
        Self {
            offset: get_u32(bytes, 0),
            length: get_u32(bytes, 4),
            actual_length: get_u32(bytes, 8),
            status: get_u32(bytes, 12) as i32,
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> [u8; ISOC_PACKET_BYTES] {
        let mut bytes = [0; ISOC_PACKET_BYTES];
        put_u32(&mut bytes, 0, self.offset);
        put_u32(&mut bytes, 4, self.length);
        put_u32(&mut bytes, 8, self.actual_length);
        put_u32(&mut bytes, 12, self.status as u32);
        bytes
    }
}

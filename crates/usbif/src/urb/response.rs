// SPDX-License-Identifier: GPL-3.0-or-later
//! The answer to a request.

use crate::UrbStatus;
use crate::wire::{get_u16, get_u32, put_u16, put_u32};

pub(super) const RESPONSE_BYTES: usize = 16;

/// The answer to a request, also to a bad one and to an unlink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UrbResponse {
    /// The request's id.
    pub id: u16,
    /// Isochronous: the frame in which it started. Else 0.
    pub start_frame: u16,
    /// How it went.
    pub status: UrbStatus,
    /// Bytes transferred, without the setup packet; 0 to 65,536. A frontend must not trust it.
    pub actual_length: u32,
    /// Isochronous: packets with an error. Else 0.
    pub error_count: u32,
}

impl UrbResponse {
    /// An answer that carries only a status.
    pub const fn with_status(id: u16, status: UrbStatus) -> Self {
        Self {
            id,
            start_frame: 0,
            status,
            actual_length: 0,
            error_count: 0,
        }
    }

    /// From a slot's bytes.
    pub fn decode(bytes: &[u8; RESPONSE_BYTES]) -> Self {
        Self {
            id: get_u16(bytes, 0),
            start_frame: get_u16(bytes, 2),
            status: UrbStatus(get_u32(bytes, 4) as i32),
            actual_length: get_u32(bytes, 8),
            error_count: get_u32(bytes, 12),
        }
    }

    /// A slot's bytes.
    pub fn encode(&self) -> [u8; RESPONSE_BYTES] {
        let mut bytes = [0; RESPONSE_BYTES];
        put_u16(&mut bytes, 0, self.id);
        put_u16(&mut bytes, 2, self.start_frame);
        put_u32(&mut bytes, 4, self.status.0 as u32);
        put_u32(&mut bytes, 8, self.actual_length);
        put_u32(&mut bytes, 12, self.error_count);
        bytes
    }
}

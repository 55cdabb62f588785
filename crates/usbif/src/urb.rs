// SPDX-License-Identifier: GPL-3.0-or-later
//! The URB ring: USB I/O requests and their responses.

mod bad_request;
mod request;
mod response;

use crate::{MAX_SEGMENTS, PAGE_BYTES, RingKind, RingMemory, Setup};
use request::REQUEST_BYTES;
use response::RESPONSE_BYTES;

pub use bad_request::{BadRequest, BadRequestReason};
pub use request::UrbRequest;
pub use response::UrbResponse;

/// The most data that one request can carry.
pub const MAX_BUFFER_BYTES: usize = MAX_SEGMENTS * PAGE_BYTES;

/// Bit of [`UrbRequest::transfer_flags`]: a transfer shorter than the buffer is an error
/// (`XENUSB_SHORT_NOT_OK`). The prose of `usbif.h` reads the opposite of the name; frontends set
/// it for `URB_SHORT_NOT_OK`. The guest's USB core finds the error itself, so a backend still
/// answers [`UrbStatus::OK`](crate::UrbStatus::OK) with the true length.
pub const SHORT_NOT_OK: u16 = 0x0001;

/// The kind of the URB ring.
#[derive(Clone, Copy, Debug)]
pub enum Urb {}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UrbKind {
    /// A control transfer. Its `wLength` equals the buffer's length.
    Control {
        /// The setup packet.
        setup: Setup,
    },
    /// A bulk transfer.
    Bulk,
    /// An interrupt transfer.
    Interrupt {
        /// Polling interval, in frames or microframes as Linux's `urb->interval`.
        interval: u16,
    },
    /// An isochronous transfer.
    Isochronous {
        /// Interval between packets, in frames or microframes as Linux's `urb->interval`.
        interval: u16,
        /// The frame to start in.
        start_frame: u16,
        /// Packets, each with an [`crate::IsocPacket`] in the frame-descriptor segments.
        packets: u16,
    },
    /// Cancels an earlier request. Both are answered, the cancelled one first.
    Unlink {
        /// The id of the request to cancel. Need not be one in flight.
        id: u16,
    },
}

impl RingKind for Urb {
    type Request = UrbRequest;
    type ReadRequest = Result<UrbRequest, BadRequest>;
    type Response = UrbResponse;
    type ReadResponse = UrbResponse;

    const REQUEST_BYTES: usize = REQUEST_BYTES;
    const RESPONSE_BYTES: usize = RESPONSE_BYTES;
    const SLOT_BYTES: usize = REQUEST_BYTES;

    fn read_request<M: RingMemory + ?Sized>(memory: &M, offset: usize) -> Self::ReadRequest {
        let mut bytes = [0; REQUEST_BYTES];
        memory.read(offset, &mut bytes);
        UrbRequest::decode(&bytes)
    }

    fn write_request<M: RingMemory + ?Sized>(memory: &M, offset: usize, request: &UrbRequest) {
        memory.write(offset, &request.encode());
    }

    fn read_response<M: RingMemory + ?Sized>(memory: &M, offset: usize) -> UrbResponse {
        let mut bytes = [0; RESPONSE_BYTES];
        memory.read(offset, &mut bytes);
        UrbResponse::decode(&bytes)
    }

    fn write_response<M: RingMemory + ?Sized>(memory: &M, offset: usize, response: &UrbResponse) {
        memory.write(offset, &response.encode());
    }
}

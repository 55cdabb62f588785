// SPDX-License-Identifier: GPL-3.0-or-later
//! Frames of a device connection: a fixed header of [`HEADER_LEN`] bytes, then a body.
//!
//! All integers are little-endian.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | length of the body |
//! | 4 | 1 | kind, [`Kind`] |
//! | 5 | 1 | transfer type, USB 2.0 table 9-13: 0 control, 1 isochronous, 2 bulk, 3 interrupt |
//! | 6 | 1 | bEndpointAddress: number, and bit 7 set for IN |
//! | 7 | 1 | flags: bit 0 a short packet is an error, bit 1 end OUT with a zero-length packet |
//! | 8 | 8 | request number |
//! | 16 | 8 | completion number: of this completion; in frames of a backend, the last received |
//! | 24 | 4 | requested or actual length in bytes |
//! | 28 | 4 | status, [`TransferStatus`]; in a request, the interval (usbif.h's unit) |
//! | 32 | 8 | SETUP packet; isochronous: number of packets, start frame (16 bits each), error count (32 bits) |
//!
//! Body: data (OUT in a request, IN in a completion). Isochronous frames carry their packet
//! descriptors first: offset, length, actual length, status (32 bits each, [`TransferStatus`]) per
//! packet. In a completion of an isochronous IN transfer the whole buffer follows them.

mod kind;
mod transfer;

pub use kind::Kind;
pub use transfer::{Completion, FLAG_SHORT_NOT_OK, Transfer, TransferStatus, TransferType};

/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 40;
/// Longest body: the data of one URB (16 pages) and its isochronous packet descriptors.
pub const MAX_BODY_LEN: usize = 16 * 4096 + MAX_ISO_PACKETS * ISO_PACKET_LEN;
/// Most isochronous packets in one transfer (the limit of usbfs).
pub const MAX_ISO_PACKETS: usize = 128;
/// Bytes of one isochronous packet descriptor.
pub const ISO_PACKET_LEN: usize = 16;
/// Longest cookie, in bytes.
pub const MAX_COOKIE_LEN: usize = 1024;

/// A frame's header, decoded and checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// See [`Kind::Submit`].
    Submit {
        /// Request number: one more than the last.
        request: u64,
        /// Last completion received.
        ack: u64,
        /// What to do.
        transfer: Transfer,
    },
    /// See [`Kind::Cancel`].
    Cancel {
        /// Request number.
        request: u64,
        /// Last completion received.
        ack: u64,
    },
    /// See [`Kind::Keep`].
    Keep {
        /// Request number.
        request: u64,
        /// Last completion received.
        ack: u64,
    },
    /// See [`Kind::Recall`].
    Recall {
        /// Request number.
        request: u64,
        /// Last completion received.
        ack: u64,
    },
    /// See [`Kind::Reset`].
    Reset {
        /// Request number: one more than the last.
        request: u64,
        /// Last completion received.
        ack: u64,
    },
    /// See [`Kind::Complete`].
    Complete(Completion),
    /// See [`Kind::Ack`].
    Ack {
        /// Last completion received.
        ack: u64,
    },
    /// All kinds with no fields: Cookie (its body is the cookie), Freeze, Thaw, Orphan, Gone,
    /// Fenced, Ping, Pong, ResumeYes, ResumeNo.
    Plain(Kind),
}

/// Why bytes are not a frame. The connection is of no more use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Unknown kind, type or status.
    #[error("field {field} has the impossible value {value}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What it held.
        value: u64,
    },
    /// The body's length does not fit the header.
    #[error("body of {len} bytes where {expected} fit")]
    BodyLength {
        /// Length of the body.
        len: usize,
        /// What the header allows.
        expected: usize,
    },
}

/// Appends a [`Kind::Submit`] header to `out`. The caller appends
/// [`Transfer::submit_body_len`] bytes of body.
pub fn encode_submit(out: &mut Vec<u8>, request: u64, ack: u64, transfer: &Transfer) {
    let mut h = header(Kind::Submit, transfer.submit_body_len(), request, ack);
    h[5] = transfer.transfer_type as u8;
    h[6] = transfer.endpoint;
    h[7] = transfer.flags;
    h[24..28].copy_from_slice(&transfer.length.to_le_bytes());
    h[28..32].copy_from_slice(&transfer.interval.to_le_bytes());
    h[32..40].copy_from_slice(&transfer.setup);
    out.extend_from_slice(&h);
}

/// Appends a [`Kind::Complete`] header to `out`. The caller appends `body_len` bytes of body.
pub fn encode_complete(out: &mut Vec<u8>, completion: &Completion, body_len: usize) {
    let mut h = header(
        Kind::Complete,
        body_len,
        completion.request,
        completion.number,
    );
    h[24..28].copy_from_slice(&completion.actual_length.to_le_bytes());
    h[28..32].copy_from_slice(&(completion.status as u32).to_le_bytes());
    h[34..36].copy_from_slice(&completion.start_frame.to_le_bytes());
    h[36..40].copy_from_slice(&completion.error_count.to_le_bytes());
    out.extend_from_slice(&h);
}

/// Appends a frame without data: Cancel, Keep, Recall, Reset (with a request number), Ack, and the plain
/// ones (request 0). `body` is empty but for a cookie.
pub fn encode_plain(out: &mut Vec<u8>, kind: Kind, request: u64, ack: u64, body: &[u8]) {
    out.extend_from_slice(&header(kind, body.len(), request, ack));
    out.extend_from_slice(body);
}

fn header(kind: Kind, body_len: usize, request: u64, completion: u64) -> [u8; HEADER_LEN] {
    let mut h = [0; HEADER_LEN];
    h[0..4].copy_from_slice(&(body_len as u32).to_le_bytes());
    h[4] = kind as u8;
    h[8..16].copy_from_slice(&request.to_le_bytes());
    h[16..24].copy_from_slice(&completion.to_le_bytes());
    h
}

/// Decodes the first frame in `input`: header and body. `None` when it is not all there yet;
/// a frame takes [`HEADER_LEN`] plus the body's length.
pub fn decode(input: &[u8]) -> Result<Option<(Header, &[u8])>, FrameError> {
    let Some((h, rest)) = input.split_first_chunk::<HEADER_LEN>() else {
        return Ok(None);
    };
    let body_len = u32_at(h, 0) as usize;
    if body_len > MAX_BODY_LEN {
        return Err(FrameError::BodyLength {
            len: body_len,
            expected: MAX_BODY_LEN,
        });
    }
    let header = decode_header(h, body_len)?;
    Ok(rest.get(..body_len).map(|body| (header, body)))
}

fn decode_header(h: &[u8; HEADER_LEN], body_len: usize) -> Result<Header, FrameError> {
    let kind = Kind::from_u8(h[4]).ok_or(field("kind", h[4].into()))?;
    let (request, completion) = (u64_at(h, 8), u64_at(h, 16));
    let at_most = |expected| match body_len <= expected {
        true => Ok(()),
        false => Err(FrameError::BodyLength {
            len: body_len,
            expected,
        }),
    };
    Ok(match kind {
        Kind::Submit => {
            let transfer = decode_transfer(h)?;
            if body_len != transfer.submit_body_len() {
                return Err(FrameError::BodyLength {
                    len: body_len,
                    expected: transfer.submit_body_len(),
                });
            }
            Header::Submit {
                request,
                ack: completion,
                transfer,
            }
        }
        Kind::Complete => {
            let status = u32_at(h, 28);
            Header::Complete(Completion {
                request,
                number: completion,
                status: TransferStatus::from_u32(status).ok_or(field("status", status.into()))?,
                actual_length: u32_at(h, 24),
                start_frame: u16::from_le_bytes([h[34], h[35]]),
                error_count: u32_at(h, 36),
            })
        }
        Kind::Cancel => at_most(0).map(|()| Header::Cancel {
            request,
            ack: completion,
        })?,
        Kind::Keep => at_most(0).map(|()| Header::Keep {
            request,
            ack: completion,
        })?,
        Kind::Recall => at_most(0).map(|()| Header::Recall {
            request,
            ack: completion,
        })?,
        Kind::Reset => at_most(0).map(|()| Header::Reset {
            request,
            ack: completion,
        })?,
        Kind::Ack => at_most(0).map(|()| Header::Ack { ack: completion })?,
        Kind::Cookie => at_most(MAX_COOKIE_LEN).map(|()| Header::Plain(kind))?,
        _ => at_most(0).map(|()| Header::Plain(kind))?,
    })
}

fn decode_transfer(h: &[u8; HEADER_LEN]) -> Result<Transfer, FrameError> {
    let transfer = Transfer {
        transfer_type: match h[5] {
            0 => TransferType::Control,
            1 => TransferType::Isochronous,
            2 => TransferType::Bulk,
            3 => TransferType::Interrupt,
            other => return Err(field("transfer type", other.into())),
        },
        endpoint: h[6],
        flags: h[7],
        length: u32_at(h, 24),
        interval: u32_at(h, 28),
        setup: [h[32], h[33], h[34], h[35], h[36], h[37], h[38], h[39]],
    };
    if transfer.endpoint & 0x70 != 0 {
        return Err(field("endpoint", transfer.endpoint.into()));
    }
    if transfer.length > 65_536 {
        return Err(field("length", transfer.length.into()));
    }
    if transfer.iso_packets() > MAX_ISO_PACKETS {
        return Err(field("packets", transfer.iso_packets() as u64));
    }
    Ok(transfer)
}

fn field(field: &'static str, value: u64) -> FrameError {
    FrameError::Field { field, value }
}

fn u32_at(h: &[u8; HEADER_LEN], at: usize) -> u32 {
    u32::from_le_bytes([h[at], h[at + 1], h[at + 2], h[at + 3]])
}

fn u64_at(h: &[u8; HEADER_LEN], at: usize) -> u64 {
    u64::from(u32_at(h, at)) | u64::from(u32_at(h, at + 4)) << 32
}

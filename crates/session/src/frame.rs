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
/// Flag: a short packet is an error (URB_SHORT_NOT_OK).
pub const FLAG_SHORT_NOT_OK: u8 = 1;
/// Flag: end an OUT transfer with a zero-length packet (URB_ZERO_PACKET).
pub const FLAG_ZERO_PACKET: u8 = 2;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Backend: carry out a transfer.
    Submit = 1,
    /// Backend: cancel the transfer of this request number. It still completes, once.
    Cancel = 2,
    /// Exporter: a transfer is over.
    Complete = 3,
    /// Backend: nothing but the completion number received.
    Ack = 4,
    /// Backend: save this body as the lease's cookie.
    Cookie = 5,
    /// Backend: the guest is suspended, nothing is in flight; the lease becomes Frozen.
    Freeze = 6,
    /// Backend: the suspend was cancelled; the lease is Serving again.
    Thaw = 7,
    /// Backend: the domain is gone; the lease is Orphaned, or Saved after a Freeze, and the hold time starts.
    Orphan = 8,
    /// Backend: reset the device (USB 2.0 §7.1.7.5). Completes like a transfer.
    Reset = 9,
    /// Exporter: the device is gone. Everything in flight has completed.
    Gone = 10,
    /// Exporter: a newer epoch exists. Nothing follows.
    Fenced = 11,
    /// Either: are you there? Answered by [`Kind::Pong`].
    Ping = 12,
    /// Either: yes.
    Pong = 13,
    /// Backend: the frontend said `feature-resume=1` (the lease's `frontend_resumes` becomes true).
    ResumeYes = 14,
    /// Backend: the frontend took `feature-resume` back.
    ResumeNo = 15,
    /// Backend: cancel the transfer of this request number, whose submitter is suspended. What it
    /// brought or still brings is kept for the endpoint's next transfers, and an interrupt endpoint
    /// is polled until there is one. Unless it was acknowledged it may also have completed: the
    /// backend has not given, and will not give, its data to the guest.
    Keep = 16,
    /// Backend: cancel the transfer of this request number, whose submitter is suspended and uses
    /// whatever comes of it. Then, also where it is over already, poll its endpoint (an interrupt
    /// IN one) until there is a next transfer, which gets what the polls have brought.
    Recall = 17,
}

impl Kind {
    fn from_u8(value: u8) -> Option<Self> {
        Some(match value {
            1 => Self::Submit,
            2 => Self::Cancel,
            3 => Self::Complete,
            4 => Self::Ack,
            5 => Self::Cookie,
            6 => Self::Freeze,
            7 => Self::Thaw,
            8 => Self::Orphan,
            9 => Self::Reset,
            10 => Self::Gone,
            11 => Self::Fenced,
            12 => Self::Ping,
            13 => Self::Pong,
            14 => Self::ResumeYes,
            15 => Self::ResumeNo,
            16 => Self::Keep,
            17 => Self::Recall,
            _ => return None,
        })
    }
}

/// Transfer type, USB 2.0 table 9-13 (bmAttributes of an endpoint descriptor).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TransferType {
    /// Control.
    Control = 0,
    /// Isochronous.
    Isochronous = 1,
    /// Bulk.
    Bulk = 2,
    /// Interrupt.
    Interrupt = 3,
}

/// How a transfer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum TransferStatus {
    /// Done. A short transfer is done, too, unless the request said otherwise.
    Completed = 0,
    /// The endpoint answered STALL, or is halted.
    Stall = 1,
    /// Cancelled; the actual length tells how far it came.
    Cancelled = 2,
    /// The device sent more than was asked for (babble).
    Overflow = 3,
    /// The device is gone.
    NoDevice = 4,
    /// Bus errors that retries did not cure.
    Protocol = 5,
    /// No answer in time.
    TimedOut = 6,
    /// The exporter could not carry it out: no such endpoint, malformed, no resources.
    Invalid = 7,
    /// Shorter than asked for, and the request said that this is an error.
    ShortPacket = 8,
    /// Nobody knows whether the device saw it. Never repeated by itself.
    Unknown = 9,
}

impl TransferStatus {
    /// Whether the transfer is done.
    pub fn is_success(self) -> bool {
        matches!(self, Self::Completed | Self::ShortPacket)
    }

    /// From its number on the wire.
    pub fn from_u32(value: u32) -> Option<Self> {
        Some(match value {
            0 => Self::Completed,
            1 => Self::Stall,
            2 => Self::Cancelled,
            3 => Self::Overflow,
            4 => Self::NoDevice,
            5 => Self::Protocol,
            6 => Self::TimedOut,
            7 => Self::Invalid,
            8 => Self::ShortPacket,
            9 => Self::Unknown,
            _ => return None,
        })
    }
}

/// A transfer to be carried out: the header fields of a [`Kind::Submit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Transfer {
    /// Its type.
    pub transfer_type: TransferType,
    /// bEndpointAddress: number 0 to 15, bit 7 set for IN. For control, the direction is that of
    /// the data stage.
    pub endpoint: u8,
    /// [`FLAG_SHORT_NOT_OK`], [`FLAG_ZERO_PACKET`].
    pub flags: u8,
    /// Bytes of the data stage or buffer, 0 to 65,536.
    pub length: u32,
    /// Interrupt and isochronous: polling interval in the unit of usbif.h (frames or microframes).
    pub interval: u32,
    /// The SETUP packet of a control transfer. For isochronous see [`Transfer::iso_packets`].
    pub setup: [u8; 8],
}

impl Transfer {
    /// See [`Transfer::is_set_address`].
    pub const SET_ADDRESS: Self = Self {
        transfer_type: TransferType::Control,
        endpoint: 0,
        flags: 0,
        length: 0,
        interval: 0,
        setup: [0, 5, 0, 0, 0, 0, 0, 0],
    };

    /// Whether data flows from the device to the guest.
    pub fn is_in(&self) -> bool {
        self.endpoint & 0x80 != 0
    }

    /// Whether it waits for data from the device on a bulk or interrupt endpoint.
    pub fn is_stream(&self) -> bool {
        self.is_in()
            && matches!(
                self.transfer_type,
                TransferType::Bulk | TransferType::Interrupt
            )
    }

    /// Whether it is the standard request SET_ADDRESS (USB 2.0 §9.4.6). It is for no device: an
    /// exporter completes it when the cookie that came before it, and what else it was told, is on its
    /// disk.
    pub fn is_set_address(&self) -> bool {
        self.transfer_type == TransferType::Control && self.setup[..2] == [0, 5]
    }

    /// Number of isochronous packets; 0 for other types.
    pub fn iso_packets(&self) -> usize {
        match self.transfer_type {
            TransferType::Isochronous => {
                usize::from(u16::from_le_bytes([self.setup[0], self.setup[1]]))
            }
            _ => 0,
        }
    }

    /// Length of the body of its [`Kind::Submit`] frame: packet descriptors, and OUT data.
    pub fn submit_body_len(&self) -> usize {
        self.body_len(!self.is_in())
    }

    /// Greatest length of the body of its [`Kind::Complete`] frame: packet descriptors, and IN data.
    pub fn complete_body_limit(&self) -> usize {
        self.body_len(self.is_in())
    }

    fn body_len(&self, with_data: bool) -> usize {
        let data = if with_data { self.length as usize } else { 0 };
        self.iso_packets() * ISO_PACKET_LEN + data
    }
}

/// How a transfer ended: the header fields of a [`Kind::Complete`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Request number.
    pub request: u64,
    /// Completion number: 1, 2, 3 … within the epoch.
    pub number: u64,
    /// How it ended.
    pub status: TransferStatus,
    /// Bytes transferred, at most the requested length.
    pub actual_length: u32,
    /// Isochronous: packets that failed.
    pub error_count: u32,
    /// Isochronous: the frame it started in.
    pub start_frame: u16,
}

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

// SPDX-License-Identifier: GPL-3.0-or-later
//! The URB ring: USB I/O requests and their responses.

use crate::segment::SEGMENT_BYTES;
use crate::wire::{get_u16, get_u32, put_u16, put_u32};
use crate::{
    Direction, ISOC_PACKET_BYTES, MAX_SEGMENTS, PAGE_BYTES, Pipe, RingKind, RingMemory, Segment,
    Setup, TransferType, UrbStatus,
};

/// The most data that one request can carry.
pub const MAX_BUFFER_BYTES: usize = MAX_SEGMENTS * PAGE_BYTES;

/// Bit of [`UrbRequest::transfer_flags`]: a transfer shorter than the buffer is an error
/// (`XENUSB_SHORT_NOT_OK`). The prose of `usbif.h` reads the opposite of the name; frontends set
/// it for `URB_SHORT_NOT_OK`. The guest's USB core finds the error itself, so a backend still
/// answers [`UrbStatus::OK`] with the true length.
pub const SHORT_NOT_OK: u16 = 0x0001;

const REQUEST_BYTES: usize = 148;
const RESPONSE_BYTES: usize = 16;

// Offsets in a request.
const ID: usize = 0;
const NR_BUFFER_SEGS: usize = 2;
const PIPE: usize = 4;
const TRANSFER_FLAGS: usize = 8;
const BUFFER_LENGTH: usize = 10;
const SPECIFIC: usize = 12;
const SEGMENTS: usize = 20;

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

/// A request, structurally sound: its segments are within their pages and add up.
///
/// Not checked here, because it takes knowledge of the controller: whether port, device and
/// endpoint exist, and whether the grants do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UrbRequest {
    /// Chosen by the frontend; echoed in the response. Any value, may repeat one in flight.
    pub id: u16,
    /// Where to.
    pub pipe: Pipe,
    /// [`SHORT_NOT_OK`] and undefined bits.
    pub transfer_flags: u16,
    /// What.
    pub kind: UrbKind,
    segments: [Segment; MAX_SEGMENTS],
    buffer_segments: u8,
    descriptor_segments: u8,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum BadRequestReason {
    /// More than [`MAX_SEGMENTS`], counting the segments of frame descriptors.
    #[error("{0} segments are more than 16")]
    TooManySegments(u32),
    /// This segment (counted from 0) reaches beyond its page.
    #[error("segment {0} reaches beyond its page")]
    SegmentBeyondPage(u8),
    /// `buffer_length` is not the sum of the segments modulo 65,536.
    #[error("the buffer length is {claimed}, the segments hold {segments}")]
    LengthMismatch {
        /// `buffer_length` as received.
        claimed: u16,
        /// The sum of the segments.
        segments: u32,
    },
    /// `wLength` of the setup packet is not the buffer's length. Linux's USB core refuses such a
    /// URB itself.
    #[error("the setup packet asks for {setup} bytes, the segments hold {segments}")]
    SetupLengthMismatch {
        /// `wLength`.
        setup: u16,
        /// The sum of the segments.
        segments: u32,
    },
    /// The frame-descriptor segments are too small for the packets.
    #[error("{packets} frame descriptors do not fit in {bytes} bytes")]
    DescriptorsTooSmall {
        /// The packets of the request.
        packets: u16,
        /// The sum of the frame-descriptor segments.
        bytes: u32,
    },
}

/// A request that makes no sense. It still has an id, so that it can be answered with
/// [`UrbStatus::INVAL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("request {id} refused: {reason}")]
pub struct BadRequest {
    /// The id to answer to.
    pub id: u16,
    /// What is wrong with it.
    pub reason: BadRequestReason,
}

impl UrbRequest {
    /// A request with its data in `segments`, for frontends.
    ///
    /// # Errors
    /// The same checks as a backend makes.
    pub fn new(
        id: u16,
        pipe: Pipe,
        transfer_flags: u16,
        kind: UrbKind,
        segments: &[Segment],
    ) -> Result<Self, BadRequest> {
        Self::with_descriptors(id, pipe, transfer_flags, kind, segments, &[])
    }

    /// A request with frame descriptors in `descriptors`, for frontends.
    ///
    /// # Errors
    /// The same checks as a backend makes.
    pub fn with_descriptors(
        id: u16,
        pipe: Pipe,
        transfer_flags: u16,
        kind: UrbKind,
        segments: &[Segment],
        descriptors: &[Segment],
    ) -> Result<Self, BadRequest> {
        let total = segments.len().saturating_add(descriptors.len());
        if total > MAX_SEGMENTS {
            let reason = BadRequestReason::TooManySegments(total.try_into().unwrap_or(u32::MAX));
            return Err(BadRequest { id, reason });
        }
        let mut table = [Segment::default(); MAX_SEGMENTS];
        table[..segments.len()].copy_from_slice(segments);
        table[segments.len()..total].copy_from_slice(descriptors);
        let request = Self {
            id,
            pipe,
            transfer_flags,
            kind,
            segments: table,
            // At most 16.
            buffer_segments: segments.len() as u8,
            descriptor_segments: descriptors.len() as u8,
        };
        request
            .check()
            .map_err(|reason| BadRequest { id, reason })?;
        Ok(request)
    }

    /// From a slot's bytes.
    ///
    /// # Errors
    /// [`BadRequest`], with the id to answer to.
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, BadRequest> {
        let id = get_u16(bytes, ID);
        let refuse = |reason| BadRequest { id, reason };
        let pipe = Pipe(get_u32(bytes, PIPE));
        let word = |n: usize| get_u16(bytes, SPECIFIC + 2 * n);
        let mut request = Self {
            id,
            pipe,
            transfer_flags: get_u16(bytes, TRANSFER_FLAGS),
            kind: UrbKind::Unlink { id: word(0) },
            segments: [Segment::default(); MAX_SEGMENTS],
            buffer_segments: 0,
            descriptor_segments: 0,
        };
        if pipe.is_unlink() {
            // Linux leaves the length of whatever used its shadow slot before in an unlink
            // request, so nothing but the id may be looked at.
            return Ok(request);
        }
        let mut descriptors = 0;
        request.kind = match pipe.transfer_type() {
            TransferType::Control => {
                let mut setup = [0; 8];
                setup.copy_from_slice(&bytes[SPECIFIC..SPECIFIC + 8]);
                UrbKind::Control {
                    setup: Setup(setup),
                }
            }
            TransferType::Bulk => UrbKind::Bulk,
            TransferType::Interrupt => UrbKind::Interrupt { interval: word(0) },
            TransferType::Isochronous => {
                descriptors = word(3);
                UrbKind::Isochronous {
                    interval: word(0),
                    start_frame: word(1),
                    packets: word(2),
                }
            }
        };
        let buffers = get_u16(bytes, NR_BUFFER_SEGS);
        let total = u32::from(buffers) + u32::from(descriptors);
        if total > MAX_SEGMENTS as u32 {
            return Err(refuse(BadRequestReason::TooManySegments(total)));
        }
        for (n, segment) in request.segments.iter_mut().take(total as usize).enumerate() {
            *segment = Segment::decode(bytes, SEGMENTS + n * SEGMENT_BYTES);
        }
        // Both at most 16.
        request.buffer_segments = buffers as u8;
        request.descriptor_segments = descriptors as u8;
        request.check().map_err(refuse)?;
        let claimed = get_u16(bytes, BUFFER_LENGTH);
        let held = request.buffer_len() as u32;
        // 16 bits: a full 65,536 reads 0.
        if held & 0xffff != u32::from(claimed) {
            return Err(refuse(BadRequestReason::LengthMismatch {
                claimed,
                segments: held,
            }));
        }
        Ok(request)
    }

    /// A slot's bytes.
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        put_u16(&mut bytes, ID, self.id);
        put_u16(&mut bytes, NR_BUFFER_SEGS, u16::from(self.buffer_segments));
        put_u32(&mut bytes, PIPE, self.pipe.0);
        put_u16(&mut bytes, TRANSFER_FLAGS, self.transfer_flags);
        // Cut to 16 bits, as the field is.
        put_u16(&mut bytes, BUFFER_LENGTH, self.buffer_len() as u16);
        match self.kind {
            UrbKind::Control { setup } => {
                bytes[SPECIFIC..SPECIFIC + 8].copy_from_slice(&setup.0);
            }
            UrbKind::Bulk => {}
            UrbKind::Interrupt { interval } => put_u16(&mut bytes, SPECIFIC, interval),
            UrbKind::Isochronous {
                interval,
                start_frame,
                packets,
            } => {
                put_u16(&mut bytes, SPECIFIC, interval);
                put_u16(&mut bytes, SPECIFIC + 2, start_frame);
                put_u16(&mut bytes, SPECIFIC + 4, packets);
                put_u16(
                    &mut bytes,
                    SPECIFIC + 6,
                    u16::from(self.descriptor_segments),
                );
            }
            UrbKind::Unlink { id } => put_u16(&mut bytes, SPECIFIC, id),
        }
        let used = usize::from(self.buffer_segments + self.descriptor_segments);
        for (n, segment) in self.segments[..used].iter().enumerate() {
            segment.encode(&mut bytes, SEGMENTS + n * SEGMENT_BYTES);
        }
        bytes
    }

    /// Where the data is, in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments[..usize::from(self.buffer_segments)]
    }

    /// Where the frame descriptors of an isochronous request are, in order.
    pub fn descriptor_segments(&self) -> &[Segment] {
        let start = usize::from(self.buffer_segments);
        &self.segments[start..start + usize::from(self.descriptor_segments)]
    }

    /// What is left of it when `done` bytes have been transferred, for frontends. Not for
    /// isochronous requests.
    #[must_use]
    pub fn behind(&self, done: usize) -> Self {
        let mut rest = *self;
        let mut skip = done;
        let mut count = 0;
        for segment in self.segments() {
            // At most the segment's length, a page.
            let gone = skip.min(usize::from(segment.length)) as u16;
            skip -= usize::from(gone);
            if gone < segment.length {
                rest.segments[count] = Segment {
                    gref: segment.gref,
                    offset: segment.offset + gone,
                    length: segment.length - gone,
                };
                count += 1;
            }
        }
        // At most 16.
        rest.buffer_segments = count as u8;
        rest
    }

    /// The same with its pages granted anew, for frontends: `gref` is told each reference, and
    /// answers the new one.
    #[must_use]
    pub fn granted_anew(&self, mut gref: impl FnMut(u32) -> u32) -> Self {
        let mut anew = *self;
        let used = usize::from(self.buffer_segments + self.descriptor_segments);
        for segment in &mut anew.segments[..used] {
            segment.gref = gref(segment.gref);
        }
        anew
    }

    /// Bytes of the buffer: the sum of the segments, 0 to 65,536.
    pub fn buffer_len(&self) -> usize {
        sum(self.segments())
    }

    /// The direction of the data: for a control request with a data stage that of its setup
    /// packet, else that of the pipe. Where the two differ the guest has granted its pages for the
    /// pipe's, and the device goes by the setup packet's.
    pub fn direction(&self) -> Direction {
        match self.kind {
            UrbKind::Control { setup } if setup.length() != 0 => setup.direction(),
            _ => self.pipe.direction(),
        }
    }

    /// Whether a transfer shorter than the buffer is an error to the guest.
    pub fn short_not_ok(&self) -> bool {
        self.transfer_flags & SHORT_NOT_OK != 0
    }

    fn check(&self) -> Result<(), BadRequestReason> {
        let used = usize::from(self.buffer_segments + self.descriptor_segments);
        if let Some(n) = self.segments[..used]
            .iter()
            .position(|s| !s.is_within_page())
        {
            // At most 15.
            return Err(BadRequestReason::SegmentBeyondPage(n as u8));
        }
        let segments = self.buffer_len() as u32;
        match self.kind {
            UrbKind::Control { setup } if u32::from(setup.length()) != segments => {
                Err(BadRequestReason::SetupLengthMismatch {
                    setup: setup.length(),
                    segments,
                })
            }
            UrbKind::Isochronous { packets, .. } => {
                let bytes = sum(self.descriptor_segments());
                if usize::from(packets) * ISOC_PACKET_BYTES > bytes {
                    let bytes = bytes as u32;
                    return Err(BadRequestReason::DescriptorsTooSmall { packets, bytes });
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn sum(segments: &[Segment]) -> usize {
    segments.iter().map(|s| usize::from(s.length)).sum()
}

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

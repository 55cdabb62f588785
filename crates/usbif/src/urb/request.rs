// SPDX-License-Identifier: GPL-3.0-or-later
//! A request.

use super::{BadRequest, BadRequestReason, SHORT_NOT_OK, UrbKind};
use crate::segment::SEGMENT_BYTES;
use crate::wire::{get_u16, get_u32, put_u16, put_u32};
use crate::{Direction, ISOC_PACKET_BYTES, MAX_SEGMENTS, Pipe, Segment, Setup, TransferType};

pub(super) const REQUEST_BYTES: usize = 148;

// Offsets in a request.
const ID: usize = 0;
const NR_BUFFER_SEGS: usize = 2;
const PIPE: usize = 4;
const TRANSFER_FLAGS: usize = 8;
const BUFFER_LENGTH: usize = 10;
const SPECIFIC: usize = 12;
const SEGMENTS: usize = 20;

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

    /// Bytes that may be transferred, 0 to 65,536: those of the buffer, but for a control request no
    /// more than the data stage has. Linux before 5.14 sends requests in which the two differ.
    pub fn transfer_len(&self) -> usize {
        match self.kind {
            UrbKind::Control { setup } => self.buffer_len().min(setup.length().into()),
            _ => self.buffer_len(),
        }
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
            // An IN data stage may be shorter than the buffer or than what was asked for. An OUT data
            // stage has as many bytes as its setup packet says (USB 2.0 §8.5.3), and these have to be
            // somewhere.
            UrbKind::Control { setup }
                if setup.direction() == Direction::Out && u32::from(setup.length()) > segments =>
            {
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

// SPDX-License-Identifier: GPL-3.0-or-later
//! Data between a URB's pages and a frame's body: one grant copy for all its segments.

use arrayvec::ArrayVec;
use session::frame::{ISO_PACKET_LEN, MAX_ISO_PACKETS, Transfer, TransferStatus, TransferType};
use usbif::{IsocPacket, MAX_SEGMENTS, Segment, UrbRequest};
use vusb_core::urb_status;
use xen::{Backend, CopyBuffer, CopyOp, CopyStatus, DomId, GrantError, GrantRef};

/// Why a URB's data could not be moved.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The guest named a page that it does not grant. Its fault: the URB fails.
    #[error("grant {gref} was refused by Xen (status {status})")]
    Refused {
        /// The reference.
        gref: GrantRef,
        /// Xen's `GNTST_*`.
        status: i16,
    },
    /// An isochronous packet lies outside its buffer. The guest's fault.
    #[error("isochronous packet {0} reaches beyond the buffer")]
    Packet(usize),
    /// This host could not.
    #[error(transparent)]
    Host(#[from] GrantError),
}

/// Appends the body of a request's frame to `out`: isochronous packet descriptors, then OUT data.
pub fn body_from_guest<B: Backend>(
    platform: &B,
    domid: DomId,
    request: &UrbRequest,
    transfer: &Transfer,
    out: &mut Vec<u8>,
) -> Result<(), CopyError> {
    let descriptors = transfer.iso_packets() * ISO_PACKET_LEN;
    if descriptors != 0 {
        let start = out.len();
        from_guest(
            platform,
            domid,
            request.descriptor_segments(),
            descriptors,
            out,
        )?;
        check_packets(&mut out[start..], transfer.length)?;
    }
    if transfer.is_in() {
        return Ok(());
    }
    from_guest(
        platform,
        domid,
        request.segments(),
        transfer.length as usize,
        out,
    )
}

/// Writes the body of a completion into the guest's pages: isochronous packet descriptors, then IN
/// data. A body that is shorter than it should be is written as far as it goes.
pub fn body_to_guest<B: Backend>(
    platform: &B,
    domid: DomId,
    request: &UrbRequest,
    transfer: &Transfer,
    actual_length: u32,
    body: &[u8],
) -> Result<(), CopyError> {
    let descriptors = (transfer.iso_packets() * ISO_PACKET_LEN).min(body.len());
    let (descriptors, data) = body.split_at(descriptors);
    if !descriptors.is_empty() {
        let mut translated = [0; MAX_ISO_PACKETS * ISO_PACKET_LEN];
        let translated = &mut translated[..descriptors.len()];
        translated.copy_from_slice(descriptors);
        translate_packets(translated);
        to_guest(platform, domid, request.descriptor_segments(), translated)?;
    }
    if !transfer.is_in() {
        return Ok(());
    }
    // Isochronous packets lie where their descriptors say, with gaps between them.
    let len = match transfer.transfer_type {
        TransferType::Isochronous => data.len(),
        _ => data.len().min(actual_length as usize),
    };
    to_guest(platform, domid, request.segments(), &data[..len])
}

/// Packets must lie within the buffer; what the backend is to fill in starts at nothing.
fn check_packets(descriptors: &mut [u8], length: u32) -> Result<(), CopyError> {
    for (at, bytes) in descriptors.as_chunks_mut().0.iter_mut().enumerate() {
        let packet = IsocPacket::decode(bytes);
        if packet
            .offset
            .checked_add(packet.length)
            .is_none_or(|end| end > length)
        {
            return Err(CopyError::Packet(at));
        }
        *bytes = IsocPacket {
            actual_length: 0,
            status: 0,
            ..packet
        }
        .encode();
    }
    Ok(())
}

/// From the session's status to the errno that usbif.h's frontends expect.
fn translate_packets(descriptors: &mut [u8]) {
    for bytes in descriptors.as_chunks_mut().0 {
        let packet = IsocPacket::decode(bytes);
        let status = TransferStatus::from_u32(packet.status as u32);
        let status = urb_status(status.unwrap_or(TransferStatus::Unknown)).0;
        *bytes = IsocPacket { status, ..packet }.encode();
    }
}

/// Appends the first `len` bytes of the pages' content, at most the sum of the segments, to `out`.
fn from_guest<B: Backend>(
    platform: &B,
    domid: DomId,
    segments: &[Segment],
    len: usize,
    out: &mut Vec<u8>,
) -> Result<(), CopyError> {
    let start = out.len();
    out.resize(start + len, 0);
    let mut rest = &mut out[start..];
    let mut ops = ArrayVec::<_, MAX_SEGMENTS>::new();
    for segment in segments {
        let len = usize::from(segment.length).min(rest.len());
        if len == 0 {
            continue;
        }
        let (piece, after) = rest.split_at_mut(len);
        rest = after;
        ops.push(op(segment, CopyBuffer::FromGuest(piece)));
    }
    copy(platform, domid, &mut ops)
}

/// Writes `data`, at most the sum of the segments, into the pages.
fn to_guest<B: Backend>(
    platform: &B,
    domid: DomId,
    segments: &[Segment],
    mut data: &[u8],
) -> Result<(), CopyError> {
    let mut ops = ArrayVec::<_, MAX_SEGMENTS>::new();
    for segment in segments {
        let len = usize::from(segment.length).min(data.len());
        if len == 0 {
            continue;
        }
        let (piece, after) = data.split_at(len);
        data = after;
        ops.push(op(segment, CopyBuffer::ToGuest(piece)));
    }
    copy(platform, domid, &mut ops)
}

fn op<'a>(segment: &Segment, buffer: CopyBuffer<'a>) -> CopyOp<'a> {
    let Segment { gref, offset, .. } = *segment;
    CopyOp {
        gref: GrantRef(gref),
        offset,
        buffer,
        status: CopyStatus::Pending,
    }
}

fn copy<B: Backend>(platform: &B, domid: DomId, ops: &mut [CopyOp<'_>]) -> Result<(), CopyError> {
    if ops.is_empty() {
        return Ok(());
    }
    platform.copy(domid, ops)?;
    for op in ops {
        if let CopyStatus::Refused(status) = op.status {
            return Err(CopyError::Refused {
                gref: op.gref,
                status,
            });
        }
    }
    Ok(())
}

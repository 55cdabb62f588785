// SPDX-License-Identifier: GPL-3.0-or-later
//! Data between a URB's pages and a frame's body: one grant copy for all its segments.

use arrayvec::ArrayVec;
use usbif::{MAX_SEGMENTS, Segment};
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
    /// This host could not.
    #[error(transparent)]
    Host(#[from] GrantError),
}

/// Appends the pages' content, the sum of the segments, to `out`.
pub fn from_guest<B: Backend>(
    platform: &B,
    domid: DomId,
    segments: &[Segment],
    out: &mut Vec<u8>,
) -> Result<(), CopyError> {
    let start = out.len();
    out.resize(
        start
            + segments
                .iter()
                .map(|s| usize::from(s.length))
                .sum::<usize>(),
        0,
    );
    let mut rest = &mut out[start..];
    let mut ops = ArrayVec::<_, MAX_SEGMENTS>::new();
    for segment in segments.iter().filter(|s| s.length != 0) {
        let (piece, after) = rest.split_at_mut(segment.length.into());
        rest = after;
        ops.push(op(segment, CopyBuffer::FromGuest(piece)));
    }
    copy(platform, domid, &mut ops)
}

/// Writes `data`, at most the sum of the segments, into the pages.
pub fn to_guest<B: Backend>(
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

// SPDX-License-Identifier: GPL-3.0-or-later
//! Requests that make no sense.

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum BadRequestReason {
    /// More than [`MAX_SEGMENTS`](crate::MAX_SEGMENTS), counting the segments of frame descriptors.
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
    /// `wLength` of an OUT request's setup packet is more than the buffer holds.
    #[error("the setup packet announces {setup} bytes, the segments hold {segments}")]
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
/// [`UrbStatus::INVAL`](crate::UrbStatus::INVAL).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("request {id} refused: {reason}")]
pub struct BadRequest {
    /// The id to answer to.
    pub id: u16,
    /// What is wrong with it.
    pub reason: BadRequestReason,
}

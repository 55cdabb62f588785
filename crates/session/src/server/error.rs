// SPDX-License-Identifier: GPL-3.0-or-later
//! What a peer can do wrong.

use super::MAX_OPEN;
use crate::frame::FrameError;

/// What the peer did wrong. Its connection is to be closed; it may resume.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServerError {
    /// Not a frame.
    #[error("no valid frame: {0}")]
    Frame(#[from] FrameError),
    /// A frame that only an exporter sends.
    #[error("an exporter's frame from a backend")]
    Direction,
    /// A request is missing or repeated.
    #[error("request {got} where {expected} was due")]
    RequestNumber {
        /// The number that came.
        got: u64,
        /// The number that was due.
        expected: u64,
    },
    /// More requests than fit.
    #[error("more than {MAX_OPEN} requests that execute or are not acknowledged")]
    TooManyRequests,
    /// It asks without listening.
    #[error("it sends without receiving")]
    Flood,
    /// It acknowledges what was not sent.
    #[error("acknowledges completion {got}, the last one sent is {last}")]
    Acknowledged {
        /// What it acknowledges.
        got: u64,
        /// The last one.
        last: u64,
    },
    /// It wants completions that it acknowledged before.
    #[error("wants to resume after completion {got}, but acknowledged {acknowledged} before")]
    Forgotten {
        /// The last one that it says to have.
        got: u64,
        /// The last one acknowledged.
        acknowledged: u64,
    },
}

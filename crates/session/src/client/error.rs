// SPDX-License-Identifier: GPL-3.0-or-later
//! What an exporter can do wrong.

use crate::frame::FrameError;

/// Why a connection is of no more use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// Not a frame.
    #[error("the exporter sent no valid frame: {0}")]
    Frame(#[from] FrameError),
    /// A frame that only a backend sends.
    #[error("the exporter sent a backend's frame")]
    Direction,
    /// A completion is missing or repeated.
    #[error("completion {got} where {expected} was due")]
    CompletionNumber {
        /// The number that came.
        got: u64,
        /// The number that was due.
        expected: u64,
    },
    /// A completion of no outstanding request.
    #[error("completion of request {0}, which is not outstanding")]
    UnknownRequest(u64),
    /// More data than was asked for, or data with an OUT transfer.
    #[error(
        "completion of request {request} carries {len} bytes where at most {limit} were asked for"
    )]
    TooMuchData {
        /// The request.
        request: u64,
        /// Bytes of the body, or the actual length.
        len: usize,
        /// Bytes that were asked for.
        limit: usize,
    },
    /// The exporter claims to have requests that were never sent.
    #[error("the exporter says it has request {got}, the last one sent is {last}")]
    Received {
        /// What it claims.
        got: u64,
        /// The last one.
        last: u64,
    },
}

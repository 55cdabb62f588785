// SPDX-License-Identifier: GPL-3.0-or-later
//! Breaches of the protocol by a backend.

use usbif::{BadConnResponse, PortNumber, RingCorrupt};

/// Something that a backend must not do. A test run in which one occurs has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// An index of the backend's is impossible: more responses than requests, for one.
    #[error("{0}")]
    RingCorrupt(RingCorrupt),
    /// A response to an id that is not in use: never asked, or answered twice.
    #[error("response to request id {0}, which is not in use")]
    UnknownId(u16),
    /// There is room on the ring but every id is in use: requests were lost with an old ring.
    /// `xen-hcd` runs off the end of its table here.
    #[error("the ring has room, but every request id is in use")]
    IdsExhausted,
    /// A connection event that makes no sense.
    #[error("{0}")]
    BadEvent(BadConnResponse),
    /// A connection event for a port that the controller does not have.
    #[error("connection event for port {0}, which the controller does not have")]
    NoSuchPort(PortNumber),
    /// A grant was still mapped after the response.
    #[error("backend did not release a grant before its response")]
    GrantInUse,
    /// More bytes transferred than asked for. `xen-hcd` cuts it down and goes on.
    #[error("{actual} bytes reported in a buffer of {buffer}")]
    LengthBeyondBuffer {
        /// As received.
        actual: u32,
        /// The buffer's length.
        buffer: u32,
    },
    /// A status that `usbif.h` does not define. `xen-hcd` takes it as a shutdown and goes on.
    #[error("undefined status {0}")]
    UndefinedStatus(i32),
}

impl Violation {
    /// Whether `xen-hcd` stops for good (`xenhcd_set_error`).
    pub fn is_fatal(&self) -> bool {
        !matches!(
            self,
            Self::LengthBeyondBuffer { .. } | Self::UndefinedStatus(_)
        )
    }
}

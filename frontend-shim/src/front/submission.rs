// SPDX-License-Identifier: GPL-3.0-or-later
//! What is taken, and why not.

use usbif::{PortNumber, UrbRequest};

/// A URB to be carried out.
#[derive(Clone, Copy, Debug)]
pub struct Submission {
    /// The controller's port that the device hangs on, directly or through hubs.
    pub root_port: PortNumber,
    /// What to send. Its id is set when it goes out.
    pub request: UrbRequest,
    /// Comes back in the completion.
    pub tag: u64,
}

/// Why a URB is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Nothing is plugged into the port.
    #[error("no device on port {0}")]
    NoDevice(PortNumber),
    /// The domain is being suspended.
    #[error("the controller is frozen for a suspend")]
    Frozen,
    /// The backend broke the protocol, or the controller was shut down.
    #[error("the controller is dead")]
    Dead,
}

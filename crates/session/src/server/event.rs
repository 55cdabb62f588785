// SPDX-License-Identifier: GPL-3.0-or-later
//! What the backend wants.

use crate::frame::Transfer;

/// What the backend wants.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Carry out a transfer and call [`Server::complete`](super::Server::complete).
    Submit {
        /// Its number.
        request: u64,
        /// What to do.
        transfer: Transfer,
        /// Isochronous packet descriptors, and OUT data: [`Transfer::submit_body_len`] bytes.
        body: &'a [u8],
    },
    /// Cancel a transfer that is executing; [`Server::complete`](super::Server::complete) is still due.
    Cancel {
        /// Its number.
        request: u64,
    },
    /// The submitter of this request is suspended: call [`Server::keep`](super::Server::keep).
    Keep {
        /// Its number.
        request: u64,
    },
    /// The submitter of this request is suspended, and uses what comes of it: call
    /// [`Server::recall`](super::Server::recall).
    Recall {
        /// Its number.
        request: u64,
    },
    /// Reset the device and call [`Server::complete`](super::Server::complete).
    Reset {
        /// Its number.
        request: u64,
    },
    /// Save this as the lease's cookie.
    Cookie(&'a [u8]),
    /// Call [`Server::complete`](super::Server::complete) when the leases are on the disk as they are now.
    /// The guest has given its device an address, which is the cookie's business and not the device's; or
    /// the backend asks for a receipt.
    Save {
        /// Its number.
        request: u64,
    },
    /// The guest is suspended.
    Freeze,
    /// It is not, after all.
    Thaw,
    /// Its domain is gone.
    Orphan,
    /// Whether the frontend resumes.
    FrontendResumes(bool),
    /// Nothing to do.
    Handled,
}

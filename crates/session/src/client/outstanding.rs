// SPDX-License-Identifier: GPL-3.0-or-later
//! A request without a completion.

use crate::frame::Transfer;

/// A request without a completion.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) struct Outstanding {
    pub(super) request: u64,
    /// Largest body of its completion.
    pub(super) body_limit: usize,
    pub(super) length: u32,
    pub(super) end: End,
}

/// Whether the guest has given up a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum End {
    /// No.
    Awaited,
    /// Yes.
    Cancelled,
    /// Yes, because it is being suspended: its data is the exporter's to keep.
    Kept,
    /// Yes, because it is being suspended: its data is the submitter's.
    Recalled,
}

impl Outstanding {
    /// A transfer.
    pub(super) fn transfer(request: u64, transfer: &Transfer) -> Self {
        Self {
            request,
            body_limit: transfer.complete_body_limit(),
            length: transfer.length,
            end: End::Awaited,
        }
    }

    /// One that transfers nothing.
    pub(super) fn nothing(request: u64) -> Self {
        Self {
            request,
            body_limit: 0,
            length: 0,
            end: End::Awaited,
        }
    }
}

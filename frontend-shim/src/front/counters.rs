// SPDX-License-Identifier: GPL-3.0-or-later
//! What has been counted.

/// What has been counted since the machine was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// URBs completed.
    pub completed: u64,
    /// URBs completed with an error other than having been unlinked.
    pub failed: u64,
    /// Unlink requests sent.
    pub unlinks: u64,
    /// URBs that the backend was asked for because of a suspend.
    pub recalled: u64,
    /// Devices plugged in.
    pub connects: u64,
    /// Devices pulled out.
    pub disconnects: u64,
    /// Events ignored because they told nothing new.
    pub events_ignored: u64,
    /// Breaches of the protocol by the backend.
    pub violations: u64,
}

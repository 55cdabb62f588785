// SPDX-License-Identifier: GPL-3.0-or-later
//! How long a lease waits for its VM, for its holder, or for its device after the exporter's start.

use crate::{Lease, LeasePhase};

/// How long a lease waits: for its VM when the VM's domain is gone, for its holder when that is not
/// connected, or for its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HoldTimes {
    /// Where it was destroyed, rebooted or crashed, in milliseconds.
    pub gone_ms: u64,
    /// Where it was suspended first, as `xl save` does, in milliseconds; `None` for ever.
    pub saved_ms: Option<u64>,
    /// How long a lease waits for its device after the exporter was started, in milliseconds.
    pub startup_ms: u64,
    /// Where the holder's connection was lost, in milliseconds; `None` for ever.
    pub disconnected_ms: Option<u64>,
    /// For how long the holder must not have been connected before another domain with the VM's uuid may
    /// claim the lease although nothing says that it is the VM, in milliseconds.
    pub takeover_ms: u64,
}

/// [`HoldTimes::takeover_ms`] where nothing else is configured.
pub const TAKEOVER_MS: u64 = 30_000;

/// The same for VMs that are gone, for those that were saved, and for devices, in milliseconds.
impl From<u64> for HoldTimes {
    fn from(hold_ms: u64) -> Self {
        Self {
            gone_ms: hold_ms,
            saved_ms: Some(hold_ms),
            startup_ms: hold_ms,
            disconnected_ms: None,
            takeover_ms: TAKEOVER_MS,
        }
    }
}

impl HoldTimes {
    /// When a lease is over that is in this phase from now on.
    pub(super) fn deadline_ms(self, lease: &Lease, phase: LeasePhase, now_ms: u64) -> Option<u64> {
        if lease.persistence.is_persistent() {
            return None;
        }
        let hold_ms = match phase {
            LeasePhase::Saved => self.saved_ms?,
            LeasePhase::Orphaned => self.gone_ms,
            LeasePhase::Disconnected => self.disconnected_ms?,
            _ => return None,
        };
        Some(now_ms.saturating_add(hold_ms))
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! Opening a device connection. After [`crate::Hello`] nothing is sent until the backend sends
//! [`Open`]; a target of a migration connects early and opens when it claims.

use serde::{Deserialize, Serialize};

use crate::control::Refusal;
use crate::{DeviceId, Epoch, VmUuid};

/// From the backend: which lease, and how.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Open {
    /// The device.
    pub device: DeviceId,
    /// Whose lease.
    pub vm: VmUuid,
    /// The VM's domid at the caller.
    pub domid: u16,
    /// Which of the holder's attempts this is.
    pub attempt: Attempt,
    /// Whether the frontend says `feature-resume=1`.
    pub frontend_resumes: bool,
    /// What says that this domain is the VM. Only a claim of another than the holder needs it.
    pub evidence: Evidence,
    /// How.
    pub how: How,
}

/// What says that the claimant's domain is the VM, and not a copy of it that has the same uuid: a clone,
/// or a file that was restored although the VM runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Evidence {
    /// Nothing but the uuid.
    #[default]
    Uuid,
    /// The domain's frontend has just connected for the first time. Where the holder's guest was suspended
    /// at this moment and its domain ends without going on, it is that guest, moved here by a toolstack that
    /// gives no sign of its own.
    FirstConnect,
    /// The toolstack says that the VM arrives in this domain from another host or another domid.
    Arrival,
    /// The lease was last held for this domid on the same host, and that domain is gone.
    HolderGone(u16),
}

/// Tells attempts to take up a lease that were overtaken on their way: by a later one of the same
/// `vusbd`, or of one that was started after it was killed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Attempt {
    /// A number that nothing else has, as long as the numbers of attempts grow.
    pub life: u64,
    /// Greater than that of the attempt before.
    pub number: u64,
}

impl Attempt {
    /// Whether it was made before the other. Of attempts of different lives nobody knows.
    pub fn is_before(self, other: Self) -> bool {
        self.life == other.life && self.number < other.number
    }
}

/// How a device connection takes up its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum How {
    /// Take over from whoever holds it: raises the epoch, cancels what is in flight for the old
    /// one, fences its connection. Request and completion numbers start anew at 1.
    Claim {
        /// The epoch seen in the lease. A newer one refuses the claim.
        seen: Epoch,
    },
    /// Go on where a lost connection stopped.
    Resume {
        /// The caller's epoch.
        epoch: Epoch,
        /// The number of the last completion that arrived, 0 for none.
        completions_received: u64,
    },
}

/// The exporter's answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Opened {
    /// Frames follow in both directions.
    Ready {
        /// The epoch of this connection.
        epoch: Epoch,
        /// The number of the last request that arrived, 0 for none. Later ones are to be sent
        /// again; completions of earlier ones will come.
        requests_received: u64,
    },
    /// No.
    Refused(Refusal),
}

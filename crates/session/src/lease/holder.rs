// SPDX-License-Identifier: GPL-3.0-or-later
//! What the holder of a device says, and anybody who wants to be it.

use super::{Entry, LeaseTable, fenced};
use crate::control::Refusal;
use crate::frame::MAX_COOKIE_LEN;
use crate::open::Attempt;
use crate::{Configured, DeviceId, Digest, Epoch, Holder, LeasePhase, VmUuid};

/// Somebody at a device connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimant<'a> {
    /// The host, from its certificate.
    pub host: &'a str,
    /// The VM's domid there.
    pub domid: u16,
    /// Its attempt, as in [`Open::attempt`](crate::open::Open::attempt).
    pub attempt: Attempt,
    /// For which VM.
    pub vm: VmUuid,
}

impl Claimant<'_> {
    pub(super) fn is(&self, holder: &Holder) -> bool {
        self.host == holder.host && self.domid == holder.domid
    }
}

/// The holder's news about its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The guest is suspended.
    Freeze,
    /// It is not, after all.
    Thaw,
    /// Its domain is gone.
    Orphan,
    /// Nobody is connected any more.
    Disconnect,
}

impl LeaseTable {
    /// Takes a lease over under a new epoch. Refused where somebody else did so since `seen`; a
    /// claim whose answer was lost may be repeated, unless it is one that a later attempt has
    /// overtaken on its way, perhaps that of a process that is no more.
    pub fn claim(
        &mut self,
        device: &DeviceId,
        by: &Claimant<'_>,
        frontend_resumes: bool,
        seen: Epoch,
    ) -> Result<Epoch, Refusal> {
        let Entry { lease, attempt, .. } = self.checked(device, by.vm, by.host)?;
        let is_holder = by.is(&lease.holder);
        let overtaken = is_holder && by.attempt.is_before(*attempt);
        let own = is_holder && seen < lease.epoch;
        if overtaken || (seen != lease.epoch && !own) {
            return Err(fenced(seen, lease));
        }
        let epoch = self.raise();
        let entry = self.checked(device, by.vm, by.host)?;
        entry.frozen = false;
        entry.attempt = by.attempt;
        entry.deadline_ms = None;
        let lease = &mut entry.lease;
        lease.epoch = epoch;
        lease.phase = LeasePhase::Serving;
        lease.frontend_resumes = frontend_resumes;
        lease.holder = Holder {
            host: by.host.to_owned(),
            domid: by.domid,
        };
        Ok(epoch)
    }

    /// The holder is back under the same epoch.
    pub fn resume(
        &mut self,
        device: &DeviceId,
        by: &Claimant<'_>,
        frontend_resumes: bool,
        epoch: Epoch,
    ) -> Result<(), Refusal> {
        let entry = self.checked(device, by.vm, by.host)?;
        let overtaken = by.attempt.is_before(entry.attempt);
        if epoch != entry.lease.epoch || !by.is(&entry.lease.holder) || overtaken {
            return Err(fenced(epoch, &entry.lease));
        }
        entry.attempt = by.attempt;
        entry.lease.frontend_resumes = frontend_resumes;
        // An orphan stays one: its domain does not come back with the connection.
        if !entry.lease.phase.is_orphaned() {
            entry.lease.phase = match entry.frozen {
                true => LeasePhase::Frozen,
                false => LeasePhase::Serving,
            };
        }
        Ok(())
    }

    /// What happened at the holder, or to its connection. Returns whether it changed the lease;
    /// what a superseded epoch has to say changes nothing.
    pub fn apply(&mut self, device: &DeviceId, epoch: Epoch, change: Change, now_ms: u64) -> bool {
        let hold = self.hold;
        let Some(entry) = self.current(device, epoch) else {
            return false;
        };
        let orphaned = entry.lease.phase.is_orphaned();
        let phase = match change {
            Change::Freeze if !orphaned => {
                entry.frozen = true;
                LeasePhase::Frozen
            }
            Change::Thaw => {
                entry.frozen = false;
                entry.deadline_ms = None;
                LeasePhase::Serving
            }
            Change::Orphan if !orphaned => {
                let phase = match entry.frozen {
                    true => LeasePhase::Saved,
                    false => LeasePhase::Orphaned,
                };
                entry.deadline_ms = hold.deadline_ms(phase, now_ms);
                phase
            }
            Change::Disconnect if !orphaned => LeasePhase::Disconnected,
            Change::Freeze | Change::Orphan | Change::Disconnect => entry.lease.phase,
        };
        let changed = entry.lease.phase != phase;
        entry.lease.phase = phase;
        if changed && (orphaned || phase.is_orphaned()) {
            self.changes += 1;
        }
        changed
    }

    /// Saves a cookie of at most [`MAX_COOKIE_LEN`] bytes. Returns whether it is another one.
    pub fn save_cookie(&mut self, device: &DeviceId, epoch: Epoch, cookie: &[u8]) -> bool {
        let Some(entry) = self.current(device, epoch) else {
            return false;
        };
        if cookie.len() > MAX_COOKIE_LEN || entry.lease.cookie == cookie {
            return false;
        }
        entry.lease.cookie.clear();
        entry.lease.cookie.extend_from_slice(cookie);
        self.changes += 1;
        true
    }

    /// The device of a new lease has these descriptors.
    pub fn set_descriptors(&mut self, device: &DeviceId, epoch: Epoch, digest: Option<Digest>) {
        if let Some(entry) = self.current(device, epoch) {
            entry.lease.descriptors = digest;
            self.changes += 1;
        }
    }

    /// A device that came back is not what its guest knows: its lease begins anew.
    pub fn begin_anew(&mut self, device: &DeviceId, epoch: Epoch) {
        if let Some(entry) = self.current(device, epoch) {
            entry.lease.cookie.clear();
            entry.lease.configured = Configured::default();
            self.changes += 1;
        }
    }

    /// The guest has set this at its device. Returns whether that is news. It is worth saving, for after a
    /// restart of the exporter a device is as when it was plugged in; but it is not among
    /// [`LeaseTable::changes`]: nobody waits for it, and a guest does it as often as it likes.
    pub fn set_configured(
        &mut self,
        device: &DeviceId,
        epoch: Epoch,
        configured: &Configured,
    ) -> bool {
        let Some(entry) = self.current(device, epoch) else {
            return false;
        };
        if entry.lease.configured == *configured {
            return false;
        }
        entry.lease.configured.clone_from(configured);
        true
    }

    /// Notes whether the frontend resumes. Returns whether that is news.
    pub fn set_frontend_resumes(&mut self, device: &DeviceId, epoch: Epoch, resumes: bool) -> bool {
        let Some(entry) = self.current(device, epoch) else {
            return false;
        };
        if entry.lease.frontend_resumes == resumes {
            return false;
        }
        entry.lease.frontend_resumes = resumes;
        self.changes += 1;
        true
    }
}

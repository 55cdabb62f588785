// SPDX-License-Identifier: GPL-3.0-or-later
//! What the holder of a device says, and anybody who wants to be it.

use super::{Entry, HoldTimes, LeaseTable, fenced, held_elsewhere};
use crate::control::Refusal;
use crate::frame::MAX_COOKIE_LEN;
use crate::open::{Attempt, Evidence};
use crate::{Configured, DeviceId, Digest, Epoch, Holder, Lease, LeasePhase, VmUuid};

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
    /// What says that its domain is this VM.
    pub evidence: Evidence,
    /// When it asks.
    pub now_ms: u64,
}

impl Claimant<'_> {
    pub(super) fn is(&self, holder: &Holder) -> bool {
        self.host == holder.host && self.domid == holder.domid
    }
}

/// Most domains at a time that may be a VM that is suspended. Another is taken for a copy.
const MOST_UNDECIDED: usize = 16;

/// What a claim of another domain than the holder's shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shows {
    /// That it is the VM.
    TheVm,
    /// That it is the VM if the holder's guest, which is suspended, does not go on where it is.
    Undecided,
    /// Nothing.
    Nothing,
}

impl Entry {
    /// Whether the lease may change its holder. A host that is not connected does not count as gone at once:
    /// a copy that tries again and again would win at each restart of the holder's `vusbd`.
    fn admit(&mut self, by: &Claimant<'_>, hold: HoldTimes) -> Result<(), Refusal> {
        let Lease { holder, phase, .. } = &self.lease;
        let is_copy = self.copies.iter().any(|copy| by.is(copy));
        let has_sign = matches!(by.evidence, Evidence::FirstConnect | Evidence::Arrival);
        // A copy is told so once more, so that it does not resume as the VM.
        let told = !(is_copy && has_sign);
        if by.is(holder) || (phase.is_orphaned() && told) {
            return Ok(());
        }
        let shows = match by.evidence {
            Evidence::FirstConnect | Evidence::Arrival if is_copy => Shows::Nothing,
            Evidence::FirstConnect if self.frozen => Shows::Undecided,
            Evidence::Uuid | Evidence::FirstConnect => Shows::Nothing,
            // Where a copy waits, it may be the copy that arrives.
            Evidence::Arrival if !self.is_disputed(by.now_ms, hold) => Shows::TheVm,
            Evidence::Arrival if self.frozen => Shows::Undecided,
            Evidence::Arrival => Shows::Nothing,
            Evidence::HolderGone(domid) if by.host == holder.host && domid == holder.domid => {
                Shows::TheVm
            }
            Evidence::HolderGone(_) => Shows::Nothing,
        };
        if shows == Shows::TheVm {
            return Ok(());
        }
        if *phase == LeasePhase::Disconnected {
            // Of a lease that was never claimed nobody knows since when it waits for that.
            self.silent_since_ms.get_or_insert(by.now_ms);
        }
        let silent_ms = self.silent_ms(by.now_ms);
        let long_silent = silent_ms.is_some_and(|silent_ms| silent_ms >= hold.takeover_ms);
        // One that is undecided is refused first, for a VM that is taken over after a silence is replugged.
        if long_silent && shows == Shows::Nothing && told {
            return Ok(());
        }
        if by.evidence != Evidence::Arrival {
            self.disputed_ms = Some(by.now_ms);
        }
        if shows == Shows::Undecided && !long_silent && self.remember_undecided(by) {
            return Err(Refusal::SuspendedElsewhere {
                device: self.lease.device.id.clone(),
                vm: self.lease.vm,
                holder: self.lease.holder.clone(),
            });
        }
        Err(held_elsewhere(&self.lease, silent_ms))
    }

    /// The holder's guest is suspended. False where too many wait to know what becomes of it.
    fn remember_undecided(&mut self, by: &Claimant<'_>) -> bool {
        if self.undecided.iter().any(|waits| by.is(waits)) {
            return true;
        }
        if self.undecided.len() >= MOST_UNDECIDED {
            return false;
        }
        self.undecided.push(Holder {
            host: by.host.to_owned(),
            domid: by.domid,
        });
        true
    }

    /// The holder's guest goes on where it was: who may have been this guest is not.
    fn guest_goes_on(&mut self) {
        self.frozen = false;
        let undecided = std::mem::take(&mut self.undecided);
        self.copies.retain(|copy| !undecided.contains(copy));
        self.copies.extend(undecided);
        let oldest = self.copies.len().saturating_sub(MOST_UNDECIDED);
        self.copies.drain(..oldest);
    }

    /// Whether another domain with the VM's uuid waits for the lease, which asks every few seconds.
    fn is_disputed(&self, now_ms: u64, hold: HoldTimes) -> bool {
        self.disputed_ms
            .is_some_and(|at| now_ms.saturating_sub(at) < hold.takeover_ms)
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
    ///
    /// Refused is also another domain than the holder's, as long as the holder's may run, and nothing says
    /// that the claimant's is the same VM (docs/decisions/0020-same-uuid.md).
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
        self.check_runs_here(device, by)?;
        let hold = self.hold;
        self.checked(device, by.vm, by.host)?.admit(by, hold)?;
        let epoch = self.raise();
        let entry = self.checked(device, by.vm, by.host)?;
        entry.frozen = false;
        entry.attempt = by.attempt;
        entry.deadline_ms = None;
        entry.silent_since_ms = None;
        entry.disputed_ms = None;
        entry.undecided.clear();
        entry.copies.clear();
        entry.acquired_by = None;
        entry.claimed = true;
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

    /// The holder asks, and may be refused for another reason: it is not silent.
    pub fn heard(&mut self, device: &DeviceId, by: &Claimant<'_>) {
        if let Some(entry) = self.entries.get_mut(device)
            && by.is(&entry.lease.holder)
            && entry.silent_since_ms.is_some()
        {
            entry.silent_since_ms = Some(by.now_ms);
        }
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
        entry.silent_since_ms = None;
        entry.lease.frontend_resumes = frontend_resumes;
        // An orphan stays one: its domain does not come back with the connection.
        if !entry.lease.phase.is_orphaned() {
            entry.deadline_ms = None;
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
                entry.guest_goes_on();
                entry.deadline_ms = None;
                LeasePhase::Serving
            }
            Change::Orphan if !orphaned => {
                let phase = match entry.frozen {
                    true => LeasePhase::Saved,
                    false => LeasePhase::Orphaned,
                };
                entry.deadline_ms = hold.deadline_ms(&entry.lease, phase, now_ms);
                phase
            }
            Change::Disconnect if !orphaned && entry.lease.phase != LeasePhase::Disconnected => {
                entry.silent_since_ms = Some(now_ms);
                let phase = LeasePhase::Disconnected;
                entry.deadline_ms = hold.deadline_ms(&entry.lease, phase, now_ms);
                phase
            }
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

#[cfg(test)]
mod tests;

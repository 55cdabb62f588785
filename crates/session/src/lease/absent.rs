// SPDX-License-Identifier: GPL-3.0-or-later
//! Leases whose device was pulled out.

use super::{LeaseTable, Saved};
use crate::control::Refusal;
use crate::{DeviceId, DeviceInfo, Epoch, Lease, LeasePhase, VmUuid};

/// A lease that waits.
#[derive(Clone, Debug, Hash)]
pub(super) struct Absent {
    /// In phase [`LeasePhase::Absent`].
    pub(super) lease: Lease,
    /// The phase when the device was pulled out.
    pub(super) before: LeasePhase,
    /// When it is over.
    pub(super) deadline_ms: u64,
    /// Its device is plugged in, since then, and nobody has fetched it. Of a persistent lease only.
    pub(super) there: Option<(DeviceInfo, u64)>,
}

impl Absent {
    /// As it is saved: a restart must not forget that a saved VM is waited for.
    pub(super) fn saved(&self) -> Lease {
        let mut lease = self.lease.clone();
        if self.before.is_orphaned() {
            lease.phase = self.before;
        }
        lease
    }
}

/// What became of the lease of a device that was pulled out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unplugged {
    /// It is over.
    Ended(Box<Lease>),
    /// It follows its device, and waits.
    Waits(Box<Lease>),
}

impl Saved {
    /// The machine was restarted, and its devices with it: none was plugged in all the time. Leases
    /// that follow their devices wait for them, also where they are; but not those of guests that are
    /// saved, which wait longer themselves, and find out.
    #[must_use]
    pub fn after_reboot(mut self) -> Self {
        let is_gone = |l: &Lease| l.exchange.is_some() && !l.phase.is_orphaned();
        let (gone, stay) = self.leases.into_iter().partition(is_gone);
        self.leases = stay;
        self.absent.extend::<Vec<Lease>>(gone);
        self
    }
}

impl LeaseTable {
    /// A device was pulled out. `None` where nobody had it.
    pub fn unplugged(&mut self, device: &DeviceId, now_ms: u64) -> Option<Unplugged> {
        self.not_there(device);
        // A saved guest's lease waits for the guest as long as it did.
        let held_until = self.entries.get(device).and_then(|e| {
            let until = e.deadline_ms.unwrap_or(u64::MAX);
            e.lease.phase.is_orphaned().then_some(until)
        });
        let unconfirmed = self.is_unconfirmed(device);
        let lease = self.remove(device)?;
        if lease.exchange.is_none() || unconfirmed {
            return Some(Unplugged::Ended(Box::new(lease)));
        }
        let waits = self.wait_for_device(lease, now_ms, held_until.unwrap_or(0));
        Some(Unplugged::Waits(Box::new(waits)))
    }

    /// Waits for the device as long as the lease says, at least until `least_ms`.
    pub(super) fn wait_for_device(
        &mut self,
        mut lease: Lease,
        now_ms: u64,
        least_ms: u64,
    ) -> Lease {
        let before = std::mem::replace(&mut lease.phase, LeasePhase::Absent);
        let seconds = lease.exchange.map_or(0, |e| e.seconds);
        let deadline_ms = match lease.persistence.is_persistent() {
            true => u64::MAX,
            false => now_ms.saturating_add(1000 * u64::from(seconds)),
        };
        self.absent.push(Absent {
            lease: lease.clone(),
            before,
            deadline_ms: deadline_ms.max(least_ms),
            there: None,
        });
        lease
    }

    /// Whether a lease of `vm` waits for what was at this place.
    pub fn is_absent(&self, device: &DeviceId, vm: VmUuid) -> bool {
        self.absent
            .iter()
            .any(|a| a.lease.device.id == *device && a.lease.vm == vm)
    }

    /// [`LeaseTable::release`], where it is one that waits.
    pub(super) fn release_absent(
        &mut self,
        device: &DeviceId,
        vm: VmUuid,
        host: &str,
        epoch: Epoch,
    ) -> Result<Option<Lease>, Refusal> {
        let found = self.absent.iter().position(|a| {
            a.lease.device.id == *device && a.lease.vm == vm && a.lease.epoch == epoch
        });
        let Some(at) = found else { return Ok(None) };
        self.check_lease(&self.absent[at].lease, host)?;
        self.changes += 1;
        Ok(Some(self.absent.remove(at).lease))
    }

    pub(super) fn expire_absent(&mut self, now_ms: u64) -> Vec<Lease> {
        let mut expired = Vec::new();
        self.absent.retain(|a| {
            let over = a.deadline_ms <= now_ms;
            if over {
                expired.push(a.lease.clone());
            }
            !over
        });
        self.changes += expired.len() as u64;
        expired
    }
}

#[cfg(test)]
mod tests;

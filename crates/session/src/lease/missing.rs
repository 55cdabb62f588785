// SPDX-License-Identifier: GPL-3.0-or-later
//! Leases whose device was not there when the exporter started: the kernel may not have found it yet.
//!
//! A disk that spins up, or one behind two hubs, comes after the service. So the lease waits, and the
//! device is its holder's again as soon as it is plugged in at its place. Nobody can claim it until then.

use super::{Entry, LeaseTable, Unplugged, check_release, fenced};
use crate::control::Refusal;
use crate::{DeviceId, DeviceInfo, Epoch, Lease, LeasePhase, VmUuid};

/// A lease that waits.
#[derive(Clone, Debug, Hash)]
pub(super) struct Missing {
    pub(super) entry: Entry,
    /// When it is over; `None` for one that waits for its VM, too, which has a time of its own. One of
    /// these that follows its device waits for it anywhere from then on.
    until_ms: Option<u64>,
}

impl Missing {
    pub(super) fn deadline_ms(&self) -> Option<u64> {
        let times = [self.until_ms, self.entry.deadline_ms];
        times.into_iter().flatten().min()
    }

    fn is_for(&self, device: &DeviceId, vm: VmUuid) -> bool {
        self.entry.lease.device.id == *device && self.entry.lease.vm == vm
    }
}

impl LeaseTable {
    /// A device was plugged in, or found at the start. Answers the lease that it belongs to, if its place
    /// has one and it is the device that was lent; a lease of another device goes on waiting.
    pub fn plugged(&mut self, device: &DeviceInfo, now_ms: u64) -> Option<&Lease> {
        let id = &device.id;
        if self.get(id).is_some_and(|l| !l.device.is_same(device)) {
            self.missing(id, now_ms);
        }
        let here = |m: &Missing| {
            let lent = &m.entry.lease.device;
            lent.id == *id && lent.is_same(device)
        };
        if self.get(id).is_none()
            && let Some(at) = self.missing.iter().position(here)
        {
            let Missing { mut entry, .. } = self.missing.remove(at);
            // Whoever holds it was refused until now, however often it asked.
            entry.silent_since_ms = Some(now_ms);
            self.entries.insert(id.clone(), entry);
        }
        if self.get(id).is_none() {
            self.returned(device, now_ms);
        }
        self.get(id)
    }

    /// The device of a restored lease is not there, or another one is at its place. A lease that follows
    /// its device waits for it anywhere ([`LeaseTable::unplugged`]), any other for it to come to its
    /// place. So does that of a saved VM, which goes on where it was only with a lease that was never
    /// without its device. `None` where nobody had it.
    pub fn missing(&mut self, device: &DeviceId, now_ms: u64) -> Option<Unplugged> {
        let until_ms = now_ms.saturating_add(self.hold.startup_ms);
        let lease = self.get(device)?;
        let (follows, orphaned) = (lease.exchange.is_some(), lease.phase.is_orphaned());
        if follows && !orphaned {
            let waits = self.unplugged(device, now_ms);
            if let Some(absent) = self.absent.last_mut() {
                absent.deadline_ms = absent.deadline_ms.max(until_ms);
            }
            return waits;
        }
        let mut entry = self.entries.remove(device)?;
        if !orphaned {
            entry.lease.phase = LeasePhase::Disconnected;
        }
        let lease = entry.lease.clone();
        self.missing.push(Missing {
            until_ms: (follows || !orphaned).then_some(until_ms),
            entry,
        });
        Some(Unplugged::Waits(Box::new(lease)))
    }

    /// Why a lease of `vm` cannot be claimed now, where its device is missing.
    pub fn check_missing(
        &self,
        device: &DeviceId,
        vm: VmUuid,
        host: &str,
        now_ms: u64,
    ) -> Result<(), Refusal> {
        let Some(missing) = self.missing.iter().find(|m| m.is_for(device, vm)) else {
            return Ok(());
        };
        self.check_lease(&missing.entry.lease, host)?;
        let ms = missing.until_ms.map_or(0, |u| u.saturating_sub(now_ms));
        Err(Refusal::NotReady {
            device: device.clone(),
            reason: "it has not appeared since the exporter was started".to_owned(),
            seconds: u32::try_from(ms.div_ceil(1000)).unwrap_or(u32::MAX),
        })
    }

    /// Whether a lease of `vm` waits for the device of this place.
    pub(super) fn is_missing(&self, device: &DeviceId, vm: VmUuid) -> bool {
        self.missing.iter().any(|m| m.is_for(device, vm))
    }

    /// [`LeaseTable::release`], where the device is missing.
    pub(super) fn release_missing(
        &mut self,
        device: &DeviceId,
        vm: VmUuid,
        host: &str,
        epoch: Epoch,
        force: bool,
    ) -> Result<Option<Lease>, Refusal> {
        let Some(at) = self.missing.iter().position(|m| m.is_for(device, vm)) else {
            return Ok(None);
        };
        let lease = &self.missing[at].entry.lease;
        self.check_lease(lease, host)?;
        if epoch != lease.epoch {
            return Err(fenced(epoch, lease));
        }
        check_release(lease, host, force)?;
        self.changes += 1;
        Ok(Some(self.missing.remove(at).entry.lease))
    }

    pub(super) fn expire_missing(&mut self, now_ms: u64) -> Vec<Lease> {
        let over = |m: &mut Missing| m.deadline_ms().is_some_and(|d| d <= now_ms);
        let over: Vec<_> = self.missing.extract_if(.., over).collect();
        self.changes += over.len() as u64;
        let mut expired = Vec::new();
        for Missing { entry, .. } in over {
            let Entry {
                lease, deadline_ms, ..
            } = entry;
            let vm_waits = lease.phase.is_orphaned() && deadline_ms.is_none_or(|d| d > now_ms);
            match vm_waits && lease.exchange.is_some() {
                true => drop(self.wait_for_device(lease, now_ms, deadline_ms.unwrap_or(u64::MAX))),
                false => expired.push(lease),
            }
        }
        expired
    }
}

#[cfg(test)]
mod tests;

// SPDX-License-Identifier: GPL-3.0-or-later
//! Persistent leases: they stay while their VM is off, and wait for their device without a limit
//! (docs/decisions/0024-persistent.md).
//!
//! A VM that is off has no holder: its lease is orphaned, and any domain with its uuid may claim it, unless
//! another one runs with a device of the same VM. A device that is plugged in while its VM is off becomes the
//! VM's again at once. Where nobody has said that the VM is off, a `vusbd` that serves the guest fetches its
//! device itself; where none does for the time of a takeover, the VM counts as off.

use super::absent::Absent;
use super::{Claimant, Entry, LeaseTable, held_elsewhere};
use crate::control::Refusal;
use crate::open::{Attempt, Evidence};
use crate::{Configured, DeviceId, DeviceInfo, Lease, LeasePhase, VmUuid};

/// Whether a lease that waits is for this device.
fn is_for(lease: &Lease, device: &DeviceInfo) -> bool {
    let at_place = lease.exchange.is_some_and(|e| e.at_place);
    match lease.device.identity() {
        _ if at_place => lease.device.id == device.id,
        Some(identity) => identity.matches(device),
        None => lease.device.id == device.id && lease.device.is_same(device),
    }
}

impl LeaseTable {
    /// The persistent lease that waits for this device, which nobody else is given.
    pub fn reserved(&self, device: &DeviceInfo) -> Option<&Lease> {
        let absent = self.absent.iter().map(|a| &a.lease);
        let mut waiting = absent.chain(self.missing_leases());
        waiting.find(|l| l.persistence.is_persistent() && is_for(l, device))
    }

    /// A device was plugged in that a persistent lease may wait for. Where the VM is off, the lease has it
    /// again.
    pub(super) fn returned(&mut self, device: &DeviceInfo, now_ms: u64) {
        let waits = |a: &Absent| a.lease.persistence.is_persistent() && is_for(&a.lease, device);
        let Some(at) = self.absent.iter().position(waits) else {
            return;
        };
        self.absent[at].there = Some((device.clone(), now_ms));
        if self.absent[at].before.is_orphaned() {
            self.bind(at, now_ms);
        }
    }

    /// A device was pulled out that was not lent.
    pub(super) fn not_there(&mut self, device: &DeviceId) {
        for absent in &mut self.absent {
            if absent.there.as_ref().is_some_and(|(d, _)| d.id == *device) {
                absent.there = None;
            }
        }
    }

    /// A domain of `host` is gone. Answers the devices whose leases have changed.
    pub fn domain_ended(
        &mut self,
        vm: VmUuid,
        host: &str,
        domid: u16,
        now_ms: u64,
    ) -> Vec<DeviceId> {
        let was_its = |lease: &Lease| {
            lease.persistence.is_persistent()
                && lease.vm == vm
                && lease.holder.host == host
                && lease.holder.domid == domid
        };
        let mut changed = Vec::new();
        for entry in self.entries.values_mut() {
            if was_its(&entry.lease) && !entry.claimed && !entry.lease.phase.is_orphaned() {
                entry.lease.phase = LeasePhase::Orphaned;
                entry.silent_since_ms = None;
                changed.push(entry.lease.device.id.clone());
            }
        }
        let mut at = 0;
        while let Some(absent) = self.absent.get_mut(at) {
            if was_its(&absent.lease) && !absent.before.is_orphaned() {
                absent.before = LeasePhase::Orphaned;
                self.changes += 1;
                if let Some(device) = self.bind(at, now_ms) {
                    changed.push(device);
                    continue;
                }
            }
            at += 1;
        }
        self.changes += changed.len() as u64;
        changed
    }

    /// When [`LeaseTable::take_unfetched`] has something to do.
    pub(super) fn next_return_ms(&self) -> Option<u64> {
        let there = self.absent.iter().filter_map(|a| a.there.as_ref());
        let due = there.map(|(_, since_ms)| since_ms.saturating_add(self.hold.takeover_ms));
        due.min()
    }

    /// Devices that are plugged in and that no `vusbd` has fetched in time: their VMs are off. Answers those
    /// whose leases have them again.
    pub fn take_unfetched(&mut self, now_ms: u64) -> Vec<DeviceId> {
        let (mut taken, mut at) = (Vec::new(), 0);
        while let Some(absent) = self.absent.get(at) {
            let since_ms = absent.there.as_ref().map(|(_, since_ms)| *since_ms);
            let due = |since_ms: u64| since_ms.saturating_add(self.hold.takeover_ms) <= now_ms;
            match since_ms.is_some_and(due).then(|| self.bind(at, now_ms)) {
                Some(Some(device)) => taken.push(device),
                _ => at += 1,
            }
        }
        taken
    }

    /// The lease of a VM that is off has its device again, which is new to whoever claims it: it may have been
    /// used elsewhere. `None` where the device is not there, or is lent.
    fn bind(&mut self, at: usize, now_ms: u64) -> Option<DeviceId> {
        let (device, _) = self.absent[at].there.take()?;
        if self.entries.contains_key(&device.id) {
            return None;
        }
        let mut lease = self.absent.remove(at).lease;
        let state = std::mem::replace(&mut lease.device, device).state;
        lease.device.state = state;
        lease.phase = LeasePhase::Orphaned;
        lease.epoch = self.raise();
        lease.cookie.clear();
        lease.configured = Configured::default();
        lease.descriptors = None;
        let device = lease.device.id.clone();
        let entry = Entry {
            lease,
            frozen: false,
            attempt: Attempt::default(),
            deadline_ms: None,
            acquired_by: None,
            claimed: true,
            silent_since_ms: Some(now_ms),
            disputed_ms: None,
            undecided: Vec::new(),
            copies: Vec::new(),
        };
        self.entries.insert(device.clone(), entry);
        Some(device)
    }

    /// Refuses a claim of a lease without a holder where the VM runs in another domain, with another device.
    pub(super) fn check_runs_here(
        &self,
        device: &DeviceId,
        by: &Claimant<'_>,
    ) -> Result<(), Refusal> {
        let lent = self.entries.get(device).map(|e| &e.lease);
        let has_no_holder =
            lent.is_some_and(|l| l.persistence.is_persistent() && l.phase.is_orphaned());
        if !has_no_holder || by.evidence == Evidence::Arrival {
            return Ok(());
        }
        match self.runs_elsewhere(by.vm, by.host, by.domid) {
            None => Ok(()),
            Some(other) => Err(held_elsewhere(
                &Lease {
                    device: lent.map_or(&other.device, |l| &l.device).clone(),
                    epoch: lent.map_or(other.epoch, |l| l.epoch),
                    ..other.clone()
                },
                None,
            )),
        }
    }

    /// A lease with which the VM runs in another domain than this.
    pub(super) fn runs_elsewhere(&self, vm: VmUuid, host: &str, domid: u16) -> Option<&Lease> {
        let is_there = |lease: &&Lease| {
            lease.vm == vm
                && lease.phase == LeasePhase::Serving
                && (lease.holder.host != host || lease.holder.domid != domid)
        };
        self.held().find(is_there)
    }
}

#[cfg(test)]
mod tests;

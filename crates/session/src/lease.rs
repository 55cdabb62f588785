// SPDX-License-Identifier: GPL-3.0-or-later
//! The exporter's leases: who holds which device, under which epoch.
//!
//! A [`LeaseTable`] decides, and remembers; it executes nothing. Whoever drives it saves
//! [`LeaseTable::saved`] before answering a change, and loads it with [`LeaseTable::restore`].
//!
//! Epochs come from one counter for all devices, so that no epoch is ever used twice, not even for
//! a device that was released and lent again. A restored table raises the epoch of every lease:
//! what was in flight before is unknown now, so nobody can resume; the holder of before may claim.
//!
//! A lease that follows its device stays when the device is pulled out ([`LeaseTable::unplugged`]),
//! apart from those of devices that are there: it is nobody's to claim, and waits for its time to be
//! over, or for the device to come back to its port ([`Acquire::returns`](crate::control::Acquire::returns)).
//! After a restart any lease waits for its device ([`LeaseTable::missing`]).
//!
//! Times are milliseconds of any clock that does not go backwards.

mod absent;
mod hold;
mod holder;
mod lending;
mod missing;
mod persistent;
mod policy;
mod rules;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use absent::Unplugged;
pub use hold::{HoldTimes, TAKEOVER_MS};
pub use holder::{Change, Claimant};
pub use lending::{MAX_PORT, MAX_VM_NAME_LEN};
pub use policy::{Allow, DeviceMatch, Match, Policy, VmMatch};
pub use rules::{Applied, AttachRule, conflicts};

use crate::control::Refusal;
use crate::open::Attempt;
use crate::{DeviceId, DeviceInfo, DeviceState, Epoch, Holder, Lease, LeasePhase, VmUuid};
use absent::Absent;
use missing::Missing;

/// Longest note, in bytes.
pub const MAX_NOTE_LEN: usize = 1000;
/// More epochs than are given out between two saves. A claim is answered when it is saved, but
/// who asks for the lease meanwhile sees its epoch; after a crash that epoch must not be used for
/// another claim, nor be newer than the lease.
const UNSAVED_EPOCHS: u64 = 1 << 16;

/// What of the table survives a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// The last epoch given out.
    pub epoch: Epoch,
    /// All leases but those below.
    pub leases: Vec<Lease>,
    /// Those whose device was pulled out; of VMs that are gone, in the phase that says how long they wait.
    #[serde(default)]
    pub absent: Vec<Lease>,
}

#[derive(Clone, Debug, Hash)]
struct Entry {
    lease: Lease,
    /// The guest is suspended, whatever happens to the connection.
    frozen: bool,
    /// The holder's last attempt to take it up.
    attempt: Attempt,
    /// When an orphan is released, or a lease whose holder is not connected.
    deadline_ms: Option<u64>,
    /// The control connection that acquired it, as long as nobody has claimed or confirmed it.
    acquired_by: Option<u64>,
    /// Whether a guest may have used it: not before its first claim.
    claimed: bool,
    /// Since when the holder is not connected. `None` while it is, and before it first was.
    silent_since_ms: Option<u64>,
    /// When a claim of another domain was refused last that had nothing to show but the uuid.
    disputed_ms: Option<u64>,
    /// Domains that may be the VM, moved while it is suspended, and wait until that is known.
    undecided: Vec<Holder>,
    /// Domains that waited like this when the VM went on where it was: copies.
    copies: Vec<Holder>,
}

impl Entry {
    /// For how long the holder has not been connected.
    fn silent_ms(&self, now_ms: u64) -> Option<u64> {
        let since = self.silent_since_ms?;
        (self.lease.phase == LeasePhase::Disconnected).then(|| now_ms.saturating_sub(since))
    }
}

/// The table; see the module's documentation.
#[derive(Clone, Debug, Hash)]
pub struct LeaseTable {
    policy: Policy,
    rules: Vec<AttachRule>,
    hold: HoldTimes,
    epoch: Epoch,
    entries: BTreeMap<DeviceId, Entry>,
    absent: Vec<Absent>,
    missing: Vec<Missing>,
    changes: u64,
}

impl LeaseTable {
    /// A table without leases. An orphaned lease is released after its hold time.
    pub fn new(policy: Policy, hold: impl Into<HoldTimes>) -> Self {
        Self {
            policy,
            rules: Vec::new(),
            hold: hold.into(),
            epoch: Epoch::default(),
            entries: BTreeMap::new(),
            absent: Vec::new(),
            missing: Vec::new(),
            changes: 0,
        }
    }

    /// A table with the leases of before. Nobody is connected; the hold time of orphans starts again. All
    /// devices count as plugged in until [`LeaseTable::missing`] says otherwise.
    pub fn restore(policy: Policy, hold: impl Into<HoldTimes>, saved: Saved, now_ms: u64) -> Self {
        let mut table = Self::new(policy, hold);
        let all = saved.leases.iter().chain(&saved.absent);
        let highest = all.map(|l| l.epoch).max();
        table.epoch = saved.epoch.max(highest.unwrap_or_default());
        table.epoch.0 = table.epoch.0.saturating_add(UNSAVED_EPOCHS);
        for mut lease in saved.leases {
            lease.epoch = table.raise();
            let orphaned = lease.phase.is_orphaned();
            if !orphaned {
                lease.phase = LeasePhase::Disconnected;
            }
            let entry = Entry {
                frozen: orphaned,
                attempt: Attempt::default(),
                deadline_ms: table.hold.deadline_ms(&lease, lease.phase, now_ms),
                silent_since_ms: Some(now_ms),
                disputed_ms: None,
                undecided: Vec::new(),
                copies: Vec::new(),
                acquired_by: None,
                claimed: true,
                lease,
            };
            let device = entry.lease.device.id.clone();
            // Of two devices that had the same place, one after the other, `plugged` finds the right one.
            if table.entries.contains_key(&device) {
                table.missing(&device, now_ms);
            }
            table.entries.insert(device, entry);
        }
        // Nothing was in flight for them.
        for lease in saved.absent {
            let deadline_ms = table.hold.deadline_ms(&lease, lease.phase, now_ms);
            let held_ms = match lease.phase.is_orphaned() {
                true => deadline_ms.unwrap_or(u64::MAX),
                false => 0,
            };
            let until_ms = now_ms.saturating_add(table.hold.startup_ms);
            table.wait_for_device(lease, now_ms, held_ms.max(until_ms));
        }
        table
    }

    /// What to save: not those that end with a connection.
    pub fn saved(&self) -> Saved {
        let kept = self.entries.values().filter(|e| e.acquired_by.is_none());
        Saved {
            epoch: self.epoch,
            leases: kept
                .map(|e| &e.lease)
                .chain(self.missing_leases())
                .cloned()
                .collect(),
            absent: self.absent.iter().map(Absent::saved).collect(),
        }
    }

    /// Counts the changes worth saving at once. As long as it stays the same, so does what is saved, but
    /// for the phases of connected holders, which mean nothing after a restart, and for what guests set
    /// at their devices ([`LeaseTable::set_configured`]).
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// The policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// All leases, at last those whose device is not there.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        let absent = self.absent.iter().map(|a| &a.lease);
        self.held().chain(self.missing_leases()).chain(absent)
    }

    fn missing_leases(&self) -> impl Iterator<Item = &Lease> {
        self.missing.iter().map(|m| &m.entry.lease)
    }

    /// The leases of devices that are there.
    pub fn held(&self) -> impl Iterator<Item = &Lease> {
        self.entries.values().map(|e| &e.lease)
    }

    /// For how long the holder of this device's lease has not been connected, in seconds, where it is not.
    pub fn silent_seconds(&self, device: &DeviceId, now_ms: u64) -> Option<u64> {
        let here = self.entries.get(device);
        let missing = self.missing.iter().map(|m| &m.entry);
        let entry = here.or_else(|| missing.into_iter().find(|e| e.lease.device.id == *device))?;
        Some(entry.silent_ms(now_ms)? / 1000)
    }

    /// The lease of a device.
    pub fn get(&self, device: &DeviceId) -> Option<&Lease> {
        self.entries.get(device).map(|e| &e.lease)
    }

    /// Of `devices`, those that `host` may see, with their state.
    pub fn visible_devices(&self, devices: &[DeviceInfo], host: &str) -> Vec<DeviceInfo> {
        let visible = devices.iter().filter(|d| self.policy.may_see(d, host));
        visible.map(|d| self.with_state(d)).collect()
    }

    /// The leases that `host` may see, of one VM or of all.
    pub fn visible_leases(&self, vm: Option<VmUuid>, host: &str) -> Vec<Lease> {
        self.leases()
            .filter(|l| vm.is_none_or(|vm| vm == l.vm) && self.may_see_lease(l, host))
            .cloned()
            .collect()
    }

    /// Of the devices of a VM that `host` may see, those that the policy does not allow to the VM on `other`.
    pub fn refused_at(&self, vm: VmUuid, host: &str, other: &str) -> Vec<DeviceId> {
        self.leases()
            .filter(|l| l.vm == vm && self.may_see_lease(l, host) && !self.may_see_lease(l, other))
            .map(|l| l.device.id.clone())
            .collect()
    }

    /// Whether `host` may know of this lease.
    pub fn may_see_lease(&self, lease: &Lease, host: &str) -> bool {
        self.policy
            .allows(&lease.device, lease.vm, &lease.vm_name, host)
    }

    fn with_state(&self, device: &DeviceInfo) -> DeviceInfo {
        let mut device = device.clone();
        let lease = self.get(&device.id).or_else(|| self.reserved(&device));
        if let Some(lease) = lease {
            device.state = DeviceState::Leased {
                vm: lease.vm,
                vm_name: lease.vm_name.clone(),
            };
        }
        device
    }

    /// Whether `vm` holds `device` and `host` may use it.
    pub fn check(&self, device: &DeviceId, vm: VmUuid, host: &str) -> Result<(), Refusal> {
        let lease = self.get(device).filter(|l| l.vm == vm);
        match lease {
            Some(lease) => self.check_lease(lease, host),
            None => {
                self.check_missing(device, vm, host, u64::MAX)?;
                Err(Refusal::NoLease {
                    device: device.clone(),
                    vm,
                })
            }
        }
    }

    /// Gives a device back. Only its holder does, unless the VM's domain is gone; with `force` also another
    /// host where the holder is not connected.
    pub fn release(
        &mut self,
        device: &DeviceId,
        vm: VmUuid,
        host: &str,
        epoch: Epoch,
        force: bool,
    ) -> Result<Lease, Refusal> {
        if let Some(lease) = self.release_absent(device, vm, host, epoch)? {
            return Ok(lease);
        }
        if let Some(lease) = self.release_missing(device, vm, host, epoch, force)? {
            return Ok(lease);
        }
        let entry = self.checked(device, vm, host)?;
        let lease = &entry.lease;
        if epoch != lease.epoch {
            return Err(fenced(epoch, lease));
        }
        check_release(lease, host, force)?;
        self.remove(device).ok_or_else(|| Refusal::NoLease {
            device: device.clone(),
            vm,
        })
    }

    /// Ends a lease, whoever has it: the device is gone.
    pub fn remove(&mut self, device: &DeviceId) -> Option<Lease> {
        let entry = self.entries.remove(device)?;
        self.changes += 1;
        Some(entry.lease)
    }

    /// Leaves a note for people.
    pub fn note(
        &mut self,
        device: &DeviceId,
        vm: VmUuid,
        host: &str,
        text: &str,
    ) -> Result<(), Refusal> {
        if text.len() > MAX_NOTE_LEN {
            let message = format!("a note has at most {MAX_NOTE_LEN} bytes");
            return Err(Refusal::Limit(message));
        }
        let entry = self.checked(device, vm, host)?;
        entry.lease.note = (!text.is_empty()).then(|| text.to_owned());
        self.changes += 1;
        Ok(())
    }

    /// Ends the leases whose hold time is over.
    pub fn expire(&mut self, now_ms: u64) -> Vec<Lease> {
        let over = |e: &Entry| e.deadline_ms.is_some_and(|d| d <= now_ms);
        let ids: Vec<_> = self.entries.values().filter(|e| over(e)).collect();
        let ids: Vec<_> = ids.iter().map(|e| e.lease.device.id.clone()).collect();
        let mut expired: Vec<_> = ids.iter().filter_map(|id| self.remove(id)).collect();
        expired.extend(self.expire_absent(now_ms));
        expired.extend(self.expire_missing(now_ms));
        expired
    }

    /// When to call [`LeaseTable::expire`] next.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        let held = self.entries.values().filter_map(|e| e.deadline_ms);
        let missing = self.missing.iter().filter_map(Missing::deadline_ms);
        let absent = self.absent.iter().map(|a| a.deadline_ms);
        let absent = absent.chain(self.next_return_ms());
        held.chain(missing).chain(absent).min()
    }

    fn raise(&mut self) -> Epoch {
        self.epoch.0 += 1;
        self.changes += 1;
        self.epoch
    }

    /// The lease of `device` if `epoch` is its current one.
    fn current(&mut self, device: &DeviceId, epoch: Epoch) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(device)?;
        (entry.lease.epoch == epoch).then_some(entry)
    }

    /// Like [`LeaseTable::check`], and the lease.
    fn checked(
        &mut self,
        device: &DeviceId,
        vm: VmUuid,
        host: &str,
    ) -> Result<&mut Entry, Refusal> {
        self.check(device, vm, host)?;
        self.entries
            .get_mut(device)
            .ok_or_else(|| Refusal::NoLease {
                device: device.clone(),
                vm,
            })
    }

    fn check_lease(&self, lease: &Lease, host: &str) -> Result<(), Refusal> {
        self.check_policy(&lease.device, lease.vm, &lease.vm_name, host)
    }

    fn check_policy(
        &self,
        device: &DeviceInfo,
        vm: VmUuid,
        name: &str,
        host: &str,
    ) -> Result<(), Refusal> {
        match self.policy.allows(device, vm, name, host) {
            true => Ok(()),
            false => Err(policy_refusal(device, vm, host)),
        }
    }
}

fn policy_refusal(device: &DeviceInfo, vm: VmUuid, host: &str) -> Refusal {
    Refusal::Policy {
        device: device.id.clone(),
        vm,
        host: host.to_owned(),
    }
}

/// Whether `host` may end a lease; see [`LeaseTable::release`].
fn check_release(lease: &Lease, host: &str, force: bool) -> Result<(), Refusal> {
    let may = match lease.phase {
        LeasePhase::Serving | LeasePhase::Frozen => host == lease.holder.host,
        LeasePhase::Disconnected => force || host == lease.holder.host,
        LeasePhase::Orphaned | LeasePhase::Saved | LeasePhase::Absent => true,
    };
    match may {
        true => Ok(()),
        false => Err(held_elsewhere(lease, None)),
    }
}

/// `silent_ms`: for how long its holder has not been connected.
fn held_elsewhere(lease: &Lease, silent_ms: Option<u64>) -> Refusal {
    Refusal::HeldElsewhere {
        device: lease.device.id.clone(),
        vm: lease.vm,
        holder: lease.holder.clone(),
        epoch: lease.epoch,
        silent_seconds: silent_ms.map(|ms| ms / 1000),
    }
}

fn fenced(yours: Epoch, lease: &Lease) -> Refusal {
    Refusal::Fenced {
        yours,
        current: lease.epoch,
    }
}

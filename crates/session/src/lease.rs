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
//! over, or for the device to come back to its port ([`Acquire::returns`]).
//!
//! Times are milliseconds of any clock that does not go backwards.

mod absent;
mod policy;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use absent::Unplugged;
pub use policy::{Allow, Match, Policy};

use crate::control::{Acquire, Refusal};
use crate::frame::MAX_COOKIE_LEN;
use crate::open::Attempt;
use crate::{
    Configured, DeviceId, DeviceInfo, DeviceState, Digest, Epoch, Exchange, Holder, Lease,
    LeasePhase, OnMigrate, StashCounters, VmUuid,
};
use absent::Absent;

/// Longest name of a VM, in bytes.
pub const MAX_VM_NAME_LEN: usize = 256;
/// Longest note, in bytes.
pub const MAX_NOTE_LEN: usize = 1000;
/// More epochs than are given out between two saves. A claim is answered when it is saved, but
/// who asks for the lease meanwhile sees its epoch; after a crash that epoch must not be used for
/// another claim, nor be newer than the lease.
const UNSAVED_EPOCHS: u64 = 1 << 16;
/// Ports of a controller are 1 to this.
pub const MAX_PORT: u8 = 31;

/// What of the table survives a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// The last epoch given out.
    pub epoch: Epoch,
    /// All leases, one per device.
    pub leases: Vec<Lease>,
    /// Those whose device is not there.
    #[serde(default)]
    pub absent: Vec<Lease>,
}

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
    fn is(&self, holder: &Holder) -> bool {
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

/// How long a lease waits for its VM when the VM's domain is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HoldTimes {
    /// Where it was destroyed, rebooted or crashed, in milliseconds.
    pub gone_ms: u64,
    /// Where it was suspended first, as `xl save` does, in milliseconds; `None` for ever.
    pub saved_ms: Option<u64>,
}

/// The same for both, in milliseconds.
impl From<u64> for HoldTimes {
    fn from(hold_ms: u64) -> Self {
        Self {
            gone_ms: hold_ms,
            saved_ms: Some(hold_ms),
        }
    }
}

impl HoldTimes {
    fn deadline_ms(self, phase: LeasePhase, now_ms: u64) -> Option<u64> {
        let hold_ms = match phase {
            LeasePhase::Saved => self.saved_ms?,
            LeasePhase::Orphaned => self.gone_ms,
            _ => return None,
        };
        Some(now_ms.saturating_add(hold_ms))
    }
}

#[derive(Clone, Debug, Hash)]
struct Entry {
    lease: Lease,
    /// The guest is suspended, whatever happens to the connection.
    frozen: bool,
    /// The holder's last attempt to take it up.
    attempt: Attempt,
    /// When an orphan is released.
    deadline_ms: Option<u64>,
}

/// The table; see the module's documentation.
#[derive(Clone, Debug, Hash)]
pub struct LeaseTable {
    policy: Policy,
    hold: HoldTimes,
    epoch: Epoch,
    entries: BTreeMap<DeviceId, Entry>,
    absent: Vec<Absent>,
    changes: u64,
}

impl LeaseTable {
    /// A table without leases. An orphaned lease is released after its hold time.
    pub fn new(policy: Policy, hold: impl Into<HoldTimes>) -> Self {
        Self {
            policy,
            hold: hold.into(),
            epoch: Epoch::default(),
            entries: BTreeMap::new(),
            absent: Vec::new(),
            changes: 0,
        }
    }

    /// A table with the leases of before. Nobody is connected; the hold time of orphans starts anew.
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
                deadline_ms: table.hold.deadline_ms(lease.phase, now_ms),
                lease,
            };
            table.entries.insert(entry.lease.device.id.clone(), entry);
        }
        // Nothing was in flight for them.
        for lease in saved.absent {
            table.wait_for_device(lease, now_ms);
        }
        table
    }

    /// What to save.
    pub fn saved(&self) -> Saved {
        Saved {
            epoch: self.epoch,
            leases: self.held().cloned().collect(),
            absent: self.absent.iter().map(|a| a.lease.clone()).collect(),
        }
    }

    /// Counts the changes worth saving. As long as it stays the same, so does what is saved, but
    /// for the phases of connected holders, which mean nothing after a restart.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// The policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// All leases, at last those whose device is not there.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.held().chain(self.absent.iter().map(|a| &a.lease))
    }

    /// The leases of devices that are there.
    pub fn held(&self) -> impl Iterator<Item = &Lease> {
        self.entries.values().map(|e| &e.lease)
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

    /// Whether `host` may know of this lease.
    pub fn may_see_lease(&self, lease: &Lease, host: &str) -> bool {
        self.policy.allows(&lease.device, lease.vm, host)
    }

    fn with_state(&self, device: &DeviceInfo) -> DeviceInfo {
        let mut device = device.clone();
        if let Some(lease) = self.get(&device.id) {
            device.state = DeviceState::Leased {
                vm: lease.vm,
                vm_name: lease.vm_name.clone(),
            };
        }
        device
    }

    /// Lends one of `devices`, which are those that are plugged in. Asking again for what one has
    /// at the same port answers the same lease.
    pub fn acquire(
        &mut self,
        wanted: &Acquire,
        host: &str,
        devices: &[DeviceInfo],
    ) -> Result<Lease, Refusal> {
        check_limits(wanted)?;
        let mut matching = devices.iter().filter(|d| wanted.device.matches(d));
        let device = match (matching.next(), matching.count()) {
            (None, _) => return Err(Refusal::UnknownDevice(wanted.device.to_string())),
            (Some(device), 0) => device,
            (Some(_), others) => {
                return Err(Refusal::Ambiguous {
                    selector: wanted.device.to_string(),
                    count: others + 1,
                });
            }
        };
        self.check_policy(device, wanted.vm, host)?;
        if let Some(lease) = self.get(&device.id) {
            let same = lease.vm == wanted.vm
                && lease.controller == wanted.controller
                && lease.port == wanted.port;
            return match same {
                true => Ok(lease.clone()),
                false => Err(Refusal::Busy {
                    device: device.id.clone(),
                    vm: lease.vm,
                    vm_name: lease.vm_name.clone(),
                }),
            };
        }
        if let DeviceState::Unavailable { reason } = &device.state {
            return Err(Refusal::Unavailable {
                device: device.id.clone(),
                reason: reason.clone(),
            });
        }
        if wanted.exchange.is_some() && device.identity().is_none() {
            return Err(Refusal::Limit(format!(
                "device {} has no serial number, so it cannot be told from another like it; attach it \
                 with --on-exchange none",
                device.id
            )));
        }
        self.check_port(wanted)?;
        if wanted.returns.is_some() {
            self.absent
                .retain(|a| !a.lease.is_at(wanted.vm, wanted.controller, wanted.port));
        }
        Ok(self.lend(device, wanted, host))
    }

    fn lend(&mut self, device: &DeviceInfo, wanted: &Acquire, host: &str) -> Lease {
        let mut device = device.clone();
        device.state = DeviceState::Leased {
            vm: wanted.vm,
            vm_name: wanted.vm_name.clone(),
        };
        let lease = Lease {
            vm: wanted.vm,
            vm_name: wanted.vm_name.clone(),
            controller: wanted.controller,
            port: wanted.port,
            epoch: self.raise(),
            holder: Holder {
                host: host.to_owned(),
                domid: wanted.domid,
            },
            phase: LeasePhase::Disconnected,
            on_migrate: wanted
                .on_migrate
                .unwrap_or_else(|| OnMigrate::default_for(&device)),
            frontend_resumes: wanted.returns.as_ref().is_some_and(|r| r.frontend_resumes),
            cookie: wanted
                .returns
                .as_ref()
                .map_or_else(Vec::new, |r| r.cookie.clone()),
            note: None,
            stash: StashCounters::default(),
            exchange: wanted.exchange,
            descriptors: None,
            configured: wanted
                .returns
                .as_ref()
                .map_or_else(Configured::default, |r| r.configured.clone()),
            device,
        };
        let entry = Entry {
            lease: lease.clone(),
            frozen: false,
            attempt: Attempt::default(),
            deadline_ms: None,
        };
        self.entries.insert(lease.device.id.clone(), entry);
        lease
    }

    /// Whether `vm` holds `device` and `host` may use it.
    pub fn check(&self, device: &DeviceId, vm: VmUuid, host: &str) -> Result<(), Refusal> {
        let lease = self.get(device).filter(|l| l.vm == vm);
        match lease {
            Some(lease) => self.check_policy(&lease.device, vm, host),
            None => Err(Refusal::NoLease {
                device: device.clone(),
                vm,
            }),
        }
    }

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

    /// Gives a device back.
    pub fn release(
        &mut self,
        device: &DeviceId,
        vm: VmUuid,
        host: &str,
        epoch: Epoch,
    ) -> Result<Lease, Refusal> {
        if let Some(lease) = self.release_absent(device, vm, host, epoch)? {
            return Ok(lease);
        }
        let lease = &self.checked(device, vm, host)?.lease;
        if epoch != lease.epoch {
            return Err(fenced(epoch, lease));
        }
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

    /// The guest has set this at its device. Worth saving where the lease follows its device.
    pub fn set_configured(&mut self, device: &DeviceId, epoch: Epoch, configured: Configured) {
        if let Some(entry) = self.current(device, epoch) {
            let follows = entry.lease.exchange.is_some();
            entry.lease.configured = configured;
            self.changes += u64::from(follows);
        }
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
        expired
    }

    /// When to call [`LeaseTable::expire`] next.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        let held = self.entries.values().filter_map(|e| e.deadline_ms);
        held.chain(self.absent.iter().map(|a| a.deadline_ms)).min()
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

    fn check_policy(&self, device: &DeviceInfo, vm: VmUuid, host: &str) -> Result<(), Refusal> {
        match self.policy.allows(device, vm, host) {
            true => Ok(()),
            false => Err(policy_refusal(device, vm, host)),
        }
    }

    fn check_port(&self, wanted: &Acquire) -> Result<(), Refusal> {
        let at = |l: &&Lease| l.is_at(wanted.vm, wanted.controller, wanted.port);
        let mut taken = self.leases().filter(at);
        match taken.find(|l| l.phase != LeasePhase::Absent || wanted.returns.is_none()) {
            None => Ok(()),
            Some(lease) if lease.phase == LeasePhase::Absent => Err(Refusal::Limit(format!(
                "port {} of controller {} waits for device {}, which was pulled out; choose another \
                 with --port, or detach it first",
                lease.port, lease.controller, lease.device.id
            ))),
            Some(lease) => Err(Refusal::Limit(format!(
                "port {} of controller {} has device {} already; choose another with --port",
                lease.port, lease.controller, lease.device.id
            ))),
        }
    }
}

fn check_limits(wanted: &Acquire) -> Result<(), Refusal> {
    if !(1..=MAX_PORT).contains(&wanted.port) {
        let message = format!(
            "there is no port {}; ports are 1 to {MAX_PORT}",
            wanted.port
        );
        return Err(Refusal::Limit(message));
    }
    if wanted.vm_name.len() > MAX_VM_NAME_LEN {
        let message = format!("the name of a VM has at most {MAX_VM_NAME_LEN} bytes");
        return Err(Refusal::Limit(message));
    }
    if let Some(exchange) = wanted.exchange
        && !(1..=Exchange::MAX_SECONDS).contains(&exchange.seconds)
    {
        let message = format!(
            "an attachment waits for its device for 1 to {} seconds, not {}",
            Exchange::MAX_SECONDS,
            exchange.seconds
        );
        return Err(Refusal::Limit(message));
    }
    let cookie = wanted.returns.as_ref().map_or(0, |r| r.cookie.len());
    if cookie > MAX_COOKIE_LEN {
        let message = format!("a cookie has at most {MAX_COOKIE_LEN} bytes");
        return Err(Refusal::Limit(message));
    }
    Ok(())
}

fn policy_refusal(device: &DeviceInfo, vm: VmUuid, host: &str) -> Refusal {
    Refusal::Policy {
        device: device.id.clone(),
        vm,
        host: host.to_owned(),
    }
}

fn fenced(yours: Epoch, lease: &Lease) -> Refusal {
    Refusal::Fenced {
        yours,
        current: lease.epoch,
    }
}

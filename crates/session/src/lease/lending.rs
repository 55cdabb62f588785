// SPDX-License-Identifier: GPL-3.0-or-later
//! A device is lent: to whom, to which port, on which terms.

use super::absent::Absent;
use super::{Entry, LeaseTable, held_elsewhere};
use crate::control::{Acquire, Refusal};
use crate::frame::MAX_COOKIE_LEN;
use crate::open::Attempt;
use crate::{
    Configured, DeviceId, DeviceInfo, DeviceSelector, DeviceState, Epoch, Exchange, Holder, Lease,
    LeasePhase, OnExchange, OnMigrate, StashCounters, VmUuid,
};

/// Longest name of a VM, in bytes.
pub const MAX_VM_NAME_LEN: usize = 256;
/// Ports of a controller are 1 to this.
pub const MAX_PORT: u8 = 31;

impl LeaseTable {
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
        self.check_policy(device, wanted.vm, &wanted.vm_name, host)?;
        if let Some(lease) = self.get(&device.id) {
            let same = lease.vm == wanted.vm
                && lease.controller == wanted.controller
                && lease.port == wanted.port;
            let asks = (host, wanted.domid);
            let is_holder = asks == (lease.holder.host.as_str(), lease.holder.domid);
            return match same {
                // The attachment of a VM that runs is not that of a copy with its uuid.
                true if !is_holder && !lease.phase.is_orphaned() && wanted.returns.is_none() => {
                    Err(held_elsewhere(lease, None))
                }
                true => Ok(lease.clone()),
                false => Err(Refusal::Busy {
                    device: device.id.clone(),
                    vm: lease.vm,
                    vm_name: lease.vm_name.clone(),
                }),
            };
        }
        if let Some(lease) = self.reserved(device)
            && !lease.is_at(wanted.vm, wanted.controller, wanted.port)
        {
            return Err(Refusal::Busy {
                device: device.id.clone(),
                vm: lease.vm,
                vm_name: lease.vm_name.clone(),
            });
        }
        if let DeviceState::Unavailable { reason } = &device.state {
            return Err(Refusal::Unavailable {
                device: device.id.clone(),
                reason: reason.clone(),
            });
        }
        let pauses = wanted.exchange.is_some_and(|e| e.on == OnExchange::Pause);
        if pauses && device.identity().is_none() {
            return Err(Refusal::Limit(format!(
                "device {} has no serial number, so it cannot be told from another like it, and a guest must \
                 not go on with another; attach it with --on-exchange replug",
                device.id
            )));
        }
        self.check_return(wanted, device)?;
        if self.is_missing(&device.id, wanted.vm) {
            // Whoever claims names the device and the VM: it must not get the one lease for the other.
            return Err(Refusal::Limit(format!(
                "the VM waits for the device that was at {} when the exporter was started; detach that first",
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

    /// The lease that was acquired over this control connection ends with it, unless it is claimed or
    /// confirmed.
    pub fn until_confirmed(&mut self, device: &DeviceId, epoch: Epoch, connection: u64) {
        if let Some(entry) = self.current(device, epoch) {
            entry.acquired_by = Some(connection);
        }
    }

    /// Whether the lease still ends with the connection that acquired it.
    pub fn is_unconfirmed(&self, device: &DeviceId) -> bool {
        let entry = self.entries.get(device);
        entry.is_some_and(|e| e.acquired_by.is_some())
    }

    /// `host` goes on with what it acquired for `vm`.
    pub fn confirm(&mut self, device: &DeviceId, vm: VmUuid, host: &str) -> Result<(), Refusal> {
        let entry = self.checked(device, vm, host)?;
        if entry.acquired_by.take().is_some() {
            self.changes += 1;
        }
        Ok(())
    }

    /// A control connection has ended: the leases that end with it.
    pub fn unconfirmed(&mut self, connection: u64) -> Vec<Lease> {
        let its = |e: &&Entry| e.acquired_by == Some(connection);
        let its: Vec<_> = self.entries.values().filter(its).collect();
        let its: Vec<_> = its.iter().map(|e| e.lease.device.id.clone()).collect();
        its.iter()
            .filter_map(|device| self.remove(device))
            .collect()
    }

    pub(super) fn lend(&mut self, device: &DeviceInfo, wanted: &Acquire, host: &str) -> Lease {
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
            own_controller: wanted.own_controller,
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
            persistence: wanted.persistence,
            silent_seconds: None,
            device,
        };
        let entry = Entry {
            lease: lease.clone(),
            frozen: false,
            attempt: Attempt::default(),
            deadline_ms: None,
            silent_since_ms: None,
            disputed_ms: None,
            undecided: Vec::new(),
            copies: Vec::new(),
            acquired_by: None,
            claimed: false,
        };
        self.entries.insert(lease.device.id.clone(), entry);
        lease
    }

    /// What comes back by its place must be what was there, unless the attachment is one of the place.
    fn check_return(&self, wanted: &Acquire, device: &DeviceInfo) -> Result<(), Refusal> {
        if wanted.returns.is_none() || !matches!(wanted.device, DeviceSelector::Place(_)) {
            return Ok(());
        }
        let comes_back = |absent: &Absent| {
            let lease = &absent.lease;
            lease.is_at(wanted.vm, wanted.controller, wanted.port)
                && lease.device.id == device.id
                && (lease.device.is_same(device) || lease.exchange.is_some_and(|e| e.at_place))
        };
        match self.absent.iter().any(comes_back) {
            true => Ok(()),
            false => Err(Refusal::NoLease {
                device: device.id.clone(),
                vm: wanted.vm,
            }),
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
    if let Some(controller) = wanted.own_controller
        && !controller.is_valid(wanted.controller)
    {
        let message = format!(
            "vusbd makes no controller {} of {controller:?}",
            wanted.controller
        );
        return Err(Refusal::Limit(message));
    }
    if wanted.persistence.is_persistent() && wanted.exchange.is_none() {
        return Err(Refusal::Limit(
            "a persistent attachment waits for its device; attach it with --on-exchange replug or pause"
                .to_owned(),
        ));
    }
    let cookie = wanted.returns.as_ref().map_or(0, |r| r.cookie.len());
    if cookie > MAX_COOKIE_LEN {
        let message = format!("a cookie has at most {MAX_COOKIE_LEN} bytes");
        return Err(Refusal::Limit(message));
    }
    Ok(())
}

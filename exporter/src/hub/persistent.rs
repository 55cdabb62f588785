// SPDX-License-Identifier: GPL-3.0-or-later
//! Devices of VMs that are off: reserved, and kept open, so that this machine does not use them.

use session::control::{Event, Returns};
use session::{Configured, DeviceId, VmUuid};
use slog::{info, warn};

use super::Hub;

impl Hub {
    /// A host says that a domain of its own is gone.
    pub(super) fn domain_ended(&self, vm: VmUuid, host: &str, domid: u16) {
        let now_ms = self.now_ms();
        let changed = self
            .table
            .borrow_mut()
            .domain_ended(vm, host, domid, now_ms);
        for device in &changed {
            self.taken_back(device);
        }
        self.unsaved.notify_one();
    }

    /// What no host has fetched is a VM's that is off.
    pub(super) fn take_unfetched(&self) {
        let taken = self.table.borrow_mut().take_unfetched(self.now_ms());
        for device in &taken {
            self.taken_back(device);
        }
    }

    /// The lease of a VM that is off has this device now, under an epoch of its own.
    pub(super) fn taken_back(&self, device: &DeviceId) {
        let lease = self.table.borrow().get(device).cloned();
        let Some(lease) = lease else { return };
        if let Some(session) = self.session(device) {
            let mut session = session.borrow_mut();
            // One that was attached and never claimed has its session already.
            if session.server.epoch() != lease.epoch {
                session.lend(lease.epoch);
            }
        }
        info!(self.log, "reserved for a VM that is off"; "device" => %device, "vm" => %lease.vm,
            "name" => &lease.vm_name);
        self.lease_changed(device);
        self.subscribers.publish(&Event::Devices, |_| true);
        self.reserve(device);
    }

    /// Has the device of a VM that is off opened, soon.
    pub(super) fn reserve(&self, device: &DeviceId) {
        self.to_reserve.borrow_mut().insert(device.clone());
        self.reserves.notify_one();
    }

    /// Opens the devices of VMs that are off. Never ends.
    pub(crate) async fn open_reserved(&self) {
        loop {
            self.reserves.notified().await;
            loop {
                let device = self.to_reserve.borrow_mut().pop_first();
                let Some(device) = device else { break };
                self.open_one(&device).await;
            }
        }
    }

    async fn open_one(&self, device: &DeviceId) {
        let lease = self.table.borrow().get(device).cloned();
        let is_off = |l: &session::Lease| l.persistence.is_persistent() && l.phase.is_orphaned();
        let Some(lease) = lease.filter(is_off) else {
            return;
        };
        let Some(session) = self.session(device) else {
            return;
        };
        // A saved guest goes on with what it has set; for any other the device is as if plugged in now.
        let anew = (lease.configured == Configured::default()).then(Returns::default);
        if let Err(reason) = self.prepare(&session, anew.as_ref()).await {
            warn!(self.log, "the device of a VM that is off cannot be opened now, so this machine may \
                use it; it is tried again when the VM starts: {}", reason; "device" => %device, "vm" => %lease.vm);
        }
        self.note_descriptors_if_unknown(device);
        self.take_back_unlent(device);
    }

    /// A lease that was given its device without being asked for knows no descriptors yet.
    pub(super) fn note_descriptors_if_unknown(&self, device: &DeviceId) {
        let Some(session) = self.session(device) else {
            return;
        };
        let descriptors = session.borrow().executor.descriptors();
        let mut table = self.table.borrow_mut();
        let lease = table.get(device).filter(|l| l.descriptors.is_none());
        if let (Some(epoch), true) = (lease.map(|l| l.epoch), descriptors.is_some()) {
            table.set_descriptors(device, epoch, descriptors);
        }
    }
}

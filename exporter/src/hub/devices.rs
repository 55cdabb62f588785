// SPDX-License-Identifier: GPL-3.0-or-later
//! Devices are plugged in, made ready, and pulled out.

use std::cell::RefCell;
use std::rc::Rc;

use session::control::{Event, Returns};
use session::lease::Unplugged;
use session::{DeviceId, DeviceInfo, Lease};
use slog::{info, warn};

use super::{Hub, SharedSession};
use crate::executor::Executor;
use crate::session_state::Session;

impl Hub {
    /// A device was plugged in.
    pub(crate) fn add_device(&self, executor: Executor) {
        let info = executor.info().clone();
        info!(
            self.log,
            "device {}: {:04x}:{:04x} {}", info.id, info.vendor, info.product, info.name
        );
        let mut session = Session::new(executor);
        let mut table = self.table.borrow_mut();
        let before = table.changes();
        // A lease of before a restart; the device may come late. Or one of a VM that is off.
        let lease = table.plugged(&info, self.now_ms()).cloned();
        let is_back = table.changes() != before;
        drop(table);
        let mut is_off = false;
        if let Some(lease) = lease {
            is_off = lease.persistence.is_persistent() && lease.phase.is_orphaned();
            info!(self.log, "its lease goes on"; "device" => %info.id, "vm" => %lease.vm);
            session.lend(lease.epoch);
            session.server.set_configured(lease.configured.clone());
            session.executor.restore(&lease.configured);
        }
        let session = Rc::new(RefCell::new(session));
        let device = info.id;
        self.devices.borrow_mut().insert(device.clone(), session);
        self.deadlines.notify_one();
        match is_off {
            true if is_back => self.taken_back(&device),
            true => self.reserve(&device),
            false => (),
        }
        self.subscribers.publish(&Event::Devices, |_| true);
        self.rules_due.notify_one();
    }

    /// A device was unplugged.
    pub(crate) fn remove_device(&self, device: &DeviceId) {
        info!(self.log, "device {device} was unplugged");
        let session = self.session(device);
        let mut table = self.table.borrow_mut();
        if let Some(session) = &session {
            let mut session = session.borrow_mut();
            let Session {
                server, executor, ..
            } = &mut *session;
            // What is over by now is over.
            executor.drain(server);
            table.set_configured(device, server.epoch(), server.configured());
        }
        let left = table.unplugged(device, self.now_ms());
        drop(table);
        match left {
            Some(Unplugged::Ended(lease)) => {
                self.ended(&lease, "it was unplugged from the exporter");
            }
            Some(Unplugged::Waits(lease)) => {
                info!(self.log, "its lease waits for it"; "device" => %device, "vm" => %lease.vm,
                    "seconds" => lease.exchange.map_or(0, |e| e.seconds));
                if let Some(session) = session {
                    session.borrow_mut().end();
                }
                self.deadlines.notify_one();
                let event = Event::Lease(lease.clone());
                self.subscribers.publish(&event, |host| {
                    self.table.borrow().may_see_lease(&lease, host)
                });
            }
            None => (),
        }
        self.devices.borrow_mut().remove(device);
        self.subscribers.publish(&Event::Devices, |_| true);
        self.unsaved.notify_one();
    }

    /// Lets the restored leases of devices that are not there wait for them.
    pub(crate) fn wait_for_missing(&self) {
        let present = |l: &&Lease| self.devices.borrow().contains_key(&l.device.id);
        let missing: Vec<_> = {
            let table = self.table.borrow();
            let missing = table.held().filter(|l| !present(l));
            missing.map(|l| l.device.id.clone()).collect()
        };
        for device in missing {
            let left = self.table.borrow_mut().missing(&device, self.now_ms());
            if let Some(Unplugged::Waits(lease)) = left {
                warn!(self.log, "the device of a lease is not there; the lease waits for it";
                    "device" => %device, "vm" => %lease.vm);
            }
        }
    }

    /// Every device that is plugged in.
    pub(super) fn device_infos(&self) -> Vec<DeviceInfo> {
        let devices = self.devices.borrow();
        let infos = devices.values().map(|s| s.borrow().executor.info().clone());
        infos.collect()
    }

    /// The session of a device that is plugged in.
    pub(crate) fn session(&self, device: &DeviceId) -> Option<SharedSession> {
        self.devices.borrow().get(device).cloned()
    }

    /// Makes a device ready for its holder. Answers the reason where it cannot be.
    pub(super) async fn prepare(
        &self,
        session: &SharedSession,
        begin: Option<&Returns>,
    ) -> Result<(), String> {
        let opening = session.borrow().opening.clone();
        let _only_one = opening.lock().await;
        let start = session.borrow_mut().executor.start_opening(begin)?;
        if let Some(opening) = start {
            let mut open = opening.await?;
            if let Some(note) = open.take_note() {
                warn!(
                    self.log,
                    "device {}: {}",
                    session.borrow().executor.info().id,
                    note
                );
            }
            session.borrow_mut().executor.opened(open);
        }
        Ok(())
    }

    /// Opening takes time. If the lease ended meanwhile, the device is to be closed again.
    pub(super) fn take_back_unlent(&self, device: &DeviceId) {
        if self.table.borrow().get(device).is_none()
            && let Some(session) = self.session(device)
        {
            session.borrow_mut().executor.release();
        }
    }
}

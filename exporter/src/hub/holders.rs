// SPDX-License-Identifier: GPL-3.0-or-later
//! What comes over device connections: the holder, or who wants to be it, and its guest's news.

use std::rc::Rc;
use std::time::Instant;

use session::control::Refusal;
use session::lease::{Change, Claimant};
use session::open::{How, Open, Opened};
use session::{Configured, DeviceId, Epoch};
use slog::{info, warn};

use super::{Hub, SharedSession};
use crate::session_state::{Connection, forget_later, mind};

impl Hub {
    /// Opens a device connection: the answer, and what to go on with.
    pub(crate) async fn open(
        &self,
        open: &Open,
        host: &str,
    ) -> Result<(Opened, SharedSession, Rc<Connection>), Refusal> {
        let claimant = Claimant {
            host,
            domid: open.domid,
            attempt: open.attempt,
            vm: open.vm,
            evidence: open.evidence,
            now_ms: self.now_ms(),
        };
        let device = &open.device;
        let no_lease = || Refusal::NoLease {
            device: device.clone(),
            vm: open.vm,
        };
        {
            let table = self.table.borrow();
            let held = table.get(device).is_some_and(|l| l.vm == open.vm);
            if !held && table.is_absent(device, open.vm) {
                let device = device.clone();
                return Err(Refusal::Absent { device });
            }
        }
        self.table.borrow_mut().heard(device, &claimant);
        {
            let table = self.table.borrow();
            table.check_missing(device, open.vm, host, self.now_ms())?;
            table.check(device, open.vm, host)?;
        }
        let session = self.session(device).ok_or_else(no_lease)?;
        // It is open, unless we were started again. Its guest goes on where it was: no reset.
        let prepared = self.prepare(&session, None).await;
        self.note_descriptors_if_unknown(device);
        self.take_back_unlent(device);
        // A driver that binds, udev that has not set the group yet, a device that is slow: all of them
        // pass, and a guest would lose a mounted disk.
        prepared.map_err(|reason| Refusal::NotReady {
            device: device.clone(),
            reason,
            seconds: 0,
        })?;
        let (requests_received, connection) = match open.how {
            How::Claim { seen } => {
                let resumes = open.frontend_resumes;
                let claimed = self
                    .table
                    .borrow_mut()
                    .claim(device, &claimant, resumes, seen);
                let epoch = claimed?;
                let connection = session.borrow_mut().claim(epoch);
                forget_later(&session);
                info!(self.log_of(host), "claimed"; "device" => %device, "vm" => %open.vm, "host" => host,
                    "domid" => open.domid, "epoch" => epoch.0);
                (0, connection)
            }
            How::Resume {
                epoch,
                completions_received,
            } => {
                let resumes = open.frontend_resumes;
                let mut table = self.table.borrow_mut();
                table.resume(device, &claimant, resumes, epoch)?;
                match session.borrow_mut().resume(completions_received) {
                    Ok(resumed) => {
                        info!(self.log_of(host), "resumed"; "device" => %device, "vm" => %open.vm,
                            "host" => host, "epoch" => epoch.0);
                        resumed
                    }
                    Err(e) => {
                        table.apply(device, epoch, Change::Disconnect, self.now_ms());
                        warn!(self.log_of(host), "a session cannot go on, it must be claimed: {}", e;
                            "device" => %device, "host" => host, "epoch" => epoch.0);
                        // With these numbers it never will. To whoever claims, nothing was in flight.
                        return Err(Refusal::Fenced {
                            yours: epoch,
                            current: epoch,
                        });
                    }
                }
            }
        };
        self.lease_changed(device);
        session.borrow_mut().executor.set_host(host);
        let opened = {
            let table = self.table.borrow();
            let lease = table.get(device).ok_or_else(no_lease)?;
            Opened::Ready {
                epoch: lease.epoch,
                requests_received,
            }
        };
        if let Err(refusal) = self.save().await {
            let epoch = session.borrow().server.epoch();
            self.disconnected(device, epoch, &session, &connection);
            return Err(refusal);
        }
        Ok((opened, session, connection))
    }

    /// A device connection of `epoch` ended.
    pub(crate) fn disconnected(
        &self,
        device: &DeviceId,
        epoch: Epoch,
        session: &SharedSession,
        connection: &Rc<Connection>,
    ) {
        let was_current = session.borrow_mut().disconnected(connection);
        if was_current {
            mind(session);
            self.apply(device, epoch, Change::Disconnect);
        }
    }

    /// News from a device connection of `epoch`.
    pub(crate) fn apply(&self, device: &DeviceId, epoch: Epoch, change: Change) {
        let now_ms = self.now_ms();
        if self.table.borrow_mut().apply(device, epoch, change, now_ms) {
            self.deadlines.notify_one();
            self.lease_changed(device);
        }
    }

    pub(crate) fn save_cookie(&self, device: &DeviceId, epoch: Epoch, cookie: &[u8]) {
        if self.table.borrow_mut().save_cookie(device, epoch, cookie) {
            self.lease_changed(device);
        }
    }

    /// The guest has set this at its device. Subscribers are not told, and it is not saved each time: a
    /// guest does it as often as it likes.
    pub(crate) fn set_configured(&self, device: &DeviceId, epoch: Epoch, configured: &Configured) {
        let mut table = self.table.borrow_mut();
        if table.set_configured(device, epoch, configured)
            && self
                .settings
                .borrow_mut()
                .changed(device, Instant::now())
                .is_some()
        {
            self.unsaved.notify_one();
        }
    }

    pub(crate) fn set_frontend_resumes(&self, device: &DeviceId, epoch: Epoch, resumes: bool) {
        let changed = self
            .table
            .borrow_mut()
            .set_frontend_resumes(device, epoch, resumes);
        if changed {
            self.lease_changed(device);
        }
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! What a host asks for over its control connection.

use session::control::{Acquire, Event, Refusal, Reply, Request, Returns};
use session::{DeviceId, Epoch, Lease, LeasePhase, VmUuid};
use slog::info;

use super::{Hub, SharedSession};
use crate::control::Peer;

/// For a log only: who asked does not hear it.
fn gone() -> Refusal {
    Refusal::Limit("it was released, or who asked for it is not connected any more".to_owned())
}

impl Hub {
    /// Answers `host`.
    pub(crate) async fn answer(&self, request: Request, from: &Peer) -> Reply {
        let host = &*from.host;
        let result = match request {
            Request::Devices => {
                let devices = self.devices_now().await;
                Ok(Reply::Devices(
                    self.table.borrow().visible_devices(&devices, host),
                ))
            }
            Request::Leases { vm } => {
                let leases = self.leases(vm, host);
                // What is not there any more must not come back with us after a crash: the guest of who asks
                // sees its device go. A disk that fails keeps nobody from moving.
                let _ = self.save().await;
                Ok(leases)
            }
            Request::Acquire(acquire) => self.acquire(&acquire, from).await,
            Request::Confirm { device, vm } => {
                let confirmed = self.table.borrow_mut().confirm(&device, vm, host);
                match confirmed {
                    Ok(()) => self.save().await.map(|()| Reply::Done),
                    Err(refusal) => Err(refusal),
                }
            }
            Request::Release {
                device,
                vm,
                epoch,
                force,
            } => self.release(&device, vm, host, epoch, force).await,
            Request::Expect { vm, domid, name } => {
                self.runs(from, vm, domid, name).await;
                // What a rule has lent must not be forgotten by a crash, once its guest knows of it.
                let _ = self.save().await;
                Ok(self.leases(Some(vm), host))
            }
            Request::Ended { vm, domid } => {
                self.runs_no_more(host, vm, domid);
                self.domain_ended(vm, host, domid);
                self.save().await.map(|()| Reply::Done)
            }
            // The connection does it.
            Request::Arriving { .. } => Ok(Reply::Done),
            Request::Note { device, vm, text } => {
                let noted = self.table.borrow_mut().note(&device, vm, host, &text);
                match noted {
                    Ok(()) => {
                        self.lease_changed(&device);
                        self.save().await.map(|()| Reply::Done)
                    }
                    Err(refusal) => Err(refusal),
                }
            }
            // The connection does it.
            Request::Subscribe => Ok(Reply::Done),
            Request::Introduce(software) => self.introduced(host, software).map(|()| Reply::Done),
            Request::Hosts { vm } => Ok(Reply::Hosts(self.known_hosts(vm, host))),
            Request::ForgetHost { host: other } => {
                let forgotten = self.forget_host(&other);
                if forgotten.is_ok() {
                    info!(from.log, "host forgotten"; "forgotten" => other, "by" => host);
                }
                forgotten.map(|()| Reply::Done)
            }
        };
        result.unwrap_or_else(|refusal| {
            info!(from.log, "refused"; "host" => host, "reason" => %refusal);
            Reply::Refused(refusal)
        })
    }

    fn leases(&self, vm: Option<VmUuid>, host: &str) -> Reply {
        let mut leases = self.table.borrow().visible_leases(vm, host);
        for lease in &mut leases {
            lease.silent_seconds = self
                .table
                .borrow()
                .silent_seconds(&lease.device.id, self.now_ms());
            if lease.phase != LeasePhase::Absent
                && let Some(session) = self.session(&lease.device.id)
            {
                lease.stash = session.borrow().server.stash_counters();
            }
        }
        Reply::Leases(leases)
    }

    async fn acquire(&self, wanted: &Acquire, from: &Peer) -> Result<Reply, Refusal> {
        let host = &*from.host;
        let devices = self.devices_now().await;
        if from.is_gone.get() {
            return Err(gone());
        }
        let before = self.table.borrow().changes();
        let lease = self.table.borrow_mut().acquire(wanted, host, &devices)?;
        let device = &lease.device.id;
        let is_new = self.table.borrow().changes() != before;
        // Its port waits for a device that returns; for any other only who asked does.
        if wanted.returns.is_none() && (is_new || self.table.borrow().is_unconfirmed(device)) {
            let mut table = self.table.borrow_mut();
            table.until_confirmed(device, lease.epoch, from.connection);
        }
        if !is_new {
            return Ok(Reply::Lease(Box::new(lease)));
        }
        if let Err(refusal) = self.hand_over(&lease, host, wanted.returns.as_ref()).await {
            // Unless it was released meanwhile, and perhaps lent again.
            let mut table = self.table.borrow_mut();
            if table.get(device).is_some_and(|l| l.epoch == lease.epoch) {
                table.remove(device);
            }
            drop(table);
            self.take_back_unlent(device);
            self.unsaved.notify_one();
            return Err(refusal);
        }
        let now = self.table.borrow().get(device).cloned();
        let Some(now) = now.filter(|l| l.vm == lease.vm) else {
            return Err(gone());
        };
        info!(from.log, "lent"; "device" => %device, "vm" => %lease.vm, "host" => host,
            "epoch" => lease.epoch.0);
        self.lease_changed(device);
        self.subscribers.publish(&Event::Devices, |_| true);
        Ok(Reply::Lease(Box::new(now)))
    }

    /// Makes the device of a new lease ready, and the lease permanent.
    async fn hand_over(
        &self,
        lease: &Lease,
        host: &str,
        returns: Option<&Returns>,
    ) -> Result<(), Refusal> {
        let device = &lease.device.id;
        let unavailable = |reason| Refusal::Unavailable {
            device: device.clone(),
            reason,
        };
        let unplugged = || unavailable("it was unplugged".to_owned());
        let session = self.session(device).ok_or_else(unplugged)?;
        session.borrow_mut().lend(lease.epoch);
        session.borrow_mut().executor.set_host(host);
        let anew = Returns::default();
        let begin = returns.unwrap_or(&anew);
        self.prepare(&session, Some(begin))
            .await
            .map_err(unavailable)?;
        self.note_descriptors(lease, &session, begin);
        self.take_back_unlent(device);
        self.save().await
    }

    /// What the device of a new lease turned out to be: what its guest knows, or something new.
    fn note_descriptors(&self, lease: &Lease, session: &SharedSession, begin: &Returns) {
        let device = &lease.device.id;
        let mut session = session.borrow_mut();
        let descriptors = session.executor.descriptors();
        let mut table = self.table.borrow_mut();
        table.set_descriptors(device, lease.epoch, descriptors);
        match descriptors.is_some() && begin.descriptors == descriptors {
            true => session.server.set_configured(begin.configured.clone()),
            false => table.begin_anew(device, lease.epoch),
        }
    }

    async fn release(
        &self,
        device: &DeviceId,
        vm: VmUuid,
        host: &str,
        epoch: Epoch,
        force: bool,
    ) -> Result<Reply, Refusal> {
        let lease = self
            .table
            .borrow_mut()
            .release(device, vm, host, epoch, force)?;
        let how = if force { "taken away" } else { "released" };
        self.ended(&lease, &format!("{how} by {host}"));
        self.save().await?;
        Ok(Reply::Done)
    }
}

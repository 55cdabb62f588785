// SPDX-License-Identifier: GPL-3.0-or-later
//! A device is detached, or taken away from a VM that is gone.

use control::{Attachment, Response};
use session::control::{Reply, Request as Ask};
use session::{DeviceSelector, Epoch, Lease, LeasePhase};
use slog::info;
use tokio::sync::oneshot;
use tokio::time::timeout;
use usbif::PortNumber;

use super::{Admin, Refused, duration, stuck};
use crate::controller::{ANSWERS_WITHIN, Command, Detached};

impl Admin {
    /// Unplugs what is at a port, and gives it back; or ends the lease where the VM is off.
    pub(super) async fn detach(
        &self,
        domain: &str,
        controller: Option<u16>,
        port: u8,
    ) -> Result<Attachment, Refused> {
        match self.detach_here(domain, controller, port).await {
            Ok(attachment) => Ok(attachment),
            Err(e) => match self.detach_off(domain, controller, port).await {
                Some(result) => result,
                None => Err(e),
            },
        }
    }

    async fn detach_here(
        &self,
        domain: &str,
        controller: Option<u16>,
        port: u8,
    ) -> Result<Attachment, Refused> {
        let domain = self.domain(domain).await?;
        let controllers = self.controllers.find(&domain, controller)?;
        if controllers.len() > 1 {
            return Err(format!(
                "domain {} has several PV USB controllers; say which with --controller",
                domain.name
            ));
        }
        let nothing = || {
            format!(
                "nothing is attached at port {port} of domain {}",
                domain.name
            )
        };
        let (key, entry) = controllers.into_iter().next().ok_or_else(nothing)?;
        if entry.handle.describe().await.is_none() && entry.handle.is_running() {
            return Err(stuck(key, &domain.name));
        }
        let attachments = self.attachments_of(key, &entry).await;
        let attachment = attachments
            .into_iter()
            .find(|a| a.port == port)
            .ok_or_else(nothing)?;
        let (answer, detached) = oneshot::channel();
        let number = PortNumber::new(port).ok_or_else(nothing)?;
        entry.handle.tell(Command::Detach(number, answer));
        let Detached {
            exporter,
            lease,
            elsewhere,
        } = match timeout(ANSWERS_WITHIN, detached).await {
            Ok(Ok(Some(detached))) => detached,
            Ok(_) => return Err(nothing()),
            Err(_) => return Err(stuck(key, &domain.name)),
        };
        info!(self.log, "device detached"; "controller" => %key, "port" => port);
        if elsewhere {
            return Ok(attachment);
        }
        let released = self.exporters.release(&exporter, &lease).await;
        released.map_err(|e| {
            format!(
                "the guest no longer has the device, but it was not given back: {e}. If `xl-vusb list` shows \
                 it again when its exporter answers, detach it again"
            )
        })?;
        Ok(attachment)
    }

    /// Ends the lease of a VM that is gone. One that runs somewhere keeps its device. Whether it does is not
    /// known of one whose host is not connected: its lease ends only where `force` is its epoch.
    pub(super) async fn take_away(
        &self,
        exporter: &str,
        device: &DeviceSelector,
        force: Option<Epoch>,
    ) -> Result<Response, Refused> {
        let lender = self.exporters.find(exporter)?;
        let reply = lender.ask(Ask::Leases { vm: None }).await;
        let Reply::Leases(leases) = reply.map_err(|e| e.to_string())? else {
            return Err(lender.nonsense().to_string());
        };
        let mut found = leases.into_iter().filter(|l| device.matches(&l.device));
        let lease = match (found.next(), found.next()) {
            (None, _) => return Err(format!("nobody holds {exporter}/{device}")),
            (Some(lease), None) => lease,
            (Some(_), Some(_)) => {
                return Err(format!(
                    "several devices are {exporter}/{device}; name one by its place, as `xl-vusb \
                     devices` shows it"
                ));
            }
        };
        let by_force = match lease.phase {
            LeasePhase::Orphaned | LeasePhase::Saved => false,
            LeasePhase::Disconnected => match force {
                Some(epoch) if epoch == lease.epoch => true,
                _ => return Err(is_silent(exporter, &lease, force)),
            },
            _ => {
                return Err(format!(
                    "{exporter}/{} is held by {} for VM {}, which is not gone; `xl-vusb detach {} {}` \
                     there",
                    lease.device.id, lease.holder, lease.vm_name, lease.vm_name, lease.port
                ));
            }
        };
        self.exporters.end_lease(exporter, &lease, by_force).await?;
        info!(self.log, "device taken away from a VM that is gone"; "vm" => &lease.vm_name,
            "device" => format!("{exporter}/{}", lease.device.id), "holder" => %lease.holder,
            "force" => by_force);
        Ok(Response::Released {
            exporter: exporter.to_owned(),
            device: Box::new(lease.device),
            vm_name: lease.vm_name,
        })
    }
}

/// Why the lease of a host that is not connected is not ended, and how it is.
pub(super) fn is_silent(exporter: &str, lease: &Lease, force: Option<Epoch>) -> Refused {
    let Lease {
        device,
        holder,
        epoch,
        vm_name,
        ..
    } = lease;
    let device = &device.id;
    let since = match lease.silent_seconds {
        Some(seconds) => format!("has not been connected for {}", duration(seconds)),
        None => "has not connected yet".to_owned(),
    };
    let stale = force.map_or_else(String::new, |named| {
        format!("epoch {named} is not its current one; ")
    });
    format!(
        "{stale}{exporter}/{device} is held by {holder} for VM {vm_name}; that host {since}, and has not said \
         that the VM is gone. If you know that the VM does not run there: `xl-vusb release \
         {exporter}/{device} --force {epoch}`"
    )
}

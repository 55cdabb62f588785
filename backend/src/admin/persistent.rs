// SPDX-License-Identifier: GPL-3.0-or-later
//! Attachments of VMs that are off, or run on another host: what the exporters know of them.

use control::{Attachment, Counters, Toolstack};
use session::control::{Reply, Request as Ask};
use session::{Lease, LeasePhase};
use slog::{info, warn};

use super::detach::is_silent;
use super::{Admin, Refused};

/// An attachment without a domain here.
fn attachment(exporter: String, lease: Lease, note: Option<String>) -> Attachment {
    let is_off = lease.phase.is_orphaned();
    Attachment {
        exporter,
        vm: lease.vm,
        domid: lease.holder.domid,
        vm_name: lease.vm_name,
        controller: lease.controller,
        port: lease.port,
        toolstack: Toolstack::default(),
        frontend_resumes: lease.frontend_resumes,
        on_migrate: lease.on_migrate,
        phase: lease.phase,
        exchange: lease.exchange,
        elsewhere: false,
        persistence: lease.persistence,
        host: (!is_off).then_some(lease.holder.host),
        note: note.or(lease.note),
        stash: lease.stash,
        counters: Counters::default(),
        device: lease.device,
    }
}

impl Admin {
    /// What is attached here, and then all other leases that the exporters show this host.
    pub(super) async fn all_attachments(&self) -> Vec<Attachment> {
        let mut all = self.attachments().await;
        let here = all.len();
        for (exporter, lease) in self.all_leases().await {
            let is_here = |a: &Attachment| {
                a.exporter == exporter
                    && (a.vm, a.controller, a.port) == (lease.vm, lease.controller, lease.port)
            };
            if all[..here].iter().any(is_here) {
                continue;
            }
            let note = self.why_not_attached(&lease).await;
            all.push(attachment(exporter, lease, note));
        }
        all
    }

    async fn all_leases(&self) -> Vec<(String, Lease)> {
        let mut all = Vec::new();
        for exporter in self.exporters.all() {
            match exporter.ask(Ask::Leases { vm: None }).await {
                Ok(Reply::Leases(leases)) => {
                    let name = || exporter.name().to_owned();
                    all.extend(leases.into_iter().map(|lease| (name(), lease)));
                }
                Ok(_) => warn!(self.log, "{}", exporter.nonsense()),
                Err(e) => warn!(self.log, "its leases are not listed: {}", e),
            }
        }
        all
    }

    /// Why a lease of a VM that runs here is not attached.
    async fn why_not_attached(&self, lease: &Lease) -> Option<String> {
        if !lease.phase.is_orphaned() && lease.phase != LeasePhase::Absent {
            return None;
        }
        let domain = self.domain(&lease.vm.to_string()).await.ok()?;
        let has_it = self
            .controllers
            .of(domain.domid)
            .iter()
            .any(|(key, _)| key.devid == lease.controller);
        (!has_it).then(|| {
            format!(
                "domain {} runs here without PV USB controller {}, so the attachment waits: add one with `xl \
                 usbctrl-attach {} type=pv version=2 ports=8`, or a usbctrl= line to its configuration",
                domain.name, lease.controller, domain.name
            )
        })
    }

    /// Ends the lease of a VM that is off, by its uuid or the name that it had. `None` where no exporter
    /// knows a lease at that port, or a domain of this host has it.
    pub(super) async fn detach_off(
        &self,
        vm: &str,
        controller: Option<u16>,
        port: u8,
    ) -> Option<Result<Attachment, Refused>> {
        let uuid = self.domain(vm).await.ok().map(|d| d.vm);
        let is_it = |l: &Lease| match uuid {
            Some(uuid) => l.vm == uuid,
            None => l.vm_name == vm || vm.eq_ignore_ascii_case(&l.vm.to_string()),
        };
        let mut found = self.all_leases().await;
        found.retain(|(_, l)| {
            is_it(l) && l.port == port && controller.is_none_or(|devid| devid == l.controller)
        });
        let others: Vec<_> = found
            .iter()
            .map(|(_, l)| format!("VM {}, controller {}", l.vm, l.controller))
            .collect();
        let (exporter, lease) = found.pop()?;
        if !found.is_empty() {
            return Some(Err(format!(
                "several attachments match: {}; name the VM by its uuid, and say --controller",
                others.join("; ")
            )));
        }
        match lease.phase {
            LeasePhase::Orphaned | LeasePhase::Saved | LeasePhase::Absent => {}
            _ if lease.holder.host == self.host => return None,
            LeasePhase::Disconnected => return Some(Err(is_silent(&exporter, &lease, None))),
            LeasePhase::Serving | LeasePhase::Frozen => {
                return Some(Err(format!(
                    "VM {} runs at {}; run `xl-vusb detach {} {port}` there",
                    lease.vm_name, lease.holder, lease.vm_name
                )));
            }
        }
        if let Err(e) = self.exporters.release(&exporter, &lease).await {
            return Some(Err(e));
        }
        info!(self.log, "device detached from a VM that is off"; "vm" => %lease.vm,
            "name" => &lease.vm_name, "device" => format!("{exporter}/{}", lease.device.id));
        Some(Ok(attachment(exporter, lease, None)))
    }
}

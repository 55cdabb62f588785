// SPDX-License-Identifier: GPL-3.0-or-later
//! The exporters of this host, and what they answer.

use std::collections::{BTreeMap, HashMap};

use control::{ExportedDevice, ExporterStatus};
use session::control::{Reply, Request as Ask};
use session::hosts::KnownHost;
use session::{DeviceId, Lease, VmUuid};
use slog::{Logger, warn};

use super::Refused;
use crate::exporter::Exporter;

/// Every exporter that the configuration names.
pub struct Exporters {
    all: Vec<Exporter>,
    log: Logger,
}

impl Exporters {
    /// These.
    pub(super) fn new(all: Vec<Exporter>, log: Logger) -> Self {
        Self { all, log }
    }

    /// Every one, in the order of the configuration.
    pub fn all(&self) -> &[Exporter] {
        &self.all
    }

    /// The one of this name.
    pub fn get(&self, name: &str) -> Option<&Exporter> {
        self.all.iter().find(|e| e.name() == name)
    }

    /// The one that an administrator means.
    pub(super) fn find(&self, name: &str) -> Result<&Exporter, Refused> {
        self.get(name).ok_or_else(|| {
            let known: Vec<_> = self.all.iter().map(Exporter::name).collect();
            match known.is_empty() {
                true => format!("no exporter '{name}': vusbd.toml names none; add an [[exporter]]"),
                false => format!(
                    "no exporter '{name}' in vusbd.toml; it has {}",
                    known.join(", ")
                ),
            }
        })
    }

    /// What they say of themselves, for people.
    pub(super) fn status(&self) -> Vec<ExporterStatus> {
        self.all.iter().map(Exporter::status).collect()
    }

    /// The devices that they show this host, and those that did not answer.
    pub(super) async fn devices(&self) -> (Vec<ExportedDevice>, Vec<ExporterStatus>) {
        let (mut devices, mut unreachable) = (Vec::new(), Vec::new());
        for exporter in &self.all {
            match exporter.ask(Ask::Devices).await {
                Ok(Reply::Devices(found)) => {
                    devices.extend(found.into_iter().map(|device| ExportedDevice {
                        exporter: exporter.name().into(),
                        device,
                    }))
                }
                Ok(_) => warn!(self.log, "{}", exporter.nonsense()),
                Err(e) => {
                    let mut status = exporter.status();
                    status.error.get_or_insert(e.to_string());
                    unreachable.push(status);
                }
            }
        }
        (devices, unreachable)
    }

    /// The hosts that each exporter knows, by its name, and the exporters that did not answer. `vm`: whose
    /// devices the policy is asked about.
    pub(super) async fn hosts(
        &self,
        vm: Option<VmUuid>,
    ) -> (BTreeMap<String, Vec<KnownHost>>, Vec<ExporterStatus>) {
        let (mut hosts, mut silent) = (BTreeMap::new(), Vec::new());
        for exporter in &self.all {
            let error = match exporter.ask(Ask::Hosts { vm }).await {
                Ok(Reply::Hosts(known)) => {
                    hosts.insert(exporter.name().to_owned(), known);
                    continue;
                }
                Ok(_) => exporter.nonsense(),
                Err(e) => e,
            };
            let mut status = exporter.status();
            status.error.get_or_insert(error.to_string());
            silent.push(status);
        }
        (hosts, silent)
    }

    /// The leases as their exporters have them this moment; those of silent ones are missing.
    pub(super) async fn leases_now(&self, vm: VmUuid) -> HashMap<(String, DeviceId), Lease> {
        let mut leases = HashMap::new();
        for exporter in &self.all {
            if let Ok(Reply::Leases(found)) = exporter.ask(Ask::Leases { vm: Some(vm) }).await {
                leases.extend(
                    found
                        .into_iter()
                        .map(|l| ((exporter.name().into(), l.device.id.clone()), l)),
                );
            }
        }
        leases
    }

    /// Gives a lease back.
    pub async fn release(&self, exporter: &str, lease: &Lease) -> Result<(), Refused> {
        self.end_lease(exporter, lease, false).await
    }

    /// Ends a lease; with `force` also where its holder is not connected, and has not said that its domain
    /// is gone.
    pub(super) async fn end_lease(
        &self,
        exporter: &str,
        lease: &Lease,
        force: bool,
    ) -> Result<(), Refused> {
        let Lease {
            device, vm, epoch, ..
        } = lease;
        let release = Ask::Release {
            device: device.id.clone(),
            vm: *vm,
            epoch: *epoch,
            force,
        };
        let reply = self.find(exporter)?.ask(release).await;
        reply.map(drop).map_err(|e| e.to_string())
    }

    /// Gives back a lease that could not be used, under the newest epoch it may have reached.
    pub(super) async fn give_back(&self, exporter: &str, mut lease: Lease) {
        let now = self.leases_now(lease.vm).await;
        if let Some(current) = now.get(&(exporter.to_owned(), lease.device.id.clone())) {
            lease.epoch = current.epoch;
        }
        if let Err(e) = self.release(exporter, &lease).await {
            warn!(self.log, "device not given back: {}", e);
        }
    }
}

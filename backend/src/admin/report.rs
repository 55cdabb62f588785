// SPDX-License-Identifier: GPL-3.0-or-later
//! What is attached here.

use control::{Attachment, Controller, Status};
use session::LeasePhase;

use super::{Admin, Entry, toolstack};
use crate::controller::{Device, Report};
use crate::xenbus::Key;
use xen::DomId;

impl Admin {
    /// All of it.
    pub(super) async fn status(&self) -> Status {
        let controllers = self.controllers_of(None).await;
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            host: self.host.clone(),
            exporters: self.exporters.status(),
            controllers,
            attachments: self.attachments().await,
            totals: self.totals.get(),
        }
    }

    /// The controllers of one domain, or of all.
    pub(super) async fn controllers_of(&self, domid: Option<DomId>) -> Vec<Controller> {
        let mut controllers = Vec::new();
        let keys = self.controllers.keys().into_iter();
        for key in keys.filter(|key| domid.is_none_or(|domid| key.domid == domid)) {
            if let Some(entry) = self.controllers.get(key) {
                controllers.extend(self.controller(key, &entry).await);
            }
        }
        controllers
    }

    /// A controller; `None` when its thread has ended.
    pub(super) async fn controller(&self, key: Key, entry: &Entry) -> Option<Controller> {
        let report = entry.handle.describe().await;
        if report.is_none() && !entry.handle.is_running() {
            return None;
        }
        let stuck = || "stuck".to_owned();
        let backend = report.as_ref().map(|r| r.backend.to_string());
        let hand_off = report.as_ref().map(|r| r.state.to_string());
        Some(Controller {
            vm: entry.domain.vm,
            domid: key.domid.0,
            vm_name: self.name_of(entry).await,
            controller: key.devid,
            ports: entry.handle.port_count,
            usb_version: entry.handle.usb_version.number(),
            frontend: entry.frontend.get().to_string(),
            backend: backend.unwrap_or_else(stuck),
            hand_off: hand_off.unwrap_or_else(stuck),
            frontend_resumes: report.is_some_and(|r| r.frontend_resumes),
        })
    }

    /// What is attached at every controller.
    pub(super) async fn attachments(&self) -> Vec<Attachment> {
        let mut all = Vec::new();
        for key in self.controllers.keys() {
            if let Some(entry) = self.controllers.get(key) {
                all.extend(self.attachments_of(key, &entry).await);
            }
        }
        all
    }

    /// What is attached at a controller.
    pub(super) async fn attachments_of(&self, key: Key, entry: &Entry) -> Vec<Attachment> {
        let Some(Report {
            devices,
            frontend_resumes,
            ..
        }) = entry.handle.describe().await
        else {
            return Vec::new();
        };
        if devices.is_empty() {
            return Vec::new();
        }
        let now = self.exporters.leases_now(entry.domain.vm).await;
        let vm_name = self.name_of(entry).await;
        let toolstack = toolstack::of(&self.store, key, entry.domain.vm).await;
        let attachments = devices.into_iter().map(
            |Device {
                 exporter,
                 lease,
                 counters,
                 waiting,
                 elsewhere,
                 ..
             }| {
                let current = now.get(&(exporter.clone(), lease.device.id.clone()));
                Attachment {
                    vm: lease.vm,
                    domid: key.domid.0,
                    vm_name: vm_name.clone(),
                    controller: key.devid,
                    port: lease.port,
                    toolstack,
                    frontend_resumes,
                    on_migrate: lease.on_migrate,
                    phase: match (&waiting, &elsewhere) {
                        (Some(_), _) => LeasePhase::Absent,
                        // What it is in there is not about this guest.
                        (None, Some(_)) => LeasePhase::Disconnected,
                        (None, None) => current.map_or(LeasePhase::Disconnected, |l| l.phase),
                    },
                    exchange: lease.exchange,
                    elsewhere: elsewhere.is_some(),
                    persistence: lease.persistence,
                    host: Some(self.host.clone()),
                    note: waiting
                        .and_then(|w| w.note)
                        .or(elsewhere)
                        .or_else(|| current.and_then(|l| l.note.clone())),
                    stash: current.map_or_else(Default::default, |l| l.stash),
                    counters,
                    device: lease.device,
                    exporter,
                }
            },
        );
        attachments.collect()
    }

    /// A domain's name now: it changes at the end of a migration.
    async fn name_of(&self, entry: &Entry) -> String {
        match self.domains.read(entry.domain.domid).await {
            Ok(Some(domain)) => domain.name,
            _ => entry.domain.name.clone(),
        }
    }
}

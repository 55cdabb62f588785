// SPDX-License-Identifier: GPL-3.0-or-later
//! Controllers that vusbd made: made again where their VM comes to, and removed where it has gone from.

use std::collections::BTreeMap;

use session::control::{Reply, Request};
use session::{Lease, OwnController};
use slog::{debug, info, warn};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};
use xen::xenstore::Error;
use xen::{Backend, DomId};

use super::Daemon;
use super::leases::{ASK_AGAIN_AFTER, LEASES_TIMEOUT};
use crate::domain::Domain;
use crate::exporter::{AskError, Exporter};
use crate::own_controller::{self, MakeError, is_own};
use crate::xenbus::{BACKENDS, Key};

impl<B: Backend> Daemon<B> {
    /// Tells an exporter that a domain is here, and makes the controllers of our own that its leases name: a
    /// domain that arrives needs them before its guest resumes.
    pub(super) fn expect(&self, exporter: &Exporter, domain: &Domain) {
        let request = Request::Expect {
            vm: domain.vm,
            domid: domain.domid.0,
            name: domain.name_for_exporters(),
        };
        let (exporter, store, log) = (exporter.clone(), self.store.clone(), self.log.clone());
        let domid = domain.domid;
        spawn_local(async move {
            let until = Instant::now() + LEASES_TIMEOUT;
            let reply = loop {
                match exporter.ask(request.clone()).await {
                    Err(AskError::Unreachable { .. }) if Instant::now() < until => {
                        sleep(ASK_AGAIN_AFTER).await;
                    }
                    reply => break reply,
                }
            };
            // One that does not answer is asked again when it is connected.
            let Ok(Reply::Leases(leases)) = reply else {
                return;
            };
            for (devid, controller) in controllers(&leases) {
                match own_controller::make(&store, domid, Some(devid), controller).await {
                    Ok(key) => info!(log, "controller made for a VM that has it elsewhere";
                        "controller" => %key, "ports" => controller.ports),
                    Err(MakeError::Exists(_)) => {}
                    Err(e) => warn!(log, "controller not made: {}", e;
                        "controller" => %Key { domid, devid }),
                }
            }
        });
    }

    /// Controllers of our own whose domains are gone. libxl leaves them, since it does not know them; xenopsd
    /// removes them.
    pub(super) async fn own_of_gone(&mut self) -> Result<(), Error> {
        let domids = match self.store.directory(BACKENDS).await {
            Err(e) if e.is_not_found() => return Ok(()),
            domids => domids?,
        };
        let there = self.domains.all().await?;
        let domids = domids.iter().filter_map(|domid| domid.parse().ok());
        for domid in domids.map(DomId).filter(|domid| !there.contains(domid)) {
            let devids = match self.store.directory(&format!("{BACKENDS}/{domid}")).await {
                Err(e) if e.is_not_found() => continue,
                devids => devids?,
            };
            for devid in devids.iter().filter_map(|devid| devid.parse().ok()) {
                let key = Key { domid, devid };
                if is_own(key) {
                    self.end(key).await;
                    self.removing.insert(key);
                }
            }
        }
        self.remove_nodes().await;
        Ok(())
    }

    /// Removes the nodes of controllers that have ended. Not before: their threads write in them.
    pub(super) async fn remove_nodes(&mut self) {
        for key in self.removing.clone() {
            if self.admin.controllers.get(key).is_some() || self.leaving.contains_key(&key) {
                continue;
            }
            match own_controller::remove(&self.store, key).await {
                Ok(()) => {
                    debug!(self.log, "controller removed"; "controller" => %key);
                    self.removing.remove(&key);
                }
                Err(e) => warn!(self.log, "controller not removed: {}", e; "controller" => %key),
            }
        }
    }
}

/// The controllers of our own that these leases name.
fn controllers(leases: &[Lease]) -> BTreeMap<u16, OwnController> {
    let named = leases.iter().filter_map(|lease| {
        let controller = lease.own_controller?;
        let devid = lease.controller;
        controller.is_valid(devid).then_some((devid, controller))
    });
    named.collect()
}

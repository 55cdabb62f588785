// SPDX-License-Identifier: GPL-3.0-or-later
//! `[[attach]]` rules are executed: when a VM runs on a host, and when a device is plugged in.

use std::collections::BTreeSet;

use session::VmUuid;
use session::lease::Applied;
use slog::{info, warn};

use super::Hub;
use crate::control::Peer;

/// A VM of a connected host.
pub(super) struct Running {
    /// The control connection over which the host said so.
    pub(super) connection: u64,
    host: String,
    domid: u16,
    vm: VmUuid,
    name: String,
}

/// Most of them: a host may name domains without end.
const MAX_RUNNING: usize = 10_000;

impl Hub {
    /// A host has a domain of this VM.
    pub(super) async fn runs(&self, from: &Peer, vm: VmUuid, domid: u16, name: String) {
        let host = &*from.host;
        if name.is_empty() {
            return;
        }
        {
            let mut running = self.running.borrow_mut();
            running.retain(|r| (&*r.host, r.domid) != (host, domid));
            if running.len() >= MAX_RUNNING {
                return;
            }
            running.push(Running {
                connection: from.connection,
                host: host.to_owned(),
                domid,
                vm,
                name: name.clone(),
            });
        }
        self.apply_rules(vm, &name, host).await;
    }

    /// A domain of a host is gone.
    pub(super) fn runs_no_more(&self, host: &str, vm: VmUuid, domid: u16) {
        let mut running = self.running.borrow_mut();
        running.retain(|r| (&*r.host, r.domid, r.vm) != (host, domid, vm));
    }

    /// Executes the rules whenever a device was plugged in that a VM may want which runs already. Never ends.
    pub(crate) async fn execute_rules(&self) {
        loop {
            self.rules_due.notified().await;
            self.apply_rules_to_all().await;
        }
    }

    async fn apply_rules_to_all(&self) {
        let running: Vec<_> = {
            let running = self.running.borrow();
            let all = running.iter();
            all.map(|r| (r.vm, r.name.clone(), r.host.clone()))
                .collect()
        };
        for (vm, name, host) in running {
            self.apply_rules(vm, &name, &host).await;
        }
    }

    async fn apply_rules(&self, vm: VmUuid, name: &str, host: &str) {
        if self.table.borrow().has_no_rules() {
            return;
        }
        // With what this machine uses itself.
        let devices = self.devices_now().await;
        let others: BTreeSet<VmUuid> = {
            let running = self.running.borrow();
            let same = running.iter().filter(|r| r.name == name && r.vm != vm);
            same.map(|r| r.vm).collect()
        };
        let Applied { lent, refused } =
            self.table
                .borrow_mut()
                .apply_rules((vm, name), host, &others, &devices);
        for device in lent {
            info!(self.log, "attached by a rule"; "device" => %device, "vm" => %vm, "name" => name);
            self.taken_back(&device);
        }
        let mut said = self.refused_rules.borrow_mut();
        for line in refused {
            // Once each: a host asks as often as it likes.
            if said.len() < MAX_RUNNING && said.insert(line.clone()) {
                warn!(self.log_of(host), "{}", line);
            }
        }
    }
}

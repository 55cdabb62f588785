// SPDX-License-Identifier: GPL-3.0-or-later
//! Toolstacks that the lab migrates its guest with: `xl`, and what xenopsd and libvirt do, imitated.
//!
//! An imitated one is `xl migrate -C` with another configuration for the target, and `lab-toolstack` at both
//! ends, which writes and moves nodes in that toolstack's order.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::agent::Output;
use crate::guest::{self, NAME, Setup, UUID};
use crate::lab::Lab;
use crate::machine::{MACHINES, Machine, Role};
use crate::programs;

/// The guest's configuration at the target, in the source's dom0.
const TARGET_CONFIG: &str = "/etc/xen/target.cfg";
/// The target's end of a migration: what `socat` starts.
const RECEIVE: &str = "/usr/sbin/migrate-receive";
/// What was there before.
const RECEIVE_XL: &str = "/usr/sbin/migrate-receive-xl";
/// What the target's end says goes here.
const LOG: &str = "/var/log/migrate-receive.log";
const HELPER: &str = "lab-toolstack";

/// Whose nodes and order a migration has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// `xl` itself, with a controller in the guest's configuration.
    Xl,
    /// xenopsd (XAPI): no controller, a temporary uuid.
    Xenopsd,
    /// libvirt's driver for libxl: no controller, the VM's own uuid and name.
    Libvirt,
}

impl Dialect {
    /// Every one, those that need most of us first.
    pub const ALL: [Self; 3] = [Self::Xenopsd, Self::Libvirt, Self::Xl];

    /// Its name, as `lab-toolstack` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xl => "xl",
            Self::Xenopsd => "xenopsd",
            Self::Libvirt => "libvirt",
        }
    }

    /// Whether it makes PV USB controllers.
    pub fn makes_controllers(self) -> bool {
        self == Self::Xl
    }

    /// The uuid that it makes the domain with at the target.
    fn target_uuid(self) -> String {
        match self {
            Self::Xl | Self::Libvirt => UUID.to_owned(),
            // The first 24 characters, and 12 digits that say "the target's".
            Self::Xenopsd => format!("{}000000000001", &UUID[..24]),
        }
    }

    /// Makes the hosts speak it.
    pub fn prepare(self, lab: &Lab) -> Result<()> {
        let directory = programs::build(&["xen-vusb-lab"])?;
        let helper = programs::stripped(&directory.join(HELPER))?;
        for machine in MACHINES.iter().filter(|machine| machine.role == Role::Host) {
            let dom0 = lab.agent(machine.name)?;
            dom0.must(&format!(
                "test -e {RECEIVE_XL} || cp {RECEIVE} {RECEIVE_XL}"
            ))?;
            if self == Self::Xl {
                dom0.must(&format!("cp {RECEIVE_XL} {RECEIVE}"))?;
                continue;
            }
            dom0.put(&format!("/usr/sbin/{HELPER}"), 0o755, &helper)?;
            let script = format!(
                "#!/bin/sh\nexec {HELPER} receive {} {UUID} {NAME} 2>>{LOG}\n",
                self.name()
            );
            dom0.put(RECEIVE, 0o755, script.as_bytes())?;
        }
        Ok(())
    }

    /// Migrates the guest; what `xl` printed and how long it took.
    pub fn migrate(
        self,
        lab: &Lab,
        setup: Setup,
        from: &str,
        to: &str,
    ) -> Result<(Output, Duration)> {
        if self == Self::Xl {
            return guest::migrate(lab, from, to);
        }
        let target = Machine::named(to)?.ip();
        let domid = guest::domid(lab, from)?;
        let dom0 = lab.agent(from)?;
        let config = guest::config_without_usb(setup, &self.target_uuid());
        dom0.put(TARGET_CONFIG, 0o644, config.as_bytes())?;
        let start = Instant::now();
        let output = dom0.exec_for(
            &format!(
                "xl migrate -C {TARGET_CONFIG} -s '' {NAME} '{HELPER} send {} {UUID} {NAME} {domid} {target}:8002' 2>&1",
                self.name()
            ),
            Duration::from_secs(900),
        )?;
        Ok((output, start.elapsed()))
    }

    /// After a migration: nothing of the toolstack's temporary nodes is left, and the controllers that the
    /// target had before the guest ran there, by number.
    ///
    /// # Errors
    /// When something is left, or the imitation has not done its part.
    pub fn inspect(self, lab: &Lab, from: &str, to: &str) -> Result<Vec<u32>> {
        if self == Self::Xl {
            return Ok(Vec::new());
        }
        let target = lab.agent(to)?;
        let log = target.must(&format!("tail -n 50 {LOG}"))?;
        let line = log
            .lines()
            .rfind(|line| line.contains("is about to run; controllers:"))
            .with_context(|| format!("{to}: {HELPER} has not seen the domain; its log:\n{log}"))?;
        let (_, controllers) = line.split_once("controllers:").context("its line")?;
        let controllers = controllers
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<Vec<u32>, _>>()?;
        if self == Self::Xenopsd {
            let domid = guest::domid(lab, to)?;
            let vm = target.must(&format!("xenstore-read /local/domain/{domid}/vm"))?;
            if vm.trim() != format!("/vm/{UUID}") {
                bail!("{to}: the domain is not renamed: {vm}");
            }
        }
        let left = lab.agent(from)?.must(&format!(
            "xenstore-ls -f /local/domain/0/backend/vusb; xenstore-ls -f /vm | grep -i {} || true",
            &UUID[..24]
        ))?;
        if self == Self::Xenopsd && left.contains("origin-uuid") {
            bail!("{from}: the source's nodes are still there:\n{left}");
        }
        Ok(controllers)
    }
}

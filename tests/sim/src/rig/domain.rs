// SPDX-License-Identifier: GPL-3.0-or-later
//! A domain of a rig whose kernel runs in this process.

use anyhow::Result;
use control::{Attachment, Response};
use frontend_shim::ResumeMode;
use xen::DomId;
use xen_sim::toolstack::{DomainConfig, Failure, MigrateError, MigrateOptions, Migration};

use super::{EXPORTER, Rig};
use crate::guest::Kernel;

/// A running domain.
#[derive(Clone, Debug)]
pub struct Domain {
    /// Its name.
    pub name: String,
    /// Index of the host that it is on.
    pub host: usize,
    /// Its number there.
    pub domid: DomId,
}

impl Domain {
    /// `xl create`, and boots a kernel whose frontend does this on resume.
    ///
    /// # Errors
    /// Those of the toolstack, or of the frontend.
    pub fn create(rig: &Rig, host: usize, name: &str, mode: ResumeMode) -> Result<(Self, Kernel)> {
        let xl = &rig.hosts[host].xl;
        let domid = xl.create(&DomainConfig::new(name))?;
        xl.unpause(domid)?;
        let kernel = Kernel::boot(rig.hosts[host].dir(), domid, mode)?;
        let name = name.to_owned();
        Ok((Self { name, host, domid }, kernel))
    }

    /// `xl-vusb attach` of a device of the rig's exporter, named by its place, at this port.
    ///
    /// # Errors
    /// The message of `xl-vusb`.
    pub fn attach(&self, rig: &Rig, device: &str, port: u8) -> Result<Attachment> {
        let device = format!("{EXPORTER}/{device}");
        let port = port.to_string();
        let arguments = ["attach", &self.name, &device, "--port", &port];
        match rig.xl_vusb_json(self.host, &arguments)? {
            Response::Attached(attachment) => Ok(*attachment),
            other => anyhow::bail!("xl-vusb attach answered {other:?}"),
        }
    }

    /// `xl migrate`. It is where it was when that fails.
    ///
    /// # Errors
    /// Those of the toolstack.
    pub fn migrate(
        &mut self,
        rig: &Rig,
        to: usize,
        options: &MigrateOptions,
    ) -> Result<Migration, MigrateError> {
        let from = (self.host, self.domid);
        let migration = rig.migrate_domain(from, to, options, &mut |_| ())?;
        (self.host, self.domid) = (to, migration.domid);
        Ok(migration)
    }

    /// `xl migrate` to the other host. One that `fails` does so before "go", and the domain stays.
    ///
    /// # Errors
    /// Those of the toolstack, or that it did not fail.
    pub fn travel(&mut self, rig: &Rig, fails: bool) -> Result<()> {
        let options = MigrateOptions {
            failure: fails.then_some(Failure::BeforeGo),
            ..MigrateOptions::default()
        };
        match self.migrate(rig, 1 - self.host, &options) {
            Ok(_) if !fails => Ok(()),
            Ok(_) => anyhow::bail!("a migration that was to fail did not"),
            Err(MigrateError::ResumedAtSource { .. }) if fails => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Unloads its driver and destroys it. The backend must have done nothing wrong.
    ///
    /// # Errors
    /// When it has, or its domain cannot be destroyed.
    pub fn end(self, rig: &Rig, kernel: Kernel) -> Result<()> {
        let wrongs = kernel.wrongs();
        if !wrongs.texts.is_empty() {
            anyhow::bail!("the backend did wrong: {:?}", wrongs.texts);
        }
        kernel.shut_down()?;
        rig.hosts[self.host].xl.destroy(self.domid)?;
        Ok(())
    }
}

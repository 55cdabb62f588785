// SPDX-License-Identifier: GPL-3.0-or-later
//! Which toolstack is played: what each shows of a domain that moves.

use std::time::Duration;

use xen::DomId;

use super::domain::domain_path;
use super::{DomainConfig, Toolstack, ToolstackError};

/// How long libvirt's source and target take to agree that the guest is to run (Finish3, a call from one
/// host's daemon to the other's).
const FINISH: Duration = Duration::from_millis(50);

/// A toolstack: the nodes, names and orders that others see of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// `xl`: controllers from `usbctrl=`, and names that say who arrives and who has left.
    #[default]
    Xl,
    /// xenopsd, of XAPI: no controllers, temporary uuids while a VM moves, and nodes that move then.
    Xenopsd,
    /// libvirt's libxl driver: no controllers, and both ends of a migration look the same.
    Libvirt,
}

impl Dialect {
    /// All of them.
    pub const ALL: [Dialect; 3] = [Dialect::Xl, Dialect::Xenopsd, Dialect::Libvirt];

    /// Whether it makes a domain's USB controllers, and waits for them.
    pub fn makes_controllers(self) -> bool {
        self == Dialect::Xl
    }

    /// Whether a guest goes on at the source when its target fails with the guest suspended. xenopsd shuts it
    /// down ("unexpectedly suspended").
    pub fn resumes_at_source(self) -> bool {
        self != Dialect::Xenopsd
    }
}

/// A step of a migration, of which somebody may want to make use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// The target's domain is there, and memory is copied.
    TargetMade,
    /// The guest is suspended at the source.
    Suspended,
    /// The target has the guest's memory and, where the toolstack makes any, its devices.
    Received,
    /// The source's domain has been given another name or uuid, where the toolstack does that.
    SourceRenamed,
    /// xenopsd has removed `final-uuid`, and the target still has its temporary uuid.
    FinalUuidRemoved,
    /// xenopsd has changed `/local/domain/N/vm`, and not moved `/vm/UUID` yet.
    DomainMoved,
    /// The target has its last name and uuid, and is still paused.
    TargetRenamed,
    /// The guest runs at the target, and the source's domain is still there.
    Unpaused,
}

impl Step {
    /// All of them, in their order.
    pub const ALL: [Step; 8] = [
        Step::TargetMade,
        Step::Suspended,
        Step::Received,
        Step::SourceRenamed,
        Step::FinalUuidRemoved,
        Step::DomainMoved,
        Step::TargetRenamed,
        Step::Unpaused,
    ];
}

impl Toolstack {
    /// Makes the domain that a guest will arrive in.
    pub(super) fn make_target(&self, config: &DomainConfig) -> Result<DomId, ToolstackError> {
        match self.dialect {
            Dialect::Xl => self.make_domain(config, &format!("{}--incoming", config.name)),
            Dialect::Xenopsd => self.make_xenopsd_target(config),
            Dialect::Libvirt => self.make_domain(config, &config.name),
        }
    }

    /// The source gives the guest up.
    pub(super) fn rename_source(
        &self,
        domid: DomId,
        config: &DomainConfig,
    ) -> Result<(), ToolstackError> {
        match self.dialect {
            Dialect::Xl => self.rename(domid, &format!("{}--migratedaway", config.name)),
            Dialect::Xenopsd => self.rename_xenopsd_source(domid, config),
            Dialect::Libvirt => Ok(()),
        }
    }

    /// The target gets the name and uuid that it keeps.
    pub(super) fn rename_target(
        &self,
        domid: DomId,
        config: &DomainConfig,
        step: &mut dyn FnMut(Step, DomId),
    ) -> Result<(), ToolstackError> {
        match self.dialect {
            Dialect::Xl => self.rename(domid, &config.name),
            Dialect::Xenopsd => self.rename_xenopsd_target(domid, config, step),
            Dialect::Libvirt => {
                std::thread::sleep(FINISH);
                Ok(())
            }
        }
    }

    /// After the guest was let run there.
    pub(super) fn target_runs(&self, domid: DomId) -> Result<(), ToolstackError> {
        if self.dialect == Dialect::Xenopsd {
            let path = format!("{}/action-request", domain_path(domid));
            self.store()?.rm(&path)?;
        }
        Ok(())
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! The disk scenario in an HVM guest, whose machine QEMU emulates in dom0: the kernel finds Xen by its
//! platform PCI device, and a migration carries QEMU's state too.

use anyhow::Result;

use super::Options;
use super::disk_migrate;
use crate::guest::{Kind, Setup};
use crate::lab::Lab;

/// Run the scenario.
pub fn run(lab: &Lab, options: &Options) -> Result<()> {
    let setup = Setup {
        kind: Kind::Hvm,
        ..options.guest
    };
    let outcome = disk_migrate::measure(lab, "hvm", setup, options.migrations_or(3), false)?;
    disk_migrate::print(&outcome, options.json)?;
    outcome.check()
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! The disk scenario on a PVH guest, which Xen runs with hardware virtualization: no paravirtual page
//! tables, event channels through a callback vector, grants in the guest's own address space.

use anyhow::Result;

use super::Options;
use super::disk_migrate;
use crate::guest::{Kind, Setup};
use crate::lab::Lab;

/// Run the scenario.
pub fn run(lab: &Lab, options: &Options) -> Result<()> {
    let setup = Setup {
        kind: Kind::Pvh,
        ..options.guest
    };
    let outcome = disk_migrate::measure(lab, "pvh", setup, options.migrations_or(3), false)?;
    disk_migrate::print(&outcome, options.json)?;
    outcome.check()
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! What the lab proves.

use anyhow::{Result, bail};

use crate::lab::Lab;

pub mod disk_migrate;
pub mod plain_migrate;
pub mod stock_refuse;

/// Name and purpose of every scenario.
pub const SCENARIOS: &[(&str, &str)] = &[
    (
        "plain-migrate",
        "a guest without USB is migrated there and back; its pause",
    ),
    (
        "disk-migrate",
        "a remote stick, written without pause, stays through live migrations",
    ),
    (
        "stock-refuse",
        "a stock guest with a mounted stick: the migration is refused, I/O goes on",
    ),
];

/// Run one by name.
pub fn run(lab: &Lab, name: &str, json: bool, migrations: Option<u32>) -> Result<()> {
    match name {
        "plain-migrate" => plain_migrate::run(lab, json, migrations.unwrap_or(2)),
        "disk-migrate" => disk_migrate::run(lab, json, migrations.unwrap_or(10)),
        "stock-refuse" => stock_refuse::run(lab, json, migrations.unwrap_or(1)),
        _ => bail!(
            "no scenario {name:?}; there are {}",
            SCENARIOS
                .iter()
                .map(|(name, _)| *name)
                .collect::<Vec<_>>()
                .join(", ")
        ),
    }
}

//! What the lab proves.

use anyhow::{Result, bail};

use crate::lab::Lab;

pub mod plain_migrate;

/// Name and purpose of every scenario.
pub const SCENARIOS: &[(&str, &str)] = &[("plain-migrate", "a guest without USB is migrated there and back; its pause")];

/// Run one by name.
pub fn run(lab: &Lab, name: &str, json: bool, migrations: Option<u32>) -> Result<()> {
    match name {
        "plain-migrate" => plain_migrate::run(lab, json, migrations.unwrap_or(2)),
        _ => bail!("no scenario {name:?}; there are {}", SCENARIOS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")),
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! A guest without USB, migrated there and back: the lab's own soundness, and the pause that
//! the other scenarios' pauses are compared with.

use anyhow::Result;
use serde_json::json;

use super::Options;
use crate::lab::Lab;
use crate::measure;

/// Run the scenario.
pub fn run(lab: &Lab, options: &Options) -> Result<()> {
    lab.up(&["host-a", "host-b"], Some(options.guest.hypervisor(true)))?;
    let measured = measure::baseline(lab, options.migrations_or(2), options.guest)?;
    if options.json {
        println!(
            "{}",
            json!({ "scenario": "plain-migrate", "result": "ok", "migrations": measured })
        );
    } else {
        let pause = measured.iter().map(|one| one.pause_ms).fold(0.0, f64::max);
        println!(
            "RESULT ok migrations={} pause_ms_max={pause:.0}",
            measured.len()
        );
    }
    Ok(())
}

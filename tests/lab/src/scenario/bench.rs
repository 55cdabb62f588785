// SPDX-License-Identifier: GPL-3.0-or-later
//! The exporter machine uses its devices itself, without Xen: what fails here is no fault of ours
//! on the way to a guest.

use anyhow::{Result, bail};
use serde_json::json;

use super::Options;
use crate::bench::job::{self, Score};
use crate::bench::{Bench, Kind, Plugged};
use crate::lab::Lab;
use crate::machine::Machine;
use crate::progress::Step;

/// Run the scenario.
pub fn run(lab: &Lab, options: &Options) -> Result<()> {
    let machine = Machine::named("exporter")?;
    machine.stop(lab.run_directory())?;
    lab.up(&[machine.name], None)?;
    let bench = Bench::open(lab)?;
    let mut rows = Vec::new();
    for kind in options.devices_of(&Kind::USEFUL) {
        let step = Step::start(kind.name());
        let (row, word) = match one(lab, &bench, kind) {
            Ok(row) => (row, "done".to_owned()),
            Err(error) => (
                Row {
                    kind,
                    drivers: String::new(),
                    what: format!("{error:#}"),
                    score: Score::default(),
                },
                "failed".to_owned(),
            ),
        };
        step.done_with(&word);
        rows.push(row);
    }
    print(&rows, "bench", options.json)
}

/// A device and what it did.
pub struct Row {
    /// The device.
    pub kind: Kind,
    /// The class drivers that had it.
    pub drivers: String,
    /// What was done.
    pub what: String,
    /// How it went.
    pub score: Score,
}

fn one(lab: &Lab, bench: &Bench, kind: Kind) -> Result<Row> {
    let plugged: Plugged = bench.plug(lab, kind)?;
    let user = bench.user(&plugged.place);
    let (what, score) = job::once(bench, &plugged, &user)?;
    Ok(Row {
        kind,
        drivers: user.drivers()?,
        what,
        score,
    })
}

/// The table and the RESULT line; an error unless all were perfect.
pub fn print(rows: &[Row], scenario: &str, json: bool) -> Result<()> {
    let failed = rows.iter().filter(|row| !row.score.perfect()).count();
    let passed = rows.len() - failed;
    let result = if failed == 0 { "ok" } else { "failed" };
    if json {
        let devices: Vec<_> = rows
            .iter()
            .map(|row| {
                json!({ "device": row.kind.name(), "drivers": row.drivers, "what": row.what, "score": row.score })
            })
            .collect();
        println!(
            "{}",
            json!({ "scenario": scenario, "result": result, "passed": passed, "failed": failed, "devices": devices })
        );
    } else {
        println!("device          result  drivers           sent  received  lost  doubled  what");
        for row in rows {
            let score = &row.score;
            println!(
                "{:<15} {:<7} {:<14} {:>7}  {:>8}  {:>4}  {:>7}  {} ({}){}",
                row.kind.name(),
                if score.perfect() { "ok" } else { "failed" },
                row.drivers,
                score.sent,
                score.received,
                score.lost,
                score.doubled,
                row.what,
                score.unit,
                score.words(),
            );
        }
        println!("RESULT {result} passed={passed} failed={failed}");
    }
    if failed > 0 {
        bail!("{failed} of {} devices did not do their job", rows.len());
    }
    Ok(())
}

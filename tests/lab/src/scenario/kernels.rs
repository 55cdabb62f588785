// SPDX-License-Identifier: GPL-3.0-or-later
//! The disk scenario in guests with the kernels of Debian 12 and Debian 13, which are built without
//! `xen-hcd`: the module is their only frontend.

use anyhow::Result;
use serde_json::json;

use super::Options;
use super::disk_migrate::{self, Outcome};
use crate::guest::Setup;
use crate::kernel::Choice;
use crate::lab::Lab;

const KERNELS: [Choice; 2] = [Choice::Debian12, Choice::Debian13];

/// Run the scenario. Every kernel is tried, whatever became of the one before.
pub fn run(lab: &Lab, options: &Options) -> Result<()> {
    let migrations = options.migrations_or(3);
    let mut outcomes: Vec<Outcome> = Vec::new();
    let mut failures = Vec::new();
    for kernel in KERNELS {
        eprintln!("lab: kernel of {}", kernel.name());
        let setup = Setup {
            kernel,
            ..options.guest
        };
        match disk_migrate::measure(lab, "kernels", setup, migrations, false) {
            Ok(outcome) => {
                if !options.json {
                    println!("guest with {}", outcome.kernel);
                    disk_migrate::table(&outcome);
                }
                if let Err(error) = outcome.check() {
                    failures.push(error.context(format!("{} guest", kernel.name())));
                }
                outcomes.push(outcome);
            }
            Err(error) => failures.push(error.context(format!("{} guest", kernel.name()))),
        }
    }
    let result = if failures.is_empty() { "ok" } else { "failed" };
    if options.json {
        println!(
            "{}",
            json!({ "scenario": "kernels", "result": result, "kernels": outcomes })
        );
    } else {
        for outcome in &outcomes {
            println!("{}: {}", outcome.kernel, disk_migrate::fields(outcome));
        }
        let sum = |count: fn(&Outcome) -> u64| outcomes.iter().map(count).sum::<u64>();
        println!(
            "RESULT {result} kernels={} migrations={} urbs={} lost={} duplicated={} disconnects={} io_errors={} resets={} verified={} mismatches={}",
            outcomes.len(),
            sum(|one| one.migrations.len() as u64),
            sum(|one| one.counters.urbs),
            sum(|one| one.counters.lost),
            sum(|one| one.counters.duplicated),
            sum(|one| one.account.kernel.disconnects as u64),
            sum(|one| one.account.kernel.io_errors as u64 + one.account.report.io_errors),
            sum(|one| one.account.kernel.resets as u64),
            sum(|one| one.account.report.verified),
            sum(|one| one.account.report.mismatches),
        );
    }
    failures.into_iter().next().map_or(Ok(()), Err)
}

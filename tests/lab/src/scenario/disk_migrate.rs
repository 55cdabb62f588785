// SPDX-License-Identifier: GPL-3.0-or-later
//! A guest with our module writes to a remote stick without pause while it is migrated there
//! and back with plain `xl migrate`.

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;

use crate::disk::{self, Account};
use crate::guest;
use crate::lab::Lab;
use crate::measure::{self, Migration};
use crate::stack;

const SEED: u64 = 0x5eed_0001;

#[derive(Serialize)]
struct Outcome {
    scenario: &'static str,
    result: &'static str,
    migrations: Vec<Migration>,
    without_usb: Vec<Migration>,
    counters: Counters,
    account: Account,
}

/// Transfers of the attachment, added up over the hosts that served it.
#[derive(Debug, Default, Clone, Copy, Serialize)]
struct Counters {
    urbs: u64,
    lost: u64,
    duplicated: u64,
}

/// Run the scenario.
pub fn run(lab: &Lab, json: bool, migrations: u32) -> Result<()> {
    lab.fresh()?;
    let without_usb = measure::baseline(lab, migrations)?;
    let module = lab.guest_module()?;
    stack::deploy(lab)?;
    let outcome = attempt(lab, &module, migrations, without_usb).map_err(|error| {
        error.context(format!(
            "the daemons' logs end in\n{}",
            stack::logs(lab, 15)
        ))
    })?;
    if json {
        println!("{}", serde_json::to_string(&outcome)?);
    } else {
        table(&outcome);
        println!("{}", result_line(&outcome));
    }
    guest::destroy(lab)?;
    if outcome.result != "ok" {
        bail!(
            "not everything was right: {:?}",
            outcome.account.kernel.lines
        );
    }
    Ok(())
}

fn attempt(
    lab: &Lab,
    module: &std::path::Path,
    count: u32,
    without_usb: Vec<Migration>,
) -> Result<Outcome> {
    disk::start(lab, Some(module), SEED)?;
    let (migrations, host) = measure::migrate_many(lab, count, true, "with the stick")?;
    let guest = guest::agent_through(lab, host)?;
    let account = disk::finish(&guest)?;
    guest::healthy(&guest)?;
    let counters = counters(lab)?;
    let good =
        account.good() && counters.lost == 0 && counters.duplicated == 0 && counters.urbs > 0;
    Ok(Outcome {
        scenario: "disk-migrate",
        result: if good { "ok" } else { "failed" },
        migrations,
        without_usb,
        counters,
        account,
    })
}

/// Read at the end, when the disk is unmounted and every URB must have had its answer.
fn counters(lab: &Lab) -> Result<Counters> {
    let mut sum = Counters::default();
    for host in ["host-a", "host-b"] {
        let status = stack::xl_vusb(lab, host, "status")?;
        let totals = find(&status, "totals")
            .with_context(|| format!("{host}: `xl-vusb status` has no totals"))?;
        let number = |key: &str| totals.get(key).and_then(Value::as_u64).unwrap_or(0);
        sum.urbs += number("urbs");
        sum.lost += number("urbs").saturating_sub(number("answered"));
        sum.duplicated += number("answered").saturating_sub(number("urbs"));
    }
    Ok(sum)
}

fn find<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    match value {
        Value::Object(map) => map
            .get(key)
            .or_else(|| map.values().find_map(|value| find(value, key))),
        Value::Array(items) => items.iter().find_map(|value| find(value, key)),
        _ => None,
    }
}

fn table(outcome: &Outcome) {
    println!("migration          wall s  pause ms  longest I/O gap ms  pause ms without USB");
    for (number, one) in outcome.migrations.iter().enumerate() {
        let without = outcome
            .without_usb
            .get(number)
            .map_or(f64::NAN, |one| one.pause_ms);
        println!(
            "{:<2} {} -> {}  {:>5.1}  {:>8.0}  {:>18.0}  {:>20.0}",
            number + 1,
            one.from,
            one.to,
            one.wall_s,
            one.pause_ms,
            one.io_gap_ms.unwrap_or(f64::NAN),
            without
        );
    }
}

fn result_line(outcome: &Outcome) -> String {
    let max = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
    let Counters {
        urbs,
        lost,
        duplicated,
    } = outcome.counters;
    format!(
        "RESULT {} migrations={} urbs={urbs} lost={lost} duplicated={duplicated} {} pause_ms_max={:.0} io_gap_ms_max={:.0} pause_ms_max_without_usb={:.0}",
        outcome.result,
        outcome.migrations.len(),
        outcome.account.fields(),
        max(&mut outcome.migrations.iter().map(|one| one.pause_ms)),
        max(&mut outcome.migrations.iter().filter_map(|one| one.io_gap_ms)),
        max(&mut outcome.without_usb.iter().map(|one| one.pause_ms)),
    )
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! A guest with our module writes to a remote stick without pause while it is migrated there
//! and back with plain `xl migrate`.

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;

use super::Options;
use crate::disk::{self, Account, Frontend};
use crate::guest::{self, Setup};
use crate::lab::Lab;
use crate::measure::{self, Migration};
use crate::stack;

const SEED: u64 = 0x5eed_0001;

/// What came of it.
#[derive(Serialize)]
pub struct Outcome {
    scenario: &'static str,
    result: &'static str,
    guest: Setup,
    /// `uname -r` of the guest.
    pub kernel: String,
    /// With the stick.
    pub migrations: Vec<Migration>,
    /// The same guest without USB, where that was measured.
    without_usb: Vec<Migration>,
    /// By the daemons.
    pub counters: Counters,
    /// By the guest.
    pub account: Account,
}

/// Transfers of the attachment, added up over the hosts that served it.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub struct Counters {
    /// Requests.
    pub urbs: u64,
    /// Requests without an answer.
    pub lost: u64,
    /// Answers without a request.
    pub duplicated: u64,
}

impl Outcome {
    /// Fail unless everything was right.
    pub fn check(&self) -> Result<()> {
        if self.result != "ok" {
            bail!("not everything was right: {:?}", self.account.kernel.lines);
        }
        Ok(())
    }
}

/// Run the scenario.
pub fn run(lab: &Lab, options: &Options) -> Result<()> {
    let count = options.migrations_or(10);
    let outcome = measure(lab, "disk-migrate", options.guest, count, true)?;
    print(&outcome, options.json)?;
    outcome.check()
}

/// Carry it out with any guest on fresh machines, which have no guest afterwards unless it failed.
/// `baseline`: before it, the same number of migrations without USB.
pub fn measure(
    lab: &Lab,
    scenario: &'static str,
    setup: Setup,
    migrations: u32,
    baseline: bool,
) -> Result<Outcome> {
    lab.fresh(setup.hypervisor(true))?;
    let without_usb = if baseline {
        measure::baseline(lab, migrations, setup)?
    } else {
        Vec::new()
    };
    stack::deploy(lab)?;
    let tried = attempt(lab, scenario, setup, migrations, without_usb);
    let outcome = stack::with_logs(lab, 15, tried)?;
    if outcome.result == "ok" {
        guest::destroy(lab)?;
    }
    Ok(outcome)
}

/// Print it, with the RESULT line at the end.
pub fn print(outcome: &Outcome, json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string(outcome)?);
    } else {
        table(outcome);
        println!("RESULT {} {}", outcome.result, fields(outcome));
    }
    Ok(())
}

fn attempt(
    lab: &Lab,
    scenario: &'static str,
    setup: Setup,
    count: u32,
    without_usb: Vec<Migration>,
) -> Result<Outcome> {
    let guest = disk::start(lab, setup, Frontend::Ours, SEED)?;
    let kernel = guest.must("uname -r")?.trim().to_owned();
    let (migrations, host) = measure::migrate_many(lab, count, true, "with the stick")?;
    let guest = guest::agent_through(lab, host)?;
    let account = disk::finish(&guest)?;
    guest::healthy(&guest)?;
    let counters = counters(lab)?;
    let good = account.good() && counters.good();
    Ok(Outcome {
        scenario,
        result: if good { "ok" } else { "failed" },
        guest: setup,
        kernel,
        migrations,
        without_usb,
        counters,
        account,
    })
}

impl Counters {
    /// Every request was answered once.
    pub fn good(&self) -> bool {
        self.lost == 0 && self.duplicated == 0 && self.urbs > 0
    }
}

/// Read at the end, when the disk is unmounted and every URB must have had its answer.
pub fn counters(lab: &Lab) -> Result<Counters> {
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

/// One line per migration.
pub fn table(outcome: &Outcome) {
    println!("migration          wall s  pause ms  longest I/O gap ms  pause ms without USB");
    for (number, one) in outcome.migrations.iter().enumerate() {
        let without = outcome
            .without_usb
            .get(number)
            .map_or("not measured".to_owned(), |one| {
                format!("{:.0}", one.pause_ms)
            });
        println!(
            "{:<2} {} -> {}  {:>5.1}  {:>8.0}  {:>18.0}  {without:>20}",
            number + 1,
            one.from,
            one.to,
            one.wall_s,
            one.pause_ms,
            one.io_gap_ms.unwrap_or(f64::NAN)
        );
    }
}

/// The fields of its RESULT line.
pub fn fields(outcome: &Outcome) -> String {
    let max = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
    let Counters {
        urbs,
        lost,
        duplicated,
    } = outcome.counters;
    let mut text = format!(
        "migrations={} urbs={urbs} lost={lost} duplicated={duplicated} {} pause_ms_max={:.0} io_gap_ms_max={:.0}",
        outcome.migrations.len(),
        outcome.account.fields(),
        max(&mut outcome.migrations.iter().map(|one| one.pause_ms)),
        max(&mut outcome.migrations.iter().filter_map(|one| one.io_gap_ms)),
    );
    if !outcome.without_usb.is_empty() {
        text.push_str(&format!(
            " pause_ms_max_without_usb={:.0}",
            max(&mut outcome.without_usb.iter().map(|one| one.pause_ms))
        ));
    }
    text
}

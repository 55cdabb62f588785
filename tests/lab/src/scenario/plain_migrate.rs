//! A guest without USB, migrated there and back: the lab's own soundness, and the pause that
//! the other scenarios' pauses are compared with.

use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::json;

use crate::agent::Agent;
use crate::guest;
use crate::lab::Lab;
use crate::progress::Step;
use crate::workload::Report;

/// One live migration as measured.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// From the command's start to its end.
    pub wall: Duration,
    /// The guest's longest standstill during it.
    pub pause_ms: f64,
}

/// The longest gap of a report in a time window, by this machine's clock.
///
/// `before_ns` and `after_ns` say how far the guest's clock was ahead before and after the
/// migration: a gap that spans it is lengthened or shortened by the difference.
pub fn longest_gap_ms(report: &Report, since_ns: u64, before_ns: i64, after_ns: i64) -> f64 {
    report
        .gaps
        .iter()
        .filter(|gap| gap.to_ns >= since_ns)
        .map(|gap| gap.ms())
        .fold(0.0, f64::max)
        - (after_ns - before_ns) as f64 / 1e6
}

/// Read a workload's report.
pub fn report(guest: &Agent, path: &str) -> Result<Report> {
    Ok(serde_json::from_slice(&guest.get(path)?)?)
}

/// Migrate a guest that runs `lab-disk tick /run/tick.json`.
pub fn migrate_and_measure(lab: &Lab, from: &str, to: &str) -> Result<Migration> {
    let guest = guest::agent_through(lab, from)?;
    let before = guest.clock_offset(false)?;
    let since: u64 = guest.must("date +%s")?.trim().parse::<u64>()? * 1_000_000_000;
    let (output, wall) = guest::migrate(lab, from, to)?;
    if output.status != 0 {
        bail!("xl migrate {from} -> {to}: exit status {}\n{}", output.status, output.stdout);
    }
    let guest = guest::agent_through(lab, to)?;
    guest.wait_ready(Duration::from_secs(60))?;
    let after = guest.clock_offset(false)?;
    // The ticker saves its report twice a second.
    std::thread::sleep(Duration::from_secs(1));
    let pause_ms = longest_gap_ms(&report(&guest, "/run/tick.json")?, since, before, after);
    Ok(Migration { wall, pause_ms })
}

/// Run the scenario.
pub fn run(lab: &Lab, json: bool, migrations: u32) -> Result<()> {
    lab.up(&["host-a", "host-b"])?;
    let measured = measure(lab, migrations)?;
    if json {
        let rows: Vec<_> = measured.iter().map(|one| json!({ "wall_s": one.wall.as_secs_f64(), "pause_ms": one.pause_ms })).collect();
        println!("{}", json!({ "scenario": "plain-migrate", "result": "ok", "migrations": rows }));
    } else {
        println!("RESULT ok migrations={} pause_ms_max={:.0}", measured.len(), measured.iter().map(|one| one.pause_ms).fold(0.0, f64::max));
    }
    Ok(())
}

/// Migrate a guest without USB; its pauses.
pub fn measure(lab: &Lab, migrations: u32) -> Result<Vec<Migration>> {
    guest::destroy(lab)?;
    let step = Step::start("guest without USB");
    let agent = guest::create(lab, "host-a", false)?;
    agent.must("setsid lab-disk tick /run/tick.json </dev/null >/dev/null 2>&1 &")?;
    step.done();
    let (mut here, mut there) = ("host-a", "host-b");
    let mut measured = Vec::new();
    for number in 1..=migrations {
        let step = Step::start(format!("migration {number}/{migrations} {here} -> {there}"));
        let one = migrate_and_measure(lab, here, there)?;
        step.done_with(&format!("pause {:.0} ms", one.pause_ms));
        measured.push(one);
        (here, there) = (there, here);
    }
    guest::healthy(&guest::agent_through(lab, here)?)?;
    guest::destroy(lab)?;
    Ok(measured)
}

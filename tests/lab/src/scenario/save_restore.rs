// SPDX-License-Identifier: GPL-3.0-or-later
//! A guest with our module is saved to a file while it works on its stick, and restored: on the
//! same host, and on the other one, which the file is carried to. Meanwhile no host has the domain.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::Serialize;

use super::Options;
use super::disk_migrate::{Counters, counters};
use crate::agent::Agent;
use crate::disk::{self, Account, Frontend};
use crate::guest;
use crate::lab::Lab;
use crate::machine::Machine;
use crate::measure::{DISK_REPORT, report};
use crate::progress::{Step, patience};
use crate::stack;

const SEED: u64 = 0x5eed_0003;
/// In dom0's memory, which has room for it once.
pub(super) const FILE: &str = "/root/lab.save";
/// By which it travels.
const PORT: u16 = 8003;
/// For which nobody has the guest.
const AWAY: Duration = Duration::from_secs(10);
/// How long the exporter keeps the stick for it, in seconds: longer than the file travels here.
const HOLD_S: u32 = 600;

/// One time around.
#[derive(Debug, Serialize)]
struct Round {
    from: &'static str,
    to: &'static str,
    save_s: f64,
    restore_s: f64,
    /// Blocks verified in the first seconds after it.
    verified_after: u64,
}

#[derive(Serialize)]
struct Outcome {
    scenario: &'static str,
    result: &'static str,
    guest: guest::Setup,
    rounds: Vec<Round>,
    counters: Counters,
    account: Account,
}

/// Run the scenario: `migrations` is the number of times that the guest is saved.
pub fn run(lab: &Lab, options: &Options) -> Result<()> {
    lab.fresh(options.guest.hypervisor(false))?;
    stack::deploy(lab)?;
    hold_long(lab)?;
    let outcome = stack::with_logs(lab, 15, attempt(lab, options))?;
    if options.json {
        println!("{}", serde_json::to_string(&outcome)?);
    } else {
        for round in &outcome.rounds {
            println!(
                "{} -> {}: saved in {:.1} s, restored in {:.1} s, {} blocks verified after it",
                round.from, round.to, round.save_s, round.restore_s, round.verified_after
            );
        }
        let Counters {
            urbs,
            lost,
            duplicated,
        } = outcome.counters;
        println!(
            "RESULT {} saves={} urbs={urbs} lost={lost} duplicated={duplicated} {}",
            outcome.result,
            outcome.rounds.len(),
            outcome.account.fields()
        );
    }
    if outcome.result != "ok" {
        bail!(
            "not everything was right: {:?}",
            outcome.account.kernel.lines
        );
    }
    guest::destroy(lab)
}

fn attempt(lab: &Lab, options: &Options) -> Result<Outcome> {
    let mut guest = disk::start(lab, options.guest, Frontend::Ours, SEED)?;
    let count = options.migrations_or(2);
    let mut here = "host-a";
    let mut rounds = Vec::new();
    for number in 1..=count {
        // The same host, the other one, the same …
        let there = match (number % 2, here) {
            (1, _) => here,
            (_, "host-a") => "host-b",
            _ => "host-a",
        };
        let step = Step::start(format!("save {number}/{count} {here}, restore {there}"));
        let round;
        (guest, round) = around(lab, here, there)?;
        step.done();
        rounds.push(round);
        here = there;
    }
    let account = disk::finish(&guest)?;
    guest::healthy(&guest)?;
    let counters = counters(lab)?;
    let good =
        account.good() && counters.good() && rounds.iter().all(|round| round.verified_after > 0);
    Ok(Outcome {
        scenario: "save-restore",
        result: if good { "ok" } else { "failed" },
        guest: options.guest,
        rounds,
        counters,
        account,
    })
}

/// Makes the exporter keep what an absent guest holds.
fn hold_long(lab: &Lab) -> Result<()> {
    let exporter = Machine::named("exporter")?;
    let config = "/etc/xen-vusb/exporter.toml";
    lab.agent(exporter.name)?
        .must(&format!("sed -i '1i hold_seconds = {HOLD_S}' {config}"))?;
    stack::start(lab, &exporter)
}

/// Carries the saved guest from one host to the other.
pub(super) fn carry(lab: &Lab, from: &str, to: &str) -> Result<()> {
    let (source, target) = (lab.agent(from)?, lab.agent(to)?);
    let size = source.must(&format!("stat -c %s {FILE}"))?;
    target.must(&format!(
        "rm -f {FILE}; setsid socat -u -b 262144 TCP-LISTEN:{PORT},reuseaddr OPEN:{FILE},creat </dev/null >/dev/null 2>&1 &"
    ))?;
    let address = Machine::named(to)?.ip();
    source
        .exec_for(
            &format!(
                "socat -u -b 262144 OPEN:{FILE},rdonly TCP:{address}:{PORT},retry=20,interval=0.2 && rm {FILE}"
            ),
            patience(600),
        )?
        .ok("sending the saved guest")?;
    let start = Instant::now();
    while target.must(&format!("stat -c %s {FILE}"))? != size {
        if start.elapsed() > patience(60) {
            bail!("the saved guest has not arrived whole on {to}");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

fn around(lab: &Lab, from: &'static str, to: &'static str) -> Result<(Agent, Round)> {
    let save = guest::save(lab, from, FILE)?;
    if from != to {
        carry(lab, from, to)?;
    }
    std::thread::sleep(AWAY);
    let (guest, restore) = guest::restore(lab, to, FILE)?;
    lab.agent(to)?.must(&format!("rm {FILE}"))?;
    let before = report(&guest, DISK_REPORT)?.verified;
    Ok((
        guest.clone(),
        Round {
            from,
            to,
            save_s: save.as_secs_f64(),
            restore_s: restore.as_secs_f64(),
            verified_after: progress_since(&guest, before)?,
        },
    ))
}

/// Blocks verified beyond `before`, as soon as there are any.
fn progress_since(guest: &Agent, before: u64) -> Result<u64> {
    let start = Instant::now();
    loop {
        let more = report(guest, DISK_REPORT)?.verified.saturating_sub(before);
        if more > 0 || start.elapsed() > patience(60) {
            return Ok(more);
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! A guest with its stick in constant use is migrated as `xl`, xenopsd and libvirt do. The latter two make
//! no PV USB controller: it is `vusbd`'s, which must be there before the guest runs on the target.

use anyhow::{Result, bail};
use serde::Serialize;

use super::Options;
use super::disk_migrate::{Counters, counters};
use crate::disk::{self, Account, Controller, Frontend, Way};
use crate::guest::{self, Setup};
use crate::lab::Lab;
use crate::measure::{self, Migration};
use crate::progress::Step;
use crate::stack;
use crate::toolstack::Dialect;

const SEED: u64 = 0x5eed_0013;
/// Migrations by each toolstack.
const MIGRATIONS: u32 = 2;
/// The first number of `vusbd`'s own controllers.
const OWN: u32 = 64;

/// What came of one toolstack.
#[derive(Debug, Serialize)]
struct Part {
    dialect: Dialect,
    migrations: Vec<Migration>,
    /// Migrations at which the target had no controller when the guest began to run there.
    late_controllers: usize,
    counters: Counters,
    account: Account,
}

impl Part {
    fn good(&self) -> bool {
        self.account.good() && self.counters.good() && self.late_controllers == 0
    }
}

/// Run the scenario.
pub fn run(lab: &Lab, options: &Options) -> Result<()> {
    let count = options.migrations_or(MIGRATIONS);
    let mut parts = Vec::new();
    for dialect in Dialect::ALL {
        lab.fresh(options.guest.hypervisor(true))?;
        stack::deploy(lab)?;
        let part = attempt(lab, options.guest, dialect, count);
        let part = stack::with_logs(lab, 25, part)?;
        eprintln!("lab: {}: {}", dialect.name(), fields(&[&part]));
        let good = part.good();
        parts.push(part);
        if !good {
            // The machines stay as they are.
            break;
        }
        guest::destroy(lab)?;
    }
    let good = parts.iter().all(Part::good) && parts.len() == Dialect::ALL.len();
    let result = if good { "ok" } else { "failed" };
    if options.json {
        println!(
            "{}",
            serde_json::json!({ "scenario": "toolstacks", "result": result, "guest": options.guest, "parts": parts })
        );
    } else {
        for part in &parts {
            println!("{:<8} {}", part.dialect.name(), fields(&[part]));
        }
        println!(
            "RESULT {result} dialects={} {}",
            parts.len(),
            fields(&parts.iter().collect::<Vec<_>>())
        );
    }
    if !good {
        bail!("not everything was right");
    }
    Ok(())
}

fn attempt(lab: &Lab, setup: Setup, dialect: Dialect, count: u32) -> Result<Part> {
    let controller = if dialect.makes_controllers() {
        Controller::Toolstack
    } else {
        Controller::Ours
    };
    dialect.prepare(lab)?;
    let way = Way {
        controller,
        ..Way::USUAL
    };
    disk::start_with(lab, setup, Frontend::Ours, way, SEED)?;
    let (mut here, mut there) = ("host-a", "host-b");
    let mut migrations = Vec::new();
    let mut late_controllers = 0;
    for number in 1..=count {
        let step = Step::start(format!(
            "{}: migration {number}/{count} {here} -> {there}",
            dialect.name()
        ));
        let migrate = || dialect.migrate(lab, setup, here, there);
        let one = measure::migrate_by(lab, here, there, true, migrate)?;
        step.done_with(&format!("pause {:.0} ms", one.pause_ms));
        migrations.push(one);
        let controllers = dialect.inspect(lab, here, there)?;
        if !dialect.makes_controllers() && !controllers.iter().any(|number| *number >= OWN) {
            late_controllers += 1;
        }
        (here, there) = (there, here);
    }
    let guest = guest::agent_through(lab, here)?;
    let account = disk::finish(&guest)?;
    guest::healthy(&guest)?;
    Ok(Part {
        dialect,
        migrations,
        late_controllers,
        counters: counters(lab)?,
        account,
    })
}

/// The fields of a RESULT line, of all parts together.
fn fields(parts: &[&Part]) -> String {
    let sum = |value: fn(&Part) -> u64| parts.iter().map(|part| value(part)).sum::<u64>();
    let all = |good: fn(&Part) -> bool, yes, no| {
        if parts.iter().all(|part| good(part)) {
            yes
        } else {
            no
        }
    };
    let migrations = parts.iter().flat_map(|part| &part.migrations);
    let pause = migrations.map(|one| one.pause_ms).fold(0.0, f64::max);
    format!(
        "migrations={} urbs={} lost={} duplicated={} disconnects={} io_errors={} resets={} written={} verified={} \
         mismatches={} late_controllers={} pause_ms_max={pause:.0} sha256={} fsck={}",
        sum(|part| part.migrations.len() as u64),
        sum(|part| part.counters.urbs),
        sum(|part| part.counters.lost),
        sum(|part| part.counters.duplicated),
        sum(|part| part.account.kernel.disconnects as u64),
        sum(|part| part.account.kernel.io_errors as u64 + part.account.report.io_errors),
        sum(|part| part.account.kernel.resets as u64),
        sum(|part| part.account.report.written),
        sum(|part| part.account.report.verified),
        sum(|part| part.account.report.mismatches),
        sum(|part| part.late_controllers as u64),
        all(|part| part.account.sha256_matches(), "match", "differ"),
        all(|part| part.account.fsck_clean, "clean", "errors"),
    )
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! Each kind of device is attached to a guest, is driven there by its stock class driver, and
//! does its job.

use std::time::Duration;

use anyhow::{Result, bail};

use super::Options;
use super::bench::{Row, print};
use crate::agent::Agent;
use crate::bench::job::{self, Score};
use crate::bench::{self, Bench, Kind, Plugged};
use crate::disk::{self, Frontend};
use crate::guest;
use crate::lab::Lab;
use crate::progress::Step;
use crate::stack;

/// Run the scenario.
pub fn run(lab: &Lab, options: &Options) -> Result<()> {
    lab.fresh(options.guest.hypervisor(false))?;
    stack::deploy(lab)?;
    let bench = Bench::open(lab)?;
    let step = Step::start("guest with a USB controller");
    let guest = guest::create_as(lab, "host-a", true, options.guest)?;
    disk::load_frontend(lab, &guest, options.guest, Frontend::Ours)?;
    bench::install(&guest)?;
    step.done();
    let mut rows = Vec::new();
    let kinds = [Kind::USEFUL.as_slice(), &[Kind::UasOnlyStick]].concat();
    for kind in options.devices_of(&kinds) {
        let step = Step::start(kind.name());
        let row = one(lab, &bench, &guest, kind).unwrap_or_else(|error| Row {
            kind,
            drivers: String::new(),
            what: format!("{error:#}"),
            score: Score::default(),
        });
        step.done_with(if row.score.perfect() { "ok" } else { "failed" });
        rows.push(row);
    }
    let healthy = guest::healthy(&guest);
    stack::with_logs(lab, 15, print(&rows, "devices", options.json))?;
    healthy?;
    guest::destroy(lab)
}

fn one(lab: &Lab, bench: &Bench, guest: &Agent, kind: Kind) -> Result<Row> {
    let plugged = bench.plug(lab, kind)?;
    if kind == Kind::UasOnlyStick {
        return refused(lab, &plugged);
    }
    let user = bench::attach(lab, "host-a", guest, &plugged)?;
    // Before the job: a program that uses usbfs lets go of the interface at its end.
    let drivers = user.node_drivers();
    let result = job::once(bench, &plugged, &user);
    // Its port is for the next one, whatever became of it.
    bench::detach(lab, "host-a", &user)?;
    let (what, score) = result?;
    Ok(Row {
        kind,
        drivers: drivers?,
        what,
        score,
    })
}

/// A device that cannot be lent: whoever wants it is told why.
fn refused(lab: &Lab, plugged: &Plugged) -> Result<Row> {
    // The exporter hears of a new device a moment after its kernel does; until then it says that
    // there is none.
    std::thread::sleep(Duration::from_secs(3));
    let command = format!("attach {} {}", guest::NAME, plugged.device());
    let error = match stack::xl_vusb(lab, "host-a", &command) {
        Ok(answer) => bail!("it was attached: {answer}"),
        Err(error) => format!("{error:#}"),
    };
    if !error.contains("speaks UAS only") {
        bail!("it was refused for another reason: {error}");
    }
    Ok(Row {
        kind: plugged.kind,
        drivers: "none".to_owned(),
        what: "not attached, and the reason is given".to_owned(),
        score: Score {
            sent: 1,
            received: 1,
            unit: "refusals",
            ..Score::default()
        },
    })
}

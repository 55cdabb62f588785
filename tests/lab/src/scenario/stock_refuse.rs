// SPDX-License-Identifier: GPL-3.0-or-later
//! A stock guest, whose driver cannot resume, with a mounted stick: the migration fails cleanly
//! before the guest has moved, says which device and what to do, and the guest's I/O goes on.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::Serialize;

use super::Options;
use crate::disk::{self, Account, Frontend};
use crate::guest;
use crate::lab::Lab;
use crate::measure::{DISK_REPORT, report};
use crate::progress::{Step, patience};
use crate::stack;

const SEED: u64 = 0x5eed_0002;

#[derive(Debug, Serialize)]
struct Refusal {
    /// Exit status of `xl migrate`.
    status: i32,
    /// How long it took to fail.
    wall_s: f64,
    /// Blocks verified while it was tried and in the seconds after.
    verified_meanwhile: u64,
    /// A message that names the device and the remedy, and where it was found.
    message: String,
}

#[derive(Serialize)]
struct Outcome {
    scenario: &'static str,
    result: &'static str,
    guest: guest::Setup,
    check_says: String,
    refusals: Vec<Refusal>,
    account: Account,
}

/// Run the scenario: as many migrations, each of which must be refused.
pub fn run(lab: &Lab, options: &Options) -> Result<()> {
    options.guest.must_have_stock_driver()?;
    lab.fresh(options.guest.hypervisor(true))?;
    stack::deploy(lab)?;
    let outcome = stack::with_logs(lab, 15, attempt(lab, options))?;
    if options.json {
        println!("{}", serde_json::to_string(&outcome)?);
    } else {
        println!("xl-vusb check says: {}", outcome.check_says);
        for refusal in &outcome.refusals {
            println!(
                "xl migrate: exit status {} after {:.1} s, {} blocks verified meanwhile; {}",
                refusal.status, refusal.wall_s, refusal.verified_meanwhile, refusal.message
            );
        }
        println!(
            "RESULT {} refused={} {}",
            outcome.result,
            outcome.refusals.len(),
            outcome.account.fields()
        );
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

fn attempt(lab: &Lab, options: &Options) -> Result<Outcome> {
    let attempts = options.migrations_or(1);
    let guest = disk::start(lab, options.guest, Frontend::Stock, SEED)?;
    let check = lab
        .agent("host-a")?
        .exec(&format!("xl-vusb check {}", guest::NAME))?;
    let check_says = format!("{}{}", check.stdout, check.stderr)
        .trim()
        .to_owned();
    if check.status != 1 || !names_device_and_remedy(&check_says) {
        bail!(
            "`xl-vusb check` must end with status 1 and name device and remedy; status {}: {check_says}",
            check.status
        );
    }
    let mut refusals = Vec::new();
    for number in 1..=attempts {
        let step = Step::start(format!("refused migration {number}/{attempts}"));
        refusals.push(refused(lab, &guest)?);
        step.done();
    }
    let account = disk::finish(&guest)?;
    guest::healthy(&guest)?;
    let good = account.good()
        && refusals
            .iter()
            .all(|refusal| refusal.verified_meanwhile > 0);
    Ok(Outcome {
        scenario: "stock-refuse",
        result: if good { "ok" } else { "failed" },
        guest: options.guest,
        check_says,
        refusals,
        account,
    })
}

fn refused(lab: &Lab, guest: &crate::agent::Agent) -> Result<Refusal> {
    let verified = report(guest, DISK_REPORT)?.verified;
    let domid = guest::domid(lab, "host-a")?;
    let (output, wall) = guest::migrate(lab, "host-a", "host-b")?;
    if output.status == 0 {
        bail!("the migration of a stock guest with a mounted stick was not refused");
    }
    if guest::domid(lab, "host-a")? != domid {
        bail!("the guest is not the same domain any more");
    }
    if lab.agent("host-b")?.must("xl list")?.contains(guest::NAME) {
        bail!(
            "something of the guest is left on the target:\n{}",
            lab.agent("host-b")?.must("xl list")?
        );
    }
    let message = message(lab, &output.stdout)?;
    let start = Instant::now();
    let verified_meanwhile = loop {
        let more = report(guest, DISK_REPORT)?
            .verified
            .saturating_sub(verified);
        if more > 0 || start.elapsed() > patience(30) {
            break more;
        }
        std::thread::sleep(Duration::from_millis(500));
    };
    Ok(Refusal {
        status: output.status,
        wall_s: wall.as_secs_f64(),
        verified_meanwhile,
        message,
    })
}

/// The explanation, wherever an administrator would look: xl's own output, `xl-vusb list` on
/// the source, the daemons' logs.
fn message(lab: &Lab, xl: &str) -> Result<String> {
    let source = lab.agent("host-a")?;
    let target = lab.agent("host-b")?;
    let places = [
        ("xl migrate", xl.to_owned()),
        (
            "xl-vusb list on the source",
            source.exec("xl-vusb list")?.stdout,
        ),
        (
            "vusbd's log on the source",
            source.must("tail -n 40 /var/log/vusbd.log")?,
        ),
        (
            "vusbd's log on the target",
            target.must("tail -n 40 /var/log/vusbd.log")?,
        ),
    ];
    for (place, text) in &places {
        if let Some(line) = text
            .lines()
            .rev()
            .find(|line| names_device_and_remedy(line))
        {
            return Ok(format!("{place}: {}", line.trim()));
        }
    }
    bail!("no message names device and remedy; xl said:\n{xl}")
}

/// The device by its name for `xl-vusb`, the remedy by the module's name or the policy's.
fn names_device_and_remedy(text: &str) -> bool {
    text.contains("1-1")
        && (text.contains("xen-vusb-hcd") || text.contains("on-migrate") || text.contains("detach"))
}

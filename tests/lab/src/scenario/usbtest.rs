// SPDX-License-Identifier: GPL-3.0-or-later
//! The kernel's `usbtest` driver in the guest: on the exporter kernel's source and sink gadget,
//! and on the simulated one for what that gadget cannot do.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::Options;
use crate::agent::Agent;
use crate::bench::{self, Bench, Kind, User};
use crate::disk::{self, Frontend};
use crate::guest::{self, Setup};
use crate::lab::Lab;
use crate::progress::{Step, patience};
use crate::stack;

/// A case of `usbtest`, as `testusb` gives it parameters: number, iterations, length, vary, sglen,
/// and what it does.
struct Case(u32, u32, u32, u32, u32, &'static str);

/// What `dummy_hcd` and the gadget can do. Lengths that vary are whole packets: the gadget sends
/// 4096 bytes whenever it is asked, and more than was asked for is an error of the device.
const ON_GADGET: &[Case] = &[
    Case(0, 1, 0, 0, 0, "nothing"),
    Case(1, 64, 4096, 0, 0, "bulk out"),
    Case(2, 64, 4096, 0, 0, "bulk in"),
    Case(3, 64, 16_384, 512, 0, "bulk out, lengths vary"),
    Case(4, 64, 16_384, 512, 0, "bulk in, lengths vary"),
    Case(5, 16, 4096, 0, 16, "queued bulk out"),
    Case(6, 16, 4096, 0, 16, "queued bulk in"),
    Case(7, 16, 4096, 512, 16, "queued bulk out, lengths vary"),
    Case(8, 16, 4096, 512, 16, "queued bulk in, lengths vary"),
    Case(9, 8, 0, 0, 0, "standard requests of chapter 9"),
    Case(10, 8, 0, 0, 32, "queued control, with stalls"),
    Case(11, 16, 1024, 0, 0, "unlink bulk in"),
    Case(12, 16, 1024, 0, 0, "unlink bulk out"),
    Case(13, 8, 0, 0, 0, "halt and clear halt"),
    Case(14, 32, 512, 37, 0, "control out and back"),
    Case(17, 32, 4096, 0, 0, "bulk out, odd address"),
    Case(18, 32, 4096, 0, 0, "bulk in, odd address"),
    Case(19, 32, 4096, 0, 0, "bulk out, odd address, mapped"),
    Case(20, 32, 4096, 0, 0, "bulk in, odd address, mapped"),
    Case(21, 32, 512, 37, 0, "control out and back, odd address"),
    Case(24, 8, 1024, 0, 16, "unlink from a bulk out queue"),
    Case(27, 16, 16_384, 0, 16, "bulk out without pause"),
    Case(28, 16, 16_384, 0, 16, "bulk in without pause"),
    Case(29, 16, 0, 0, 0, "data toggle after clear halt"),
];

/// What only the simulated device has endpoints for. A packet of 1024 bytes goes in each
/// millisecond.
const SIMULATED: &[Case] = &[
    Case(15, 8, 16_384, 0, 8, "isochronous out"),
    Case(16, 8, 16_384, 0, 8, "isochronous in"),
    Case(22, 8, 16_384, 0, 8, "isochronous out, odd address"),
    Case(23, 8, 16_384, 0, 8, "isochronous in, odd address"),
    Case(25, 64, 64, 0, 0, "interrupt out"),
    Case(26, 64, 64, 0, 0, "interrupt in"),
];

/// Cases that are not run, where, and why.
const LEFT_OUT: &[(&str, &str, &str)] = &[
    (
        "15 16 22 23",
        "gadget",
        "dummy_hcd fails every isochronous transfer; run on the simulated device",
    ),
    (
        "25 26",
        "gadget",
        "the gadget has no interrupt endpoints; run on the simulated device",
    ),
    ("0-14 17-21 24 27-29", "simulated", "run on the gadget"),
];

/// What came of one case.
#[derive(Serialize)]
pub struct Row {
    device: &'static str,
    /// Its number.
    pub case: u32,
    what: &'static str,
    iterations: u32,
    length: u32,
    vary: u32,
    sglen: u32,
    /// 0, or the error's number.
    pub errno: i32,
    /// By the driver's clock.
    seconds: f64,
    /// What the driver logged about a failure.
    log: String,
}

/// Run the scenario.
pub fn run(lab: &Lab, options: &Options) -> Result<()> {
    lab.fresh(options.guest.hypervisor(false))?;
    stack::deploy(lab)?;
    let rows = stack::with_logs(lab, 15, attempt(lab, options))?;
    let failed = rows.iter().filter(|row| row.errno != 0).count();
    let passed = rows.len() - failed;
    let result = if failed == 0 { "ok" } else { "failed" };
    if options.json {
        println!(
            "{}",
            serde_json::json!({ "scenario": "usbtest", "result": result, "passed": passed, "failed": failed, "cases": rows })
        );
    } else {
        println!(
            "case  device     what                               iterations  length  vary  sglen  result  seconds"
        );
        for row in &rows {
            let outcome = match row.errno {
                0 => "ok".to_owned(),
                errno => std::io::Error::from_raw_os_error(errno).to_string(),
            };
            println!(
                "{:>4}  {:<9}  {:<33}  {:>10}  {:>6}  {:>4}  {:>5}  {outcome:<6}  {:>7.3}{}",
                row.case,
                row.device,
                row.what,
                row.iterations,
                row.length,
                row.vary,
                row.sglen,
                row.seconds,
                row.log,
            );
        }
        for (cases, device, why) in LEFT_OUT {
            println!("left out on the {device}: {cases}: {why}");
        }
        println!("RESULT {result} passed={passed} failed={failed}");
    }
    if failed > 0 {
        bail!("{failed} of {} cases failed", rows.len());
    }
    guest::destroy(lab)
}

fn attempt(lab: &Lab, options: &Options) -> Result<Vec<Row>> {
    let (agent, rows) = cases(lab, options.guest)?;
    guest::healthy(&agent)?;
    Ok(rows)
}

/// Every case in a new guest, on `host-a`.
pub fn cases(lab: &Lab, setup: Setup) -> Result<(Agent, Vec<Row>)> {
    let bench = Bench::open(lab)?;
    let step = Step::start("guest with a USB controller");
    let agent = guest::create_as(lab, "host-a", true, setup)?;
    disk::load_frontend(lab, &agent, setup, Frontend::Ours)?;
    bench::install(&agent)?;
    step.done();
    let mut rows = Vec::new();
    for (kind, device, setting, cases) in [
        (Kind::SourceSinkGadget, "gadget", "-1", ON_GADGET),
        (Kind::SimulatedSourceSink, "simulated", "3", SIMULATED),
    ] {
        let step = Step::start(kind.name());
        let plugged = bench.plug(lab, kind)?;
        // Read when the driver is bound. The simulated device has all endpoints in setting 3.
        agent.must(&format!(
            "echo {setting} > /sys/module/usbtest/parameters/alt"
        ))?;
        let user = bench::attach(lab, "host-a", &agent, &plugged)?;
        let drivers = user.drivers()?;
        if drivers != "usbtest" {
            bail!("the guest's driver of {device} is {drivers}");
        }
        step.done();
        for case in cases {
            rows.push(one(&user, device, case)?);
        }
    }
    Ok((agent, rows))
}

fn one(user: &User, device: &'static str, case: &Case) -> Result<Row> {
    #[derive(Deserialize)]
    struct Outcome {
        errno: i32,
        seconds: f64,
    }
    let &Case(number, iterations, length, vary, sglen, what) = case;
    let step = Step::start(format!("usbtest {number} on {device}: {what}"));
    let node = user.usbfs()?;
    let command = format!("lab-usb usbtest {node} {number} {iterations} {length} {vary} {sglen}");
    let output = user.agent.exec_for(&command, patience(240))?;
    let text = output.ok(&command)?;
    let outcome: Outcome =
        serde_json::from_str(&text).with_context(|| format!("{command}: {text:?}"))?;
    let log = if outcome.errno == 0 {
        String::new()
    } else {
        let tail = user
            .agent
            .must("dmesg | grep -v 'usbtest.*TEST ' | tail -n 3")?;
        format!("  {}", tail.trim().replace('\n', " / "))
    };
    step.done_with(if outcome.errno == 0 { "ok" } else { "failed" });
    Ok(Row {
        device,
        case: number,
        what,
        iterations,
        length,
        vary,
        sglen,
        errno: outcome.errno,
        seconds: outcome.seconds,
        log,
    })
}

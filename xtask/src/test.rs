// SPDX-License-Identifier: GPL-3.0-or-later
//! `cargo xtask test`: everything.

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::cargo::{DEMO_PACKAGES, build_release, program};
use crate::step::Tally;
use crate::{check, memcheck, packages};

/// Runs it. Every step is tried, whatever became of the one before.
pub fn run(no_lab: bool) -> Result<ExitCode> {
    let mut tally = Tally::default();
    if let Err(e) = packages::install() {
        // Without the packages nothing else is left out: a compiler has built this program.
        tally.skip(format!("the ring's structs against Xen's headers: {e:#}"));
    }
    check::steps(&mut tally, true);
    memcheck::quick_steps(&mut tally);
    if built(&mut tally, "demo", &DEMO_PACKAGES) {
        let mut demo = Command::new(program("sim-demo"));
        demo.args(["--migrations", "3"]);
        tally.run("demo", demo);
    }
    if !no_lab && built(&mut tally, "lab", &["xen-vusb-lab"]) {
        for (scenario, migrations) in LAB_SCENARIOS {
            let mut lab = Command::new(program("lab"));
            lab.args(["run", scenario]);
            if let Some(migrations) = migrations {
                lab.args(["--migrations", migrations]);
            }
            tally.run(&format!("lab: {scenario}"), lab);
        }
        // The machines would go on computing.
        let _ = Command::new(program("lab")).arg("down").status();
    }
    Ok(ExitCode::from(u8::from(!tally.finish())))
}

/// What is run of the lab, and how many migrations; `cargo xtask lab run all` is everything.
const LAB_SCENARIOS: [(&str, Option<&str>); 3] = [
    ("disk-migrate", Some("3")),
    ("stock-refuse", Some("1")),
    ("devices", None),
];

fn built(tally: &mut Tally, what: &str, packages: &[&str]) -> bool {
    println!("==> building the {what}");
    let result = build_release(packages);
    if let Err(e) = &result {
        tally.fail(format!("{what}: {e:#}"));
    }
    result.is_ok()
}

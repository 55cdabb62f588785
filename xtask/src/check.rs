// SPDX-License-Identifier: GPL-3.0-or-later
//! `cargo xtask check`: what is quick.

use std::process::ExitCode;

use anyhow::Result;

use crate::cargo::cargo;
use crate::deny;
use crate::step::Tally;

/// Runs it by itself.
pub fn run() -> Result<ExitCode> {
    let mut tally = Tally::default();
    steps(&mut tally, false);
    Ok(ExitCode::from(u8::from(!tally.finish())))
}

/// Its steps. `scenarios`: with the scenarios of sim-scenarios, which are not quick.
pub fn steps(tally: &mut Tally, scenarios: bool) {
    tally.run("formatting", cargo(&["fmt", "--all", "--check"]));
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    tally.run("clippy", cargo(&clippy));
    if scenarios {
        // The whole workspace at once: for some of its packages cargo would build what they depend on with
        // other features, and so all of it once more.
        let all = ["test", "--workspace", "--no-fail-fast"];
        let name = "unit and property tests, scenarios on the simulator";
        tally.run(name, cargo(&all));
    } else {
        let quick = [
            "test",
            "--workspace",
            "--exclude",
            "sim-scenarios",
            "--no-fail-fast",
        ];
        tally.run("unit and property tests", cargo(&quick));
        let direction = [
            "test",
            "-p",
            "sim-scenarios",
            "--lib",
            "--test",
            "dependencies",
        ];
        tally.run("direction of dependencies", cargo(&direction));
    }
    match deny::command() {
        Ok(command) => tally.run("licences and sources", command),
        Err(e) => tally.skip(format!("licences and sources: {e:#}")),
    }
}

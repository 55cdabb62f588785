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
    steps(&mut tally);
    Ok(ExitCode::from(u8::from(!tally.finish())))
}

/// Its steps.
pub fn steps(tally: &mut Tally) {
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
    // The scenarios of sim-scenarios are not quick.
    let tests = [
        "test",
        "--workspace",
        "--exclude",
        "sim-scenarios",
        "--no-fail-fast",
    ];
    tally.run("unit and property tests", cargo(&tests));
    let direction = [
        "test",
        "-p",
        "sim-scenarios",
        "--lib",
        "--test",
        "dependencies",
    ];
    tally.run("direction of dependencies", cargo(&direction));
    match deny::command() {
        Ok(command) => tally.run("licences and sources", command),
        Err(e) => tally.skip(format!("licences and sources: {e:#}")),
    }
}

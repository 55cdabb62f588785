// SPDX-License-Identifier: GPL-3.0-or-later
//! `cargo xtask memcheck`: the tests of the crates with `unsafe`, under valgrind.
//!
//! AddressSanitizer would be quicker, but needs a nightly compiler.

use std::process::{Command, ExitCode};

use crate::cargo::cargo;
use crate::packages;
use crate::step::Tally;

/// Each with the arguments that choose its tests.
const CRATES: [(&str, &[&str]); 5] = [
    ("usbfs", &[]),
    ("xengnttab", &[]),
    ("xen", &[]),
    ("xen-sim", &[]),
    ("backend", &["--lib", "state::"]),
];

/// So many of them take less than a minute together, and are part of `cargo xtask test`.
const QUICK: usize = 2;

/// Cargo's variable for the program that runs tests.
const RUNNER: &str = "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER";

/// What is an error: memory that is not ours or was never written, and what nothing points to any more. Of
/// the latter the standard library's hash tables are not counted, to which only their middles point.
const VALGRIND: &str = "valgrind --quiet --error-exitcode=99 --num-callers=16 --leak-check=full \
                        --show-leak-kinds=definite --errors-for-leak-kinds=definite";

/// All of them by themselves.
pub fn run() -> ExitCode {
    let mut tally = Tally::default();
    steps(&mut tally, CRATES.len());
    ExitCode::from(u8::from(!tally.finish()))
}

/// The quick ones.
pub fn quick_steps(tally: &mut Tally) {
    steps(tally, QUICK);
}

fn steps(tally: &mut Tally, count: usize) {
    if let Err(error) = packages::install_valgrind() {
        return tally.skip(format!("tests under valgrind: {error:#}"));
    }
    for (name, tests) in &CRATES[..count] {
        tally.run(&format!("{name} under valgrind"), command(name, tests));
    }
}

fn command(name: &str, tests: &[&str]) -> Command {
    let mut command = cargo(&["test", "--no-fail-fast", "-p", name]);
    command.args(tests).env(RUNNER, VALGRIND);
    command
}

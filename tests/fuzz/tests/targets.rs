// SPDX-License-Identifier: GPL-3.0-or-later
//! Every target: what failed once, and about a second of something new.

use std::path::Path;

use fuzz::driver::{Until, execute, fuzz};
use fuzz::{TARGETS, regressions};

#[test]
fn what_failed_once_does_not_fail_again() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    let mut files = 0;
    for target in &TARGETS {
        let Ok(text) = std::fs::read_to_string(dir.join(format!("{}.txt", target.name))) else {
            continue;
        };
        files += 1;
        for input in regressions::parse(&text).unwrap() {
            let result = execute(target, &input);
            assert!(
                result.is_ok(),
                "{} {}: {}",
                target.name,
                regressions::to_hex(&input),
                result.unwrap_err()
            );
        }
    }
    let there = std::fs::read_dir(&dir).unwrap().count();
    assert_eq!(files, there, "a file without a target");
}

/// A number of executions, not a time: the same inputs on every machine.
#[test]
fn every_target_for_a_moment() {
    for target in &TARGETS {
        let outcome = fuzz(target, 1, Until::Executions(4000));
        if let Some(failure) = outcome.failure {
            panic!(
                "{}: {}; again: cargo xtask fuzz --target {0} --input {}",
                target.name,
                failure.message,
                regressions::to_hex(&failure.input)
            );
        }
        assert!(
            outcome.features > 2,
            "{} does {} things",
            target.name,
            outcome.features
        );
    }
}

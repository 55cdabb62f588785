// SPDX-License-Identifier: GPL-3.0-or-later
//! The small bounds, planted bugs, and some seeds.

use model::{Limits, check, sim, suites};

#[test]
fn nothing_forbidden_happens_within_small_bounds() {
    for suite in &suites::SMALL {
        let outcome = check::check(&suite.limits(), 1_000_000);
        if let Some(failure) = outcome.failure {
            panic!("{}: {} after {:?}", suite.name, failure.what, failure.steps);
        }
        assert!(
            outcome.complete,
            "{}: {} states",
            suite.name, outcome.states
        );
        println!("{}: {} states", suite.name, outcome.states);
    }
}

/// The fence is left out: transfers of an epoch that has ended are carried out.
#[test]
fn an_exporter_without_a_fence_is_found() {
    let limits = Limits {
        host_crashes: 1,
        planted_unfenced: true,
        ..Limits::calm(1, 0)
    };
    let failure = check::check(&limits, 1_000_000).failure.unwrap();
    assert!(
        failure.what.contains("was executed, the lease is at"),
        "{}",
        failure.what
    );
}

/// A signal of the frontend does not arrive: a transfer waits for ever.
#[test]
fn a_lost_wake_up_is_found() {
    let limits = Limits {
        planted_lost_signal: true,
        ..Limits::calm(1, 0)
    };
    let failure = check::check(&limits, 1_000_000).failure.unwrap();
    assert!(failure.what.contains("has no answer"), "{}", failure.what);
}

#[test]
fn two_hundred_seeds() {
    let mut faults = 0;
    for seed in 1..=200 {
        let outcome = sim::run(seed);
        if let Some(failure) = outcome.failure {
            panic!("seed {seed}: {failure}; again: cargo xtask sim --seed {seed}");
        }
        faults += outcome.faults;
    }
    assert!(faults > 200, "{faults} faults");
}

#[test]
fn a_seed_is_the_same_twice() {
    let (first, second) = (sim::run(7), sim::run(7));
    assert_eq!(first.trace, second.trace);
}

/// A `vusbd` that was started again claims its leases anew: what was in flight fails.
#[test]
fn a_restart_that_forgets_its_sessions_is_found() {
    let limits = Limits {
        restarts: 1,
        keeps: true,
        planted_claims: true,
        ..Limits::calm(1, 0)
    };
    let failure = check::check(&limits, 1_000_000).failure.unwrap();
    assert!(
        failure.what.contains("and nothing had happened to it"),
        "{}",
        failure.what
    );
}

/// The journal is written after what it is about, so its last store may be missing.
#[test]
fn a_journal_that_comes_late_is_found() {
    let limits = Limits {
        restarts: 1,
        keeps: true,
        acknowledgements: true,
        planted_late_journal: true,
        ..Limits::calm(1, 0)
    };
    let failure = check::check(&limits, 1_000_000).failure.unwrap();
    assert!(!failure.steps.is_empty(), "{}", failure.what);
}

/// A guest is told its device's address before anybody else could know it: it arrives at its next host
/// with a device that nobody finds.
#[test]
fn an_address_that_is_answered_before_it_is_saved_is_found() {
    let limits = Limits {
        planted_hasty: true,
        ..Limits::calm(1, 1)
    };
    let failure = check::check(&limits, 1_000_000).failure.unwrap();
    assert!(
        failure.what.contains("and nothing had happened to it"),
        "{}",
        failure.what
    );
}

/// A second domain with the VM's uuid takes its device: as it was before claims needed evidence.
#[test]
fn a_copy_that_is_believed_is_found() {
    let limits = Limits {
        copies: 1,
        planted_credulous: true,
        ..Limits::calm(0, 0)
    };
    let failure = check::check(&limits, 1_000_000).failure.unwrap();
    assert!(failure.what.contains("which runs"), "{}", failure.what);
}

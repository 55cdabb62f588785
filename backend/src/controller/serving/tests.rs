// SPDX-License-Identifier: GPL-3.0-or-later
//! The process ends at any store, and another goes on: every request is answered once, and nothing
//! is executed twice.
//!
//! The real [`Serving`](super::Serving), journal, session client and session server; a guest, a device
//! and a network of the test's own. Time stands still; the order of things comes from a seed.

mod device;
mod guest;
mod host;
mod steps;

use host::{Host, Random};

/// A life without a crash, to know how many stores there are.
fn stores_of(seed: u64) -> u64 {
    let mut host = Host::new(seed, u64::MAX);
    host.boot();
    host.live(60);
    host.finish();
    host.stores()
}

#[test]
fn a_life_without_a_crash() {
    for seed in 0..20 {
        let stores = stores_of(seed);
        assert!(stores > 300, "seed {seed}: only {stores} stores");
    }
}

#[test]
fn a_crash_at_every_single_store() {
    for seed in 0..2 {
        for at in 0..stores_of(seed) {
            let mut host = Host::new(seed, at);
            host.what = format!("seed {seed}, crash after {at} stores");
            host.boot();
            host.live(60);
            host.finish();
            assert_eq!(host.crashes, 1, "{}", host.what);
        }
    }
}

#[test]
fn crash_upon_crash() {
    let (mut transfers, mut crashes) = (0, 0);
    for seed in 100..200 {
        let mut random = Random(seed ^ 0x9e37_79b9);
        let mut host = Host::new(seed, random.below(400));
        host.what = format!("seed {seed}");
        host.boot();
        for _ in 0..5 {
            host.more_crashes = random.below(4) as u32;
            host.live(20);
            host.power.refill(random.below(150));
        }
        host.more_crashes = 0;
        transfers += host.finish();
        crashes += host.crashes;
    }
    assert!(
        transfers > 1000 && crashes > 500,
        "only {transfers} transfers and {crashes} crashes"
    );
}

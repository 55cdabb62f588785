// SPDX-License-Identifier: GPL-3.0-or-later
//! Long runs in which chance decides what happens next.

use std::collections::HashSet;

use crate::check::{apply, end};
use crate::{Dialect, Limits, Step, World};

/// What a seed came to.
#[derive(Debug)]
pub struct Outcome {
    /// Things that happened.
    pub steps: usize,
    /// Faults among them.
    pub faults: usize,
    /// Transfers of the guest.
    pub transfers: usize,
    /// What must not happen.
    pub failure: Option<String>,
    /// Everything that happened.
    pub trace: Vec<Step>,
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        // Less than end.
        (mixed % end.max(1) as u64) as usize
    }
}

/// What may happen in the run of a seed.
fn limits(random: &mut Random) -> Limits {
    let up_to = |random: &mut Random, n: u16| random.below(usize::from(n) + 1) as u16;
    // Every fourth time a storm.
    // Not libvirt: some of its seeds fail, and it is not known yet whether that is its limit (docs/known-issues.md).
    let dialect = [Dialect::Xl, Dialect::Xenopsd][random.below(2)];
    let most_spurious = [10, 10, 10, 300][random.below(4)];
    Limits {
        dialect,
        transfers: 10 + up_to(random, 90),
        window: 1 + random.below(6),
        migrations: up_to(random, 6),
        cuts: up_to(random, 8),
        aborts: up_to(random, 3),
        exporter_crashes: up_to(random, 2),
        host_crashes: up_to(random, 2),
        reloads: up_to(random, 3),
        unlinks: up_to(random, 5),
        spurious: up_to(random, most_spurious),
        restarts: up_to(random, 4),
        stores: 60,
        keeps: true,
        store_losses: up_to(random, 3),
        // Seldom: what comes after it is a life without a device.
        holds: u16::from(random.below(10) == 0),
        copies: up_to(random, 2),
        retries: up_to(random, 20),
        // A device whose guest cannot resume is not attached to a controller of ours with `refuse`.
        resumes: random.below(8) > 0 || dialect.has_own_controllers(),
        recalls: random.below(2) > 0,
        acknowledgements: true,
        ..Limits::calm(0, 0)
    }
}

/// How often a step is chosen, against others.
fn weight(step: Step, slow: &[usize; 3]) -> usize {
    match step {
        // There are 60 of them.
        Step::KillVusbdAfter(..) => 2,
        Step::CrashHost(_) | Step::CrashExporter | Step::GuestReload => 60,
        step if step.is_fault() => 120,
        step if step.is_timer() => 240,
        // A slow disk of the lease store, a slow network, a slow host.
        Step::Save => 60 * slow[0],
        Step::Up(_) | Step::Down(_) => 60 * slow[1],
        Step::Watch(_) => 60 * slow[2],
        _ => 1800,
    }
}

/// Runs a seed. The same seed does the same, as long as the code is the same.
pub fn run(seed: u64) -> Outcome {
    run_watched(seed, |_, _| ())
}

/// The same, and `watch` sees every step and what came of it.
pub fn run_watched(seed: u64, mut watch: impl FnMut(Step, &World)) -> Outcome {
    let mut random = Random(seed);
    let limits = limits(&mut random);
    let slow = [0; 3].map(|_| [2, 15, 60][random.below(3)]);
    let mut world = World::new(limits);
    let mut outcome = Outcome {
        steps: 0,
        faults: 0,
        transfers: 0,
        failure: None,
        trace: Vec::new(),
    };
    loop {
        let steps = world.enabled();
        if steps.iter().all(|s| s.is_fault()) {
            break;
        }
        let total = steps.iter().map(|s| weight(*s, &slow)).sum();
        let mut at = random.below(total);
        let chosen = steps.iter().find(|s| {
            let weight = weight(**s, &slow);
            let found = at < weight;
            at = at.wrapping_sub(weight);
            found
        });
        let Some(&step) = chosen else { break };
        world.advance(random.below(20) as u64);
        outcome.trace.push(step);
        outcome.faults += usize::from(step.is_fault());
        let result = apply(&mut world, step);
        watch(step, &world);
        if let Err((what, _)) = result {
            outcome.failure = Some(what);
            break;
        }
        if outcome.trace.len() > 100_000 {
            outcome.failure = Some("it goes on for ever".into());
            break;
        }
    }
    if outcome.failure.is_none() {
        outcome.failure = end(&world, &mut HashSet::new()).err().map(|e| e.0);
    }
    outcome.steps = outcome.trace.len();
    outcome.transfers = world.transfers();
    outcome
}

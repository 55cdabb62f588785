// SPDX-License-Identifier: GPL-3.0-or-later
//! Tries every order of everything that may happen within limits.
//!
//! Depth first, with the fingerprints of the worlds seen. In every one of them nothing forbidden
//! may have happened, and from every one of them, if nothing more goes wrong, a good end must be
//! reached: so there is no deadlock, and no lost wake-up that something else would not mend.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::{Limits, Step, World};

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// Different worlds.
    pub states: usize,
    /// Steps from one to another.
    pub steps: u64,
    /// The longest way into it.
    pub depth: usize,
    /// How long it took.
    pub elapsed: Duration,
    /// Whether everything within the limits was tried.
    pub complete: bool,
    /// What must not happen, and how it came to that.
    pub failure: Option<Failure>,
}

/// A way to something that must not happen.
#[derive(Debug)]
pub struct Failure {
    /// What.
    pub what: String,
    /// How.
    pub steps: Vec<Step>,
}

struct Level {
    world: World,
    steps: Vec<Step>,
    next: usize,
}

/// Tries everything; at most `max_states` worlds.
pub fn check(limits: &Limits, max_states: usize) -> Outcome {
    let started = Instant::now();
    let mut seen = HashSet::new();
    let mut ends_well = HashSet::new();
    let mut outcome = Outcome {
        states: 0,
        steps: 0,
        depth: 0,
        elapsed: Duration::ZERO,
        complete: false,
        failure: None,
    };
    let mut first = World::new(limits.clone());
    let steps = first.enabled();
    seen.insert(first.fingerprint());
    let mut stack = vec![Level {
        world: first,
        steps,
        next: 0,
    }];
    while let Some(level) = stack.last_mut() {
        let Some(&step) = level.steps.get(level.next) else {
            stack.pop();
            continue;
        };
        level.next += 1;
        let mut world = level.world.clone();
        outcome.steps += 1;
        let mut failure = apply(&mut world, step).err();
        if failure.is_none() {
            if !seen.insert(world.fingerprint()) {
                continue;
            }
            failure = end(&world, &mut ends_well).err();
        }
        outcome.depth = outcome.depth.max(stack.len());
        if let Some((what, rest)) = failure {
            let mut steps: Vec<Step> = stack.iter().map(|l| l.steps[l.next - 1]).collect();
            steps.extend(rest);
            outcome.failure = Some(Failure { what, steps });
            break;
        }
        if seen.len() >= max_states {
            break;
        }
        let steps = world.enabled();
        stack.push(Level {
            world,
            steps,
            next: 0,
        });
    }
    outcome.complete = stack.is_empty();
    outcome.states = seen.len();
    outcome.elapsed = started.elapsed();
    outcome
}

/// What went wrong, and the steps to it from where one was.
type Wrong = (String, Vec<Step>);

/// Lets a step happen. A panic of the shipping code is a failure like any other.
pub(crate) fn apply(world: &mut World, step: Step) -> Result<(), Wrong> {
    catch_unwind(AssertUnwindSafe(|| world.apply(step))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        (text.unwrap_or_else(|| "panic".into()), Vec::new())
    })?;
    match world.violation() {
        Some(violation) => Err((violation.to_owned(), Vec::new())),
        None => Ok(()),
    }
}

/// Goes to the end without another fault. `ends_well` has the worlds from which that went well.
pub(crate) fn end(world: &World, ends_well: &mut HashSet<u64>) -> Result<(), Wrong> {
    let mut world = world.clone();
    let mut way = Vec::new();
    let mut passed = HashSet::new();
    loop {
        let here = world.fingerprint();
        if ends_well.contains(&here) {
            break;
        }
        if !passed.insert(here) {
            return Err(("it goes round for ever".into(), way));
        }
        let fair = world.enabled().into_iter().find(|s| !s.is_fault());
        let Some(step) = fair else {
            world.judge_end().map_err(|what| (what, way.clone()))?;
            break;
        };
        way.push(step);
        apply(&mut world, step).map_err(|(what, _)| (what, way.clone()))?;
    }
    ends_well.extend(passed);
    Ok(())
}

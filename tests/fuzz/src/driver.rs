// SPDX-License-Identifier: GPL-3.0-or-later
//! Tries inputs until the time is over or one fails.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::mutate::{invent, mutate};
use crate::{Input, Random, Target};

/// Most inputs that are kept.
const MAX_CORPUS: usize = 2048;
/// Most attempts at making a failing input smaller.
const MAX_SHRINKS: usize = 20_000;

/// When to end.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// After this time.
    Elapsed(Duration),
    /// After so many executions: the same everywhere.
    Executions(u64),
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// Inputs tried.
    pub executions: u64,
    /// How long that took.
    pub elapsed: Duration,
    /// Inputs that were kept, since they did something new.
    pub corpus: usize,
    /// Different things done.
    pub features: usize,
    /// What failed.
    pub failure: Option<Failure>,
}

/// An input that failed.
#[derive(Debug)]
pub struct Failure {
    /// The input, made smaller.
    pub input: Vec<u8>,
    /// The panic's message.
    pub message: String,
}

/// Fuzzes a target.
pub fn fuzz(target: &Target, seed: u64, until: Until) -> Outcome {
    let started = Instant::now();
    let mut random = Random::new(seed);
    let mut corpus: Vec<Vec<u8>> = (target.seeds)();
    corpus.push(Vec::new());
    let mut features = HashSet::new();
    let mut executions = 0;
    let mut planned = corpus.clone().into_iter();
    let failure = loop {
        let over = match until {
            // Looking at the clock costs as much as a short execution.
            Until::Elapsed(time) => executions % 64 == 0 && started.elapsed() >= time,
            Until::Executions(count) => executions >= count,
        };
        if over {
            break None;
        }
        let input = planned.next().unwrap_or_else(|| {
            let base = &corpus[random.below(corpus.len())];
            let other = &corpus[random.below(corpus.len())];
            match random.below(8) {
                0 => invent(&mut random),
                _ => mutate(base, other, &mut random),
            }
        });
        executions += 1;
        match execute(target, &input) {
            Ok(did) => {
                let before = features.len();
                features.extend(did);
                if features.len() > before && corpus.len() < MAX_CORPUS {
                    corpus.push(input);
                }
            }
            Err(message) => break Some(shrink(target, input, message)),
        }
    };
    Outcome {
        executions,
        elapsed: started.elapsed(),
        corpus: corpus.len(),
        features: features.len(),
        failure,
    }
}

/// Tries one input: what it did, or the message of its panic.
///
/// # Errors
/// The message.
pub fn execute(target: &Target, bytes: &[u8]) -> Result<HashSet<u64>, String> {
    let mut input = Input::new(bytes);
    // What the panic left behind is dropped here, unseen.
    catch_unwind(AssertUnwindSafe(|| (target.run)(&mut input))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        text.unwrap_or_else(|| "panic without a message".to_owned())
    })?;
    Ok(input.into_did())
}

/// Leaves out what is not needed, as long as it still fails, whatever the message.
fn shrink(target: &Target, mut input: Vec<u8>, mut message: String) -> Failure {
    let mut attempts = 0;
    let mut piece = input.len();
    while piece > 0 {
        let mut at = 0;
        let mut smaller = false;
        while at < input.len() && attempts < MAX_SHRINKS {
            attempts += 1;
            let mut shorter = input.clone();
            shorter.drain(at..(at + piece).min(shorter.len()));
            match execute(target, &shorter) {
                Err(m) => (input, message, smaller) = (shorter, m, true),
                Ok(_) => at += piece,
            }
        }
        if !smaller {
            piece /= 2;
        }
    }
    for at in 0..input.len().min(MAX_SHRINKS) {
        let old = std::mem::replace(&mut input[at], 0);
        match execute(target, &input) {
            Err(m) => message = m,
            Ok(_) => input[at] = old,
        }
    }
    Failure { input, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLANTED: Target = Target {
        name: "planted",
        seeds: Vec::new,
        run: |input| {
            let mut depth = 0;
            while !input.is_empty() && depth < 3 {
                if input.byte() == b'a' + depth {
                    depth += 1;
                    input.did(depth);
                }
            }
            assert!(depth < 3, "planted");
        },
    };

    #[test]
    fn a_planted_failure_is_found_made_small_and_found_again() {
        let until = Until::Executions(1_000_000);
        let first = fuzz(&PLANTED, 1, until);
        let failure = first.failure.unwrap();
        assert_eq!(failure.input, b"abc");
        assert_eq!(failure.message, "planted");
        let second = fuzz(&PLANTED, 1, until);
        assert_eq!(first.executions, second.executions);
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! What happens to the guest, in which order: the same for the same seed.

use std::time::Duration;

use xen_sim::toolstack::{Failure, MigrateOptions};

use crate::random::Random;

/// One thing that happens to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It is migrated to the other host.
    Migrate,
    /// It is migrated to the host that it is on.
    Localhost,
    /// A migration to the other host fails, and it goes on where it was.
    Fail(Failure),
}

impl Step {
    pub(super) fn options(self) -> MigrateOptions {
        MigrateOptions {
            round_interval: Duration::from_millis(100),
            failure: match self {
                Self::Fail(failure) => Some(failure),
                _ => None,
            },
            ..MigrateOptions::default()
        }
    }
}

/// So many migrations between the hosts, and at places that the seed chooses, one to localhost and
/// one of each way to fail that leaves the guest at its source.
pub(super) fn plan(migrations: u32, seed: u64) -> Vec<Step> {
    let mut random = Random::new(seed ^ 0x6d69_6772_6174_6521);
    let mut steps = vec![Step::Migrate; migrations as usize];
    if migrations == 0 {
        return steps;
    }
    for extra in [
        Step::Localhost,
        Step::Fail(Failure::BeforeGo),
        Step::Fail(Failure::DuringPrecopy),
    ] {
        // Not at the very start: something should be behind the guest by then.
        let at = 1 + random.below(steps.len() as u64) as usize;
        steps.insert(at, extra);
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extras_come_on_top_and_in_the_same_places() {
        for seed in 0..50 {
            let steps = plan(3, seed);
            let migrations = steps.iter().filter(|s| **s == Step::Migrate).count();
            assert_eq!((steps.len(), migrations), (6, 3));
            assert_eq!(steps[0], Step::Migrate);
            assert_eq!(steps, plan(3, seed));
        }
        assert_ne!(plan(20, 1), plan(20, 2));
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! Which fault comes when: from a seed alone, so that a run can be repeated.

use std::time::Duration;

use serde::Serialize;

use crate::machine::MACHINES;
use crate::workload::splitmix;

/// What goes wrong, or is done, next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Fault {
    /// `vusbd` where the guest is gets SIGKILL and is started again after this many milliseconds.
    KillVusbd(u64),
    /// The same for `vusb-exporter`.
    KillExporter(u64),
    /// Nothing passes a machine's link for some milliseconds.
    Cut(&'static str, u64),
    /// A machine's link is slow, by so many milliseconds, for a while.
    Delay(&'static str, u64),
    /// `xl migrate` to the other host.
    Migrate,
}

impl Fault {
    /// Its name in the RESULT line.
    pub fn kind(self) -> &'static str {
        match self {
            Self::KillVusbd(_) => "kill_vusbd",
            Self::KillExporter(_) => "kill_exporter",
            Self::Cut(..) => "cut",
            Self::Delay(..) => "delay",
            Self::Migrate => "migrate",
        }
    }
}

/// The kinds, by name.
pub const KINDS: &[&str] = &["kill_vusbd", "kill_exporter", "cut", "delay", "migrate"];

/// Endless faults, each with the time to wait before it.
#[derive(Debug, Clone)]
pub struct Schedule {
    state: u64,
    /// Of the current round: every kind comes in each, in an order of its own.
    left: Vec<usize>,
}

impl Schedule {
    /// The schedule of a seed.
    pub fn new(seed: u64) -> Self {
        Self {
            state: splitmix(seed),
            left: Vec::new(),
        }
    }

    /// A number below `limit`.
    fn below(&mut self, limit: u64) -> u64 {
        self.state = splitmix(self.state);
        self.state % limit
    }

    fn place(&mut self) -> usize {
        usize::try_from(self.below(1 << 16)).unwrap_or(0)
    }
}

impl Iterator for Schedule {
    type Item = (Duration, Fault);

    fn next(&mut self) -> Option<Self::Item> {
        if self.left.is_empty() {
            self.left = (0..KINDS.len()).collect();
        }
        let place = self.place() % self.left.len();
        let kind = self.left.swap_remove(place);
        let machine = MACHINES[self.place() % MACHINES.len()].name;
        let wait = Duration::from_millis(500 + self.below(5000));
        let fault = match KINDS[kind] {
            "kill_vusbd" => Fault::KillVusbd(self.below(1500)),
            "kill_exporter" => Fault::KillExporter(self.below(1500)),
            "cut" => Fault::Cut(machine, 1000 + self.below(3000)),
            "delay" => Fault::Delay(machine, 5 + self.below(45)),
            _ => Fault::Migrate,
        };
        Some((wait, fault))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_schedule_and_another_does_not() {
        let first = |seed| Schedule::new(seed).take(50).collect::<Vec<_>>();
        assert_eq!(first(1), first(1));
        assert_ne!(first(1), first(2));
    }

    #[test]
    fn every_kind_comes_in_every_round() {
        let faults: Vec<_> = Schedule::new(7).take(10 * KINDS.len()).collect();
        for round in faults.chunks(KINDS.len()) {
            for kind in KINDS {
                assert!(round.iter().any(|(_, fault)| fault.kind() == *kind));
            }
        }
        for (wait, fault) in faults {
            assert!((500..5500).contains(&u64::try_from(wait.as_millis()).unwrap_or(0)));
            if let Fault::Cut(_, ms) = fault {
                assert!((1000..4000).contains(&ms));
            }
        }
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! How long each operation of a device in constant use takes, in each phase of a scenario.

use serde::{Deserialize, Serialize};

/// What happened in one phase.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// The scenario's name for it.
    pub name: String,
    /// Operations that ended in it.
    pub ops: u64,
    /// The longest of them, in milliseconds.
    pub worst_ms: f64,
}

/// What a program has measured so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Pulse {
    /// Every phase, in order.
    pub phases: Vec<Phase>,
    /// Blocks that read back wrong, keys that never came.
    pub lost: u64,
    /// The first few failures, in words.
    pub errors: Vec<String>,
    /// How many there were.
    pub error_count: u64,
    /// The program has ended by itself.
    pub finished: bool,
}

impl Pulse {
    /// A phase begins, unless it is the one that there is.
    pub fn enter(&mut self, name: &str) {
        if self.phases.last().is_none_or(|phase| phase.name != name) {
            self.phases.push(Phase {
                name: name.to_owned(),
                ..Phase::default()
            });
        }
    }

    /// An operation has ended.
    pub fn operation(&mut self, ms: f64) {
        if let Some(phase) = self.phases.last_mut() {
            phase.ops += 1;
            phase.worst_ms = phase.worst_ms.max(ms);
        }
    }

    /// A system call has failed.
    pub fn failed(&mut self, what: &str) {
        self.error_count += 1;
        if self.errors.len() < 10 {
            self.errors.push(what.to_owned());
        }
    }

    /// What happened in the phases of this name.
    pub fn of(&self, name: &str) -> Phase {
        let mut sum = Phase {
            name: name.to_owned(),
            ..Phase::default()
        };
        for phase in self.phases.iter().filter(|phase| phase.name == name) {
            sum.ops += phase.ops;
            sum.worst_ms = sum.worst_ms.max(phase.worst_ms);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_belongs_to_the_phase_that_it_ended_in() {
        let mut pulse = Pulse::default();
        pulse.operation(7.0);
        for (phase, ms) in [
            ("quiet", 1.0),
            ("quiet", 3.0),
            ("stuck", 9.0),
            ("stuck", 2.0),
        ] {
            pulse.enter(phase);
            pulse.operation(ms);
        }
        pulse.enter("quiet");
        pulse.operation(4.0);
        let of = |name| {
            let phase = pulse.of(name);
            (phase.ops, phase.worst_ms)
        };
        assert_eq!(of("quiet"), (3, 4.0));
        assert_eq!(of("stuck"), (2, 9.0));
        assert_eq!(of("never"), (0, 0.0));
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! What a device's job came to.

use serde::Serialize;

use crate::traffic::Tally;

/// What a job came to.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Score {
    /// What was sent to or through the device, in `unit`s.
    pub sent: u64,
    /// What arrived at the other end.
    pub received: u64,
    /// What did not.
    pub lost: u64,
    /// Audio only, and not in `lost`: what did not because its user stood still meanwhile, as a guest
    /// does that is being migrated. Nothing sends audio again, and a microphone does not wait.
    pub lost_standing: u64,
    /// Where that was watched, and not in `lost`: what the device was given and did not hand over, because it
    /// was asked too seldom. An emulated keyboard keeps 16 events.
    pub dropped_by_device: u64,
    /// What came twice.
    pub doubled: u64,
    /// What was counted: keys, records, commands, frames, blocks.
    pub unit: &'static str,
    /// Failures in words.
    pub errors: Vec<String>,
    /// What is no failure, in words.
    pub notes: Vec<String>,
}

impl Score {
    /// Everything arrived, once, and something did.
    pub fn perfect(&self) -> bool {
        self.received > 0 && self.lost == 0 && self.doubled == 0 && self.errors.is_empty()
    }

    /// Failures and notes, for the end of a line.
    pub fn words(&self) -> String {
        let words = self.errors.iter().chain(&self.notes);
        words.map(|word| format!("; {word}")).collect()
    }

    /// One direction from its two ends' counts.
    pub fn one_way(unit: &'static str, sent: u64, arrived: &Tally) -> Self {
        let mut errors = arrived.errors.clone();
        if arrived.malformed > 0 {
            errors.push(format!("{} malformed", arrived.malformed));
        }
        // The first may be missing without a gap that shows it.
        let lost = sent.saturating_sub(arrived.received);
        let mut notes = arrived.gaps.clone();
        if lost > 0 {
            // Of two ways, which: the last that came, and what was missing before it. That it is a failure `lost` says.
            notes.push(format!(
                "{lost} of {sent} {unit} did not arrive, {} of them before the last, {}",
                arrived.lost, arrived.last
            ));
        }
        Self {
            sent,
            received: arrived.received,
            lost,
            doubled: arrived.doubled,
            unit,
            errors,
            notes,
            ..Self::default()
        }
    }

    /// Two directions together.
    pub fn and(mut self, other: Self) -> Self {
        self.sent += other.sent;
        self.received += other.received;
        self.lost += other.lost;
        self.lost_standing += other.lost_standing;
        self.doubled += other.doubled;
        self.errors.extend(other.errors);
        self.notes.extend(other.notes);
        self
    }
}

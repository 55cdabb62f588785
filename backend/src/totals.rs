// SPDX-License-Identifier: GPL-3.0-or-later
//! What went through this daemon since it started, all controllers together, also those that ended.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use control::Counters;

/// Shared by the controllers' threads; each adds to it as it counts for itself.
#[derive(Debug, Default)]
pub struct Totals {
    urbs: AtomicU64,
    answered: AtomicU64,
    errors: AtomicU64,
    unlinked: AtomicU64,
    bytes_out: AtomicU64,
    bytes_in: AtomicU64,
    reconnects: AtomicU64,
}

impl Totals {
    /// Adds what has happened at a controller.
    pub fn add(&self, counters: &Counters) {
        let Counters {
            urbs,
            answered,
            errors,
            unlinked,
            bytes_out,
            bytes_in,
            reconnects,
        } = *counters;
        for (total, more) in [
            (&self.urbs, urbs),
            (&self.answered, answered),
            (&self.errors, errors),
            (&self.unlinked, unlinked),
            (&self.bytes_out, bytes_out),
            (&self.bytes_in, bytes_in),
            (&self.reconnects, reconnects),
        ] {
            if more != 0 {
                total.fetch_add(more, Relaxed);
            }
        }
    }

    /// The sums so far.
    pub fn get(&self) -> Counters {
        Counters {
            urbs: self.urbs.load(Relaxed),
            answered: self.answered.load(Relaxed),
            errors: self.errors.load(Relaxed),
            unlinked: self.unlinked.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
            bytes_in: self.bytes_in.load(Relaxed),
            reconnects: self.reconnects.load(Relaxed),
        }
    }
}

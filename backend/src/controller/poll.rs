// SPDX-License-Identifier: GPL-3.0-or-later
//! When a controller's thread looks again instead of going to sleep.
//!
//! A thread that sleeps is woken by the scheduler, which costs more than a short transfer does. So
//! after something has moved the thread keeps looking for a while, but only if that has paid: what
//! came next the last time came within the limit. A device behind a slow network, or a keyboard,
//! costs at most one such while, and then none.

use std::time::Duration;

use tokio::time::Instant;

/// What moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// Requests were taken: completions come next.
    Requests,
    /// Completions were answered: requests come next.
    Completions,
}

/// The waits after the two kinds of movement, each with a memory of its own.
#[derive(Debug)]
pub(super) struct Polling {
    limit: Duration,
    last: Option<(Moved, Instant)>,
    /// Whether the wait after requests, and after completions, was short the last time.
    short: [bool; 2],
}

impl Polling {
    /// Looks for `limit` at most; never when it is 0.
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            last: None,
            short: [false; 2],
        }
    }

    /// Something has moved.
    pub(super) fn moved(&mut self, what: Moved, now: Instant) {
        if let Some((before, at)) = self.last {
            self.short[before as usize] = now.duration_since(at) <= self.limit;
        }
        self.last = Some((what, now));
    }

    /// Whether to look again rather than to sleep.
    pub(super) fn is_on(&self, now: Instant) -> bool {
        let on = |(what, at): (Moved, Instant)| {
            self.short[what as usize] && now.duration_since(at) < self.limit
        };
        !self.limit.is_zero() && self.last.is_some_and(on)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(50);

    fn us(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    #[test]
    fn it_looks_only_after_what_was_short_the_last_time() {
        let start = Instant::now();
        let mut polling = Polling::new(LIMIT);
        polling.moved(Moved::Requests, start);
        assert!(!polling.is_on(start), "nothing is known yet");
        polling.moved(Moved::Completions, start + us(20));
        assert!(!polling.is_on(start + us(21)));
        // A slow guest: completions are not worth waiting after.
        polling.moved(Moved::Requests, start + us(900));
        assert!(polling.is_on(start + us(910)), "requests are");
        assert!(!polling.is_on(start + us(950)), "for as long as the limit");
        polling.moved(Moved::Completions, start + us(920));
        assert!(!polling.is_on(start + us(921)));
    }

    #[test]
    fn a_device_that_has_become_slow_costs_one_limit() {
        let start = Instant::now();
        let mut polling = Polling::new(LIMIT);
        polling.moved(Moved::Requests, start);
        polling.moved(Moved::Completions, start + us(10));
        polling.moved(Moved::Requests, start + us(20));
        assert!(polling.is_on(start + us(30)));
        polling.moved(Moved::Completions, start + us(500));
        polling.moved(Moved::Requests, start + us(510));
        assert!(!polling.is_on(start + us(511)));
    }

    #[test]
    fn never_when_the_limit_is_zero() {
        let start = Instant::now();
        let mut polling = Polling::new(Duration::ZERO);
        for _ in 0..3 {
            polling.moved(Moved::Requests, start);
            assert!(!polling.is_on(start));
        }
    }
}

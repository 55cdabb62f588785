// SPDX-License-Identifier: GPL-3.0-or-later
//! A limit to how often something is done for one peer: a token bucket.

use std::time::{Duration, Instant};

/// So many at once, and one more for each interval after that. A pure machine; the time is an argument.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    burst: u32,
    interval: Duration,
    /// When the bucket is full. Each that is taken moves it on by an interval.
    full_at: Instant,
}

impl Pace {
    /// A full bucket of `burst`, refilled by one each `interval`.
    pub(crate) fn new(burst: u32, interval: Duration, now: Instant) -> Self {
        Self {
            burst: burst.max(1),
            interval,
            full_at: now,
        }
    }

    /// Takes one, if there is one.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let free = self.wait(now).is_zero();
        if free {
            self.full_at = self.full_at.max(now) + self.interval;
        }
        free
    }

    /// Takes one, and answers how long to wait before it is used.
    pub(crate) fn reserve(&mut self, now: Instant) -> Duration {
        let wait = self.wait(now);
        self.full_at = self.full_at.max(now) + self.interval;
        wait
    }

    /// Whether nothing is missing: then it is as good as a new one.
    pub(crate) fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }

    /// How long it takes until there is one.
    pub(crate) fn wait(&self, now: Instant) -> Duration {
        let missing = self.full_at.saturating_duration_since(now);
        missing.saturating_sub(self.interval * (self.burst - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(10);

    #[test]
    fn a_burst_and_then_one_for_each_interval() {
        let start = Instant::now();
        let mut pace = Pace::new(3, INTERVAL, start);
        for _ in 0..3 {
            assert!(pace.take(start));
        }
        assert!(!pace.take(start));
        assert!(!pace.take(start + INTERVAL / 2));
        assert!(pace.take(start + INTERVAL));
        assert!(!pace.take(start + INTERVAL));
        assert!(!pace.is_full(start + INTERVAL * 3));
        assert!(pace.is_full(start + INTERVAL * 4));
    }

    #[test]
    fn who_reserves_waits_for_all_before() {
        let start = Instant::now();
        let mut pace = Pace::new(2, INTERVAL, start);
        let waits: Vec<_> = (0..5).map(|_| pace.reserve(start)).collect();
        let expected = [0, 0, 1, 2, 3].map(|n| INTERVAL * n);
        assert_eq!(waits, expected);
    }

    #[test]
    fn silence_earns_no_more_than_a_burst() {
        let start = Instant::now();
        let mut pace = Pace::new(2, INTERVAL, start);
        let later = start + INTERVAL * 1000;
        assert!(pace.take(later) && pace.take(later));
        assert!(!pace.take(later));
    }
}

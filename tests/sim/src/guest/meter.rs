// SPDX-License-Identifier: GPL-3.0-or-later
//! How long nothing completes around a suspend.

use std::time::{Duration, Instant};

/// How long the workload must go again before a blackout counts as over.
const SETTLED: Duration = Duration::from_millis(100);

/// Watches the time between completions.
#[derive(Debug)]
pub(super) struct Meter {
    last: Instant,
    /// Longest gap since the suspend was asked for.
    longest: Duration,
    suspend: Option<Suspend>,
}

#[derive(Debug)]
struct Suspend {
    resumed: Option<(Instant, bool)>,
}

/// A suspend that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blackout {
    pub(super) cancelled: bool,
    pub(super) longest: Duration,
}

impl Meter {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            last: now,
            longest: Duration::ZERO,
            suspend: None,
        }
    }

    /// A transfer has completed.
    pub(super) fn completed(&mut self, now: Instant) {
        self.longest = self.longest.max(now - self.last);
        self.last = now;
    }

    /// The guest was asked to suspend.
    pub(super) fn suspending(&mut self) {
        self.longest = Duration::ZERO;
        self.suspend = Some(Suspend { resumed: None });
    }

    /// It runs again.
    pub(super) fn resumed(&mut self, now: Instant, cancelled: bool) {
        if let Some(suspend) = &mut self.suspend {
            suspend.resumed = Some((now, cancelled));
        }
    }

    /// The blackout of a suspend, once, when it is over.
    pub(super) fn take_blackout(&mut self, now: Instant) -> Option<Blackout> {
        let (resumed, cancelled) = self.suspend.as_ref()?.resumed?;
        if self.last < resumed || now - resumed < SETTLED {
            return None;
        }
        self.suspend = None;
        Some(Blackout {
            cancelled,
            longest: self.longest,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gap_over_the_suspend_counts_and_no_earlier_one() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut meter = Meter::new(start);
        meter.completed(at(500));
        meter.suspending();
        meter.completed(at(510));
        meter.resumed(at(540), false);
        assert_eq!(meter.take_blackout(at(900)), None, "nothing completed yet");
        meter.completed(at(550));
        assert_eq!(meter.take_blackout(at(600)), None, "too early");
        let blackout = meter.take_blackout(at(640));
        let longest = Duration::from_millis(40);
        let cancelled = false;
        assert_eq!(blackout, Some(Blackout { cancelled, longest }));
        assert_eq!(meter.take_blackout(at(700)), None, "only once");
    }
}

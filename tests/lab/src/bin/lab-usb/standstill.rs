// SPDX-License-Identifier: GPL-3.0-or-later
//! Whether this machine stood still, as a guest does while it is migrated: its CLOCK_REALTIME has
//! gone on then, its CLOCK_MONOTONIC has not.

use std::time::{Duration, Instant, SystemTime};

/// Shorter ones are not noticed: clocks are adjusted.
const SHORTEST: Duration = Duration::from_millis(50);
/// How long afterwards a stream may still show it: what was recorded before must be read first.
const AFTERWARDS: Duration = Duration::from_secs(15);

/// Compares the clocks.
pub struct Standstill {
    monotonic: Instant,
    realtime: SystemTime,
    last: Option<Instant>,
}

impl Standstill {
    /// From now on.
    pub fn new() -> Self {
        let (monotonic, realtime) = clocks();
        Self {
            monotonic,
            realtime,
            last: None,
        }
    }

    /// Whether it stood still just now, or not long ago.
    pub fn recent(&mut self) -> bool {
        self.ago().is_some_and(|ago| ago < AFTERWARDS)
    }

    /// How long ago it stood still last, if it ever did.
    pub fn ago(&mut self) -> Option<Duration> {
        let (monotonic, realtime) = clocks();
        let ran = monotonic - self.monotonic;
        let passed = realtime.duration_since(self.realtime).unwrap_or_default();
        (self.monotonic, self.realtime) = (monotonic, realtime);
        if passed > ran + SHORTEST {
            self.last = Some(monotonic);
        }
        self.last.map(|at| monotonic - at)
    }
}

/// Both clocks at one moment: not when something else ran between the two.
fn clocks() -> (Instant, SystemTime) {
    loop {
        let before = Instant::now();
        let realtime = SystemTime::now();
        let after = Instant::now();
        if after - before < SHORTEST / 5 {
            return (after, realtime);
        }
    }
}

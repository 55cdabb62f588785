// SPDX-License-Identifier: GPL-3.0-or-later
//! How much work without a use a guest may cause.
//!
//! A request that no device is asked to carry out (a port that is not there, a segment outside its
//! page, a page that is not granted), and an event with nothing behind it, cost dom0 time and give
//! the guest nothing. An honest guest causes a few of them. One that causes many has its ring looked
//! at less often: its own requests wait, and other guests keep the processor.
//!
//! Transfers that a device has carried out earn more of it, so that a busy honest guest, whose
//! events often find the ring served already, never gets there.

use std::time::Duration;

use tokio::time::Instant;

/// What may be caused at once.
const BURST: i64 = 2048;
/// What one transfer that a device has carried out earns. Around each there may be an event for
/// its request, one that is late, and an unlink.
const EARNED: i64 = 4;
/// After this time one more may be caused: 250 per second.
const REFILL: Duration = Duration::from_millis(4);
/// What can be owed at most: a wake-up takes 64 requests, and each is answered once.
const MAX_DEBT: i64 = 64;

/// What happened since it was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Requests that came to nothing before a device saw them, and data that had no page to go to.
    pub useless: u32,
    /// Transfers that a device has carried out.
    pub useful: u32,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Allowance {
    left: i64,
    /// When `left` was true.
    at: Instant,
    until: Option<Instant>,
    pauses: u64,
}

impl Allowance {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            at: now,
            until: None,
            pauses: 0,
        }
    }

    /// Takes note of what happened. Once too much was caused there is a
    /// [pause](Allowance::paused_until); true when it is the first one.
    pub(super) fn spend(&mut self, spent: Spent, now: Instant) -> bool {
        let elapsed = now.duration_since(self.at).as_nanos();
        let refilled = i64::try_from(elapsed / REFILL.as_nanos()).unwrap_or(BURST);
        // What is left of an interval counts; it is less than one.
        self.at = now - Duration::from_nanos((elapsed % REFILL.as_nanos()) as u64);
        let earned = i64::from(spent.useful) * EARNED + refilled;
        let left = self.left.saturating_add(earned).min(BURST) - i64::from(spent.useless);
        self.left = left.max(-MAX_DEBT);
        if self.left > 0 || self.until.is_some() {
            return false;
        }
        // At most MAX_DEBT + 1.
        let debt = u32::try_from(1 - self.left).unwrap_or(1);
        self.until = Some(now + REFILL * debt);
        self.pauses += 1;
        self.pauses == 1
    }

    /// Until when the rings are left alone.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.until
    }

    /// The pause is over.
    pub(super) fn go_on(&mut self) {
        self.until = None;
    }

    /// How often there was a pause.
    pub(super) fn pauses(&self) -> u64 {
        self.pauses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn useless(count: u32) -> Spent {
        Spent {
            useless: count,
            useful: 0,
        }
    }

    #[test]
    fn some_nonsense_is_free() {
        let now = Instant::now();
        let mut allowance = Allowance::new(now);
        for _ in 0..30 {
            assert!(!allowance.spend(useless(64), now));
        }
        assert_eq!(allowance.paused_until(), None);
    }

    /// However fast it comes, what is looked at is bounded by the burst and the refill.
    #[test]
    fn a_flood_is_held_to_its_refill() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let mut now = start;
        let mut taken = 0;
        let mut first = 0;
        while now < start + Duration::from_secs(10) {
            if let Some(until) = allowance.paused_until() {
                assert!(until > now && until <= now + REFILL * 65);
                now = until;
                allowance.go_on();
            }
            // A wake-up takes 20 µs, and the next one is there at once.
            now += Duration::from_micros(20);
            taken += 64;
            first += u64::from(allowance.spend(useless(64), now));
        }
        assert!(taken <= 2048 + 2_500 + 128, "{taken}");
        assert!(taken >= 2_500, "{taken}: it is not shut out either");
        assert_eq!(first, 1, "it is said once");
        assert!(allowance.pauses() > 30);
    }

    /// Events with nothing behind them come one by one.
    #[test]
    fn empty_events_are_held_to_it_too() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let mut now = start;
        let mut taken = 0;
        while now < start + Duration::from_secs(10) {
            if let Some(until) = allowance.paused_until() {
                now = until;
                allowance.go_on();
            }
            now += Duration::from_micros(10);
            taken += 1;
            allowance.spend(useless(1), now);
        }
        assert!(taken <= 2048 + 2_500 + 1, "{taken}");
    }

    #[test]
    fn who_works_earns_it() {
        let now = Instant::now();
        let mut allowance = Allowance::new(now);
        for _ in 0..100_000 {
            let spent = Spent {
                useless: 3,
                useful: 1,
            };
            assert!(!allowance.spend(spent, now));
        }
        assert_eq!(allowance.pauses(), 0);
    }

    #[test]
    fn a_long_silence_earns_no_more_than_the_burst() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let later = start + Duration::from_secs(1 << 30);
        assert!(!allowance.spend(useless(0), later));
        assert!(allowance.spend(useless(2048), later));
    }

    /// What is left of an interval counts: looks that come just before the next one is whole cost nothing.
    #[test]
    fn the_rate_does_not_depend_on_when_it_is_looked_at() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        // Nothing is left.
        while allowance.paused_until().is_none() {
            allowance.spend(useless(1), start);
        }
        let mut spent = 0;
        let mut now = start;
        while now < start + REFILL * 1000 {
            now += REFILL * 19 / 10;
            allowance.go_on();
            while allowance.paused_until().is_none() {
                allowance.spend(useless(1), now);
                spent += 1;
            }
        }
        assert!((990..=1010).contains(&spent), "{spent} in the time of 1000");
    }
}

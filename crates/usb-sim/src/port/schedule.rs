// SPDX-License-Identifier: GPL-3.0-or-later
//! When isochronous packets are on the bus.

use std::time::Duration;

/// The time of one transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// When its first packet's interval begins.
    pub(super) start: Duration,
    /// When its last packet's interval is over.
    pub(super) end: Duration,
    interval: Duration,
}

/// A clock, and until when each endpoint's stream is scheduled.
#[derive(Debug)]
pub(super) struct Schedule {
    now: Duration,
    /// By endpoint number, plus 16 for IN. `None` when no stream runs.
    until: [Option<Duration>; 32],
}

impl Schedule {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            now,
            until: [None; 32],
        }
    }

    pub(super) fn now(&self) -> Duration {
        self.now
    }

    pub(super) fn advance(&mut self, now: Duration) {
        self.now = self.now.max(now);
    }

    /// Appends `packets` to an endpoint's stream, or starts it now. Also says how many intervals
    /// of a running stream had no packet, because this one comes late.
    pub(super) fn take(&mut self, endpoint: u8, packets: usize, interval: Duration) -> (Slot, u64) {
        let now = self.now;
        let until = &mut self.until[index(endpoint)];
        let previous = until.unwrap_or(now);
        let missed = intervals(now.saturating_sub(previous) + interval - TICK, interval);
        let start = previous + times(interval, missed);
        let end = start + times(interval, packets as u64);
        *until = Some(end);
        let slot = Slot {
            start,
            end,
            interval,
        };
        (slot, missed)
    }

    /// A transfer was cancelled; `last` is the end of the last one that remains of its endpoint.
    /// Says how many of its packets' intervals had passed.
    pub(super) fn vacate(&mut self, endpoint: u8, slot: &Slot, last: Option<Duration>) -> u64 {
        let elapsed = self.now.min(slot.end).saturating_sub(slot.start);
        let passed = intervals(elapsed, slot.interval);
        let until = &mut self.until[index(endpoint)];
        if until.is_some() {
            *until = Some(last.unwrap_or(match self.now < slot.start {
                true => {
                    let ahead = intervals(slot.start - self.now, slot.interval);
                    slot.start - times(slot.interval, ahead)
                }
                false => slot.start + times(slot.interval, passed),
            }));
        }
        passed
    }

    /// The streams of these endpoints ended.
    pub(super) fn forget(&mut self, of: impl Fn(u8) -> bool) {
        for number in 0..16 {
            for endpoint in [number, number | 0x80] {
                if of(endpoint) {
                    self.until[index(endpoint)] = None;
                }
            }
        }
    }
}

const TICK: Duration = Duration::from_nanos(1);

/// How many whole intervals are in `time`.
fn intervals(time: Duration, interval: Duration) -> u64 {
    (time.as_nanos() / interval.as_nanos().max(1)) as u64
}

fn times(interval: Duration, count: u64) -> Duration {
    Duration::from_nanos((interval.as_nanos() as u64).saturating_mul(count))
}

fn index(endpoint: u8) -> usize {
    usize::from(endpoint & 0x0f) + if endpoint & 0x80 != 0 { 16 } else { 0 }
}

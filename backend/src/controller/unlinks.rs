// SPDX-License-Identifier: GPL-3.0-or-later
//! Unlinked transfers that must be answered in time, whatever the exporter does.
//!
//! A guest may submit and unlink as fast as its device answers, and each unlink is watched for
//! seconds. So what is watched is bounded by what can be in flight, not by time.

use std::time::Duration;

use session::Epoch;
use tokio::time::Instant;
use usbif::PortNumber;

/// More than are in flight: those that are over are only sorted out when there is no room.
const ROOM: usize = 64;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unlinked {
    pub(super) port: PortNumber,
    /// Its number in the session.
    pub(super) number: u64,
    /// The session's epoch: in another one the number is another transfer's.
    pub(super) epoch: Option<Epoch>,
    /// When it is cancelled, if it was allowed to finish first.
    pub(super) cancel_at: Option<Instant>,
    /// When it is answered without the exporter.
    pub(super) give_up_at: Instant,
}

impl Unlinked {
    /// Unlinked now: may take `finish` to finish, and after that `patience` to be cancelled.
    pub(super) fn new(
        (port, number, epoch): (PortNumber, u64, Option<Epoch>),
        now: Instant,
        finish: Option<Duration>,
        patience: Duration,
    ) -> Self {
        let cancel_at = finish.map(|finish| now + finish);
        Self {
            port,
            number,
            epoch,
            cancel_at,
            give_up_at: cancel_at.unwrap_or(now) + patience,
        }
    }

    fn due(&self) -> Instant {
        self.cancel_at.unwrap_or(self.give_up_at)
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Unlinks {
    watched: Vec<Unlinked>,
    next: Option<Instant>,
}

impl Unlinks {
    /// Watches one more. Where there is no room those are forgotten that are not `waiting` any more,
    /// of which there are at most as many as the ring has slots.
    pub(super) fn add(&mut self, unlinked: Unlinked, waiting: impl Fn(&Unlinked) -> bool) {
        if self.watched.len() >= ROOM {
            self.watched.retain(waiting);
        }
        self.watched.push(unlinked);
        self.find_next();
    }

    /// None is given up before `at`.
    pub(super) fn wait_until(&mut self, at: Instant) {
        for unlinked in &mut self.watched {
            unlinked.give_up_at = unlinked.give_up_at.max(at);
        }
        self.find_next();
    }

    /// When something is to be done.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// One that is due: to be cancelled if it has a `cancel_at`, and given up otherwise. In the order in
    /// which they were added.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Unlinked> {
        let at = self.watched.iter().position(|u| u.due() <= now)?;
        let due = self.watched[at];
        match due.cancel_at {
            Some(_) => self.watched[at].cancel_at = None,
            None => drop(self.watched.remove(at)),
        }
        self.find_next();
        Some(due)
    }

    fn find_next(&mut self) {
        self.next = self.watched.iter().map(Unlinked::due).min();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(2);

    fn unlinked(number: u64, now: Instant, finish: Option<Duration>) -> Unlinked {
        let port = PortNumber::new(1).expect("1 is a port");
        Unlinked::new((port, number, None), now, finish, PATIENCE)
    }

    #[test]
    fn each_is_given_up_in_its_time() {
        let start = Instant::now();
        let later = start + Duration::from_millis(500);
        let mut unlinks = Unlinks::default();
        unlinks.add(unlinked(1, later, None), |_| true);
        unlinks.add(unlinked(2, start, None), |_| true);
        assert_eq!(unlinks.next(), Some(start + PATIENCE));
        assert_eq!(unlinks.take_due(start + PATIENCE).unwrap().number, 2);
        assert_eq!(unlinks.take_due(start + PATIENCE), None);
        assert_eq!(unlinks.take_due(later + PATIENCE).unwrap().number, 1);
        assert_eq!(unlinks.next(), None);
    }

    #[test]
    fn those_that_are_watched_already_can_wait_longer() {
        let start = Instant::now();
        let later = start + 5 * PATIENCE;
        let mut unlinks = Unlinks::default();
        unlinks.add(unlinked(1, start, None), |_| true);
        unlinks.wait_until(later);
        assert_eq!(unlinks.next(), Some(later));
        assert_eq!(unlinks.take_due(start + PATIENCE), None);
        unlinks.wait_until(start);
        assert_eq!(unlinks.take_due(later).unwrap().number, 1);
    }

    #[test]
    fn one_that_may_finish_is_cancelled_first() {
        let start = Instant::now();
        let moment = Duration::from_millis(50);
        let mut unlinks = Unlinks::default();
        unlinks.add(unlinked(1, start, Some(moment)), |_| true);
        assert_eq!(unlinks.next(), Some(start + moment));
        let due = unlinks.take_due(start + moment).unwrap();
        assert!(due.cancel_at.is_some());
        assert_eq!(unlinks.take_due(start + moment), None);
        let due = unlinks.take_due(start + moment + PATIENCE).unwrap();
        assert!(due.cancel_at.is_none());
    }

    #[test]
    fn those_of_one_time_are_due_in_their_order() {
        let start = Instant::now();
        let mut unlinks = Unlinks::default();
        for number in [3, 1, 2] {
            unlinks.add(unlinked(number, start, None), |_| true);
        }
        let due = std::iter::from_fn(|| unlinks.take_due(start + PATIENCE));
        let numbers: Vec<u64> = due.map(|u| u.number).collect();
        assert_eq!(numbers, [3, 1, 2]);
    }

    #[test]
    fn what_is_over_takes_no_room() {
        let start = Instant::now();
        let mut unlinks = Unlinks::default();
        for number in 0..100_000 {
            unlinks.add(unlinked(number, start, None), |u| u.number + 16 > number);
            assert!(unlinks.watched.len() <= ROOM);
        }
        let last: Vec<u64> = unlinks.watched.iter().map(|u| u.number).collect();
        assert!((99_984..100_000).all(|number| last.contains(&number)));
    }
}

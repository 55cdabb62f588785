// SPDX-License-Identifier: GPL-3.0-or-later
//! What the guest takes back, and how it comes to rest before a suspend.

use std::time::Duration;

use handoff::Event;
use tokio::time::Instant;
use xen::Backend;

use super::Actor;
use crate::controller::serving::{Outcome, Serving};
use crate::controller::unlinks::Unlinked;

/// A cancelled transfer is answered without the exporter after this time: a task of the guest waits
/// for it without being able to do anything else, and with it a suspend.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);
/// The same while a guest is suspended whose frontend recalls its transfers and uses what they are
/// answered: it is better for such a guest to wait than not to know. In this time a dead connection is
/// noticed and replaced.
const RECALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A frontend that recalls its transfers begins with that when it is told of the suspend, as `vusbd` is. Its
/// unlinks may be seen first, so that no unlink of such a frontend is given up before this time.
const NOTICE_TIMEOUT: Duration = Duration::from_millis(250);
/// Nothing in flight for this long while quiescing: the guest has unlinked what it had.
pub(super) const IDLE_FOR: Duration = Duration::from_millis(20);
/// A ring that stays full for this long while quiescing waits for unlinks that will not come.
const FULL_FOR: Duration = Duration::from_millis(100);

impl<B: Backend> Actor<B> {
    /// Sees to it that an unlink is answered in time, whatever the exporter does.
    pub(super) fn watch_unlinked(&mut self, outcome: &Outcome) {
        let serving = self.serving.borrow();
        let finish = Duration::from_millis(self.hand_off.quiesce_ms);
        let finish = serving.is_quiescing().then_some(finish);
        let recalls = serving.recalls();
        let recalled = recalls && serving.is_quiescing();
        // One time for all, so that they are cancelled in the order in which the guest has asked. Whoever
        // unlinks the newest first would else see a transfer done that comes after one that is not.
        let now = Instant::now();
        for &(port, number) in &outcome.unlinked {
            let which = (port, number, serving.epoch(port));
            let plugged = self.plugged[port.index()].as_ref();
            let lost_at = plugged.and_then(|p| p.lost_at.get());
            let mut patience = patience(recalled, lost_at.map(|at| now.duration_since(at)));
            if recalls {
                patience = patience.max(NOTICE_TIMEOUT);
            }
            let unlinked = Unlinked::new(which, now, finish, patience);
            self.unlinks.add(unlinked, |u| is_waited_for(&serving, u));
        }
    }

    /// The guest is being suspended. What a frontend has recalled before `vusbd` was told of that waits as
    /// long for the exporter as what it recalls afterwards.
    pub(super) fn wait_for_recalled(&mut self) {
        if self.serving.borrow().recalls() {
            self.unlinks.wait_until(Instant::now() + RECALL_TIMEOUT);
        }
    }

    /// Cancels what had its moment to finish, and answers what was not cancelled in time.
    pub(super) fn look_unlinked(&mut self) {
        while let Some(unlinked) = self.unlinks.take_due(Instant::now()) {
            let mut serving = self.serving.borrow_mut();
            if !is_waited_for(&serving, &unlinked) {
                continue;
            }
            let Unlinked { port, number, .. } = unlinked;
            match unlinked.cancel_at {
                Some(_) => serving.cancel(port, number),
                None => serving.give_up(port, number),
            }
        }
    }

    /// Whether nothing is in flight any more.
    pub(super) fn look_idle(&mut self) {
        // Linux's xen-hcd never sends an unlink that found the ring full. A guest with 16 transfers
        // that only wait for data (16 read URBs of CDC-ACM) would wait for them for ever.
        if !self.serving.borrow().is_full() {
            self.full_since = None;
        } else if self.full_since.get_or_insert_with(Instant::now).elapsed() > FULL_FOR {
            self.full_since = None;
            self.serving.borrow_mut().cancel_waiting();
        }
        if !self.serving.borrow().core.is_idle() {
            self.idle_since = None;
            return;
        }
        let since = *self.idle_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= IDLE_FOR {
            self.event(Event::Idle);
        }
    }
}

/// How long a cancelled transfer waits for the exporter's answer: `recalled` is explained at
/// [`RECALL_TIMEOUT`], `lost_for` is how long the connection to the exporter has been lost.
///
/// A guest cancels its transfers one after the other, and waits for each. So the time counts from the
/// loss of the connection: a short one costs no data, and a long one costs the guest no time.
fn patience(recalled: bool, lost_for: Option<Duration>) -> Duration {
    match (recalled, lost_for) {
        (true, _) => RECALL_TIMEOUT,
        (false, None) => CANCEL_TIMEOUT,
        (false, Some(lost_for)) => CANCEL_TIMEOUT.saturating_sub(lost_for),
    }
}

/// Whether it has no answer yet.
fn is_waited_for<B: Backend>(serving: &Serving<B>, unlinked: &Unlinked) -> bool {
    serving.epoch(unlinked.port) == unlinked.epoch
        && serving
            .core
            .by_number(unlinked.port, unlinked.number)
            .is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_suspend_waits_for_the_exporter_longer() {
        assert_eq!(patience(false, None), CANCEL_TIMEOUT);
        assert_eq!(patience(true, None), RECALL_TIMEOUT);
        assert_eq!(
            patience(true, Some(Duration::from_secs(60))),
            RECALL_TIMEOUT
        );
    }

    #[test]
    fn all_transfers_together_wait_once_for_a_lost_connection() {
        let half = CANCEL_TIMEOUT / 2;
        assert_eq!(patience(false, Some(half)), half);
        assert_eq!(patience(false, Some(CANCEL_TIMEOUT)), Duration::ZERO);
        assert_eq!(patience(false, Some(CANCEL_TIMEOUT * 9)), Duration::ZERO);
    }
}

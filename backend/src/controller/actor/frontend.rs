// SPDX-License-Identifier: GPL-3.0-or-later
//! The frontend's rings: mapped, looked at as often as it is worth it, and given up where they are
//! corrupt.

use std::time::Duration;

use handoff::{Event, State};
use slog::{error, warn};
use tokio::time::Instant;
use usbif::RingCorrupt;
use xen::Backend;

use super::Actor;
use crate::controller::allowance::Spent;
use crate::controller::poll::Moved;
use crate::controller::rings::Signal;
use crate::xenbus::XenbusState;

/// A guest that still submits this long after it was asked to suspend will not suspend.
const SUSPEND_FORGOTTEN_AFTER: Duration = Duration::from_secs(10);
/// Requests in flight with which the time to the next event matters.
const FEW: u32 = 2;

impl<B: Backend> Actor<B> {
    /// Maps the rings that the frontend has named, and takes what an earlier process has left of them.
    pub(super) fn map_rings(&mut self) {
        let Some(details) = self.rings else { return };
        let connected = self.serving.borrow_mut().connect(details);
        match connected.and_then(|channel| Signal::new(channel, details.channel)) {
            Ok(signal) => {
                self.signal = Some(signal);
                // What lies on the ring already is announced by the channel, which starts with an event.
                let outcome = self.serving.borrow_mut().take_recovered();
                self.watch_unlinked(&outcome);
                self.note_sessions();
            }
            Err(e) => {
                // The guest's fault or ours; either way only this frontend stands still.
                error!(self.log, "frontend refused: {}", e);
                self.switch(XenbusState::Closing);
            }
        }
    }

    /// Looks at the rings, perhaps because the frontend has signalled; true when there is more.
    pub(super) fn service(&mut self, signalled: bool) -> bool {
        let (outcome, activity, late) = {
            let mut serving = self.serving.borrow_mut();
            let outcome = serving.service();
            let late = self
                .suspend_asked
                .is_some_and(|t| t.elapsed() > SUSPEND_FORGOTTEN_AFTER);
            (outcome, serving.take_activity(), late)
        };
        if activity {
            self.polling.moved(Moved::Requests, Instant::now());
            self.look_again(false);
            self.idle_since = None;
            if matches!(self.state, State::Frozen | State::Quiescing) {
                self.event(if late {
                    Event::SuspendForgotten
                } else {
                    Event::Request
                });
            }
        }
        self.account(u32::from(signalled && !activity));
        match outcome {
            Ok(outcome) => {
                self.watch_unlinked(&outcome);
                outcome.more
            }
            Err(corrupt) => {
                self.corrupt(corrupt);
                false
            }
        }
    }

    /// Takes note of what the guest has caused, and of so many events with nothing behind them.
    pub(super) fn account(&mut self, empty: u32) {
        let mut spent = self.serving.borrow_mut().take_spent();
        spent.useless += empty;
        if spent == Spent::default() {
            return;
        }
        let first = self.allowance.spend(spent, Instant::now());
        if self.allowance.paused_until().is_some() {
            self.watch_signal(false);
        }
        if first {
            warn!(
                self.log,
                "the guest sends requests that cannot be carried out, or events without any, faster \
                 than 250 in a second: its ring is looked at less often from now on"
            );
        }
    }

    /// Whether the frontend's events are heard.
    pub(super) fn watch_signal(&mut self, wanted: bool) {
        if let Some(signal) = &mut self.signal
            && let Err(e) = signal.set_watched(wanted)
        {
            error!(self.log, "event channel failed: {}", e);
            self.signal = None;
        }
    }

    /// Whether the rings are looked at again without an event. With many requests in flight that
    /// is no use: the next event is never far. It `may_stop` only where the rings are looked at
    /// next: an event was not asked for until then.
    pub(super) fn look_again(&mut self, may_stop: bool) {
        let mut serving = self.serving.borrow_mut();
        let on = serving.in_flight() <= FEW && self.polling.is_on(Instant::now());
        serving.polled = on || (serving.polled && !may_stop);
    }

    fn corrupt(&mut self, corrupt: RingCorrupt) {
        error!(self.log, "ring is corrupt, frontend stopped: {}", corrupt);
        self.signal = None;
        self.serving.borrow_mut().disconnect();
        self.switch(XenbusState::Closing);
    }
}

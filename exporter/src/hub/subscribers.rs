// SPDX-License-Identifier: GPL-3.0-or-later
//! The hosts that are told of what changes.

use std::cell::RefCell;

use session::control::Event;
use tokio::sync::mpsc;

use crate::arrivals::Arrivals;

/// Events that a subscriber may be behind; then its connection ends, and it asks anew. More than
/// arrivals, since a new one is told of all of them.
const MAX_EVENTS: usize = 2 * Arrivals::MAX;

struct Subscriber {
    host: String,
    events: mpsc::Sender<Event>,
}

/// Every host that has subscribed.
#[derive(Default)]
pub(super) struct Subscribers(RefCell<Vec<Subscriber>>);

impl Subscribers {
    /// Adds `host`, which is told of these first: fewer than [`MAX_EVENTS`].
    pub(super) fn add(
        &self,
        host: &str,
        first: impl Iterator<Item = Event>,
    ) -> mpsc::Receiver<Event> {
        let (events, receiver) = mpsc::channel(MAX_EVENTS);
        for event in first {
            // There is room: fewer may arrive than events wait.
            let _ = events.try_send(event);
        }
        self.0.borrow_mut().push(Subscriber {
            host: host.to_owned(),
            events,
        });
        receiver
    }

    /// Tells those hosts that may know.
    pub(super) fn publish(&self, event: &Event, may_know: impl Fn(&str) -> bool) {
        // Who is too far behind is dropped, which ends its connection.
        self.0.borrow_mut().retain(|s| {
            !s.events.is_closed()
                && (!may_know(&s.host) || s.events.try_send(event.clone()).is_ok())
        });
    }
}

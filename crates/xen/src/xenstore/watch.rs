// SPDX-License-Identifier: GPL-3.0-or-later
//! Watch events on their way to the consumer.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Errno;

/// Distinct events that are kept for a slow consumer. A guest can make up any number of node
/// names in its own directory; past this many, further ones are told as an event on the watch's
/// own path.
pub(super) const DISTINCT_MAX: usize = 16_384;

/// What [`WatchEvents::next`] gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// Something may have changed at `path`. An event on the very path that was watched means
    /// that anything below it may have changed: so it is after the watch was set, after a parent
    /// was removed, and after more distinct events than are kept.
    Changed {
        /// The node; relative where the watch is.
        path: String,
        /// The token that was given with the watch.
        token: String,
    },
    /// The connection broke. What was queued before it broke was given before this; what changes
    /// until [`WatchEvent::Reconnected`] is not told.
    Disconnected,
    /// The connection broke and is back, and all watches are set again. Each of them also gives
    /// an event on its own path, before or after this, but after [`WatchEvent::Disconnected`].
    /// Transactions are gone.
    Reconnected,
    /// After a reconnection this watch could not be set again.
    Lost {
        /// The path that was watched.
        path: String,
        /// The watch's token.
        token: String,
        /// xenstored's reason.
        errno: Errno,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) path: String,
    pub(super) token: String,
}

#[derive(Debug)]
enum Entry {
    Changed(Arc<Key>),
    Notice(WatchEvent),
}

#[derive(Debug, Default)]
struct State {
    order: VecDeque<Entry>,
    queued: HashSet<Arc<Key>>,
    /// No more events will come.
    finished: bool,
    /// Nobody will take events.
    unwanted: bool,
}

/// The queue between the connection and [`WatchEvents`].
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Notify,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues an event, unless the same one is queued already. False when the queue is full.
    pub(super) fn push(&self, key: Key) -> bool {
        let mut state = self.lock();
        if state.unwanted || state.queued.contains(&key) {
            return true;
        }
        if state.queued.len() >= DISTINCT_MAX {
            return false;
        }
        state.insert(key);
        drop(state);
        self.changed.notify_one();
        true
    }

    /// Queues the event on a watch's own path that stands for those that did not fit. There are
    /// no more of these than watches.
    pub(super) fn push_overflow(&self, watch: Key) {
        let mut state = self.lock();
        if !state.unwanted && !state.queued.contains(&watch) {
            state.insert(watch);
            drop(state);
            self.changed.notify_one();
        }
    }

    pub(super) fn push_notice(&self, notice: WatchEvent) {
        let mut state = self.lock();
        // One Reconnected says as much as two.
        let repeated = matches!(&state.order.back(), Some(Entry::Notice(last)) if *last == notice);
        if state.unwanted || repeated {
            return;
        }
        state.order.push_back(Entry::Notice(notice));
        drop(state);
        self.changed.notify_one();
    }

    pub(super) fn finish(&self) {
        self.lock().finished = true;
        self.changed.notify_one();
    }

    fn pop(&self) -> Option<Option<WatchEvent>> {
        let mut state = self.lock();
        match state.order.pop_front() {
            Some(Entry::Notice(event)) => Some(Some(event)),
            Some(Entry::Changed(key)) => {
                state.queued.remove(&key);
                let Key { path, token } =
                    Arc::try_unwrap(key).unwrap_or_else(|shared| (*shared).clone());
                Some(Some(WatchEvent::Changed { path, token }))
            }
            None if state.finished => Some(None),
            None => None,
        }
    }
}

impl State {
    fn insert(&mut self, key: Key) {
        let key = Arc::new(key);
        self.queued.insert(Arc::clone(&key));
        self.order.push_back(Entry::Changed(key));
    }
}

/// The watch events of one connection, in the order in which each first became pending.
///
/// An event that is pending already is not queued a second time, so a consumer that falls behind
/// sees one event per path and token, however often it fired. Dropping this discards all events;
/// requests go on.
#[derive(Debug)]
pub struct WatchEvents {
    pub(super) queue: Arc<Queue>,
}

impl WatchEvents {
    /// The next event; waits until there is one. `None` once every [`super::XenStore`] of the
    /// connection is gone. May be cancelled without losing an event.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            if let Some(event) = self.queue.pop() {
                return event;
            }
            self.queue.changed.notified().await;
        }
    }

    /// The next event if one is pending.
    pub fn try_next(&mut self) -> Option<WatchEvent> {
        self.queue.pop().flatten()
    }
}

impl Drop for WatchEvents {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.unwanted = true;
        state.order = VecDeque::new();
        state.queued = HashSet::new();
    }
}

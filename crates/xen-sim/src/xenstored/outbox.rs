// SPDX-License-Identifier: GPL-3.0-or-later
//! What waits to be sent on a connection.

use std::collections::{HashSet, VecDeque};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Condvar, Mutex};

use super::wire::{Message, kind};

/// A queue with one sending thread behind it. Xenstored must never wait for a client.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
    filled: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Message>,
    /// Events in the queue: an identical one is not sent twice.
    events: HashSet<Vec<u8>>,
    closed: bool,
}

impl Outbox {
    pub(super) fn push(&self, message: Message) {
        let mut state = self.state.lock().expect("no holder panics");
        if state.closed {
            return;
        }
        // Special events are excluded: each says that something else has changed.
        if message.kind == kind::WATCH_EVENT
            && !message.payload.starts_with(b"@")
            && !state.events.insert(message.payload.clone())
        {
            return;
        }
        state.queue.push_back(message);
        self.filled.notify_one();
    }

    pub(super) fn close(&self) {
        self.state.lock().expect("no holder panics").closed = true;
        self.filled.notify_one();
    }

    /// Sends until the connection breaks or the outbox is closed and empty.
    pub(super) fn send_all(&self, to: &mut UnixStream) {
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let mut state = self.state.lock().expect("no holder panics");
            while state.queue.is_empty() {
                if state.closed {
                    return;
                }
                state = self.filled.wait(state).expect("no holder panics");
            }
            while bytes.len() < 64 * 1024
                && let Some(message) = state.queue.pop_front()
            {
                if message.kind == kind::WATCH_EVENT {
                    state.events.remove(&message.payload);
                }
                message.encode(&mut bytes);
            }
            drop(state);
            if to.write_all(&bytes).is_err() {
                self.close();
                return;
            }
        }
    }
}

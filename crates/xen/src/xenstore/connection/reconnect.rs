// SPDX-License-Identifier: GPL-3.0-or-later
//! Back to a daemon that went away.

use std::time::Duration;

use super::{Answer, Connection, Failure, Request};
use crate::xenstore::endpoint::Link;
use crate::xenstore::watch::Key;
use crate::xenstore::wire::MessageType;
use crate::xenstore::{Errno, WatchEvent};

const RECONNECT_FIRST: Duration = Duration::from_millis(20);
const RECONNECT_MAX: Duration = Duration::from_secs(1);

impl Connection {
    /// Connects again, however long it takes; `None` when nobody holds a handle any more.
    pub(super) async fn reconnect(&mut self) -> Option<Link> {
        let mut pause = RECONNECT_FIRST;
        loop {
            let wait = tokio::time::sleep(pause);
            tokio::pin!(wait);
            loop {
                tokio::select! {
                    () = &mut wait => break,
                    command = self.requests.recv() => {
                        self.fail_lost(command?.answer);
                    }
                }
            }
            if let Ok(link) = self.endpoint.open().await {
                self.generation += 1;
                return Some(link);
            }
            pause = (pause * 2).min(RECONNECT_MAX);
        }
    }

    pub(super) fn set_watches_again(&mut self) {
        let watches: Vec<Key> = self.watches.iter().cloned().collect();
        self.to_set_again = watches.len();
        if watches.is_empty() {
            self.events.push_notice(WatchEvent::Reconnected);
        }
        for key in watches {
            let mut payload = Vec::with_capacity(key.path.len() + key.token.len() + 2);
            for part in [&key.path, &key.token] {
                payload.extend_from_slice(part.as_bytes());
                payload.push(0);
            }
            let request = Request {
                kind: MessageType::Watch,
                payload,
            };
            self.enqueue(request, 0, Answer::Again(key));
        }
    }

    pub(super) fn note_set_again(&mut self, key: Key, result: Result<Vec<u8>, Failure>) {
        if let Err(failure) = result {
            self.watches.remove(&key);
            let Key { path, token } = key;
            let errno = match failure {
                Failure::Refused(errno) => errno,
                Failure::ConnectionLost | Failure::Protocol(_) => Errno::Io,
            };
            let lost = WatchEvent::Lost { path, token, errno };
            self.events.push_notice(lost);
        }
        self.to_set_again -= 1;
        if self.to_set_again == 0 {
            self.events.push_notice(WatchEvent::Reconnected);
        }
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! Wakes a device's connection when something is due on the device's bus.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{Notify, watch};
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout_at};

type Wake = Rc<RefCell<Arc<Notify>>>;

/// See the module's documentation. Without a connection it wakes nobody; the next connection looks
/// at the device anyway.
pub(super) struct Alarm {
    at: watch::Sender<Option<Instant>>,
    wake: Wake,
}

impl Alarm {
    /// Starts its task, which ends with it. To be called in a `LocalSet`.
    pub(super) fn new() -> Self {
        let (at, changes) = watch::channel(None);
        let wake = Wake::default();
        spawn_local(run(changes, wake.clone()));
        Self { at, wake }
    }

    pub(super) fn set_wake(&self, wake: Arc<Notify>) {
        *self.wake.borrow_mut() = wake;
    }

    /// Rings then, and never before; not at all for `None`.
    pub(super) fn set(&self, at: Option<Instant>) {
        self.at
            .send_if_modified(|old| std::mem::replace(old, at) != at);
    }

    /// Rings now.
    pub(super) fn ring(&self) {
        self.wake.borrow().notify_one();
    }
}

async fn run(mut changes: watch::Receiver<Option<Instant>>, wake: Wake) {
    loop {
        let at = *changes.borrow_and_update();
        let changed = match at {
            Some(at) => timeout_at(at, changes.changed()).await,
            None => Ok(changes.changed().await),
        };
        let changed = match changed {
            Ok(changed) => changed,
            Err(_) => {
                wake.borrow().notify_one();
                // Whoever was woken sets it anew.
                changes.changed().await
            }
        };
        if changed.is_err() {
            return;
        }
    }
}

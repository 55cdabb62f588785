// SPDX-License-Identifier: GPL-3.0-or-later
//! What libusb's event thread and the thread of the sessions share.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use session::Epoch;
use session::frame::TransferStatus;
use tokio::sync::Notify;

use super::handle::Handle;
use super::transfer::UsbTransfer;

/// How long cancelled transfers may take to come back.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// Whose transfer it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tag {
    pub(super) epoch: Epoch,
    pub(super) request: u64,
}

/// What is over.
pub(super) enum Finished {
    Transfer(Box<UsbTransfer>),
    Operation { tag: Tag, status: TransferStatus },
}

/// An open device, and what the event thread has for it.
pub(super) struct Shared {
    // Before the handle, so that transfers are freed before it is closed.
    finished: Mutex<Vec<Finished>>,
    handle: Handle,
    wake: Mutex<Option<Arc<Notify>>>,
    /// Transfers that libusb has.
    in_flight: Mutex<usize>,
    idle: Condvar,
}

impl Shared {
    pub(super) fn new(handle: Handle) -> Self {
        Self {
            handle,
            finished: Mutex::default(),
            wake: Mutex::default(),
            in_flight: Mutex::new(0),
            idle: Condvar::new(),
        }
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    pub(super) fn set_wake(&self, wake: Option<Arc<Notify>>) {
        if let Some(wake) = &wake {
            // What came while nobody listened.
            wake.notify_one();
        }
        *lock(&self.wake) = wake;
    }

    pub(super) fn finish(&self, finished: Finished) {
        lock(&self.finished).push(finished);
        if let Some(wake) = &*lock(&self.wake) {
            wake.notify_one();
        }
    }

    /// Moves all that is over to the empty `into`, and takes its memory for what comes.
    pub(super) fn take_finished(&self, into: &mut Vec<Finished>) {
        debug_assert!(into.is_empty());
        std::mem::swap(&mut *lock(&self.finished), into);
    }

    /// Waits until libusb has no transfer any more. Blocks; the transfers are to be cancelled
    /// before.
    pub(super) fn wait_until_idle(&self) {
        let in_flight = lock(&self.in_flight);
        // After the timeout the handle just stays open until the last transfer is back.
        let _ = self
            .idle
            .wait_timeout_while(in_flight, IDLE_TIMEOUT, |n| *n > 0);
    }

    pub(super) fn started(&self) {
        *lock(&self.in_flight) += 1;
    }

    pub(super) fn ended(&self) {
        let mut in_flight = lock(&self.in_flight);
        *in_flight -= 1;
        if *in_flight == 0 {
            self.idle.notify_all();
        }
    }
}

/// A panic while one of these is held cannot leave anything half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

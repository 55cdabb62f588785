// SPDX-License-Identifier: GPL-3.0-or-later
//! What a device's thread and the thread of the sessions share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use session::Epoch;
use session::frame::TransferStatus;
use tokio::sync::Notify;

/// Whose transfer it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tag {
    pub(super) epoch: Epoch,
    pub(super) request: u64,
}

/// What is over.
pub(super) type Finished = usbfs::Completion<TransferStatus>;

/// What the thread has for the sessions, and how it wakes them.
#[derive(Debug, Default)]
pub(super) struct Shared {
    finished: Mutex<Vec<Finished>>,
    wake: Mutex<Option<Arc<Notify>>>,
    /// The thread has ended: nothing comes any more.
    ended: AtomicBool,
    /// The device is to be reset and given back when it is closed.
    give_back: AtomicBool,
}

/// Says that the thread has ended, also if it panicked.
struct Sink(Arc<Shared>);

impl Drop for Sink {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Release);
        self.0.notify();
    }
}

impl Shared {
    /// What the thread gives what is over to: one wake for a batch.
    pub(super) fn sink(self: &Arc<Self>) -> impl FnMut(&mut Vec<Finished>) + Send + use<> {
        let sink = Sink(self.clone());
        move |batch| {
            lock(&sink.0.finished).append(batch);
            sink.0.notify();
        }
    }

    pub(super) fn set_wake(&self, wake: Option<Arc<Notify>>) {
        if let Some(wake) = &wake {
            // What came while nobody listened.
            wake.notify_one();
        }
        *lock(&self.wake) = wake;
    }

    /// Has the sessions look.
    pub(super) fn notify(&self) {
        if let Some(wake) = &*lock(&self.wake) {
            wake.notify_one();
        }
    }

    /// Moves all that is over to the end of `into`. Answers whether more may come.
    pub(super) fn take_finished(&self, into: &mut Vec<Finished>) -> bool {
        // In this order: what came before the end is there.
        let goes_on = !self.ended.load(Ordering::Acquire);
        let mut finished = lock(&self.finished);
        match into.is_empty() {
            // Its memory serves what comes.
            true => std::mem::swap(&mut *finished, into),
            false => into.append(&mut finished),
        }
        goes_on
    }

    pub(super) fn set_give_back(&self) {
        self.give_back.store(true, Ordering::Release);
    }

    pub(super) fn is_to_be_given_back(&self) -> bool {
        self.give_back.load(Ordering::Acquire)
    }
}

/// A panic while one of these is held cannot leave anything half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_before_the_end_is_not_lost() {
        let shared = Arc::new(Shared::default());
        let mut sink = shared.sink();
        let operation = |context| Finished::Operation {
            context,
            outcome: TransferStatus::Completed,
        };
        let mut into = Vec::new();
        sink(&mut vec![operation(1), operation(2)]);
        assert!(shared.take_finished(&mut into));
        assert_eq!(into.len(), 2);
        sink(&mut vec![operation(3)]);
        drop(sink);
        assert!(!shared.take_finished(&mut into), "nothing comes any more");
        assert_eq!(into.len(), 3);
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! What is asked of a worker and was not taken by it yet.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::memory::Lender;
use crate::{EventFd, Urb};

pub(super) enum Command<O> {
    Submit(Urb),
    Cancel(u64),
    Operate { context: u64, operation: O },
}

pub(super) struct Shared<O> {
    pub(super) wake: Arc<EventFd>,
    queue: Mutex<Queue<O>>,
}

struct Queue<O> {
    commands: VecDeque<Command<O>>,
    /// The worker was woken and did not look yet.
    is_woken: bool,
    closed: bool,
}

impl<O> Shared<O> {
    pub(super) fn new(wake: Arc<EventFd>) -> Self {
        Self {
            wake,
            queue: Mutex::new(Queue {
                commands: VecDeque::new(),
                is_woken: false,
                closed: false,
            }),
        }
    }

    /// Held for moments only, and never during a call of the kernel's.
    fn lock(&self) -> MutexGuard<'_, Queue<O>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves all up to the next operation, and that, to an empty `into`; cancellations, of which `into` has what is to
    /// be cancelled in any case, in front of what is there.
    pub(super) fn take(&self, into: &mut VecDeque<Command<O>>) {
        let mut queue = self.lock();
        queue.is_woken = false;
        if !into.is_empty() {
            while let Some(Command::Cancel(context)) = queue.commands.front() {
                into.push_front(Command::Cancel(*context));
                queue.commands.pop_front();
            }
            return;
        }
        while let Some(command) = queue.commands.pop_front() {
            let is_operation = matches!(command, Command::Operate { .. });
            into.push_back(command);
            if is_operation {
                return;
            }
        }
    }

    /// Whether there is something to be taken; if the next operation waits, only cancellations are.
    pub(super) fn has_work(&self, is_held_up: bool) -> bool {
        let queue = self.lock();
        queue.closed
            || match queue.commands.front() {
                Some(Command::Cancel(_)) => true,
                other => other.is_some() && !is_held_up,
            }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }
}

/// What was taken back before the worker had it.
#[derive(Debug)]
pub enum Taken<O> {
    /// A transfer.
    Transfer(Urb),
    /// An operation.
    Operation(O),
}

/// The way to a worker. None of its calls blocks. Dropping it closes the device, after what the worker is
/// doing now; nothing of what is under way is delivered any more.
pub struct Handle<O> {
    shared: Arc<Shared<O>>,
    lender: Lender,
    /// Something was put into the queue since the worker was woken.
    has_news: bool,
}

impl<O> Handle<O> {
    pub(super) fn new(shared: Arc<Shared<O>>, lender: Lender) -> Self {
        Self {
            shared,
            lender,
            has_news: false,
        }
    }

    /// Submits a transfer: [`Urb::context`] tells it from others that are not over. It is over when the sink gets it, whatever happens.
    /// The worker may not see it before [`Handle::flush`].
    pub fn submit(&mut self, urb: Urb) {
        self.push(Command::Submit(urb));
    }

    /// Carries out an operation after all that was asked for before. As for [`Handle::submit`].
    pub fn operate(&mut self, context: u64, operation: O) {
        self.push(Command::Operate { context, operation });
    }

    /// Cancels a transfer. It comes back at once where the worker has not seen it, else it goes to the sink: it may be
    /// completed. An operation that the worker has seen cannot be cancelled.
    pub fn cancel(&mut self, context: u64) -> Option<Taken<O>> {
        let mut queue = self.shared.lock();
        let is_it = |command: &Command<O>| match command {
            Command::Submit(urb) => urb.context() == context,
            Command::Operate { context: c, .. } => *c == context,
            Command::Cancel(_) => false,
        };
        let at = queue.commands.iter().position(is_it);
        if let Some(at) = at {
            return match queue.commands.remove(at) {
                Some(Command::Submit(urb)) => Some(Taken::Transfer(urb)),
                Some(Command::Operate { operation, .. }) => Some(Taken::Operation(operation)),
                _ => None,
            };
        }
        // In front of an operation, it is for what the worker has.
        queue.commands.push_front(Command::Cancel(context));
        drop(queue);
        self.has_news = true;
        None
    }

    /// Wakes the worker, if something was asked for since the last time: one system call, however much it is.
    pub fn flush(&mut self) {
        if !std::mem::take(&mut self.has_news) {
            return;
        }
        let was_woken = std::mem::replace(&mut self.shared.lock().is_woken, true);
        if !was_woken {
            self.shared.wake.set();
        }
    }

    /// Who uses the device: devices of the same owner share a limit of [`crate::Memory`].
    pub fn set_owner(&self, owner: &str) {
        self.lender.set_owner(owner);
    }

    fn push(&mut self, command: Command<O>) {
        self.shared.lock().commands.push_back(command);
        self.has_news = true;
    }
}

impl<O> Drop for Handle<O> {
    fn drop(&mut self) {
        let commands = {
            let mut queue = self.shared.lock();
            queue.closed = true;
            std::mem::take(&mut queue.commands)
        };
        self.shared.wake.set();
        drop(commands);
    }
}

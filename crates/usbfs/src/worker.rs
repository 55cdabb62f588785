// SPDX-License-Identifier: GPL-3.0-or-later
//! The one thread that makes all calls of a device.
//!
//! What is asked of it goes into a queue, in front of which nobody ever waits: not the caller, and not who drops the
//! [`Handle`], whatever the kernel is doing with the device. The worker takes from the queue up to the next operation
//! (a reset, another setting), which it carries out in order with the transfers; what is behind that operation can still be
//! taken back from the queue. What is over goes to a sink, in batches.
//!
//! A transfer for which there is no memory (see [`crate::Memory`], and ENOMEM of the kernel itself) waits with all behind it of the
//! same endpoint, and is submitted when something is free. It is never answered with an error for that.

mod backlog;
mod queue;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::kernel::{Kernel, Operator, Refused};
use crate::memory::{Memory, Share};
use crate::{EventFd, Status, Urb};
use backlog::Backlog;
use queue::{Command, Shared};

pub use queue::{Handle, Taken};

/// After ENOMEM it is tried again after this long, or twice as long as the last time.
const RETRY_MIN: Duration = Duration::from_millis(2);
const RETRY_MAX: Duration = Duration::from_millis(100);
/// How often it is tried again when nobody says that there is memory.
const MEMORY_INTERVAL: Duration = Duration::from_secs(1);
/// How often it is looked for transfers of a device that is gone.
const GONE_INTERVAL: Duration = Duration::from_millis(5);
/// How long a device that is closed may take to give its cancelled transfers back.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What is over.
#[derive(Debug)]
pub enum Completion<R> {
    /// A transfer, which is the caller's again.
    Transfer {
        /// It.
        urb: Urb,
        /// How it ended.
        status: Status,
    },
    /// An operation.
    Operation {
        /// What it was submitted with.
        context: u64,
        /// What came of it.
        outcome: R,
    },
}

type Sink<R> = Box<dyn FnMut(&mut Vec<Completion<R>>) + Send>;

/// See the module's documentation. Made by [`Worker::new`], and to be run on a thread of its own.
pub struct Worker<K: Kernel, P: Operator<K>> {
    kernel: K,
    operator: P,
    sink: Sink<P::Outcome>,
    shared: Arc<Shared<P::Operation>>,
    share: Share,
    /// Taken from the queue.
    commands: VecDeque<Command<P::Operation>>,
    backlog: Backlog,
    in_flight: Vec<InFlight>,
    over: Vec<Completion<P::Outcome>>,
    gone: bool,
    retry: Option<Retry>,
}

/// A transfer that the kernel has.
struct InFlight {
    context: u64,
    endpoint: u8,
    cost: usize,
    /// It was asked for to be cancelled.
    discarded: bool,
}

/// After ENOMEM.
struct Retry {
    at: Instant,
    delay: Duration,
}

impl<K: Kernel, P: Operator<K>> Worker<K, P> {
    /// A worker and the handle to it. `sink` gets what is over, as a batch that it empties; it is called on the worker's
    /// thread and may do anything that does not block.
    ///
    /// # Errors
    /// The process has too many files open.
    pub fn new(
        kernel: K,
        operator: P,
        memory: &Memory,
        sink: impl FnMut(&mut Vec<Completion<P::Outcome>>) + Send + 'static,
    ) -> io::Result<(Handle<P::Operation>, Self)> {
        let wake = Arc::new(EventFd::new()?);
        let share = memory.share(wake.clone());
        let shared = Arc::new(Shared::new(wake));
        let handle = Handle::new(shared.clone(), share.lender());
        let worker = Self {
            kernel,
            operator,
            sink: Box::new(sink),
            shared,
            share,
            commands: VecDeque::new(),
            backlog: Backlog::default(),
            in_flight: Vec::new(),
            over: Vec::new(),
            gone: false,
            retry: None,
        };
        Ok((handle, worker))
    }

    /// Works until the handle is dropped, and cancels then what is left. Answers the device and its operator, to be put away.
    pub fn run(mut self) -> (K, P) {
        while !self.shared.is_closed() {
            // What waits has its turn before what is new.
            self.submit_backlog();
            self.shared.take(&mut self.commands);
            self.carry_out();
            self.reap();
            self.deliver();
            if !self.shared.has_work(self.is_held_up()) {
                self.wait();
            }
        }
        self.close();
        (self.kernel, self.operator)
    }

    fn wait(&mut self) {
        let timeout = match &self.retry {
            // Its node is always ready now.
            _ if self.gone => (!self.in_flight.is_empty()).then_some(GONE_INTERVAL),
            _ if self.backlog.is_empty() => None,
            Some(retry) => Some(retry.at.saturating_duration_since(Instant::now())),
            None => Some(MEMORY_INTERVAL),
        };
        let wake = self.shared.wake.as_fd();
        let ready = self.kernel.wait(wake, !self.gone, timeout);
        if ready.woken {
            self.shared.wake.clear();
        }
        if ready.gone {
            self.lose();
        }
    }

    /// Whether the next command waits for memory.
    fn is_held_up(&self) -> bool {
        matches!(self.commands.front(), Some(Command::Operate { .. })) && self.backlog.has(0)
    }

    fn carry_out(&mut self) {
        while !self.is_held_up()
            && let Some(command) = self.commands.pop_front()
        {
            match command {
                Command::Submit(urb) => self.submit(urb),
                Command::Cancel(context) => self.cancel(context),
                Command::Operate { context, operation } => {
                    // It may take seconds, which is no reason to withhold what is over.
                    self.reap();
                    self.deliver();
                    let outcome = match self.gone {
                        true => self.operator.gone(),
                        false => self.operator.operate(&mut self.kernel, operation),
                    };
                    self.over.push(Completion::Operation { context, outcome });
                }
            }
        }
    }

    fn submit(&mut self, urb: Urb) {
        if self.gone {
            self.end(urb, Status::NoDevice);
        } else if self.backlog.must_wait(urb.endpoint()) {
            self.backlog.push(urb);
        } else if let Err(urb) = self.start(urb) {
            self.backlog.push(urb);
        }
    }

    /// Hands a transfer, or the next piece of one, to the kernel. It comes back where there is no memory for it.
    fn start(&mut self, urb: Urb) -> Result<(), Urb> {
        let max_bulk = self.kernel.max_bulk();
        let (context, endpoint) = (urb.context(), urb.endpoint());
        let cost = urb.cost(max_bulk);
        let only_one = self.in_flight.iter().all(|t| t.endpoint != endpoint);
        if !self.share.take(endpoint, cost, only_one) {
            return Err(urb);
        }
        let is_divided = urb.is_divided(max_bulk);
        match self.kernel.submit(urb) {
            Ok(()) => {
                self.backlog.set_divided(endpoint, is_divided);
                self.in_flight.push(InFlight {
                    context,
                    endpoint,
                    cost,
                    discarded: false,
                });
                Ok(())
            }
            Err(Refused { urb, errno }) => {
                self.share.release(cost);
                if errno == libc::ENOMEM {
                    self.share.starve();
                    self.schedule_retry();
                    return Err(urb);
                }
                self.backlog.set_divided(endpoint, false);
                self.end(urb, Status::of_submission(errno));
                Ok(())
            }
        }
    }

    fn schedule_retry(&mut self) {
        let now = Instant::now();
        match &mut self.retry {
            // It is on its way.
            Some(retry) if retry.at > now => (),
            retry => {
                let delay = retry
                    .as_ref()
                    .map_or(RETRY_MIN, |r| (r.delay * 2).min(RETRY_MAX));
                *retry = Some(Retry {
                    at: now + delay,
                    delay,
                });
            }
        }
    }

    /// Submits what waited, each endpoint in its order, as far as there is memory.
    fn submit_backlog(&mut self) {
        if self.backlog.is_empty() {
            return;
        }
        // What was cancelled meanwhile is not waited for.
        if let Some(endpoint) = self.share.waits_for()
            && !self.backlog.has(endpoint)
        {
            self.share.stop_waiting();
        }
        let mut refused = false;
        for endpoint in self.backlog.endpoints() {
            while let Some(urb) = self.backlog.pop(endpoint) {
                if let Err(urb) = self.start(urb) {
                    self.backlog.put_back(urb);
                    refused = true;
                    break;
                }
            }
        }
        if !refused {
            self.share.stop_waiting();
            self.retry = None;
        }
    }

    fn cancel(&mut self, context: u64) {
        if let Some(urb) = self.backlog.remove(context) {
            self.end(urb, Status::Cancelled);
            match self.backlog.is_empty() {
                true => self.share.stop_waiting(),
                // Others may have waited for it.
                false => self.submit_backlog(),
            }
            return;
        }
        if let Some(transfer) = self.in_flight.iter_mut().find(|t| t.context == context) {
            transfer.discarded = true;
            self.kernel.discard(context);
        }
    }

    fn end(&mut self, urb: Urb, status: Status) {
        self.over.push(Completion::Transfer { urb, status });
    }

    /// Takes back all that is over.
    fn reap(&mut self) {
        while let Some(mut urb) = self.kernel.reap() {
            let context = urb.context();
            let at = self.in_flight.iter().position(|t| t.context == context);
            let Some(at) = at else {
                debug_assert!(false, "a transfer that was not submitted");
                continue;
            };
            let transfer = self.in_flight.swap_remove(at);
            self.share.release(transfer.cost);
            let (status, goes_on) = urb.end_piece();
            self.backlog.set_divided(transfer.endpoint, false);
            match (status, goes_on) {
                (_, true) if transfer.discarded => self.end(urb, Status::Cancelled),
                (_, true) if self.gone => self.end(urb, Status::NoDevice),
                (_, true) => {
                    if let Err(urb) = self.start(urb) {
                        self.backlog.put_back(urb);
                    }
                }
                // Nobody has asked for it: an operation has ended it, or the device is gone.
                (Status::Cancelled, _) if !transfer.discarded && self.is_gone() => {
                    self.end(urb, Status::NoDevice);
                }
                (status, _) => self.end(urb, status),
            }
        }
    }

    fn is_gone(&mut self) -> bool {
        if !self.gone {
            let wake = self.shared.wake.as_fd();
            let ready = self.kernel.wait(wake, true, Some(Duration::ZERO));
            if ready.gone {
                self.lose();
            }
        }
        self.gone
    }

    /// The device is gone: nothing more is asked of it.
    fn lose(&mut self) {
        if !self.gone {
            self.gone = true;
            self.retry = None;
            self.share.stop_waiting();
            for urb in self.backlog.drain() {
                let status = Status::NoDevice;
                self.over.push(Completion::Transfer { urb, status });
            }
        }
    }

    fn deliver(&mut self) {
        if !self.over.is_empty() {
            (self.sink)(&mut self.over);
            self.over.clear();
        }
    }

    fn close(&mut self) {
        self.backlog.drain().for_each(drop);
        self.share.stop_waiting();
        let contexts: Vec<u64> = self.in_flight.iter().map(|t| t.context).collect();
        for context in contexts {
            self.kernel.discard(context);
        }
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        loop {
            while let Some(urb) = self.kernel.reap() {
                self.in_flight.retain(|t| t.context != urb.context());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if self.in_flight.is_empty() || left.is_zero() {
                return;
            }
            let ready = self.kernel.wait(self.shared.wake.as_fd(), true, Some(left));
            if ready.woken {
                self.shared.wake.clear();
            }
            if ready.gone {
                // Its node is always ready now.
                std::thread::sleep(GONE_INTERVAL);
            }
        }
    }
}

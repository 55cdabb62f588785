// SPDX-License-Identifier: GPL-3.0-or-later
//! What a worker needs of the kernel, so that tests can stand in for it.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::Urb;

/// A transfer that was not taken.
#[derive(Debug)]
pub struct Refused {
    /// It.
    pub urb: Urb,
    /// Why, as in errno(3).
    pub errno: i32,
}

/// What there is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// The event descriptor was set.
    pub woken: bool,
    /// A transfer can be reaped.
    pub reap: bool,
    /// The device is gone. What it had can still be reaped.
    pub gone: bool,
}

/// The calls of one device. All of them but [`Kernel::wait`] may block as long as the kernel is busy with the device.
pub trait Kernel {
    /// Starts a transfer. It comes back from [`Kernel::reap`].
    ///
    /// # Errors
    /// The kernel did not take it.
    fn submit(&mut self, urb: Urb) -> Result<(), Refused>;

    /// Cancels the transfer with this [`Urb::context`]. It comes back from [`Kernel::reap`], perhaps as
    /// completed; nothing happens when it came back already.
    fn discard(&mut self, context: u64);

    /// A transfer that is over, if there is one.
    fn reap(&mut self) -> Option<Urb>;

    /// Waits for `wake` to be set, with `watch` also for a transfer that is over and for the device to be gone, or for
    /// `timeout`, if there is one. A signal may end it, too.
    fn wait(&mut self, wake: BorrowedFd<'_>, watch: bool, timeout: Option<Duration>) -> Ready;

    /// Longest bulk transfer in bytes that the kernel takes in one piece without an allocation as long as it.
    fn max_bulk(&self) -> usize;
}

/// What a worker does at its device besides transfers, one at a time, in order with them.
pub trait Operator<K> {
    /// What is to be done.
    type Operation: Send;
    /// What came of it.
    type Outcome: Send;

    /// Does it. May block.
    fn operate(&mut self, kernel: &mut K, operation: Self::Operation) -> Self::Outcome;

    /// What comes of an operation when the device is gone.
    fn gone(&self) -> Self::Outcome;
}

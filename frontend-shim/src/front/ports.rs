// SPDX-License-Identifier: GPL-3.0-or-later
//! What is plugged into the controller's ports.

use std::collections::VecDeque;

use usbif::{PortNumber, Speed};

/// A device was plugged in, pulled out, or replaced.
///
/// Changes that nobody has looked at are merged. Whenever `was` is a speed, the device that was
/// there is gone, also when `now` is the same speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortChange {
    /// The port.
    pub port: PortNumber,
    /// What was there.
    pub was: Speed,
    /// What is there now.
    pub now: Speed,
}

#[derive(Debug)]
pub(super) struct Ports {
    count: u8,
    speeds: [Speed; PortNumber::MAX as usize],
    changes: VecDeque<PortChange>,
}

impl Ports {
    pub(super) fn new(count: u8) -> Self {
        Self {
            count: count.min(PortNumber::MAX),
            speeds: [Speed::None; PortNumber::MAX as usize],
            changes: VecDeque::new(),
        }
    }

    pub(super) fn count(&self) -> u8 {
        self.count
    }

    pub(super) fn speed(&self, port: PortNumber) -> Speed {
        self.speeds[port.index()]
    }

    /// `None` when the speed is the known one.
    pub(super) fn set_speed(&mut self, port: PortNumber, now: Speed) -> Option<PortChange> {
        let was = std::mem::replace(&mut self.speeds[port.index()], now);
        if was == now {
            return None;
        }
        let change = PortChange { port, was, now };
        // Of many changes that nobody looked at, a driver needs only what led to now. This also
        // bounds the queue.
        if let Some(last) = self.changes.iter_mut().find(|old| old.port == port) {
            last.now = now;
        } else {
            self.changes.push_back(change);
        }
        Some(change)
    }

    pub(super) fn next_change(&mut self) -> Option<PortChange> {
        self.changes.pop_front()
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! When a driver gives a command up, as the SCSI layer does after 30 seconds. A device that was started
//! again with its exporter may have forgotten the command that it was in the middle of.

use std::time::{Duration, Instant};

use anyhow::{Error, Result};
use frontend_shim::TransferError;

/// Attempts to find a device again.
const ATTEMPTS: u32 = 5;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Patience {
    limit: Option<Duration>,
    /// When something came of the command last.
    moved_at: Instant,
    failures: u32,
}

impl Patience {
    /// Endless, where there is no limit.
    pub(super) fn new(limit: Option<Duration>, now: Instant) -> Self {
        Self {
            limit,
            moved_at: now,
            failures: 0,
        }
    }

    /// Something came of it.
    pub(super) fn moved(&mut self, now: Instant) {
        self.moved_at = now;
    }

    /// Whether nothing has come of it for too long. Not again at once.
    pub(super) fn is_over(&mut self, now: Instant) -> bool {
        let over = self
            .limit
            .is_some_and(|l| now.duration_since(self.moved_at) > l);
        if over {
            self.moved_at = now;
        }
        over
    }

    /// Whether the device is reset after such an error. A stall is one that only a device may give that has
    /// forgotten its command; those that never do are not expected to stall.
    pub(super) fn resets_after(&self, error: TransferError) -> bool {
        error == TransferError::Io || (self.limit.is_some() && error == TransferError::Stall)
    }

    /// The device was not found again.
    ///
    /// # Errors
    /// That one, when it is not to be tried again.
    pub(super) fn failed(&mut self, error: Error) -> Result<()> {
        self.failures += 1;
        match self.limit.is_some() && self.failures <= ATTEMPTS {
            true => Ok(()),
            false => Err(error),
        }
    }
}

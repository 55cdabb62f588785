// SPDX-License-Identifier: GPL-3.0-or-later
//! Before and after a suspend of which the drivers know, and the end.

use super::completion::Extent;
use super::ids::IdUse;
use super::urbs::Unlinking;
use super::{Front, TransferError};

impl Front {
    /// Before a suspend: takes no more URBs and asks for all of them back. Then wait until
    /// [`in_flight`](Self::in_flight) is zero, as the USB core does; it does not wait for the
    /// answers to the unlinks themselves.
    pub fn freeze(&mut self) {
        self.frozen = true;
        self.unlink_all();
    }

    /// After a suspend, cancelled or not: takes URBs again.
    pub fn thaw(&mut self) {
        self.frozen = false;
        self.held = false;
    }

    /// The rings are new, and the driver cleans its table, which `xen-hcd` does not: all ids are
    /// free, and what was in flight on the old ring is given back as
    /// [`TransferError::Shutdown`]. URBs that have not been sent yet go out on the new ring.
    pub fn start_over(&mut self) {
        self.to_unlink.clear();
        self.recalled = 0;
        for id in self.ids.release_all() {
            if let IdUse::Urb(urb) = id
                && let Some(entry) = self.urbs.get_mut(urb)
            {
                let error = match entry.unlinking {
                    // Nobody knows what has become of it.
                    Unlinking::No if entry.recalled => TransferError::Io,
                    Unlinking::No => TransferError::Shutdown,
                    Unlinking::Queued | Unlinking::Sent => TransferError::Unlinked,
                };
                self.complete(urb, Err(error), Extent::default());
            }
        }
        self.in_flight = 0;
    }

    /// The controller goes away: gives everything back as [`TransferError::Shutdown`].
    pub fn shut_down(&mut self) {
        self.start_over();
        while let Some(urb) = self.to_submit.pop_front() {
            self.complete(urb, Err(TransferError::Shutdown), Extent::default());
        }
        self.dead = true;
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! Before and after a suspend.

use std::time::{Duration, Instant};

use xen::{DomId, Guest};

use super::UsbHost;
use crate::{HostError, SubmitError};

/// How long control transfers, which cannot be done in halves, have to end by themselves at a suspend.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(1);

impl<G: Guest> UsbHost<G> {
    /// Before a suspend: takes all URBs back and waits until the backend has answered them, as
    /// the USB core does. They complete as [`crate::TransferError::Unlinked`]. The answers to the
    /// unlinks themselves are not waited for; how many are missing is returned.
    ///
    /// # Errors
    /// [`HostError::TimedOut`]: a backend that does this blocks migrations.
    pub fn freeze(&mut self, timeout: Duration) -> Result<u32, HostError> {
        self.front.freeze();
        let deadline = Instant::now() + timeout;
        self.step()?;
        while self.front.in_flight() > 0 {
            if self.front.is_dead() {
                return Err(SubmitError::Dead.into());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(HostError::TimedOut(timeout));
            }
            self.wait(left)?;
        }
        Ok(self.front.unlinks_unanswered())
    }

    /// Before a suspend that drivers do not notice: asks the backend for all URBs and waits until it
    /// has answered. Those that were cancelled go on after the suspend.
    ///
    /// # Errors
    /// [`HostError::TimedOut`]: what is not answered by then fails when the domain has moved.
    pub fn recall(&mut self, timeout: Duration) -> Result<(), HostError> {
        let begin = Instant::now();
        let mut with_control = false;
        self.front.recall(with_control);
        self.step()?;
        while self.front.in_flight() > 0 || self.front.unlinks_unanswered() > 0 {
            if self.front.is_dead() {
                return Err(SubmitError::Dead.into());
            }
            if begin.elapsed() > timeout {
                return Err(HostError::TimedOut(timeout));
            }
            if begin.elapsed() > CONTROL_TIMEOUT && !with_control {
                with_control = true;
                self.front.recall(with_control);
            }
            self.wait(timeout.min(CONTROL_TIMEOUT))?;
        }
        Ok(())
    }

    /// A suspend will [recall](Self::recall) what is in flight.
    pub fn set_recalls(&mut self, recalls: bool) {
        self.front.set_recalls(recalls);
    }

    /// After a suspend that was cancelled: goes on with the old rings.
    pub fn thaw(&mut self) {
        self.front.thaw();
    }

    /// After a suspend that took place: the domain runs elsewhere, as `guest`, with the same
    /// memory but without grants and event channels. The rings are dead; the buffers are granted
    /// anew to `backend`, with their contents and under their old names.
    ///
    /// URBs are taken again. Until [`set_up_rings`](Self::set_up_rings) they go to the dead ring,
    /// where a stock `xen-hcd` loses them.
    ///
    /// # Errors
    /// [`HostError::Grant`].
    pub fn moved(&mut self, guest: G, backend: DomId) -> Result<(), HostError> {
        if let Some(link) = &mut self.link {
            link.die(&mut self.front);
        }
        self.guest = guest;
        self.backend = backend;
        let anew = self.buffers.grant_again(&self.guest, backend)?;
        self.front.granted_anew(|gref| {
            let found = anew.iter().find(|(before, _)| before.0 == gref);
            found.map_or(gref, |(_, now)| now.0)
        });
        self.front.thaw();
        Ok(())
    }

    /// After a suspend that took place: forgets the dead rings and every request id, and gives
    /// back the URBs that were in flight. `xen-hcd` does not do this.
    pub fn forget_requests(&mut self) {
        self.front.start_over();
        self.link = None;
        self.abandoned.clear();
    }
}

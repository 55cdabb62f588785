// SPDX-License-Identifier: GPL-3.0-or-later
//! A suspend that drivers do not notice, as our kernel module does it (`linux/hcd/suspend.c`).
//!
//! Every request on the ring is unlinked, newest first, and every answer counts: a URB that was done
//! all the same is done, and one that was cancelled waits, before those that came after it, and goes on
//! where it stands. Control transfers cannot be done in halves; they are given time to end.
//!
//! Isochronous URBs are sent again as a whole: no simulated device does one in part.

use usbif::{UrbKind, UrbStatus};

use super::ids::IDS;
use super::{Extent, Front, Progress, TransferError, Unlinking, UrbHandle};

impl Front {
    /// Whether there is an id for another URB. The last is for an unlink, so that all can be recalled.
    pub(super) fn may_submit(&self) -> bool {
        !self.held && self.recalled == 0 && (!self.recalls || self.ids.used() < IDS as u32 - 1)
    }

    /// Before a suspend: sends no more URBs, and asks for those that the backend has, control ones
    /// only when asked to. Then wait until [`in_flight`](Self::in_flight) and
    /// [`unlinks_unanswered`](Self::unlinks_unanswered) are zero.
    pub fn recall(&mut self, with_control: bool) {
        self.held = true;
        let mut wanted: Vec<(u64, UrbHandle)> = Vec::new();
        for index in 0..self.urbs.capacity() {
            let Some((urb, entry)) = self.urbs.at(index) else {
                continue;
            };
            let is_control = matches!(entry.submission.request.kind, UrbKind::Control { .. });
            let is_new = entry.unlinking == Unlinking::No && !entry.recalled;
            let in_flight = matches!(entry.progress, Progress::InFlight(_));
            if in_flight && is_new && (with_control || !is_control) {
                wanted.push((entry.order, urb));
            }
        }
        wanted.sort_unstable_by_key(|(order, _)| std::cmp::Reverse(*order));
        for (_, urb) in wanted {
            if let Some(entry) = self.urbs.get_mut(urb) {
                entry.recalled = true;
                self.recalled += 1;
                self.counters.recalled += 1;
                self.to_unlink.push_back(urb);
            }
        }
    }

    /// The pages of all URBs were granted anew.
    pub fn granted_anew(&mut self, mut gref: impl FnMut(u32) -> u32) {
        for entry in self.urbs.iter_mut() {
            let request = &mut entry.submission.request;
            *request = request.granted_anew(&mut gref);
        }
    }

    /// A URB was answered. Whether it goes on later because it was recalled and cancelled.
    pub(super) fn taken_back(&mut self, urb: UrbHandle, status: UrbStatus, actual: usize) -> bool {
        let Some(entry) = self.urbs.get_mut(urb).filter(|e| e.recalled) else {
            return false;
        };
        entry.recalled = false;
        self.recalled = self.recalled.saturating_sub(1);
        if entry.unlinking != Unlinking::No || status != UrbStatus::SHUTDOWN {
            return false;
        }
        let request = &mut entry.submission.request;
        let extent = Extent {
            actual_length: actual,
            ..Extent::default()
        };
        match request.kind {
            // Who knows whether the device has acted on it.
            UrbKind::Control { .. } => {
                self.complete(urb, Err(TransferError::Io), extent);
                return true;
            }
            _ if actual > 0 && actual == request.buffer_len() => {
                self.complete(urb, Ok(()), extent);
                return true;
            }
            UrbKind::Isochronous { .. } => (),
            _ => *request = request.behind(actual),
        }
        entry.done += actual;
        entry.progress = Progress::Queued;
        let order = entry.order;
        let urbs = &self.urbs;
        let is_earlier = |u: &UrbHandle| urbs.get(*u).is_none_or(|e| e.order < order);
        let at = self.to_submit.iter().rposition(is_earlier);
        self.to_submit.insert(at.map_or(0, |at| at + 1), urb);
        true
    }
}

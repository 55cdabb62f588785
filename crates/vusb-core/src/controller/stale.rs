// SPDX-License-Identifier: GPL-3.0-or-later
//! Requests of a ring that is gone.

use super::SLOTS;

/// Requests that a stock `xen-hcd` has put into the ring of before a resume. Nobody can answer them
/// there, and it does not take them back: it waits for answers to their ids.
#[derive(Clone, Copy, Debug, Default, Hash)]
pub(super) struct Stale {
    /// Whether the frontend may have such.
    expected: bool,
    /// Ids below [`SLOTS`] that came over the ring of now: no stale ones.
    seen: u16,
    /// How many were answered.
    answered: u32,
}

impl Stale {
    /// The frontend may have such.
    pub(super) fn expect(&mut self) {
        self.expected = true;
    }

    /// There is a ring on which nothing has come yet.
    pub(super) fn begin_anew(&mut self) {
        self.seen = 0;
    }

    /// A request of this id has come over the ring of now.
    pub(super) fn saw(&mut self, id: u16) {
        if usize::from(id) < SLOTS {
            self.seen |= 1 << id;
        }
    }

    /// Whether an unlink of this id can be meant for one of them; then it is answered.
    pub(super) fn take(&mut self, id: u16) -> bool {
        let is_stale = self.expected && usize::from(id) < SLOTS && self.seen & (1 << id) == 0;
        if is_stale {
            self.saw(id);
            self.answered += 1;
        }
        is_stale
    }

    /// How many were answered.
    pub(super) fn answered(&self) -> u32 {
        self.answered
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! The table of request ids.

use usbif::{RingKind, Urb};

use super::UrbHandle;

pub(super) const IDS: usize = Urb::SLOTS as usize;

/// What an id stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IdUse {
    Free,
    Urb(UrbHandle),
    Unlink,
}

/// Sixteen ids, as many as the ring has slots.
#[derive(Debug)]
pub(super) struct IdTable {
    uses: [IdUse; IDS],
    free: [u16; IDS],
    free_count: usize,
}

impl IdTable {
    pub(super) fn new() -> Self {
        let mut free = [0; IDS];
        for (id, place) in free.iter_mut().rev().enumerate() {
            *place = id as u16;
        }
        Self {
            uses: [IdUse::Free; IDS],
            free,
            free_count: IDS,
        }
    }

    /// The id that was freed last.
    pub(super) fn take(&mut self, usage: IdUse) -> Option<u16> {
        self.free_count = self.free_count.checked_sub(1)?;
        let id = self.free[self.free_count];
        self.uses[usize::from(id)] = usage;
        Some(id)
    }

    /// Frees an id and says what it stood for: nothing, if it is no id in use.
    pub(super) fn release(&mut self, id: u16) -> IdUse {
        let Some(usage) = self.uses.get_mut(usize::from(id)) else {
            return IdUse::Free;
        };
        let usage = std::mem::replace(usage, IdUse::Free);
        if usage != IdUse::Free {
            self.free[self.free_count] = id;
            self.free_count += 1;
        }
        usage
    }

    /// Frees all and says what they stood for.
    pub(super) fn release_all(&mut self) -> [IdUse; IDS] {
        std::mem::replace(self, Self::new()).uses
    }

    pub(super) fn used(&self) -> u32 {
        (IDS - self.free_count) as u32
    }
}

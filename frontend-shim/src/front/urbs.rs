// SPDX-License-Identifier: GPL-3.0-or-later
//! The URBs that have been taken and not completed.

use super::Submission;

/// Names a URB from its submission to its completion. Never valid again afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UrbHandle {
    index: u32,
    generation: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Waits for a free id.
    Queued,
    /// Sent with this id.
    InFlight(u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unlinking {
    No,
    Queued,
    Sent,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) submission: Submission,
    pub(super) progress: Progress,
    pub(super) unlinking: Unlinking,
}

/// A table that keeps its memory: in steady state nothing is allocated.
#[derive(Debug, Default)]
pub(super) struct Urbs {
    entries: Vec<(u32, Option<Entry>)>,
    free: Vec<u32>,
}

impl Urbs {
    pub(super) fn insert(&mut self, submission: Submission) -> UrbHandle {
        let entry = Entry {
            submission,
            progress: Progress::Queued,
            unlinking: Unlinking::No,
        };
        if let Some(index) = self.free.pop() {
            let (generation, place) = &mut self.entries[index as usize];
            *place = Some(entry);
            return UrbHandle {
                index,
                generation: *generation,
            };
        }
        self.entries.push((0, Some(entry)));
        UrbHandle {
            index: self.entries.len() as u32 - 1,
            generation: 0,
        }
    }

    pub(super) fn get_mut(&mut self, urb: UrbHandle) -> Option<&mut Entry> {
        let (generation, entry) = self.entries.get_mut(urb.index as usize)?;
        if *generation == urb.generation {
            entry.as_mut()
        } else {
            None
        }
    }

    pub(super) fn remove(&mut self, urb: UrbHandle) -> Option<Submission> {
        self.get_mut(urb)?;
        let (generation, entry) = &mut self.entries[urb.index as usize];
        *generation = generation.wrapping_add(1);
        self.free.push(urb.index);
        entry.take().map(|entry| entry.submission)
    }

    /// Places, in use or not.
    pub(super) fn capacity(&self) -> u32 {
        self.entries.len() as u32
    }

    /// The URB in a place.
    pub(super) fn at(&self, index: u32) -> Option<(UrbHandle, &Submission)> {
        let (generation, entry) = self.entries.get(index as usize)?;
        let urb = UrbHandle {
            index,
            generation: *generation,
        };
        entry.as_ref().map(|entry| (urb, &entry.submission))
    }
}

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
    /// The how manyth it is.
    pub(super) order: u64,
    /// What is left of it.
    pub(super) submission: Submission,
    /// What of it is done.
    pub(super) done: usize,
    /// It is in flight, and the backend was asked for it because of a suspend.
    pub(super) recalled: bool,
    pub(super) progress: Progress,
    pub(super) unlinking: Unlinking,
}

/// A table that keeps its memory: in steady state nothing is allocated.
#[derive(Debug, Default)]
pub(super) struct Urbs {
    next: u64,
    entries: Vec<(u32, Option<Entry>)>,
    free: Vec<u32>,
}

impl Urbs {
    pub(super) fn insert(&mut self, submission: Submission) -> UrbHandle {
        let order = self.next;
        self.next += 1;
        let entry = Entry {
            order,
            submission,
            done: 0,
            recalled: false,
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

    pub(super) fn remove(&mut self, urb: UrbHandle) -> Option<Entry> {
        self.get_mut(urb)?;
        let (generation, entry) = &mut self.entries[urb.index as usize];
        *generation = generation.wrapping_add(1);
        self.free.push(urb.index);
        entry.take()
    }

    pub(super) fn get(&self, urb: UrbHandle) -> Option<&Entry> {
        let (generation, entry) = self.entries.get(urb.index as usize)?;
        entry.as_ref().filter(|_| *generation == urb.generation)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.entries.iter_mut().filter_map(|(_, e)| e.as_mut())
    }

    /// Places, in use or not.
    pub(super) fn capacity(&self) -> u32 {
        self.entries.len() as u32
    }

    /// The URB in a place.
    pub(super) fn at(&self, index: u32) -> Option<(UrbHandle, &Entry)> {
        let (generation, entry) = self.entries.get(index as usize)?;
        let urb = UrbHandle {
            index,
            generation: *generation,
        };
        entry.as_ref().map(|entry| (urb, entry))
    }
}

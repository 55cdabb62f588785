// SPDX-License-Identifier: GPL-3.0-or-later
//! What a backend process has mapped, in memory that it shares with the host's process: when the
//! backend dies, the host unmaps what it left.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use xen::{Access, DomId, GrantRef};

use crate::shm::{self, Region};

const ENTRIES: usize = 32 * 1024;
const LEN_BYTES: usize = ENTRIES * 8;
const VALID: u64 = 1 << 63;
const WRITABLE: u64 = 1 << 62;

/// The record itself. Entries change only while the lock of their domain's table is held.
#[derive(Debug)]
pub(crate) struct Maptrack {
    region: Region,
}

/// One mapped grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) domid: DomId,
    pub(crate) gref: GrantRef,
    pub(crate) access: Access,
}

impl Maptrack {
    pub(crate) fn create() -> io::Result<OwnedFd> {
        shm::memfd(c"xen-sim-maptrack", LEN_BYTES)
    }

    pub(crate) fn map(fd: &OwnedFd) -> io::Result<Maptrack> {
        Ok(Maptrack {
            region: Region::map(fd, LEN_BYTES)?,
        })
    }

    fn entry(&self, slot: usize) -> &AtomicU64 {
        self.region.atomics(slot * 8)
    }

    pub(crate) fn set(&self, slot: u32, used: Use) {
        let writable = match used.access {
            Access::ReadOnly => 0,
            Access::ReadWrite => WRITABLE,
        };
        let word = VALID | writable | u64::from(used.domid.0) << 32 | u64::from(used.gref.0);
        self.entry(slot as usize).store(word, Ordering::Release);
    }

    pub(crate) fn clear(&self, slot: u32) {
        self.entry(slot as usize).store(0, Ordering::Release);
    }

    pub(crate) fn uses(&self) -> impl Iterator<Item = Use> + '_ {
        (0..ENTRIES).filter_map(|slot| {
            let word = self.entry(slot).load(Ordering::Acquire);
            (word & VALID != 0).then_some(Use {
                domid: DomId((word >> 32) as u16),
                gref: GrantRef(word as u32),
                access: if word & WRITABLE != 0 {
                    Access::ReadWrite
                } else {
                    Access::ReadOnly
                },
            })
        })
    }
}

/// The free slots of a [`Maptrack`], known only to its owner.
#[derive(Debug)]
pub(crate) struct FreeSlots(Mutex<Vec<u32>>);

impl FreeSlots {
    pub(crate) fn new() -> FreeSlots {
        FreeSlots(Mutex::new((0..ENTRIES as u32).rev().collect()))
    }

    /// Takes `count` slots, or none.
    pub(crate) fn take(&self, count: usize) -> Option<Vec<u32>> {
        let mut free = self.0.lock().expect("no holder panics");
        let rest = free.len().checked_sub(count)?;
        Some(free.split_off(rest))
    }

    pub(crate) fn give_back(&self, slots: &[u32]) {
        self.0.lock().expect("no holder panics").extend(slots);
    }
}

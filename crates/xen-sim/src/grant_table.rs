// SPDX-License-Identifier: GPL-3.0-or-later
//! A domain's grant table.
//!
//! The table itself has the layout of Xen's version 1 (`grant_entry_v1_t`: flags, domid, frame)
//! and is shared with the guest. Beside it is what Xen keeps to itself: how often each entry is
//! in use, in memory that only dom0's side of the simulator maps, so that mapping and copying
//! need no round trip to the host's process.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering, fence};

use xen::{Access, DomId, GrantRef, PAGE_SIZE};

use crate::shm::{self, Region};

/// Pages of the table.
const GRANT_FRAMES: usize = 32;
/// Entries of the table.
pub(crate) const GRANT_ENTRIES: u32 = (GRANT_FRAMES * PAGE_SIZE / ENTRY_SIZE) as u32;
/// Entries that Xen keeps for its tools (`GNTTAB_NR_RESERVED_ENTRIES`).
pub(crate) const RESERVED_ENTRIES: u32 = 8;
const ENTRY_SIZE: usize = 8;

const GTF_PERMIT_ACCESS: u32 = 1;
const GTF_TYPE_MASK: u32 = 3;
const GTF_READONLY: u32 = 1 << 2;
const GTF_READING: u32 = 1 << 3;
const GTF_WRITING: u32 = 1 << 4;

/// `GNTST_*` values of Xen's `grant_table.h`.
pub(crate) mod status {
    pub(crate) const GENERAL_ERROR: i16 = -1;
    pub(crate) const BAD_DOMAIN: i16 = -2;
    pub(crate) const BAD_GNTREF: i16 = -3;
    pub(crate) const BAD_PAGE: i16 = -9;
    pub(crate) const BAD_COPY_ARG: i16 = -10;
}

/// The table as the guest sees it.
#[derive(Debug)]
pub(crate) struct GrantTable {
    region: Region,
}

impl GrantTable {
    pub(crate) const LEN_BYTES: usize = GRANT_FRAMES * PAGE_SIZE;

    pub(crate) fn create() -> io::Result<OwnedFd> {
        shm::memfd(c"xen-sim-grants", Self::LEN_BYTES)
    }

    pub(crate) fn map(fd: &OwnedFd) -> io::Result<GrantTable> {
        Ok(GrantTable {
            region: Region::map(fd, Self::LEN_BYTES)?,
        })
    }

    /// Puts another table in this one's place: the domain was resumed elsewhere.
    pub(crate) fn replace(&self, fd: &OwnedFd) -> io::Result<()> {
        self.region
            .place(0, fd, 0, Self::LEN_BYTES, Access::ReadWrite)
    }

    /// Flags in the low half, the grantee's domid in the high half.
    fn flags(&self, gref: GrantRef) -> &AtomicU32 {
        self.region.atomics(gref.0 as usize * ENTRY_SIZE)
    }

    fn frame(&self, gref: GrantRef) -> &AtomicU32 {
        self.region.atomics(gref.0 as usize * ENTRY_SIZE + 4)
    }

    /// The guest grants `frame` to `to`.
    pub(crate) fn grant(&self, gref: GrantRef, to: DomId, frame: u32, access: Access) {
        self.frame(gref).store(frame, Ordering::Relaxed);
        let readonly = match access {
            Access::ReadOnly => GTF_READONLY,
            Access::ReadWrite => 0,
        };
        let flags = GTF_PERMIT_ACCESS | readonly | u32::from(to.0) << 16;
        self.flags(gref).store(flags, Ordering::Release);
    }

    /// The guest revokes an entry. False when it is in use.
    pub(crate) fn end_access(&self, gref: GrantRef) -> bool {
        let flags = self.flags(gref);
        let mut now = flags.load(Ordering::Acquire);
        loop {
            if now & (GTF_READING | GTF_WRITING) != 0 {
                return false;
            }
            match flags.compare_exchange(now, 0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(changed) => now = changed,
            }
        }
    }

    /// The frame that an entry names, if it grants one.
    pub(crate) fn granted_frame(&self, gref: GrantRef) -> Option<u32> {
        if gref.0 >= GRANT_ENTRIES {
            return None;
        }
        let granted = self.flags(gref).load(Ordering::Acquire) & GTF_TYPE_MASK == GTF_PERMIT_ACCESS;
        granted.then(|| self.frame(gref).load(Ordering::Relaxed))
    }
}

/// How often each entry is in use: Xen's private side of the table.
#[derive(Debug)]
pub(crate) struct ActiveTable {
    region: Region,
}

const OFFSET_LOCK: usize = 0;
const OFFSET_DYING: usize = 4;
const OFFSET_ENTRIES: usize = 64;
const ACTIVE_SIZE: usize = 16;
const OFFSET_RINGS: usize = OFFSET_ENTRIES + GRANT_ENTRIES as usize * ACTIVE_SIZE;

/// Who holds a table's lock: a connection's number, never 0.
pub(crate) type Locker = u32;
/// The host's own process.
pub(crate) const HOST_LOCKER: Locker = u32::MAX;

impl ActiveTable {
    fn len_bytes(pages: usize) -> usize {
        (OFFSET_RINGS + pages).next_multiple_of(PAGE_SIZE)
    }

    pub(crate) fn create(pages: usize) -> io::Result<OwnedFd> {
        shm::memfd(c"xen-sim-active", Self::len_bytes(pages))
    }

    pub(crate) fn map(fd: &OwnedFd, pages: usize) -> io::Result<ActiveTable> {
        Ok(ActiveTable {
            region: Region::map(fd, Self::len_bytes(pages))?,
        })
    }

    fn lock_word(&self) -> &AtomicU32 {
        self.region.atomics(OFFSET_LOCK)
    }

    fn dying(&self) -> &AtomicU32 {
        self.region.atomics(OFFSET_DYING)
    }

    fn readers(&self, gref: GrantRef) -> &AtomicU32 {
        self.region
            .atomics(OFFSET_ENTRIES + gref.0 as usize * ACTIVE_SIZE)
    }

    fn writers(&self, gref: GrantRef) -> &AtomicU32 {
        self.region
            .atomics(OFFSET_ENTRIES + gref.0 as usize * ACTIVE_SIZE + 4)
    }

    fn pinned_frame(&self, gref: GrantRef) -> &AtomicU32 {
        self.region
            .atomics(OFFSET_ENTRIES + gref.0 as usize * ACTIVE_SIZE + 8)
    }

    fn ring_mark(&self, frame: u32) -> &AtomicU8 {
        self.region.atomics(OFFSET_RINGS + frame as usize)
    }

    /// Whether a frame is registered as a ring.
    pub(crate) fn is_ring(&self, frame: u32) -> bool {
        self.ring_mark(frame).load(Ordering::Acquire) != 0
    }

    pub(crate) fn mark_ring(&self, frame: u32, ring: bool) {
        self.ring_mark(frame)
            .store(u8::from(ring), Ordering::Release);
    }
}

/// A domain as dom0's side sees it: its memory and both sides of its grant table.
#[derive(Debug)]
pub(crate) struct DomainView {
    pub(crate) domid: DomId,
    pub(crate) pages: usize,
    pub(crate) memory_fd: OwnedFd,
    pub(crate) memory: Region,
    pub(crate) grants: GrantTable,
    pub(crate) active: ActiveTable,
}

impl DomainView {
    pub(crate) fn new(
        domid: DomId,
        pages: usize,
        memory_fd: OwnedFd,
        grants: &OwnedFd,
        active: &OwnedFd,
    ) -> io::Result<DomainView> {
        Ok(DomainView {
            domid,
            pages,
            memory: Region::map(&memory_fd, pages * PAGE_SIZE)?,
            memory_fd,
            grants: GrantTable::map(grants)?,
            active: ActiveTable::map(active, pages)?,
        })
    }

    pub(crate) fn is_dying(&self) -> bool {
        self.active.dying().load(Ordering::Acquire) != 0
    }

    pub(crate) fn set_dying(&self) {
        self.active.dying().store(1, Ordering::Release);
    }

    /// Takes the table's lock. A holder that was killed is replaced by the host's process, see
    /// [`TableGuard::recover`].
    pub(crate) fn lock(&self, who: Locker) -> TableGuard<'_> {
        let word = self.active.lock_word();
        let mut spins = 0u32;
        while word
            .compare_exchange_weak(0, who, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            spins += 1;
            if spins.is_multiple_of(64) {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        TableGuard { view: self }
    }

    /// Takes the lock although `dead` may have died with it.
    pub(crate) fn lock_from_dead(&self, dead: Locker) -> TableGuard<'_> {
        let taken = self.active.lock_word().compare_exchange(
            dead,
            HOST_LOCKER,
            Ordering::Acquire,
            Ordering::Relaxed,
        );
        match taken {
            Ok(_) => TableGuard { view: self },
            Err(_) => self.lock(HOST_LOCKER),
        }
    }

    /// Entries in use, with their reader and writer counts.
    pub(crate) fn in_use(&self) -> Vec<GrantRef> {
        (0..GRANT_ENTRIES)
            .map(GrantRef)
            .filter(|gref| {
                self.active.readers(*gref).load(Ordering::Relaxed) != 0
                    || self.active.writers(*gref).load(Ordering::Relaxed) != 0
            })
            .collect()
    }
}

/// The lock of a domain's grant table.
#[derive(Debug)]
pub(crate) struct TableGuard<'a> {
    view: &'a DomainView,
}

impl TableGuard<'_> {
    /// Takes a grant into use for domain 0, as `map_grant_ref` does. Gives the frame, or a
    /// `GNTST_*` status.
    pub(crate) fn pin(&self, gref: GrantRef, access: Access) -> Result<u32, i16> {
        let view = self.view;
        if view.is_dying() {
            return Err(status::GENERAL_ERROR);
        }
        if gref.0 >= GRANT_ENTRIES {
            return Err(status::BAD_GNTREF);
        }
        let readers = view.active.readers(gref);
        let writers = view.active.writers(gref);
        let in_use = readers.load(Ordering::Relaxed) + writers.load(Ordering::Relaxed) > 0;
        let flags = view.grants.flags(gref);
        let mut now = flags.load(Ordering::Acquire);
        loop {
            let grantee = DomId((now >> 16) as u16);
            if !in_use && (now & GTF_TYPE_MASK != GTF_PERMIT_ACCESS || grantee != DomId(0)) {
                return Err(status::GENERAL_ERROR);
            }
            let mut new = now | GTF_READING;
            if access == Access::ReadWrite {
                if now & GTF_READONLY != 0 {
                    return Err(status::GENERAL_ERROR);
                }
                new |= GTF_WRITING;
            }
            match flags.compare_exchange(now, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break,
                Err(changed) => now = changed,
            }
        }
        // While in use the frame of the first use counts: the guest cannot redirect a mapping.
        let pinned = view.active.pinned_frame(gref);
        let frame = if in_use {
            pinned.load(Ordering::Relaxed)
        } else {
            let frame = view.grants.frame(gref).load(Ordering::Relaxed);
            pinned.store(frame, Ordering::Relaxed);
            frame
        };
        let count = if access == Access::ReadWrite {
            writers
        } else {
            readers
        };
        count.fetch_add(1, Ordering::Relaxed);
        if frame as usize >= view.pages {
            self.unpin(gref, access);
            return Err(status::BAD_PAGE);
        }
        Ok(frame)
    }

    /// Ends a use.
    pub(crate) fn unpin(&self, gref: GrantRef, access: Access) {
        let readers = self.view.active.readers(gref);
        let writers = self.view.active.writers(gref);
        let count = if access == Access::ReadWrite {
            writers
        } else {
            readers
        };
        let before = count.fetch_sub(1, Ordering::Relaxed);
        assert!(before > 0, "a grant was unmapped more often than mapped");
        self.clear_flags(gref);
    }

    fn clear_flags(&self, gref: GrantRef) {
        let flags = self.view.grants.flags(gref);
        // Everything done through the mapping comes before the guest sees it end.
        fence(Ordering::SeqCst);
        if self.view.active.writers(gref).load(Ordering::Relaxed) == 0 {
            flags.fetch_and(!GTF_WRITING, Ordering::AcqRel);
            if self.view.active.readers(gref).load(Ordering::Relaxed) == 0 {
                flags.fetch_and(!GTF_READING, Ordering::AcqRel);
            }
        }
    }

    /// Sets the counts to what the living backends' track records say, after one died.
    /// `uses` gives each entry's (readers, writers); entries not in it are not in use.
    pub(crate) fn recover(&self, uses: &std::collections::HashMap<GrantRef, (u32, u32)>) {
        for gref in (0..GRANT_ENTRIES).map(GrantRef) {
            let (readers, writers) = uses.get(&gref).copied().unwrap_or_default();
            self.view
                .active
                .readers(gref)
                .store(readers, Ordering::Relaxed);
            self.view
                .active
                .writers(gref)
                .store(writers, Ordering::Relaxed);
            self.clear_flags(gref);
        }
    }
}

impl Drop for TableGuard<'_> {
    fn drop(&mut self) {
        self.view.active.lock_word().store(0, Ordering::Release);
    }
}

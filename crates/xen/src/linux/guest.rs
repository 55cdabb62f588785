// SPDX-License-Identifier: GPL-3.0-or-later
//! [`Guest`] on Linux.

use std::io;

use xengnttab::{Gntalloc, GrantedPages};

use super::evtchn::LinuxChannel;
use super::{OpenError, impl_mapping};
use crate::{Access, DomId, GrantError, GrantRef, Guest};

/// Xen, as a frontend in this domain's user space sees it.
#[derive(Clone, Debug)]
pub struct LinuxGuest {
    gntalloc: Gntalloc,
}

/// Pages of this domain, granted through `gntalloc`.
#[derive(Debug)]
pub struct LinuxPages(GrantedPages);

impl_mapping!(LinuxPages);

impl LinuxGuest {
    /// Opens the devices.
    ///
    /// # Errors
    /// [`OpenError`], which says what is missing and how to get it.
    pub fn open() -> Result<LinuxGuest, OpenError> {
        let gntalloc = Gntalloc::open()?;
        LinuxChannel::check_device()?;
        Ok(LinuxGuest { gntalloc })
    }
}

impl Guest for LinuxGuest {
    type Pages = LinuxPages;
    type Channel = LinuxChannel;

    fn grant_pages(
        &self,
        to: DomId,
        count: usize,
        access: Access,
    ) -> Result<(LinuxPages, Vec<GrantRef>), GrantError> {
        let pages = self.gntalloc.alloc(to.0, count, access.into())?;
        let refs = pages.grefs().iter().map(|gref| GrantRef(*gref)).collect();
        Ok((LinuxPages(pages), refs))
    }

    /// Always true. The kernel does not tell whether a backend still maps a page; it keeps such
    /// a page by itself and frees it once the backend has let go, so nothing is reused too early
    /// and nothing leaks.
    fn end_access(&self, pages: LinuxPages) -> bool {
        drop(pages);
        true
    }

    fn alloc_unbound(&self, to: DomId) -> io::Result<LinuxChannel> {
        LinuxChannel::alloc_unbound(to)
    }
}

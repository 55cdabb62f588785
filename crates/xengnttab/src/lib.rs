// SPDX-License-Identifier: GPL-3.0-or-later
#![doc = include_str!("../README.md")]

mod abi;
mod copy;
mod device;
mod error;
mod gntalloc;
mod gntdev;
mod memory;
mod notify;

pub use copy::{CopySegment, GrantStatus, InvalidSegment};
pub use error::Error;
pub use gntalloc::{Gntalloc, GrantedPages};
pub use gntdev::{Gntdev, MappedGrants};
pub use memory::SharedMemory;
pub use notify::UnmapNotify;

/// Bytes in a page that is granted: that of the ABI, whatever the kernel's own page size is.
pub const PAGE_SIZE: usize = 4096;

/// What the memory may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Loads only. Of pages that are offered: loads by the peer only.
    ReadOnly,
    /// Loads and stores.
    ReadWrite,
}

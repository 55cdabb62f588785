// SPDX-License-Identifier: GPL-3.0-or-later
//! `/dev/xen/gntalloc`: pages of this domain, granted to another one.

use std::mem::offset_of;
use std::path::Path;
use std::sync::Arc;

use crate::abi::{
    AllocGref, DeallocGref, GNTALLOC_ALLOC_GREF, GNTALLOC_DEALLOC_GREF, GNTALLOC_FLAG_WRITABLE,
};
use crate::device::Device;
use crate::memory::SharedMemory;
use crate::{Access, Error, PAGE_SIZE, UnmapNotify};

const PATH: &str = "/dev/xen/gntalloc";
const MODULE: &str = "xen-gntalloc";
/// Pages that one call takes at most. The kernel's own limit for the whole system is the module
/// parameter `limit`, 1,024 unless it was raised.
const PAGES_MAX: usize = 65_536;

/// The open device. Clones share it.
#[derive(Clone, Debug)]
pub struct Gntalloc {
    device: Arc<Device>,
}

impl Gntalloc {
    /// Opens `/dev/xen/gntalloc`.
    ///
    /// # Errors
    /// [`Error::NoDevice`], [`Error::Open`].
    pub fn open() -> Result<Gntalloc, Error> {
        Gntalloc::open_at(Path::new(PATH))
    }

    /// Opens the device under another name.
    ///
    /// # Errors
    /// [`Error::NoDevice`], [`Error::Open`].
    pub fn open_at(path: &Path) -> Result<Gntalloc, Error> {
        Ok(Gntalloc {
            device: Arc::new(Device::open(path, MODULE)?),
        })
    }

    /// Allocates `count` zeroed pages, grants each to `domid`, and maps them here into one range.
    /// `access` is what the peer may do; here they can always be written.
    ///
    /// # Errors
    /// [`Error::PageCount`] for no pages or more than 65,536, [`Error::Call`] otherwise; `ENOSPC`
    /// says that the kernel's limit is reached.
    pub fn alloc(&self, domid: u16, count: usize, access: Access) -> Result<GrantedPages, Error> {
        let pages = match u32::try_from(count) {
            Ok(pages) if pages > 0 && count <= PAGES_MAX => pages,
            _ => return Err(Error::PageCount { count }),
        };
        let (index, grefs) = self.allocate(domid, pages, access)?;
        // From here on dropping it ends the grants again.
        let mut granted = GrantedPages {
            memory: None,
            grefs,
            index,
            device: Arc::clone(&self.device),
        };
        let memory = self
            .device
            .map(index, count * PAGE_SIZE, Access::ReadWrite)
            .map_err(|source| Error::Call {
                call: "mmap of gntalloc",
                source,
            })?;
        granted.memory = Some(memory);
        Ok(granted)
    }

    fn allocate(&self, domid: u16, pages: u32, access: Access) -> Result<(u64, Box<[u32]>), Error> {
        const GREFS: usize = offset_of!(AllocGref, gref_ids) / size_of::<u32>();
        // The structure ends in an array of `count` references, which the kernel fills in. At
        // least as long as the structure with one of them, which is padded to a multiple of 8.
        let words = (GREFS + pages as usize).max(size_of::<AllocGref>() / size_of::<u32>());
        let mut argument = vec![0_u32; words];
        let start = argument.as_mut_ptr().cast::<AllocGref>();
        let flags = match access {
            Access::ReadOnly => 0,
            Access::ReadWrite => GNTALLOC_FLAG_WRITABLE,
        };
        // SAFETY: all three are within the first two words. No reference to the whole structure
        // is made, because its alignment may be more than the array's.
        unsafe {
            (&raw mut (*start).domid).write_unaligned(domid);
            (&raw mut (*start).flags).write_unaligned(flags);
            (&raw mut (*start).count).write_unaligned(pages);
        }
        // SAFETY: the header and room for `count` references, as this ioctl expects.
        let index = unsafe {
            self.device.ioctl(
                "IOCTL_GNTALLOC_ALLOC_GREF",
                GNTALLOC_ALLOC_GREF,
                start.cast(),
            )?;
            (&raw const (*start).index).read_unaligned()
        };
        Ok((index, argument[GREFS..][..pages as usize].into()))
    }
}

/// Pages of this domain that are granted to another one, mapped here into one range.
///
/// Dropping it ends the grants. A page that the peer still has mapped then is kept by the
/// kernel, which frees it when the peer has let go, with one of its next grant operations: it is
/// never given to anybody else before. The grants do not survive the migration of this domain.
#[derive(Debug)]
pub struct GrantedPages {
    /// `None` only while the mapping is made or undone.
    memory: Option<SharedMemory>,
    grefs: Box<[u32]>,
    index: u64,
    device: Arc<Device>,
}

impl GrantedPages {
    /// The pages, as mapped here.
    pub fn memory(&self) -> &SharedMemory {
        match &self.memory {
            Some(memory) => memory,
            None => unreachable!("Gntalloc::alloc gives out no pages without their memory"),
        }
    }

    /// The reference of each page, in the order of the pages.
    pub fn grefs(&self) -> &[u32] {
        &self.grefs
    }

    /// Tells the kernel what to do when the grant of the page that it names is ended. Replaces
    /// what was set before for this page. Without a byte to clear, it is the first page.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a byte outside the pages, [`Error::Call`] for an event channel
    /// that is not bound.
    pub fn set_unmap_notify(&self, notify: UnmapNotify) -> Result<(), Error> {
        notify.set(&self.device, self.index, self.memory().len_bytes())
    }
}

impl Drop for GrantedPages {
    fn drop(&mut self) {
        self.memory = None;
        let mut argument = DeallocGref {
            index: self.index,
            count: self.grefs.len() as u32,
        };
        // SAFETY: the structure of this ioctl, and it holds no pointers.
        let result = unsafe {
            self.device.ioctl(
                "IOCTL_GNTALLOC_DEALLOC_GREF",
                GNTALLOC_DEALLOC_GREF,
                (&raw mut argument).cast(),
            )
        };
        debug_assert!(result.is_ok(), "ending our own grants: {result:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_says_what_to_do() {
        let error = Gntalloc::open_at(Path::new("/dev/xen/no-such-device")).unwrap_err();
        assert!(error.to_string().contains("run 'modprobe xen-gntalloc'"));
    }

    #[test]
    fn a_device_that_is_not_gntalloc_fails_the_call_and_names_it() {
        let gntalloc = Gntalloc::open_at(Path::new("/dev/null")).unwrap();
        for count in [1, 2, 3, 16] {
            let error = gntalloc.alloc(0, count, Access::ReadWrite).unwrap_err();
            assert_eq!(error.to_string(), "IOCTL_GNTALLOC_ALLOC_GREF failed");
        }
    }

    #[test]
    fn no_pages_and_too_many_pages_are_refused() {
        let gntalloc = Gntalloc::open_at(Path::new("/dev/null")).unwrap();
        for count in [0, PAGES_MAX + 1, usize::MAX] {
            let error = gntalloc.alloc(0, count, Access::ReadOnly).unwrap_err();
            assert!(matches!(error, Error::PageCount { count: n } if n == count));
        }
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! `/dev/xen/gntdev`: pages that other domains granted to this one.

use std::path::Path;
use std::sync::Arc;

use crate::abi::{
    GNTDEV_GRANT_COPY, GNTDEV_MAP_GRANT_REF, GNTDEV_UNMAP_GRANT_REF, GrantCopy, GrantRef,
    MapGrantRef, UnmapGrantRef,
};
use crate::copy::CopySegment;
use crate::device::Device;
use crate::memory::SharedMemory;
use crate::{Access, Error, PAGE_SIZE, UnmapNotify};

const PATH: &str = "/dev/xen/gntdev";
const MODULE: &str = "xen-gntdev";
/// Grants that one call takes at most, the default of the kernel's module parameter `limit`.
const GRANTS_MAX: usize = 65_536;

/// The open device. Clones share it.
#[derive(Clone, Debug)]
pub struct Gntdev {
    device: Arc<Device>,
}

impl Gntdev {
    /// Opens `/dev/xen/gntdev`.
    ///
    /// # Errors
    /// [`Error::NoDevice`], [`Error::Open`].
    pub fn open() -> Result<Gntdev, Error> {
        Gntdev::open_at(Path::new(PATH))
    }

    /// Opens the device under another name.
    ///
    /// # Errors
    /// [`Error::NoDevice`], [`Error::Open`].
    pub fn open_at(path: &Path) -> Result<Gntdev, Error> {
        Ok(Gntdev {
            device: Arc::new(Device::open(path, MODULE)?),
        })
    }

    /// Maps the pages that `domid` granted as `grefs`, one after another into one range.
    ///
    /// # Errors
    /// [`Error::MapRefused`] when Xen refuses any of them; then none is mapped. [`Error::Call`]
    /// for failures of this host, [`Error::PageCount`] for no pages or more than 65,536.
    pub fn map(&self, domid: u16, grefs: &[u32], access: Access) -> Result<MappedGrants, Error> {
        let count = match u32::try_from(grefs.len()) {
            Ok(count) if count > 0 && grefs.len() <= GRANTS_MAX => count,
            _ => return Err(Error::PageCount { count: grefs.len() }),
        };
        let index = self.insert(domid, grefs, count)?;
        // From here on dropping it takes the grants out of the device's table again.
        let mut mapped = MappedGrants {
            memory: None,
            index,
            count,
            device: Arc::clone(&self.device),
        };
        match self.device.map(index, grefs.len() * PAGE_SIZE, access) {
            Ok(memory) => {
                mapped.memory = Some(memory);
                Ok(mapped)
            }
            // The arguments are right, so it can only be Xen's answer (gntdev_map_grant_pages).
            Err(source) if source.raw_os_error() == Some(libc::EINVAL) => {
                Err(Error::MapRefused { source })
            }
            Err(source) => Err(Error::Call {
                call: "mmap of gntdev",
                source,
            }),
        }
    }

    /// Puts grants into the device's table; gives the offset for mmap.
    fn insert(&self, domid: u16, grefs: &[u32], count: u32) -> Result<u64, Error> {
        // The structure ends in an array of `count` entries. Built as one array of entries of
        // eight bytes, the first two of which are its header.
        const HEADER: usize = std::mem::offset_of!(MapGrantRef, refs) / size_of::<GrantRef>();
        let mut argument = vec![GrantRef { domid: 0, gref: 0 }; HEADER];
        argument.extend(grefs.iter().map(|gref| GrantRef {
            domid: domid.into(),
            gref: *gref,
        }));
        let start = argument.as_mut_ptr().cast::<MapGrantRef>();
        // SAFETY: `count` is the first word of the header. No reference to the whole structure
        // is made, because its alignment may be more than the array's.
        unsafe { (&raw mut (*start).count).write_unaligned(count) };
        // SAFETY: header and `count` entries, as this ioctl expects.
        unsafe {
            self.device.ioctl(
                "IOCTL_GNTDEV_MAP_GRANT_REF",
                GNTDEV_MAP_GRANT_REF,
                start.cast(),
            )?;
            Ok((&raw const (*start).index).read_unaligned())
        }
    }

    /// Copies all segments, with one call to the kernel, which repeats by itself what Xen asks
    /// to try again. A segment that is refused has a status of its own, see
    /// [`CopySegment::status`], and leaves the others alone.
    ///
    /// # Errors
    /// [`Error::Call`] when the call itself failed; then what was copied is unknown.
    /// [`Error::PageCount`] for more segments than 32 bits can count.
    pub fn copy(&self, segments: &mut [CopySegment<'_>]) -> Result<(), Error> {
        if segments.is_empty() {
            return Ok(());
        }
        let count = u32::try_from(segments.len()).map_err(|_| Error::PageCount {
            count: segments.len(),
        })?;
        let mut argument = GrantCopy {
            count,
            segments: CopySegment::as_raw(segments),
        };
        // SAFETY: `count` segments, each with a buffer that it borrows and that is as long as it
        // says.
        unsafe {
            self.device.ioctl(
                "IOCTL_GNTDEV_GRANT_COPY",
                GNTDEV_GRANT_COPY,
                (&raw mut argument).cast(),
            )
        }
    }
}

/// Pages of another domain, mapped here into one range. Unmapped when dropped.
#[derive(Debug)]
pub struct MappedGrants {
    /// `None` only while the mapping is made or undone.
    memory: Option<SharedMemory>,
    index: u64,
    count: u32,
    device: Arc<Device>,
}

impl MappedGrants {
    /// The mapped memory.
    pub fn memory(&self) -> &SharedMemory {
        match &self.memory {
            Some(memory) => memory,
            None => unreachable!("Gntdev::map gives out no mapping without its memory"),
        }
    }

    /// Tells the kernel what to do when this mapping is undone. Replaces what was set before.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a byte outside the mapping, [`Error::Call`] for a byte of a
    /// read-only mapping or an event channel that is not bound.
    pub fn set_unmap_notify(&self, notify: UnmapNotify) -> Result<(), Error> {
        notify.set(&self.device, self.index, self.memory().len_bytes())
    }
}

impl Drop for MappedGrants {
    fn drop(&mut self) {
        // The header asks for munmap first.
        self.memory = None;
        let mut argument = UnmapGrantRef {
            index: self.index,
            count: self.count,
            pad: 0,
        };
        // SAFETY: the structure of this ioctl, and it holds no pointers.
        let result = unsafe {
            self.device.ioctl(
                "IOCTL_GNTDEV_UNMAP_GRANT_REF",
                GNTDEV_UNMAP_GRANT_REF,
                (&raw mut argument).cast(),
            )
        };
        debug_assert!(result.is_ok(), "unmapping our own grants: {result:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn a_missing_device_says_what_to_do() {
        let error = Gntdev::open_at(Path::new("/dev/xen/no-such-device")).unwrap_err();
        assert!(matches!(error, Error::NoDevice { .. }));
        assert_eq!(
            error.to_string(),
            "/dev/xen/no-such-device is missing: run 'modprobe xen-gntdev' in a domain of Xen \
             that has this module"
        );
        assert!(error.source().is_some());
        let error = std::io::Error::from(error);
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
        assert!(error.to_string().contains("modprobe xen-gntdev"));
    }

    #[test]
    fn a_device_that_is_not_gntdev_fails_the_call_and_names_it() {
        let gntdev = Gntdev::open_at(Path::new("/dev/null")).unwrap();
        let error = gntdev.map(1, &[8, 9], Access::ReadWrite).unwrap_err();
        assert_eq!(error.to_string(), "IOCTL_GNTDEV_MAP_GRANT_REF failed");
        assert_eq!(error.io_error().unwrap().raw_os_error(), Some(libc::ENOTTY));
        let mut buffer = [0; 16];
        let mut segments = [CopySegment::from_grant(1, 8, 0, &mut buffer).unwrap()];
        let error = gntdev.copy(&mut segments).unwrap_err();
        assert_eq!(error.to_string(), "IOCTL_GNTDEV_GRANT_COPY failed");
        assert!(!segments[0].status().is_okay());
    }

    #[test]
    fn no_pages_and_too_many_pages_are_refused() {
        let gntdev = Gntdev::open_at(Path::new("/dev/null")).unwrap();
        for count in [0, GRANTS_MAX + 1] {
            let error = gntdev
                .map(1, &vec![8; count], Access::ReadOnly)
                .unwrap_err();
            assert!(matches!(error, Error::PageCount { count: n } if n == count));
        }
    }

    #[test]
    fn copying_nothing_needs_no_call() {
        let gntdev = Gntdev::open_at(Path::new("/dev/null")).unwrap();
        gntdev.copy(&mut []).unwrap();
    }
}

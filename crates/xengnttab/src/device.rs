// SPDX-License-Identifier: GPL-3.0-or-later
//! An open device, and the two calls that are made to it.

use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::NonNull;

use crate::memory::SharedMemory;
use crate::{Access, Error};

#[derive(Debug)]
pub(crate) struct Device {
    file: File,
}

impl Device {
    /// `module` is what the error names when the device is missing.
    pub(crate) fn open(path: &Path, module: &'static str) -> Result<Device, Error> {
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC)
            .open(path);
        match opened {
            Ok(file) => Ok(Device { file }),
            Err(source) => Err(match source.raw_os_error() {
                // ENXIO and ENODEV: a node is left over, its driver is not.
                Some(libc::ENOENT | libc::ENOTDIR | libc::ENXIO | libc::ENODEV) => {
                    Error::NoDevice {
                        path: path.to_owned(),
                        module,
                        source,
                    }
                }
                _ => Error::Open {
                    path: path.to_owned(),
                    source,
                },
            }),
        }
    }

    /// An ioctl, repeated when a signal interrupts it.
    ///
    /// # Safety
    /// `argument` points to what the kernel expects for `number`, and whatever that points to
    /// may be read and written for the time of the call.
    pub(crate) unsafe fn ioctl(
        &self,
        call: &'static str,
        number: u32,
        argument: *mut c_void,
    ) -> Result<(), Error> {
        loop {
            // SAFETY: the caller's promise; the descriptor is open.
            let result =
                unsafe { libc::ioctl(self.file.as_raw_fd(), number as libc::Ioctl, argument) };
            if result >= 0 {
                return Ok(());
            }
            let source = io::Error::last_os_error();
            if source.kind() != io::ErrorKind::Interrupted {
                return Err(Error::Call { call, source });
            }
        }
    }

    /// Maps `len_bytes` of the device's file from `index`.
    pub(crate) fn map(
        &self,
        index: u64,
        len_bytes: usize,
        access: Access,
    ) -> Result<SharedMemory, io::Error> {
        let protection = match access {
            Access::ReadOnly => libc::PROT_READ,
            Access::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        };
        let offset = libc::off_t::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice takes no memory away.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len_bytes,
                protection,
                libc::MAP_SHARED,
                self.file.as_raw_fd(),
                offset,
            )
        };
        match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => {
                // SAFETY: mmap gave this range to us alone, with this protection.
                Ok(unsafe { SharedMemory::from_raw(start, len_bytes, access) })
            }
            _ => Err(io::Error::last_os_error()),
        }
    }
}

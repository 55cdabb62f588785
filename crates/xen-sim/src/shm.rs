// SPDX-License-Identifier: GPL-3.0-or-later
//! Memory shared between processes: memfds, mappings of them, and volatile copies.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr;

use xen::Access;

/// A new memfd of `len_bytes` zeroes.
pub(crate) fn memfd(name: &std::ffi::CStr, len_bytes: usize) -> io::Result<OwnedFd> {
    // SAFETY: name is NUL-terminated.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: no pointers are passed.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), len_bytes as libc::off_t) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}

/// Copies `len_bytes` of one memfd to another of the same size. Pages that were never touched are
/// skipped: at the target they are zero as well.
pub(crate) fn copy_memfd(from: &File, to: &File, len_bytes: u64) -> io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    let mut at = 0;
    while let Some(start) = seek(from, at, libc::SEEK_DATA)? {
        let end = seek(from, start, libc::SEEK_HOLE)?.unwrap_or(len_bytes);
        at = start;
        while at < end {
            let wanted = buffer.len().min((end - at) as usize);
            let got = from.read_at(&mut buffer[..wanted], at)?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            to.write_all_at(&buffer[..got], at)?;
            at += got as u64;
        }
    }
    Ok(())
}

/// `lseek`; `None` when there is nothing from `at` on.
fn seek(file: &File, at: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
    // SAFETY: no pointers are passed. The file's position, which this changes, nobody uses.
    let found = unsafe { libc::lseek(file.as_raw_fd(), at as libc::off_t, whence) };
    if found >= 0 {
        return Ok(Some(found as u64));
    }
    let err = io::Error::last_os_error();
    match err.raw_os_error() {
        Some(libc::ENXIO) => Ok(None),
        _ => Err(err),
    }
}

/// A range of address space, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Region {
    base: *mut u8,
    len_bytes: usize,
}

// SAFETY: a region is only memory; every access to it is volatile or atomic, and the peer in
// another process may write to it at any time anyway.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Reserves address space without memory behind it.
    pub(crate) fn reserve(len_bytes: usize) -> io::Result<Region> {
        // SAFETY: a new private mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len_bytes,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Region {
            base: base.cast(),
            len_bytes,
        })
    }

    /// Maps the first `len_bytes` of `fd`.
    pub(crate) fn map(fd: impl AsFd, len_bytes: usize) -> io::Result<Region> {
        let region = Region::reserve(len_bytes)?;
        region.place(0, fd, 0, len_bytes, Access::ReadWrite)?;
        Ok(region)
    }

    /// Replaces `len_bytes` at `offset` with a shared mapping of `fd` from `fd_offset`. Offsets
    /// and length are multiples of the page size.
    pub(crate) fn place(
        &self,
        offset: usize,
        fd: impl AsFd,
        fd_offset: usize,
        len_bytes: usize,
        access: Access,
    ) -> io::Result<()> {
        assert!(
            offset
                .checked_add(len_bytes)
                .is_some_and(|end| end <= self.len_bytes)
        );
        let prot = match access {
            Access::ReadOnly => libc::PROT_READ,
            Access::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        };
        // SAFETY: the range lies inside this region, which nobody else manages. Pointers into it
        // stay valid: the old pages are replaced atomically.
        let at = unsafe {
            libc::mmap(
                self.base.add(offset).cast(),
                len_bytes,
                prot,
                libc::MAP_SHARED | libc::MAP_FIXED,
                fd.as_fd().as_raw_fd(),
                fd_offset as libc::off_t,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    pub(crate) fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Address of `offset`; panics when `len_bytes` from there leave the region.
    pub(crate) fn at(&self, offset: usize, len_bytes: usize) -> *mut u8 {
        assert!(
            offset
                .checked_add(len_bytes)
                .is_some_and(|end| end <= self.len_bytes),
            "{len_bytes} bytes at {offset} leave a region of {} bytes",
            self.len_bytes
        );
        // SAFETY: inside the region, checked above.
        unsafe { self.base.add(offset) }
    }

    pub(crate) fn read(&self, offset: usize, dst: &mut [u8]) {
        let from = self.at(offset, dst.len());
        // SAFETY: from is valid for dst.len() bytes.
        unsafe { copy_in(from, dst) }
    }

    pub(crate) fn write(&self, offset: usize, src: &[u8]) {
        let to = self.at(offset, src.len());
        // SAFETY: to is valid for src.len() bytes.
        unsafe { copy_out(src, to) }
    }

    /// A `T` of atomics at `offset`.
    pub(crate) fn atomics<T: Atomics>(&self, offset: usize) -> &T {
        let at: *mut T = self.at(offset, size_of::<T>()).cast();
        assert!(at.is_aligned());
        // SAFETY: in range and aligned, and T holds only atomics, valid for any bit pattern and
        // for memory that other processes write.
        unsafe { &*at }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the range is ours and nothing points into it any more.
        unsafe { libc::munmap(self.base.cast(), self.len_bytes) };
    }
}

/// Types that consist of atomics only.
///
/// # Safety
/// Every bit pattern is a valid value, and all fields are atomics.
pub(crate) unsafe trait Atomics {}
// SAFETY: an atomic.
unsafe impl Atomics for std::sync::atomic::AtomicU32 {}
// SAFETY: an atomic.
unsafe impl Atomics for std::sync::atomic::AtomicU64 {}
// SAFETY: an atomic.
unsafe impl Atomics for std::sync::atomic::AtomicU8 {}

/// Copies from memory that others may be writing.
///
/// # Safety
/// `from` is valid for reading `dst.len()` bytes.
unsafe fn copy_in(mut from: *const u8, dst: &mut [u8]) {
    let head = from.align_offset(8).min(dst.len());
    let (first, rest) = dst.split_at_mut(head);
    for byte in first {
        // SAFETY: within the range that the caller vouches for.
        unsafe {
            *byte = from.read_volatile();
            from = from.add(1);
        }
    }
    let mut words = rest.chunks_exact_mut(8);
    for word in &mut words {
        // SAFETY: as above, and aligned by the loop before.
        unsafe {
            word.copy_from_slice(&from.cast::<u64>().read_volatile().to_ne_bytes());
            from = from.add(8);
        }
    }
    for byte in words.into_remainder() {
        // SAFETY: within the range that the caller vouches for.
        unsafe {
            *byte = from.read_volatile();
            from = from.add(1);
        }
    }
}

/// Copies to memory that others may be reading.
///
/// # Safety
/// `to` is valid for writing `src.len()` bytes.
unsafe fn copy_out(src: &[u8], mut to: *mut u8) {
    let head = to.align_offset(8).min(src.len());
    let (first, rest) = src.split_at(head);
    for byte in first {
        // SAFETY: within the range that the caller vouches for.
        unsafe {
            to.write_volatile(*byte);
            to = to.add(1);
        }
    }
    let words = rest.chunks_exact(8);
    let tail = words.remainder();
    for word in words {
        let value = u64::from_ne_bytes(word.try_into().expect("chunks of eight"));
        // SAFETY: as above, and aligned by the loop before.
        unsafe {
            to.cast::<u64>().write_volatile(value);
            to = to.add(8);
        }
    }
    for byte in tail {
        // SAFETY: within the range that the caller vouches for.
        unsafe {
            to.write_volatile(*byte);
            to = to.add(1);
        }
    }
}

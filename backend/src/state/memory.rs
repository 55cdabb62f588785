// SPDX-License-Identifier: GPL-3.0-or-later
//! Memory for a journal.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use journal::{LEN_BYTES, Words};

const LEN_WORDS: usize = LEN_BYTES / 8;

/// A file, mapped and shared: what is stored is in the file at once for everybody who reads it, also
/// when this process is killed. It is not on a disk, and need not be.
#[derive(Debug)]
pub struct Memory(NonNull<AtomicU64>);

// SAFETY: the mapping belongs to this value alone and is only reached through atomics.
unsafe impl Send for Memory {}

impl Memory {
    /// A new file of zeros.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        // All of it now: where the file system is full, a later store would be a SIGBUS.
        // SAFETY: no pointers are passed.
        let errno = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, LEN_BYTES as libc::off_t) };
        if errno != 0 {
            return Err(io::Error::from_raw_os_error(errno));
        }
        Self::map(&file)
    }

    /// The file that another process made.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        if file.metadata()?.len() != LEN_BYTES as u64 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Self::map(&file)
    }

    fn map(file: &File) -> io::Result<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses; it outlives the descriptor.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                LEN_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let words = NonNull::new(address.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self(words))
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is as long, page-aligned, readable and writable until it is dropped.
        // Other processes reach it through the file at worst as atomics do: no byte of it is ever
        // borrowed as anything else here.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr(), LEN_WORDS) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length; no borrow outlives `self`.
        unsafe { libc::munmap(self.0.as_ptr().cast(), LEN_BYTES) };
    }
}

impl Words for Memory {
    fn load(&self, at: usize) -> u64 {
        self.words()[at].load(Ordering::Acquire)
    }
    fn store(&self, at: usize, value: u64) {
        self.words()[at].store(value, Ordering::Release);
    }
    fn store_all(&self, at: usize, values: &[u64]) {
        for (word, value) in self.words()[at..at + values.len()].iter().zip(values) {
            word.store(*value, Ordering::Relaxed);
        }
    }
}

/// Where nothing is kept.
#[derive(Debug)]
pub struct Nowhere;

impl Words for Nowhere {
    fn load(&self, _: usize) -> u64 {
        0
    }
    fn store(&self, _: usize, _: u64) {}
    fn store_all(&self, _: usize, _: &[u64]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_there_for_who_opens_the_file_next() {
        let path = std::env::temp_dir().join(format!("vusbd-memory-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let first = Memory::create(&path).unwrap();
        assert!(Memory::create(&path).is_err(), "the file is somebody's");
        let last = LEN_WORDS - 1;
        assert_eq!((first.load(0), first.load(last)), (0, 0));
        first.store(0, 7);
        first.store_all(last - 1, &[8, 9]);
        let second = Memory::open(&path).unwrap();
        drop(first);
        assert_eq!(
            (second.load(0), second.load(last - 1), second.load(last)),
            (7, 8, 9)
        );
        drop(second);

        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(LEN_BYTES as u64 - 8).unwrap();
        assert!(Memory::open(&path).is_err(), "too short to be mapped");
        std::fs::remove_file(&path).unwrap();
    }
}

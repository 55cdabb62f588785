// SPDX-License-Identifier: GPL-3.0-or-later
//! A simulated disk's blocks.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use usb_sim::{Storage, StorageError};

/// A disk's blocks in a file, or in a block device.
///
/// Reads and writes go to the page cache, so they do not hold up the thread for long.
#[derive(Debug)]
pub(super) struct FileStorage {
    file: File,
    len_bytes: u64,
    sync: bool,
}

impl FileStorage {
    pub(super) fn open(path: &Path, new_len_bytes: u64, sync: bool) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path)?;
        // Two exporters on one file would destroy what is in it.
        file.try_lock().map_err(|e| match e {
            TryLockError::Error(e) => e,
            TryLockError::WouldBlock => io::Error::other("another process uses it"),
        })?;
        let mut len_bytes = io::Seek::seek(&mut &file, io::SeekFrom::End(0))?;
        if len_bytes == 0 {
            file.set_len(new_len_bytes)?;
            len_bytes = new_len_bytes;
        }
        Ok(Self {
            file,
            len_bytes,
            sync,
        })
    }
}

impl Storage for FileStorage {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        self.file.read_exact_at(into, offset).map_err(failed)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), StorageError> {
        self.file.write_all_at(data, offset).map_err(failed)
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        match self.sync {
            true => self.file.sync_data().map_err(failed),
            false => Ok(()),
        }
    }
}

fn failed(error: io::Error) -> StorageError {
    StorageError(error.to_string())
}

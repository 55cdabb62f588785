// SPDX-License-Identifier: GPL-3.0-or-later
//! Where a disk's blocks are.

/// Bytes that a disk keeps. Offsets and lengths are within [`Storage::len_bytes`].
pub trait Storage {
    /// How many there are; it does not change.
    fn len_bytes(&self) -> u64;
    /// Whether writing fails.
    fn is_read_only(&self) -> bool {
        false
    }
    /// Reads all of `into`.
    fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<(), StorageError>;
    /// Writes all of `data`.
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), StorageError>;
    /// Makes what was written permanent.
    fn flush(&mut self) -> Result<(), StorageError>;
}

/// The medium failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the storage failed: {0}")]
pub struct StorageError(pub String);

/// Storage in memory.
#[derive(Clone, Debug)]
pub struct MemoryStorage(Vec<u8>);

impl MemoryStorage {
    /// All zero.
    pub fn new(len_bytes: usize) -> Self {
        Self(vec![0; len_bytes])
    }

    /// What it holds.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn range(&self, offset: u64, len: usize) -> Result<std::ops::Range<usize>, StorageError> {
        let start = usize::try_from(offset).ok();
        let end = start.and_then(|s| s.checked_add(len));
        match (start, end) {
            (Some(start), Some(end)) if end <= self.0.len() => Ok(start..end),
            _ => Err(StorageError(format!(
                "{len} bytes at {offset} are beyond the end"
            ))),
        }
    }
}

impl Storage for MemoryStorage {
    fn len_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        let range = self.range(offset, into.len())?;
        into.copy_from_slice(&self.0[range]);
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), StorageError> {
        let range = self.range(offset, data.len())?;
        self.0[range].copy_from_slice(data);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        Ok(())
    }
}

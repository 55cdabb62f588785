// SPDX-License-Identifier: GPL-3.0-or-later
//! What the disk must hold, and what to do to it next.

use sha2::{Digest, Sha256};

use super::driver::MAX_DATA_BYTES;
use crate::random::Random;

/// A command of the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Read blocks and compare.
    Read {
        /// First block.
        block: u32,
        /// How many.
        count: u16,
    },
    /// Write blocks with the bytes of this seed.
    Write {
        /// First block.
        block: u32,
        /// How many.
        count: u16,
        /// Seed of the data.
        seed: u64,
    },
    /// SYNCHRONIZE CACHE.
    Sync,
}

/// One SYNCHRONIZE CACHE among so many commands.
const SYNC_EVERY: u64 = 64;

/// The disk as it must be.
pub(super) struct Model {
    bytes: Vec<u8>,
    block_bytes: usize,
    random: Random,
}

impl Model {
    /// A disk whose content is not known yet.
    pub(super) fn new(blocks: u64, block_bytes: usize, seed: u64) -> Self {
        Self {
            bytes: vec![0; blocks as usize * block_bytes],
            block_bytes,
            random: Random::new(seed),
        }
    }

    pub(super) fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// Takes what was read as the truth.
    pub(super) fn learn(&mut self, block: u32, data: &[u8]) {
        let at = block as usize * self.block_bytes;
        self.bytes[at..at + data.len()].copy_from_slice(data);
    }

    /// Whether `data` is what was written there.
    pub(super) fn matches(&self, block: u32, data: &[u8]) -> bool {
        let at = block as usize * self.block_bytes;
        self.bytes[at..at + data.len()] == *data
    }

    /// A write has been carried out.
    pub(super) fn written(&mut self, block: u32, count: u16, seed: u64) {
        let at = block as usize * self.block_bytes;
        let end = at + usize::from(count) * self.block_bytes;
        Random::new(seed).fill(&mut self.bytes[at..end]);
    }

    /// What to do next.
    pub(super) fn next_operation(&mut self) -> Operation {
        let kind = self.random.below(SYNC_EVERY);
        if kind == 0 {
            return Operation::Sync;
        }
        let most = (MAX_DATA_BYTES / self.block_bytes) as u64;
        let blocks = (self.bytes.len() / self.block_bytes) as u64;
        // Whole commands of 64 KiB URBs as often as odd sizes.
        let count = match self.random.below(2) {
            0 => most,
            _ => 1 + self.random.below(most),
        };
        let count = count.min(blocks);
        // Both fit: READ and WRITE (10) have 32-bit addresses, and a command is at most 256 KiB.
        let block = self.random.below(blocks - count + 1) as u32;
        let count = count as u16;
        if kind.is_multiple_of(2) {
            Operation::Read { block, count }
        } else {
            let seed = self.random.next_u64();
            Operation::Write { block, count, seed }
        }
    }

    pub(super) fn sha256(&self) -> String {
        let digest = Sha256::digest(&self.bytes);
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

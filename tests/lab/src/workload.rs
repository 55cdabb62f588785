// SPDX-License-Identifier: GPL-3.0-or-later
//! The guest's workload: constant writing, syncing, reading back and comparing; and a ticker
//! that measures how long the guest stood still.
//!
//! Times are CLOCK_REALTIME in nanoseconds: CLOCK_MONOTONIC stands still while a guest is
//! suspended, so a migration's pause would be invisible in it. The reader of the log subtracts
//! the difference between the two hosts' clocks.

use serde::{Deserialize, Serialize};

/// Size of a written block.
pub const BLOCK_BYTES: usize = 4096;

/// One gap is kept for each stretch of this length.
const GAP_WINDOW_NS: u64 = 2_000_000_000;

/// A stretch in which nothing happened.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Gap {
    /// When it began, nanoseconds since the epoch, by the guest's clock.
    pub from_ns: u64,
    /// When it ended.
    pub to_ns: u64,
}

impl Gap {
    /// Its length in milliseconds by the guest's clock.
    pub fn ms(&self) -> f64 {
        (self.to_ns.saturating_sub(self.from_ns)) as f64 / 1e6
    }
}

/// What the workload has done so far, or did.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// Blocks written and synced.
    pub written: u64,
    /// Blocks read back past the page cache and found right.
    pub verified: u64,
    /// Blocks that read back wrong.
    pub mismatches: u64,
    /// System calls that failed.
    pub io_errors: u64,
    /// The first failures, in words.
    pub errors: Vec<String>,
    /// Of every few seconds the longest gap between two completed rounds (writer) or two ticks
    /// (ticker): under emulation small gaps are countless, and only the longest is asked for.
    pub gaps: Vec<Gap>,
    /// Hash of what the file must hold; empty until the end.
    pub sha256_expected: String,
    /// Hash of what the device returned at the end.
    pub sha256_read: String,
    /// The program has ended by itself.
    pub finished: bool,
}

impl Report {
    /// Take note of a gap.
    pub fn note_gap(&mut self, gap: Gap) {
        match self.gaps.last_mut() {
            Some(last) if gap.to_ns / GAP_WINDOW_NS == last.to_ns / GAP_WINDOW_NS => {
                if gap.ms() > last.ms() {
                    *last = gap;
                }
            }
            _ => self.gaps.push(gap),
        }
    }
}

/// The contents of block `block` when it was written for the `counter`th time.
pub fn fill(buffer: &mut [u8], seed: u64, block: u64, counter: u64) {
    let mut state = seed ^ block.rotate_left(20) ^ counter.rotate_left(40);
    for word in buffer.chunks_exact_mut(8) {
        state = splitmix(state);
        word.copy_from_slice(&state.to_le_bytes());
    }
    // Readable in a dump: which block this is, and how old.
    buffer[..8].copy_from_slice(&block.to_le_bytes());
    buffer[8..16].copy_from_slice(&counter.to_le_bytes());
}

/// SplitMix64.
pub fn splitmix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_differ_by_place_age_and_seed() {
        let make = |seed, block, counter| {
            let mut buffer = vec![0; BLOCK_BYTES];
            fill(&mut buffer, seed, block, counter);
            buffer
        };
        assert_eq!(make(1, 2, 3), make(1, 2, 3));
        assert_ne!(make(1, 2, 3)[16..], make(1, 2, 4)[16..]);
        assert_ne!(make(1, 2, 3)[16..], make(1, 3, 3)[16..]);
        assert_ne!(make(1, 2, 3)[16..], make(2, 2, 3)[16..]);
    }
}

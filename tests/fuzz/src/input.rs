// SPDX-License-Identifier: GPL-3.0-or-later
//! Bytes as decisions.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

/// A string of bytes that a target takes its decisions from, from the front. Behind its end there
/// are zeros, so every string is an input and every prefix of one is, too.
#[derive(Debug)]
pub struct Input<'a> {
    bytes: &'a [u8],
    did: HashSet<u64>,
}

impl<'a> Input<'a> {
    /// The input of these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            did: HashSet::new(),
        }
    }

    /// Whether there is nothing left.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// Two bytes, little-endian, as the ring and the frames have them.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// Four bytes.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// So many bytes.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.take(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    /// A number below `end`, which is at most 256.
    pub fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end.max(1)
    }

    /// Yes in `n` of 256 cases.
    pub fn chance(&mut self, n: u8) -> bool {
        // Zeros, which are all that is left at the end of an input, mean no.
        self.byte() > 255 - n
    }

    /// Up to `len` bytes.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.bytes.split_at(len.min(self.bytes.len()));
        self.bytes = rest;
        taken
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        self.take(self.bytes.len())
    }

    /// The target has done this. An input that did what none did before is kept, and mutated.
    pub fn did(&mut self, what: impl Hash) {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        self.did.insert(hasher.finish());
    }

    pub(crate) fn into_did(self) -> HashSet<u64> {
        self.did
    }
}

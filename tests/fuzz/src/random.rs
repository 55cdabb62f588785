// SPDX-License-Identifier: GPL-3.0-or-later
//! Numbers that look random and are the same for the same seed.

/// SplitMix64: a counter, well mixed. Good enough to choose tests with, and for nothing else.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`; 0 where there is none.
    pub fn below(&mut self, end: usize) -> usize {
        match u64::try_from(end) {
            Ok(0) | Err(_) => 0,
            // Less than end, which is a usize.
            Ok(end) => (self.any() % end) as usize,
        }
    }

    /// Any byte.
    pub fn byte(&mut self) -> u8 {
        self.any() as u8
    }
}

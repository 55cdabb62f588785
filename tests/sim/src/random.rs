// SPDX-License-Identifier: GPL-3.0-or-later
//! Numbers that are the same for the same seed, everywhere and for ever.

/// SplitMix64.
#[derive(Clone, Copy, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts at a seed; every number is one.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next_u64() % end
    }

    /// Fills a buffer.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let number = self.next_u64().to_le_bytes();
            chunk.copy_from_slice(&number[..chunk.len()]);
        }
    }
}

/// The environment variable that gives a test its seed.
pub const SEED_VARIABLE: &str = "XEN_VUSB_SEED";

/// A test's seed: another one every time, unless the environment says which. When the test fails it
/// is printed.
#[derive(Debug)]
pub struct Seed(u64);

impl Seed {
    /// From the environment, or from the clock.
    ///
    /// # Panics
    /// When the environment has no number.
    pub fn new() -> Self {
        Self(match std::env::var(SEED_VARIABLE) {
            Ok(seed) => seed.parse().expect("a seed is a number"),
            Err(_) => {
                let now = std::time::SystemTime::now();
                let since = now.duration_since(std::time::UNIX_EPOCH);
                since.map_or(0, |since| since.as_nanos() as u64)
            }
        })
    }

    /// Numbers of this seed, others for each `purpose`.
    pub fn random(&self, purpose: u64) -> Random {
        Random::new(self.0 ^ Random::new(purpose).next_u64())
    }
}

impl Default for Seed {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "failed with the seed {0}; again: {SEED_VARIABLE}={0}",
                self.0
            );
        }
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! The memory that a journal lies in.

use alloc::boxed::Box;

/// Words of 64 bits that outlive the process.
pub trait Words {
    /// The word number `at`, at least with acquire ordering.
    fn load(&self, at: usize) -> u64;
    /// Stores a word, at least with release ordering: whoever sees it sees what was stored before.
    fn store(&self, at: usize, value: u64);
    /// Stores words from `at` on. Nobody looks at them before a later [`Words::store`].
    fn store_all(&self, at: usize, values: &[u64]) {
        for (at, value) in (at..).zip(values) {
            self.store(at, *value);
        }
    }
}

impl<W: Words + ?Sized> Words for &W {
    fn load(&self, at: usize) -> u64 {
        (**self).load(at)
    }
    fn store(&self, at: usize, value: u64) {
        (**self).store(at, value);
    }
    fn store_all(&self, at: usize, values: &[u64]) {
        (**self).store_all(at, values);
    }
}

impl<W: Words + ?Sized> Words for Box<W> {
    fn load(&self, at: usize) -> u64 {
        (**self).load(at)
    }
    fn store(&self, at: usize, value: u64) {
        (**self).store(at, value);
    }
    fn store_all(&self, at: usize, values: &[u64]) {
        (**self).store_all(at, values);
    }
}

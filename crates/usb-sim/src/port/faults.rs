// SPDX-License-Identifier: GPL-3.0-or-later
//! Errors on the bus, made on purpose.

/// How many of each endpoint's next transfers or packets fail.
#[derive(Debug, Default)]
pub(super) struct Faults([u32; 32]);

impl Faults {
    pub(super) fn add(&mut self, endpoint: u8, count: u32) {
        let place = &mut self.0[index(endpoint)];
        *place = place.saturating_add(count);
    }

    /// Whether some are to come.
    pub(super) fn threaten(&self, endpoint: u8) -> bool {
        self.0[index(endpoint)] > 0
    }

    /// Whether the next one fails; it is the next one no more.
    pub(super) fn strike(&mut self, endpoint: u8) -> bool {
        let place = &mut self.0[index(endpoint)];
        let strikes = *place > 0;
        *place = place.saturating_sub(1);
        strikes
    }
}

fn index(endpoint: u8) -> usize {
    usize::from(endpoint & 0x0f) + if endpoint & 0x80 != 0 { 16 } else { 0 }
}

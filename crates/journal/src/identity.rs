// SPDX-License-Identifier: GPL-3.0-or-later
//! Which ring a journal is about.

use crate::Words;
use crate::layout::IDENTITY_AT;

/// A frontend's rings. One that connects anew has others, or at least a ring that begins anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The domain.
    pub domid: u16,
    /// The controller's number in the domain.
    pub devid: u16,
    /// The VM's uuid.
    pub vm: [u8; 16],
    /// Grant reference of the URB ring.
    pub urb: u32,
    /// Grant reference of the connection ring.
    pub conn: u32,
    /// The guest's port of the event channel.
    pub channel: u32,
}

impl Identity {
    fn words(&self) -> [u64; 5] {
        let vm = u128::from_le_bytes(self.vm);
        [
            u64::from(self.domid) | u64::from(self.devid) << 16,
            vm as u64,
            (vm >> 64) as u64,
            u64::from(self.urb) | u64::from(self.conn) << 32,
            self.channel.into(),
        ]
    }

    pub(crate) fn store(&self, words: &impl Words) {
        words.store_all(IDENTITY_AT, &self.words());
    }

    pub(crate) fn is_stored(&self, words: &impl Words) -> bool {
        let mut stored = (IDENTITY_AT..).zip(self.words());
        stored.all(|(at, word)| words.load(at) == word)
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! Where what is, in 64-bit words of the machine's own byte order: nobody else reads them.
//!
//! | words | content |
//! |---|---|
//! | 0 | [`MAGIC`] with the layout's version |
//! | 1 | the ring: 0 none, 1 the next words are true |
//! | 2 to 6 | domid and devid, uuid, grant references, event channel of that ring |
//! | 7 | requests consumed since the ring was set up; its low 32 bits are the ring's index |
//! | 8 | 1 while the guest is being suspended |
//! | 9 | the journal's own number |
//! | 16 + 8 * n | port n + 1: see `port.rs` |
//! | 272 + 32 * n | record n: see `record.rs` |

use usbif::PortNumber;

/// Records: a ring has 16 slots, and as many responses again may wait to be published.
pub const RECORDS: usize = 32;

/// "vusbjrn" and the version of the layout.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"vusbjrn\x01");

pub(crate) const MAGIC_AT: usize = 0;
pub(crate) const RING_AT: usize = 1;
pub(crate) const IDENTITY_AT: usize = 2;
pub(crate) const CONSUMED_AT: usize = 7;
pub(crate) const QUIESCING_AT: usize = 8;
pub(crate) const LIFE_AT: usize = 9;

const PORTS_AT: usize = 16;
pub(crate) const PORT_WORDS: usize = 8;
const RECORDS_AT: usize = 272;
const RECORD_WORDS: usize = 32;

/// Bytes of a journal.
pub const LEN_BYTES: usize = (RECORDS_AT + RECORDS * RECORD_WORDS) * 8;

const _: () = assert!(PORTS_AT + PortNumber::MAX as usize * PORT_WORDS <= RECORDS_AT);

pub(crate) fn port_at(port: PortNumber) -> usize {
    PORTS_AT + port.index() * PORT_WORDS
}

pub(crate) fn record_at(record: usize) -> usize {
    RECORDS_AT + record * RECORD_WORDS
}

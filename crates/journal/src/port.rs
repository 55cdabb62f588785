// SPDX-License-Identifier: GPL-3.0-or-later
//! What is kept of a port, in six words:
//!
//! | word | content |
//! |---|---|
//! | 0 | what is plugged in and what the guest is to be told, [`pack`] |
//! | 1 | epoch of the session, written last; 0 without one |
//! | 2 | the last request's number |
//! | 3 | the last completion's number whose outcome is kept |
//! | 4 | number of the device reset under way; means something while requests are held |
//! | 5 | attempts to take up the lease |

use usbif::{DeviceAddress, Speed};
use vusb_core::{PortSnapshot, ResetDue};

pub(crate) const STATE: usize = 0;
pub(crate) const EPOCH: usize = 1;
pub(crate) const LAST_REQUEST: usize = 2;
pub(crate) const COMPLETIONS: usize = 3;
pub(crate) const RESET: usize = 4;
pub(crate) const ATTEMPT: usize = 5;

/// Where a port's session had come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// [`Journal::life`](crate::Journal::life).
    pub life: u64,
    /// The lease's epoch, not 0.
    pub epoch: u64,
    /// The last request that may have been sent, 0 for none.
    pub last_request: u64,
    /// The last completion that needs not be sent again, 0 for none.
    pub completions_received: u64,
    /// The device reset that was under way.
    pub reset: Option<u64>,
}

/// The event of word 0 is being told, as this response of the connection ring.
const TELLING: u64 = 1 << 24;

/// Bits 0 to 1 speed, 8 to 14 address (0 none), 16 held, 17 to 19 and 20 to 22 the events to be told
/// (0 none, else 1 + speed), 25 to 26 the reset that is due, 24 and 32 to 63 see [`TELLING`].
pub(crate) fn pack(port: &PortSnapshot) -> u64 {
    let event = |e: Option<Speed>| e.map_or(0, |speed| 1 + u64::from(speed.to_wire()));
    let address = port.address.map_or(0, DeviceAddress::get);
    let reset = match port.reset {
        ResetDue::No => 0,
        ResetDue::AtDefaultAddress => 1,
        ResetDue::Now => 2,
    };
    u64::from(port.speed.to_wire())
        | u64::from(address) << 8
        | u64::from(port.held) << 16
        | event(port.events[0]) << 17
        | event(port.events[1]) << 20
        | reset << 25
}

pub(crate) fn telling(word: u64, index: u32) -> u64 {
    word | TELLING | u64::from(index) << 32
}

/// From word 0. `None` for a word that was never written so.
pub(crate) fn unpack(word: u64) -> Option<PortSnapshot> {
    let event = |shift: u32| match (word >> shift) & 7 {
        0 => Some(None),
        n => Speed::from_wire(n as u8 - 1).map(Some),
    };
    let address = DeviceAddress::new((word >> 8) as u8 & 0x7f)?;
    Some(PortSnapshot {
        speed: Speed::from_wire(word as u8 & 3)?,
        address: Some(address).filter(|a| !a.is_default()),
        held: word >> 16 & 1 != 0,
        events: [event(17)?, event(20)?],
        reset: match word >> 25 & 3 {
            0 => ResetDue::No,
            1 => ResetDue::AtDefaultAddress,
            2 => ResetDue::Now,
            _ => return None,
        },
    })
}

/// Whether the event that was being told has been, by the response index shared on that ring.
pub(crate) fn was_told(word: u64, conn_rsp_prod: u32) -> bool {
    let index = (word >> 32) as u32;
    word & TELLING != 0 && (conn_rsp_prod.wrapping_sub(index) as i32) > 0
}

/// Whether two words differ in more than what is being told.
pub(crate) fn differ(one: u64, other: u64) -> bool {
    (one ^ other) as u32 & !(TELLING as u32) != 0
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! The Xen PV USB ring ABI: Xen's public `io/usbif.h` and `io/ring.h`.
//!
//! A frontend and a backend share two pages: the URB ring ([`Urb`]) carries USB I/O requests and
//! their responses, the connection ring ([`Conn`]) tells the frontend what is plugged into its
//! ports. [`BackRing`] and [`FrontRing`] are the two ends of either. Both treat the shared page as
//! written by an enemy: every slot is copied exactly once and checked afterwards, indices of our
//! own are never read back, and no content of the page makes anything here panic. An empty ring
//! and a corrupt ring are different answers.
//!
//! Nothing here does I/O: memory is reached through [`RingMemory`], and signals are returned
//! (`publish() -> bool`), not sent.
//!
//! All fields are little-endian: the ABI is the native one of x86 and arm64.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod back;
mod conn;
mod front;
mod isoc;
mod memory;
mod pipe;
mod port;
mod ring;
mod segment;
mod setup;
mod status;
mod urb;
mod wire;

#[cfg(test)]
mod tests;

pub use back::{BackRing, NoRequestToAnswer};
pub use conn::{BadConnResponse, Conn, ConnRequest, ConnResponse};
pub use front::{FrontRing, RingFull};
pub use isoc::{ISOC_PACKET_BYTES, IsocPacket};
pub use memory::RingMemory;
pub use pipe::{Direction, Pipe, TransferType};
pub use port::{DeviceAddress, PortNumber, Speed};
pub use ring::{PAGE_BYTES, RING_HEADER_BYTES, RingCorrupt, RingIndices, RingKind, ring_slots};
pub use segment::{MAX_SEGMENTS, Segment};
pub use setup::Setup;
pub use status::UrbStatus;
pub use urb::{
    BadRequest, BadRequestReason, MAX_BUFFER_BYTES, SHORT_NOT_OK, Urb, UrbKind, UrbRequest,
    UrbResponse,
};

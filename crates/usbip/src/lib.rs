// SPDX-License-Identifier: GPL-3.0-or-later
//! Serves simulated devices with the USB/IP protocol, version 1.1.1, as Linux's
//! `Documentation/usb/usbip_protocol.rst` has it ("the protocol" below): `usbip attach` of a stock
//! system puts them on a real kernel's bus (`vhci_hcd`), isochronous ones too.
//!
//! - [`op`]: the requests before a device is attached, and their replies;
//! - [`urb`]: commands and replies while it is;
//! - [`Attachment`]: the state machine between those and a [`usb_sim::Port`], without I/O;
//! - [`Exports`] and [`serve`]: sockets and the clock.
#![forbid(unsafe_code)]

mod attachment;
mod hold;
pub mod op;
mod record;
mod server;
pub mod urb;

pub use attachment::Attachment;
pub use hold::{Delay, Slow};
pub use record::DeviceRecord;
pub use server::{Export, Exports, serve};

/// The version in every message of [`op`]: 1.1.1.
pub const VERSION: u16 = 0x0111;

/// What the peer did wrong. Its connection is to be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// It speaks another version.
    #[error("USB/IP version {0:#06x} where 0x0111 was due")]
    Version(u16),
    /// An unknown request or command.
    #[error("unknown command {0:#x}")]
    Command(u32),
    /// A field is beyond what we take.
    #[error("{field} of {value}, at most {limit} are possible")]
    TooMuch {
        /// The field.
        field: &'static str,
        /// What it held.
        value: u64,
        /// What it may hold.
        limit: u64,
    },
    /// A number that is in use.
    #[error("sequence number {0} is in use")]
    SequenceNumber(u32),
}

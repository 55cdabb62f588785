// SPDX-License-Identifier: GPL-3.0-or-later
//! A PV USB frontend: the ring's other half, as a library for guest processes.
//!
//! From the ring up:
//!
//! - [`Front`]: which URB has which of the 16 request ids, what is plugged in where, what is
//!   unlinked. A pure machine, with the habits of Linux's `xen-hcd`;
//! - [`UsbHost`]: the machine with its rings, event channel and buffers, over any [`xen::Guest`];
//!   what a driver in the guest talks to;
//! - [`Frontend`]: a host with its xenstore handshake, and its two ways through a suspend;
//! - [`storage::Disk`]: a driver for mass-storage devices on top.
//!
//! Every part notices when the backend breaks the protocol, and says so: see [`Violation`].

mod bus;
mod error;
mod front;
mod frontend;
mod host;
pub mod storage;

pub use error::{FrontendError, HostError};
pub use front::{
    Completion, Counters, Front, PortChange, Submission, SubmitError, TransferError, UrbHandle,
    Violation,
};
pub use frontend::{BusEvent, Frontend, FrontendOptions, ResumeMode, Resumed};
pub use host::{
    BufferId, BufferSlice, ControlData, Device, DeviceDescriptor, Endpoint, HostOptions, Interface,
    IsochronousUrb, RingGrants, Target, Urb, UsbHost, ViolationHook,
};

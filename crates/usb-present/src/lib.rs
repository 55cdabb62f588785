// SPDX-License-Identifier: GPL-3.0-or-later
//! How a SuperSpeed device is presented through an interface that knows USB 2.0 only: as the
//! high-speed device that it would be on a USB 2.0 port. Its transfers stay what they are; its
//! descriptors change, and what a high-speed device would not answer is not answered.
//!
//! For every control transfer that a guest sends to a SuperSpeed device, ask [`intercept`] first:
//!
//! - [`Intercept::Pass`]: send it, and give back what comes.
//! - [`Intercept::Stall`]: answer it with STALL; the device never sees it.
//! - [`Intercept::Ask`]: send this SETUP packet instead, with a buffer of *its* wLength. If that
//!   succeeds, [`present`] makes the answer out of the bytes that came. Whether the answer is short
//!   is decided by the guest's own wLength.
//!
//! ```
//! # let mut bytes = [18, 1, 0x20, 3, 0, 0, 0, 9, 9, 0x12, 1, 0, 0, 1, 0, 0, 0, 1];
//! use usb_present::{Intercept, intercept, present};
//!
//! // The guest wants the first eight bytes of the device descriptor.
//! let guest = [0x80, 6, 0, 1, 0, 0, 8, 0];
//! let Intercept::Ask(setup) = intercept(guest) else { unreachable!() };
//! assert_eq!(setup[6], 18);
//! // … the device answers with `bytes` …
//! let len = present(guest, &mut bytes);
//! assert_eq!(bytes[..len], [18, 1, 0x00, 2, 0, 0, 0, 64]);
//! ```
//!
//! Sections are those of USB 2.0 ("USB2") and USB 3.2 ("USB3"). Devices may send anything: no input
//! makes this panic, and no answer is longer than its input.
#![no_std]
#![forbid(unsafe_code)]

mod configuration;
mod device;
mod endpoint;
mod request;
#[cfg(test)]
mod tests;

pub use configuration::{configuration, uas_only_interface};
pub use device::{device, device_qualifier};
pub use request::{Intercept, MAX_ASKED, intercept, present};

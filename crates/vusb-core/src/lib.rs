// SPDX-License-Identifier: GPL-3.0-or-later
//! The port, device and URB machine of one PV USB controller.
//!
//! A [`Controller`] knows what is plugged into which port, which device address belongs to which
//! port, and every request that the guest has not had an answer to. It decides what becomes of a
//! request ([`Controller::take`]) and what is answered when a transfer is over
//! ([`Controller::complete`]). It moves no data, sends nothing and reads no clock: the backend does,
//! as its [`Verdict`]s say.
//!
//! What it guarantees: every request taken is answered exactly once, an unlink included; an unlink
//! is answered just before the request that it unlinks, in the same batch (the guest's USB core
//! waits for the request only, and a suspend may follow at once).
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod controller;
mod port;
mod transfer;
mod urb;
mod verdict;

#[cfg(test)]
mod tests;

pub use controller::{Controller, PortError};
pub use port::{ConnEvent, PortSnapshot, PortState, ResetDue};
pub use transfer::{transfer_of, urb_status};
pub use urb::{Slot, Urb};
pub use verdict::{Answers, UrbResult, Verdict};

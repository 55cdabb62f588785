// SPDX-License-Identifier: GPL-3.0-or-later
//! Simulated USB devices: they answer transfers like real ones, do no I/O, and know no time.
//!
//! - a [`Function`] is what makes a device this device: its descriptors, its class requests, its
//!   endpoints. [`Disk`] is a mass-storage disk over some [`Storage`].
//! - a [`Port`] is the host controller's side: standard requests (USB 2.0 chapter 9), halted
//!   endpoints, and the transfers that wait because the device answers NAK.
#![forbid(unsafe_code)]

mod disk;
mod function;
mod port;
mod standard;
mod storage;

pub use disk::Disk;
pub use function::{Answer, Descriptors, Function, IsoPacket, Setup};
pub use port::{Host, Port};
pub use storage::{MemoryStorage, Storage, StorageError};

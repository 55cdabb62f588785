// SPDX-License-Identifier: GPL-3.0-or-later
//! Simulated USB devices: they answer transfers like real ones and do no I/O. Time is told to them.
//!
//! - a [`Function`] is what makes a device this device: its descriptors, its class requests, its
//!   endpoints:
//!   - [`Disk`], a mass-storage disk over some [`Storage`], at high speed;
//!   - [`Keyboard`], a boot keyboard at low speed, whose keys the owner presses;
//!   - [`SerialLoop`], a CDC-ACM adapter at full speed that gives back what it is sent;
//!   - [`SourceSink`], bulk, interrupt and isochronous endpoints for Linux's `usbtest`;
//!   - [`Audio`], a UAC2 headset whose samples are numbered;
//!   - [`Hub`], which is not to be lent.
//! - a [`Port`] is the host controller's side: standard requests (USB 2.0 chapter 9), alternate
//!   settings, halted endpoints, the transfers that wait because the device answers NAK, and, with
//!   a clock, the time that isochronous packets take.
#![forbid(unsafe_code)]

mod audio;
mod descriptor;
mod device;
mod disk;
mod function;
mod hub;
mod keyboard;
mod port;
mod serial;
mod source_sink;
mod standard;
mod storage;
#[cfg(test)]
mod testing;

pub use audio::{Audio, FRAME_LEN, RATE, Samples, StreamCheck, StreamCounts};
pub use device::Device;
pub use disk::Disk;
pub use function::{Answer, Descriptors, Function, IsoPacket, Setup};
pub use hub::Hub;
pub use keyboard::{Keyboard, KeysFull};
pub use port::{Endpoint, Host, Port};
pub use serial::{LineCoding, SerialLoop};
pub use source_sink::{Pattern, SourceSink, Traffic};
pub use storage::{MemoryStorage, Storage, StorageError};

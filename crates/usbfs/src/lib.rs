// SPDX-License-Identifier: GPL-3.0-or-later
#![doc = include_str!("../README.md")]

mod device;
mod kernel;
mod memory;
mod status;
mod sys;
mod urb;
mod wake;
mod worker;

pub use device::{Capabilities, Device, USBFS_DRIVER};
pub use kernel::{Kernel, Operator, Ready, Refused};
pub use memory::{Memory, Share, kernel_limit};
pub use status::Status;
pub use sys::MAX_PACKETS;
pub use urb::{Kind, Packet, Urb};
pub use wake::EventFd;
pub use worker::{Completion, Handle, Taken, Worker};

// SPDX-License-Identifier: GPL-3.0-or-later
//! One PV USB controller: a thread of its own, so that a guest that keeps its daemon busy keeps
//! only its own thread busy.

mod actor;
mod data;
mod device;
mod node;
mod serving;

pub use actor::{Command, Device, Handle, Report, Setup, spawn};
pub use serving::RingDetails;

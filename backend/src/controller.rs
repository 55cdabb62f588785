// SPDX-License-Identifier: GPL-3.0-or-later
//! One PV USB controller: a thread of its own, so that a guest that keeps its daemon busy keeps
//! only its own thread busy.

mod actor;
mod allowance;
mod data;
mod device;
mod handle;
mod node;
mod poll;
mod rings;
mod serving;
mod tenure;
mod unlinks;

pub use actor::{carried, speed_told, too_fast};
pub use allowance::Spent;
pub use handle::{
    ANSWERS_WITHIN, Adopted, Command, Detached, Device, Fetched, Handle, Report, Setup, Waiting,
    spawn,
};
pub use rings::{RingDetails, RingError};
pub use serving::{Attached, End, Outcome, Place, Serving, Unanswered};
pub use tenure::{Next, Tenure};

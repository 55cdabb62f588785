// SPDX-License-Identifier: GPL-3.0-or-later
//! The hand-off of a controller's devices when its guest moves, and what is saved for it.
//!
//! [`step`] is the whole machine, one for each end of a migration: a source goes from Serving
//! through Quiescing and Frozen to Released, a target from Expecting through WaitingForFrontend and
//! Claiming to Serving. `docs/architecture.md`, "Hand-off", says why it needs no message between
//! the two hosts. [`verdict`] decides whether a target may take a guest at all, and [`Cookie`] is
//! what a backend saves in a lease.
#![forbid(unsafe_code)]

mod cookie;
mod machine;
mod policy;

pub use cookie::{Cookie, CookieError};
pub use machine::{Action, Event, State, step};
pub use policy::{Incoming, may_change, verdict};

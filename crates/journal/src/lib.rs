// SPDX-License-Identifier: GPL-3.0-or-later
//! What a PV USB backend must know to come back to a live guest.
//!
//! Requests and responses of a ring share its slots, and responses come in any order. So after a
//! crash the ring alone does not tell which of the consumed requests are unanswered, nor what they
//! were. A [`Journal`] does: it lies in memory that outlives the process, holds a copy of each request
//! taken until its response is published, and says of each how far it had come.
//!
//! How it stays true when the process ends at any instruction:
//! - Each fact is one 64-bit word, or some words of which the last one written makes them valid.
//! - A request is in the journal before it counts as consumed; its number in the session before the
//!   frame leaves; its response, and the index that it gets on the ring, before it is published.
//! - Whether a response was published is read where it happened: from the shared `rsp_prod`.
//! - A completion counts as received only after what came of it is in the journal; the exporter keeps
//!   it that long.
//!
//! So at a start every request is exactly one of: published (forget it), answered (push the same
//! response again), submitted (its session goes on), or taken (decide again). Nothing here does I/O:
//! the memory is reached through [`Words`].
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod identity;
mod layout;
mod port;
mod record;
mod recovery;
#[cfg(test)]
mod tests;
mod words;
mod writer;

pub use identity::Identity;
pub use layout::{LEN_BYTES, RECORDS};
pub use port::Session;
pub use record::{RawRequest, Record};
pub use recovery::{Corrupt, Decision, Pending, Resumed, Stage};
pub use words::Words;
pub use writer::{Journal, NotOurs};

// SPDX-License-Identifier: GPL-3.0-or-later
//! A stand-in for Xen, for real processes on a machine without it.
//!
//! One process, `xen-sim` (or a [`SimHost`] inside a test), is one host. In its directory are
//! - `xenstored.sock`: xenstore with the real wire protocol, as domain 0;
//! - `dom-<id>.sock`: the same for a guest, with its identity, permissions and limits;
//! - `hypervisor.sock`: what would be hypercalls;
//! - `violations`: what was observed that a well-mannered guest or backend never does.
//!
//! A backend's process uses [`SimXen`], a guest's process [`SimGuest`]; they implement the traits
//! of the `xen` crate. Guest memory, grant tables and event channels are shared between the
//! processes, so that neither a copy, a mapping's use nor a notification needs the host's process.
//! [`toolstack`] plays `xl`.
//!
//! Where it is not like Xen:
//! - a guest is one process, and cooperates: it calls [`SimGuest::suspend`]; while suspended or
//!   paused its calls wait, but nothing stops its process otherwise;
//! - nothing here keeps a malicious process out: every socket may be opened by anyone who may
//!   open the directory;
//! - a guest has xenstore on a socket, not on a ring page; xenstored does not limit how many
//!   answers a guest may leave unread;
//! - there is one kind of guest memory, no ballooning, no grant table version 2, no transitive
//!   grants, and dom0 is the only backend domain;
//! - every migration copies all of the memory that was ever touched, also in its last round.

mod backend;
mod channel;
mod grant_table;
mod guest;
mod host;
mod hypervisor;
mod maptrack;
mod ring_watch;
mod seqpacket;
mod shm;
mod signal;
pub mod toolstack;
mod violations;
mod wire;
mod xenstored;

pub use backend::{SimChannel, SimMapping, SimXen};
pub use guest::{GuestChannel, GuestPages, Resumed, SimGuest};
pub use host::{HostOptions, SimHost};
pub use signal::StopSignals;
pub use wire::{DomainInfo, ShutdownReason};

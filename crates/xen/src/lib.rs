// SPDX-License-Identifier: GPL-3.0-or-later
//! Xen interfaces for user space.
//!
//! The programs of this repository reach Xen only through the traits here: [`Backend`] is what a
//! backend in dom0 needs, [`Guest`] what a frontend in a guest needs. There are two
//! implementations of each: [`linux`] over the kernel's `gntdev`, `gntalloc` and `evtchn`
//! devices, and the one of the `xen-sim` crate. Xenstore needs no trait: its wire protocol is the
//! same on both, see [`xenstore`].

mod ids;
mod platform;
mod ring;

pub mod linux;
pub mod xenstore;

pub use ids::{DomId, EvtchnPort, GrantRef, PAGE_SIZE};
pub use platform::{
    Access, Backend, CopyBuffer, CopyOp, CopyStatus, EventChannel, GrantError, Guest, Mapping,
};
pub use ring::RingPage;

// SPDX-License-Identifier: GPL-3.0-or-later
//! The whole system on the simulator, every part in its own process.
//!
//! - [`rig`] starts it: two hosts of `xen-sim`, each with a `vusbd-sim`, one real
//!   `vusb-exporter`, certificates of a fresh pool, guests;
//! - [`guest`] is what runs in a guest's process, `sim-guest`, and the language in which it talks;
//! - [`scene`] is a rig with a guest in the test's own process, for URBs one by one;
//! - [`demo`] is `cargo xtask demo`;
//! - `tests/` has the scenarios.

pub mod demo;
pub mod guest;
pub mod process;
pub mod programs;
pub mod random;
pub mod rig;
pub mod scene;
pub mod scratch;

// SPDX-License-Identifier: GPL-3.0-or-later
//! `xl-vusb`: the administrator's command, and the seams into `xl` and XAPI.
//!
//! The command is a thin caller of `vusbd`'s control socket (crate `control`), except for the pool's
//! certificates ([`pool`]), which it makes itself.
#![forbid(unsafe_code)]

pub mod cli;
pub mod host_name;
pub mod migrate;
pub mod other_config;
pub mod pool;
pub mod run;
pub mod show;
mod table;

#[cfg(test)]
mod test_dir;

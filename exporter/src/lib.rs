// SPDX-License-Identifier: GPL-3.0-or-later
//! `vusb-exporter`: lends this machine's USB devices to the VMs of a pool.
//!
//! One thread runs everything that must answer quickly: the connections, the sessions, and the
//! simulated devices. What may block runs on other threads: all that concerns an open device on its own, saving leases.
//!
//! - [`config`]: the file; [`daemon`]: from the file to a running exporter;
//! - `hub`: devices, leases, sessions, subscribers, in one place;
//! - `admission`: which connections are let in; `limits`, `pace`: how much one host may ask for;
//! - `control`, `device`: a connection of each kind; `session_state`: a device's session;
//! - `executor`: what carries out transfers, with `sim` and `usb` below it;
//! - `in_use`: what this machine uses itself; `store`: leases on disk.

#![forbid(unsafe_code)]

mod admission;
mod arrivals;
pub mod config;
mod connection;
mod control;
pub mod daemon;
mod descriptors;
mod device;
mod executor;
mod hub;
mod in_use;
mod limits;
mod pace;
mod session_state;
mod sim;
mod store;
mod usb;

pub use config::Config;
pub use daemon::Daemon;

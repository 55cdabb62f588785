// SPDX-License-Identifier: GPL-3.0-or-later
//! The exporter session: what a backend and an exporter say to each other, and both ends of it as
//! machines that do no I/O.
//!
//! Two kinds of connection, both over TLS (crate `transport`), both starting with [`Hello`]:
//!
//! - a **control** connection per backend and exporter: [`control`] messages, about devices and
//!   leases;
//! - a **device** connection per attached device: [`open`] once, then [`frame`]s, the transfers.
//!
//! The rules that make a transfer happen exactly once are in `docs/architecture.md`, "Session".
#![forbid(unsafe_code)]

pub mod client;
pub mod control;
mod exchange;
pub mod frame;
pub mod hosts;
pub mod lease;
pub mod message;
pub mod open;
pub mod server;
pub mod stash;
pub mod text;
mod types;

pub use exchange::{Configured, Digest, Exchange, OnExchange};
pub use message::Hello;
pub use types::{
    DeviceId, DeviceInfo, DeviceSelector, DeviceState, Epoch, Holder, Lease, LeasePhase, OnMigrate,
    OwnController, PROTOCOL_VERSION, ParseSelectorError, Persistence, Speed, StashCounters, VmUuid,
};

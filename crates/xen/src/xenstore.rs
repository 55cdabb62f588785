// SPDX-License-Identifier: GPL-3.0-or-later
//! A client of xenstored: the wire protocol of Xen's `io/xs_wire.h`, as `docs/misc/xenstore.txt`
//! describes it, over the daemon's Unix socket or the kernel's `/dev/xen/xenbus`.
//!
//! [`XenStore::connect`] gives a handle for requests and a queue of watch events. One task of the
//! runtime that called `connect` owns the connection; handles may be cloned and used from any
//! thread and any runtime. That task never waits for a consumer, so a flood of watch events
//! cannot hold up the answers to requests, and the other way round.
//!
//! When the connection breaks, every request under way fails with [`Error::ConnectionLost`], and
//! so does every new one until the daemon is back. Then all watches are set again and
//! [`WatchEvent::Reconnected`] is delivered.
//!
//! ```no_run
//! # async fn example() -> Result<(), xen::xenstore::Error> {
//! use xen::xenstore::{Endpoint, WatchEvent, XenStore};
//!
//! let (store, mut events) = XenStore::connect(&Endpoint::detect()?).await?;
//! store.watch("/local/domain/0/backend/vusb", "backend").await?;
//! while let Some(event) = events.next().await {
//!     if let WatchEvent::Changed { path, .. } = event {
//!         println!("{path}: {:?}", store.read_string(&path).await);
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod client;
mod connection;
mod endpoint;
mod error;
mod nodes;
mod path;
mod perms;
mod transaction;
mod watch;
pub mod wire;

#[cfg(test)]
mod tests;

pub use client::XenStore;
pub use endpoint::Endpoint;
pub use error::{Errno, Error};
pub use nodes::Nodes;
pub use path::XsPath;
pub use perms::{NodeAccess, Permission};
pub use transaction::Transaction;
pub use watch::{WatchEvent, WatchEvents};

// SPDX-License-Identifier: GPL-3.0-or-later
//! TLS 1.3 connections between a pool's backends and exporters.
//!
//! Every connection is authenticated at both ends with certificates of the pool's CA. A host's name
//! is the first DNS name of its certificate; `xl-vusb pool issue HOST` makes both.
//!
//! - a backend: [`Identity::load`], [`connect()`], [`greet`], then [`send`] and [`receive`] (or
//!   [`MessageReader`] where other things are waited for at the same time);
//! - an exporter: [`Identity::load`], [`Acceptor::new`], [`Acceptor::accept`] on every TCP
//!   connection, [`greeted`].
#![forbid(unsafe_code)]

mod accept;
mod connect;
mod error;
mod identity;
mod message;
mod socket;
mod strangers;
mod tls;

pub use accept::Acceptor;
pub use connect::connect;
pub use error::Error;
pub use identity::{Identity, host_name};
pub use message::{MessageReader, greet, greeted, receive, send};
pub use strangers::{Strangers, source};
pub use tls::{CA_CERT, HOST_CERT, HOST_KEY, TLS_DIR, Tls, TlsFiles};

/// An authenticated connection, either end.
pub type TlsStream = tokio_rustls::TlsStream<tokio::net::TcpStream>;

/// The port that exporters listen on unless told otherwise.
pub const DEFAULT_PORT: u16 = 7210;

#[cfg(test)]
mod tests;

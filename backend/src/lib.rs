// SPDX-License-Identifier: GPL-3.0-or-later
//! vusbd, the PV USB backend daemon of a Xen host.
//!
//! [`run`] is the whole daemon, over any [`xen::Backend`]: `main.rs` gives it Linux, the simulator
//! gives it itself. `docs/architecture.md` shows the parts.

mod admin;
pub mod config;
pub mod controller;
mod daemon;
mod domain;
mod exporter;
mod own_controller;
mod socket;
mod state;
pub mod totals;
pub mod watched;
pub mod xenbus;

use std::path::Path;

use anyhow::{Context, Result};
use slog::Logger;
use tokio::task::LocalSet;
use transport::{Identity, TLS_DIR};
use xen::Backend;
use xen::xenstore::Endpoint;

use crate::config::Config;

/// Loads the certificate that the configuration names.
///
/// # Errors
/// With what is missing or wrong, and what makes it right.
pub fn load_identity(config: &Config) -> Result<Identity> {
    Ok(config.tls.files(Path::new(TLS_DIR)).load()?)
}

/// Runs the daemon until it is told to stop (SIGTERM, SIGINT), or cannot go on.
///
/// # Errors
/// When xenstored or the control socket cannot be reached at the start.
pub fn run<B: Backend>(
    platform: B,
    endpoint: &Endpoint,
    config: Config,
    identity: Identity,
    log: &Logger,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    LocalSet::new().block_on(
        &runtime,
        daemon::serve(platform, endpoint, config, identity, log.clone()),
    )
}

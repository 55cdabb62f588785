// SPDX-License-Identifier: GPL-3.0-or-later
//! `vusbd`: the PV USB backend daemon for dom0.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use backend::config::Config;
use clap::Parser;
use slog::info;
use xen::linux::LinuxXen;
use xen::xenstore::Endpoint;

/// Gives remote USB devices to Xen guests over their PV USB controllers, also while the guests
/// migrate.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = "/etc/xen-vusb/vusbd.toml")]
    config: PathBuf,
    /// Only read the configuration and the certificates, and say whether they are right.
    #[arg(long)]
    check_config: bool,
    /// Log more; twice for everything.
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

fn main() -> ExitCode {
    match start(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // One line: what is wrong and what to do, not where in the code it was noticed.
            eprintln!("vusbd: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &Arguments) -> Result<()> {
    let config = Config::load(&arguments.config)?;
    let identity = backend::load_identity(&config)?;
    if arguments.check_config {
        println!(
            "{} is right; this host is {}",
            arguments.config.display(),
            identity.name()
        );
        return Ok(());
    }
    let (log, _guard) = logging::to_stderr(arguments.verbose);
    let platform = LinuxXen::open().context("vusbd needs Xen's devices; is this dom0?")?;
    let endpoint = Endpoint::detect()?;
    info!(log, "vusbd {}", env!("CARGO_PKG_VERSION"); "host" => identity.name());
    backend::run(platform, &endpoint, config, identity, &log)
}

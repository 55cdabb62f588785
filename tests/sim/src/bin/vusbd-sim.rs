// SPDX-License-Identifier: GPL-3.0-or-later
//! vusbd over a simulated host: the daemon of `backend`, with the simulator in Linux's place.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use backend::config::Config;
use clap::Parser;
use xen::xenstore::Endpoint;
use xen_sim::SimXen;

/// vusbd on a simulated Xen host.
#[derive(Debug, Parser)]
struct Arguments {
    /// The directory of the host's `xen-sim`.
    #[arg(long, value_name = "DIR")]
    host_dir: PathBuf,
    /// Its xenstored's socket, where that is not in this directory.
    #[arg(long, value_name = "SOCKET")]
    xenstored: Option<PathBuf>,
    /// The configuration file, as vusbd's.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Log more; twice for everything.
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("vusbd: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments = Arguments::parse();
    let config = Config::load(&arguments.config)?;
    let identity = backend::load_identity(&config)?;
    let (log, _guard) = logging::to_stderr(arguments.verbose);
    let platform = SimXen::connect(&arguments.host_dir)
        .with_context(|| format!("no simulated host in {}", arguments.host_dir.display()))?;
    let usual = || arguments.host_dir.join("xenstored.sock");
    let endpoint = Endpoint::Socket(arguments.xenstored.clone().unwrap_or_else(usual));
    backend::run(platform, &endpoint, config, identity, &log)
}

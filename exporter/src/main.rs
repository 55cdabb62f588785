// SPDX-License-Identifier: GPL-3.0-or-later
//! `vusb-exporter`; see the library.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use exporter::{Config, Daemon, config};
use tokio::signal::unix::{SignalKind, signal};

/// Lends this machine's USB devices to the VMs of a pool.
#[derive(Parser)]
#[command(name = "vusb-exporter", version)]
struct Args {
    /// The configuration.
    #[arg(long, default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// Check the configuration and the certificates, and do nothing else.
    #[arg(long)]
    check_config: bool,
    /// Log details, too.
    #[arg(long)]
    verbose: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("vusb-exporter: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let config = Config::load(&args.config)?;
    let warnings = config.warnings();
    let (log, _guard) = logging::to_stderr(args.verbose.into());
    let daemon = Daemon::new(config, log)?;
    if args.check_config {
        for warning in warnings {
            println!("{}: {warning}", args.config.display());
        }
        println!("{}: good", args.config.display());
        return Ok(());
    }
    daemon.run(|_| service::ready(), stopped())?;
    Ok(())
}

/// Until somebody asks us to end.
async fn stopped() {
    let term = signal(SignalKind::terminate());
    let int = signal(SignalKind::interrupt());
    match (term, int) {
        (Ok(mut term), Ok(mut int)) => {
            tokio::select! {
                _ = term.recv() => (),
                _ = int.recv() => (),
            }
        }
        // Without handlers the signals end us just as well.
        _ => std::future::pending().await,
    }
    service::stopping();
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! One simulated Xen host. Ends with status 3 when something broke the rules.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use xen_sim::{HostOptions, SimHost, StopSignals};

/// One simulated Xen host: xenstore, grants, event channels and domains for real processes.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Directory for the sockets; made if it does not exist.
    #[arg(long)]
    dir: PathBuf,
    /// The host's name, for messages.
    #[arg(long, default_value = "host")]
    name: String,
    /// Number of the first domain.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..32752))]
    first_domid: u16,
    /// Seed of what happens at random.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Spurious events a second, over all event channels.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=1000))]
    spurious: u32,
}

fn main() -> ExitCode {
    run(&Arguments::parse()).unwrap_or_else(|error| {
        eprintln!("xen-sim: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let signals = StopSignals::block();
    let options = HostOptions {
        name: arguments.name.clone(),
        first_domid: arguments.first_domid,
        seed: arguments.seed,
        spurious_per_s: arguments.spurious,
    };
    let host = SimHost::start(&arguments.dir, &options)
        .with_context(|| format!("cannot start a host in {}", arguments.dir.display()))?;
    host.stop_on(signals)?;
    println!("ready {}", host.dir().display());
    std::io::stdout().flush()?;
    host.wait_for_stop();
    let violations = host.stop();
    if violations.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!(
        "xen-sim {}: {} violations",
        arguments.name,
        violations.len()
    );
    Ok(ExitCode::from(3))
}

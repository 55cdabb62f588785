// SPDX-License-Identifier: GPL-3.0-or-later
//! A guest on a simulated host, with a workload on the USB disk that it finds.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use frontend_shim::ResumeMode;
use sim_scenarios::guest::{Machine, Options};

/// A guest: writes to the USB disk at a port, reads back and compares, without pause.
#[derive(Debug, Parser)]
struct Arguments {
    /// The directory of the host's `xen-sim`.
    #[arg(long, value_name = "DIR")]
    host_dir: PathBuf,
    /// The domain that it runs in; made by the toolstack.
    #[arg(long, value_name = "N")]
    domid: u16,
    /// Its USB controller.
    #[arg(long, value_name = "N", default_value_t = 0)]
    devid: u32,
    /// Port of the disk.
    #[arg(long, value_name = "N", default_value_t = 1)]
    port: u8,
    /// Seed of what it writes, and where.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Behave like the stock driver, which has no resume callback.
    #[arg(long)]
    stock: bool,
    /// Give a command up that goes nowhere for so long, in milliseconds, and reset the disk.
    #[arg(long, value_name = "MS")]
    patience_ms: Option<u64>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mode = if arguments.stock {
        ResumeMode::Stock
    } else {
        ResumeMode::default()
    };
    let options = Options {
        host_dir: arguments.host_dir,
        domid: arguments.domid,
        devid: arguments.devid,
        port: arguments.port,
        seed: arguments.seed,
        mode,
        patience: arguments.patience_ms.map(Duration::from_millis),
    };
    match Machine::boot(&options).and_then(Machine::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("sim-guest: {e:#}");
            ExitCode::FAILURE
        }
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! The program behind `cargo xtask demo`.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use sim_scenarios::demo::{self, DemoOptions};
use sim_scenarios::scratch::ScratchDir;
use xen_sim::StopSignals;

/// A guest works on a remote USB disk while it is migrated back and forth, without Xen.
#[derive(Debug, Parser)]
#[command(name = "demo")]
struct Arguments {
    #[command(flatten)]
    demo: DemoOptions,
}

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("sim-demo: {error:#}");
        ExitCode::FAILURE
    })
}

fn run() -> anyhow::Result<ExitCode> {
    let Arguments { demo } = Arguments::parse();
    let signals = StopSignals::block();
    let interrupted = Arc::new(AtomicBool::new(false));
    let interruption = interrupted.clone();
    std::thread::spawn(move || {
        signals.wait();
        interruption.store(true, Ordering::SeqCst);
        // The children die with this process (see `process`); files do not.
        ScratchDir::remove_all();
        eprintln!("interrupted");
        std::process::exit(130);
    });
    let result = demo::run(&demo);
    while interrupted.load(Ordering::SeqCst) {
        // The run fails when its files are taken away. How the process ends is for who took them.
        std::thread::park();
    }
    let summary = result?;
    if demo.json {
        println!("{:#}", summary.to_json());
    } else {
        println!("{summary}");
    }
    Ok(ExitCode::from(u8::from(!summary.is_ok())))
}

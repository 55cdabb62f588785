// SPDX-License-Identifier: GPL-3.0-or-later
//! The program behind `cargo xtask demo`.

use std::process::ExitCode;

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

fn main() -> anyhow::Result<ExitCode> {
    let Arguments { demo } = Arguments::parse();
    let signals = StopSignals::block();
    std::thread::spawn(move || {
        signals.wait();
        // The children die with this process (see `process`); files do not.
        ScratchDir::remove_all();
        eprintln!("interrupted");
        std::process::exit(130);
    });
    let summary = demo::run(&demo)?;
    if demo.json {
        println!("{:#}", summary.to_json());
    } else {
        println!("{summary}");
    }
    Ok(ExitCode::from(u8::from(!summary.is_ok())))
}

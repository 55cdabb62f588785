// SPDX-License-Identifier: GPL-3.0-or-later
//! `xl-vusb`: see the crate's documentation and docs/xl-vusb.md.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use xl_hooks::cli::Cli;
use xl_hooks::run::{self, Exit};

fn main() -> ExitCode {
    // clap ends a wrong command line with status 2 itself.
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("xl-vusb: cannot start: {error}");
            return Exit::NotAsked.into();
        }
    };
    let ended = runtime.block_on(run::run(
        &cli,
        &mut std::io::stdout(),
        &mut std::io::stderr(),
    ));
    match ended {
        Ok(exit) => exit.into(),
        Err(error) => {
            if cli.json {
                // The shape of the daemon's own errors, whoever found it.
                let json = control::Response::Error(error.to_string());
                if let Ok(json) = serde_json::to_string_pretty(&json) {
                    // A closed standard output is no reason to hide the text below.
                    let _ = writeln!(std::io::stdout(), "{json}");
                }
            }
            eprintln!("xl-vusb: {error}");
            error.exit().into()
        }
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! The lab's commands by themselves; `cargo xtask lab` is the usual way to them.

use std::process::ExitCode;

use clap::Parser;
use xen_vusb_lab::LabCommand;
use xen_vusb_lab::missing::{EXIT_STATUS, Missing};

#[derive(Parser)]
#[command(name = "lab", about = "Real Xen hosts under emulation")]
struct Arguments {
    #[command(subcommand)]
    command: LabCommand,
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    let scenario = match &command {
        LabCommand::Run { scenario, json, .. } => Some((scenario.clone(), *json)),
        _ => None,
    };
    match (xen_vusb_lab::run(command), scenario) {
        (Ok(()), _) => ExitCode::SUCCESS,
        (Err(error), Some((scenario, json))) if Missing::is_cause_of(&error) => {
            xen_vusb_lab::scenario::print_skipped(&scenario, &format!("{error:#}"), json);
            ExitCode::from(EXIT_STATUS)
        }
        (Err(error), _) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

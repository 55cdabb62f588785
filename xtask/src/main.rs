// SPDX-License-Identifier: GPL-3.0-or-later
//! `cargo xtask`: the repository's own commands.
//!
//! It depends on nothing of the repository, so that it is built in seconds: what it runs are cargo
//! and the programs that cargo builds.

mod cargo;
mod check;
mod deb;
mod deny;
mod memcheck;
mod packages;
mod step;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// The repository's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Without Xen: a guest works on a remote USB disk while it is migrated back and forth
    /// (--help for options)
    #[command(disable_help_flag = true)]
    Demo {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Real Xen hosts under QEMU: up, run SCENARIO, shell MACHINE, down, list (--help for more)
    #[command(disable_help_flag = true)]
    Lab {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// What guests, peers, files and devices may say: tries inputs on the shipping code (--seconds N
    /// for each target, default 60; --help for more)
    #[command(disable_help_flag = true)]
    Fuzz {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// The whole system as one machine: every order of everything that may happen within bounds
    /// (--small, --max-states N)
    #[command(disable_help_flag = true)]
    Model {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// The same machine on long runs with faults, in which chance decides (--seeds N, --seed S)
    #[command(disable_help_flag = true)]
    Sim {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Formatting, clippy with warnings as errors, unit and property tests
    Check,
    /// The tests of the crates with unsafe code, under valgrind
    Memcheck,
    /// Everything: check, the simulator's scenarios, a short demo, the lab's scenarios
    Test {
        /// Leave the lab out.
        #[arg(long)]
        no_lab: bool,
    },
    /// Debian packages: the guest module's, for DKMS
    Deb {
        /// The directory they are put into.
        #[arg(long, default_value = "target/deb")]
        out: PathBuf,
    },
    /// The benchmarks; the same as `cargo bench -p sim-scenarios`
    Bench,
}

fn main() -> ExitCode {
    run(Arguments::parse().command).unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Demo { arguments } => {
            cargo::build_release(&cargo::DEMO_PACKAGES)?;
            cargo::become_program("sim-demo", &arguments)
        }
        Command::Lab { arguments } => {
            cargo::build_release(&["xen-vusb-lab"])?;
            cargo::become_program("lab", &arguments)
        }
        Command::Fuzz { arguments } => cargo::become_checked("fuzz", "fuzz", &arguments),
        Command::Model { mut arguments } => {
            arguments.insert(0, "model".into());
            cargo::become_checked("model", "model", &arguments)
        }
        Command::Sim { mut arguments } => {
            arguments.insert(0, "sim".into());
            cargo::become_checked("model", "model", &arguments)
        }
        Command::Check => check::run(),
        Command::Memcheck => Ok(memcheck::run()),
        Command::Test { no_lab } => test::run(no_lab),
        Command::Deb { out } => {
            deb::run(&out)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Bench => {
            let status = cargo::cargo(&["bench", "-p", "sim-scenarios"]).status()?;
            Ok(ExitCode::from(u8::from(!status.success())))
        }
    }
}

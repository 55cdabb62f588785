// SPDX-License-Identifier: GPL-3.0-or-later
//! The lab: real Xen hosts, a guest and an exporter under software emulation.
//!
//! `cargo xtask lab` drives it through [`run`]; `docs/lab.md` describes it.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Subcommand;

pub mod agent;
pub mod bench;
pub mod cache;
pub mod cpio;
pub mod debug_kernel;
pub mod device_model;
pub mod disk;
pub mod guest;
pub mod guest_module;
pub mod host_tools;
pub mod hypervisor;
pub mod images;
pub mod kernel;
pub mod lab;
pub mod machine;
pub mod measure;
pub mod missing;
pub mod packages;
pub mod programs;
pub mod progress;
pub mod pulse;
pub mod qmp;
pub mod scenario;
pub mod stack;
pub mod switch;
pub mod toolstack;
pub mod traffic;
pub mod tree;
pub mod usbmon;
pub mod workload;

/// `cargo xtask lab …`
#[derive(Debug, Clone, Subcommand)]
pub enum LabCommand {
    /// Make what is missing and start the machines.
    Up {
        /// Only these machines.
        machines: Vec<String>,
    },
    /// Run a scenario; starts the lab if it is down.
    Run {
        /// Its name; `lab list` shows them.
        scenario: String,
        /// Print the result as one JSON object.
        #[arg(long)]
        json: bool,
        /// Number of live migrations.
        #[arg(long)]
        migrations: Option<u32>,
        /// How long faults are injected, in minutes.
        #[arg(long)]
        minutes: Option<u32>,
        /// The log that `soak` adds to (default: soak.log in the cache).
        #[arg(long)]
        log: Option<std::path::PathBuf>,
        /// Which schedule of faults.
        #[arg(long)]
        seed: Option<u64>,
        /// Only this device of the scenario's; can be given more than once.
        #[arg(long)]
        device: Vec<bench::Kind>,
        /// Only this part of `debug-kernel`; can be given more than once.
        #[arg(long)]
        part: Vec<scenario::debug_kernel::Part>,
        /// The guest, where the scenario does not choose it.
        #[command(flatten)]
        guest: guest::Setup,
    },
    /// Run a shell command in a machine (host-a, host-b, exporter, or guest).
    Shell {
        /// The machine.
        machine: String,
        /// The command.
        #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Copy a file into a machine.
    Put {
        /// The machine.
        machine: String,
        /// File here.
        from: std::path::PathBuf,
        /// Path there.
        to: String,
    },
    /// Shape a machine's network link: `delay_ms=`, `drop_permille=`, `rate_kbytes=`, `cut=`.
    Link {
        /// The machine.
        machine: String,
        /// Settings.
        settings: Vec<String>,
    },
    /// Build the guest's kernel module.
    Module {
        /// For this guest.
        #[command(flatten)]
        guest: guest::Setup,
    },
    /// Build our daemons, put them into the running machines, start them, and plug in the stick.
    Deploy,
    /// Stop the machines.
    Down,
    /// Show machines and scenarios.
    List,
}

/// Carry out one command.
pub fn run(command: LabCommand) -> Result<()> {
    host_tools::keep_inherited_files();
    let lab = lab::Lab::open()?;
    match command {
        LabCommand::Up { machines } => {
            for name in &machines {
                machine::Machine::named(name)?;
            }
            lab.up(
                &machines.iter().map(String::as_str).collect::<Vec<_>>(),
                None,
            )
        }
        LabCommand::Run {
            scenario,
            json,
            migrations,
            minutes,
            seed,
            log,
            device,
            part,
            guest,
        } => scenario::run(
            &lab,
            &scenario,
            &scenario::Options {
                json,
                migrations,
                minutes,
                seed,
                log,
                devices: device,
                parts: part,
                guest,
            },
        ),
        LabCommand::Shell { machine, command } => {
            let agent = if machine == "guest" {
                guest::agent(&lab)?
            } else {
                lab.agent(&machine)?
            };
            let output = agent.exec_for(&command.join(" "), Duration::from_secs(3600))?;
            print!("{}", output.stdout);
            eprint!("{}", output.stderr);
            if output.status != 0 {
                bail!("exit status {}", output.status);
            }
            Ok(())
        }
        LabCommand::Put { machine, from, to } => {
            use std::os::unix::fs::PermissionsExt;
            let agent = if machine == "guest" {
                guest::agent(&lab)?
            } else {
                lab.agent(&machine)?
            };
            let mode = std::fs::metadata(&from)?.permissions().mode() & 0o777;
            agent.put(&to, mode, &std::fs::read(&from)?)
        }
        LabCommand::Link { machine, settings } => {
            println!(
                "{}",
                switch::control(
                    lab.run_directory(),
                    &format!("{machine} {}", settings.join(" "))
                )?
            );
            Ok(())
        }
        LabCommand::Module { guest } => {
            let path = lab.guest_module(guest.module, guest.kernel)?;
            println!("{}", path.display());
            Ok(())
        }
        LabCommand::Deploy => {
            stack::plug_stick(&lab)?;
            stack::deploy(&lab)
        }
        LabCommand::Down => lab.down(),
        LabCommand::List => {
            lab.list();
            Ok(())
        }
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! The lab's commands by themselves; `cargo xtask lab` is the usual way to them.

use clap::Parser;
use xen_vusb_lab::LabCommand;

#[derive(Parser)]
#[command(name = "lab", about = "Real Xen hosts under emulation")]
struct Arguments {
    #[command(subcommand)]
    command: LabCommand,
}

fn main() -> anyhow::Result<()> {
    xen_vusb_lab::run(Arguments::parse().command)
}

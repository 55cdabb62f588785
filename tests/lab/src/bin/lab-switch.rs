// SPDX-License-Identifier: GPL-3.0-or-later
//! The network switch between the lab's machines: `lab-switch DIRECTORY LINK...`.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-switch: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(
        arguments
            .next()
            .ok_or_else(|| std::io::Error::other("usage: lab-switch DIRECTORY LINK..."))?,
    );
    xen_vusb_lab::switch::serve(&directory, &arguments.collect::<Vec<_>>())
}

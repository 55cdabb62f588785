// SPDX-License-Identifier: GPL-3.0-or-later
//! `usbip-sim`: simulated devices for `usbip attach`.

mod command;
mod kind;

use std::cell::RefCell;
use std::io::{self, BufRead};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::process::ExitCode;
use std::rc::Rc;
use std::thread;

use anyhow::Context;
use clap::Parser;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use usbip::{Exports, serve};

use crate::kind::Kind;

/// Simulated USB devices, served with USB/IP. Commands on standard input are answered on standard
/// output; `help` lists them.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "To have a device on this machine's bus: modprobe vhci-hcd, then \
        usbip attach -r 127.0.0.1 -b 1-1. usbtest finds all endpoints of source-sink with \
        modprobe usbtest alt=3."
)]
struct Arguments {
    /// Address and port to listen on. There is no authentication.
    #[arg(long, default_value = "127.0.0.1:3240")]
    listen: SocketAddr,
    /// How many milliseconds a millisecond of the devices' buses takes. Isochronous transfers
    /// take as much longer; for where the way to the device is slow, as under emulation
    #[arg(long, default_value = "1")]
    slow: NonZeroU32,
    /// Devices, with the bus ids 1-1, 1-2 …: disk[:MIB], super-disk[:MIB], keyboard, serial,
    /// source-sink[:zero|mod63|none], source-sink-full[:…], audio
    #[arg(required = true)]
    devices: Vec<Kind>,
}

fn main() -> ExitCode {
    match start(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("usbip-sim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime")?;
    runtime.block_on(LocalSet::new().run_until(run(arguments)))
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let devices = arguments.devices.iter().zip(1..);
    let devices = devices.map(|(kind, number)| kind.make(number));
    let exports = Rc::new(Exports::new(devices).slowed(arguments.slow));
    let listener = TcpListener::bind(arguments.listen)
        .await
        .with_context(|| format!("cannot listen on {}", arguments.listen))?;
    println!("listening on {}", listener.local_addr()?);
    for export in exports.devices() {
        let record = export.record();
        println!(
            "device {} {:04x}:{:04x}",
            record.bus_id, record.vendor, record.product
        );
    }
    let mut lines = lines();
    let ended = |result: io::Result<()>| {
        if let Err(error) = result {
            eprintln!("a connection ended: {error}");
        }
    };
    let server = serve(Rc::clone(&exports), listener, ended);
    let commands = async {
        let typists = RefCell::default();
        while let Some(line) = lines.recv().await {
            match command::run(&exports, &typists, &line) {
                Ok(answer) => println!("{answer}"),
                Err(error) => println!("error: {error}"),
            }
        }
        // Without anybody to command it, it serves.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        result = server => result.context("the listener failed"),
        () = commands => Ok(()),
        signal = tokio::signal::ctrl_c() => signal.context("no signals"),
    }
}

/// Lines of standard input, read by a thread: reading it blocks.
fn lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(16);
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! Uses USB devices through their class drivers' device nodes, in a guest or in the exporter
//! machine. Each command prints one JSON object; those with a REPORT keep it in that file and run
//! until `REPORT.stop` exists.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

mod blocks;
mod card;
mod input;
mod ioctl;
mod pcm;
mod pulse;
mod report;
mod serial;
mod standstill;
mod stuck;
mod usbfs;
mod usbtest;
mod watch;

const USAGE: &str = "usage: lab-usb COMMAND
usbtest NODE CASE ITERATIONS LENGTH VARY SGLEN   one case of the kernel's usbtest driver
keys EVENT REPORT                    counts keys typed a, b … z, a …
touches EVENT REPORT                 counts positions of a tablet, numbered by their X
type HIDG FIRST COUNT MILLISECONDS   types at a HID gadget: a, b … z, a …
stream NODE REPORT MILLISECONDS [wait]  a terminal or a printer: sends numbered records at this interval, checks those that arrive;
                                     wait: begins when there is a file REPORT.go
atr NODE                             powers the card in a CCID reader, prints what it answers
card NODE REPORT                     the same, then numbered commands without pause
play PCM CONTROL SECONDS|REPORT MILLISECONDS   plays numbered audio frames, at full volume, from a buffer that long
record PCM SECONDS|REPORT MILLISECONDS         records and checks numbered audio frames
watch BUS REPORT DEVICE=CARRIES...   counts what passes on a bus, by Linux's USB monitor
reset NODE COUNT                     resets a device so many times
descriptors NODE MILLISECONDS        reads its device descriptor without pause, and counts how often it got it
disk-pulse DISK REPORT               writes and reads blocks without pause, says how long each takes
key-pulse EVENT REPORT MILLISECONDS  keys typed a, b … z, a … at this interval: how late each is
stuck NODE OPERATION MILLISECONDS    an operation on a simulated source and sink that is slow to answer, beside other transfers
                                     of the same device; taken back after so long. OPERATION is set-interface, clear-halt,
                                     set-configuration, reset, or everything: bulk both ways and endpoint 0
blocks DISK COUNT SEED               writes blocks, reads them back past the cache";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-usb: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["usbtest", node, numbers @ ..] if numbers.len() == 5 => {
            let mut values = [0; 5];
            for (value, text) in values.iter_mut().zip(numbers) {
                *value = number(text)?;
            }
            print(&usbtest::run(node, values)?)
        }
        ["keys", event, report] => input::keys(event, report),
        ["touches", event, report] => input::touches(event, report),
        ["type", hidg, first, count, interval] => print(&input::type_keys(
            hidg,
            number(first)?,
            number(count)?,
            ms(interval)?,
        )?),
        ["stream", tty, report, interval] => serial::stream(tty, report, ms(interval)?, true),
        ["stream", tty, report, interval, "wait"] => {
            serial::stream(tty, report, ms(interval)?, false)
        }
        ["disk-pulse", disk, report] => pulse::disk(disk, report),
        ["key-pulse", event, report, interval] => input::key_pulse(event, report, ms(interval)?),
        ["stuck", node, operation, patience] => {
            print(&stuck::run(node, operation.parse()?, ms(patience)?)?)
        }
        ["atr", node] => print(&card::Reader::open(node)?.power_on()?),
        ["card", node, report] => card::session(node, report),
        ["play", pcm, control, until, buffer] => pcm::play(pcm, control, until, number(buffer)?),
        ["record", pcm, until, buffer] => pcm::record(pcm, until, number(buffer)?),
        ["watch", bus, report, devices @ ..] => watch::bus(number(bus)?, report, devices),
        ["reset", node, count] => usbfs::reset(node, number(count)?),
        ["descriptors", node, time] => print(&usbfs::read_descriptors(node, ms(time)?)?),
        ["blocks", disk, count, seed] => {
            print(&blocks::check(disk, number(count)?, number(seed)?)?)
        }
        _ => Err(io::Error::other(USAGE)),
    }
}

fn number<T: std::str::FromStr>(text: &str) -> io::Result<T> {
    text.parse()
        .map_err(|_| io::Error::other(format!("{text:?} is no number\n{USAGE}")))
}

fn ms(text: &str) -> io::Result<Duration> {
    Ok(Duration::from_millis(number(text)?))
}

fn print(value: &impl Serialize) -> io::Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}

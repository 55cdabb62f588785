// SPDX-License-Identifier: GPL-3.0-or-later
//! Commands of whoever runs the program, usually a test.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_local};
use tokio::time::MissedTickBehavior;
use usb_sim::Device;
use usbip::{Export, Exports};

const HELP: &str = "\
stats BUSID              what the device counted, as NAME=NUMBER
stroke BUSID USAGE       press and release a key, by its usage in hexadecimal (04 is A)
type BUSID USAGE COUNT MILLISECONDS   strokes at this interval; stats shows them as typed
hold BUSID WHAT MILLISECONDS|never|off   WHAT is answered so much later, or not at all, or at once again;
                         set-interface, clear-halt, set-configuration, get-descriptor, everything
unplug BUSID             its client is disconnected
plug BUSID               it can be attached again
help                     this";

/// Who types on keyboards, and how many strokes each has typed, by bus id.
pub(crate) type Typists = RefCell<HashMap<String, Typist>>;

#[derive(Debug)]
pub(crate) struct Typist {
    typed: Rc<Cell<u64>>,
    /// Strokes that the keyboard had no room for.
    refused: Rc<Cell<u64>>,
    task: JoinHandle<()>,
}

/// Carries out a command. The answer has no newline at its end.
pub(crate) fn run(
    exports: &Exports<Device>,
    typists: &Typists,
    line: &str,
) -> Result<String, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let export = |bus_id: &str| {
        let found = exports.find(bus_id);
        found.ok_or_else(|| format!("no device '{bus_id}'"))
    };
    match words[..] {
        ["help"] => Ok(HELP.to_owned()),
        ["stats", bus_id] => Ok(stats(export(bus_id)?, typists)),
        ["stroke", bus_id, usage] => {
            let export = export(bus_id)?;
            stroke(export, parse_usage(usage)?)?;
            Ok("ok".to_owned())
        }
        ["type", bus_id, usage, count, interval] => {
            let export = export(bus_id)?;
            let usage = parse_usage(usage)?;
            let count = count.parse().map_err(|_| format!("no count: '{count}'"))?;
            let interval = match interval.parse() {
                Ok(ms @ 1..) => Duration::from_millis(ms),
                _ => return Err(format!("no interval: '{interval}'")),
            };
            if !export.inspect(|d| matches!(d, Device::Keyboard(_))) {
                return Err(format!("'{bus_id}' is no keyboard"));
            }
            let typist = start_typing(Rc::clone(export), usage, count, interval);
            let old = typists.borrow_mut().insert(bus_id.to_owned(), typist);
            if let Some(old) = old {
                old.task.abort();
            }
            Ok("ok".to_owned())
        }
        ["hold", bus_id, what, delay] => {
            let delay = match delay {
                "off" => None,
                "never" => Some(None),
                ms => {
                    let ms = ms.parse().map_err(|_| format!("no delay: '{ms}'"))?;
                    Some(Some(Duration::from_millis(ms)))
                }
            };
            match export(bus_id)?.hold(what.parse()?, delay) {
                true => Ok("ok".to_owned()),
                false => Err(format!("'{bus_id}' is not attached")),
            }
        }
        ["unplug", bus_id] => {
            export(bus_id)?.set_unplugged(true);
            Ok("ok".to_owned())
        }
        ["plug", bus_id] => {
            export(bus_id)?.set_unplugged(false);
            Ok("ok".to_owned())
        }
        _ => Err(format!("no command '{line}'; try help")),
    }
}

fn parse_usage(text: &str) -> Result<u8, String> {
    u8::from_str_radix(text, 16).map_err(|_| format!("no usage: '{text}'"))
}

fn stroke(export: &Export<Device>, usage: u8) -> Result<(), String> {
    export.update(|device| match device {
        Device::Keyboard(keyboard) => keyboard.stroke(usage).map_err(|e| e.to_string()),
        _ => Err("it is no keyboard".to_owned()),
    })
}

fn start_typing(export: Rc<Export<Device>>, usage: u8, count: u64, interval: Duration) -> Typist {
    let typed = Rc::new(Cell::new(0));
    let refused = Rc::new(Cell::new(0));
    let counters = (Rc::clone(&typed), Rc::clone(&refused));
    let task = spawn_local(async move {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for _ in 0..count {
            ticks.tick().await;
            let counter = match stroke(&export, usage) {
                Ok(()) => &counters.0,
                Err(_) => &counters.1,
            };
            counter.set(counter.get() + 1);
        }
    });
    Typist {
        typed,
        refused,
        task,
    }
}

fn stats(export: &Export<Device>, typists: &Typists) -> String {
    let mut pairs = vec![("attached", u64::from(export.is_attached()))];
    export.inspect(|device| pairs.extend(device.counters()));
    if let Some(typist) = typists.borrow().get(&export.bus_id()) {
        pairs.push(("typed", typist.typed.get()));
        pairs.push(("refused", typist.refused.get()));
        pairs.push(("typing", (!typist.task.is_finished()).into()));
    }
    let pairs = pairs.iter().map(|(name, value)| format!("{name}={value}"));
    pairs.collect::<Vec<_>>().join(" ")
}

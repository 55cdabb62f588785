// SPDX-License-Identifier: GPL-3.0-or-later
//! Keyboards and tablets through evdev, and typing at a HID gadget.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use xen_vusb_lab::traffic::Tally;
use xen_vusb_lab::usbmon::{TABLET_POSITIONS, TABLET_STEP};

use crate::ioctl::{self, Plain};
use crate::pulse::Keeper;
use crate::report::Reporter;

/// Bytes of `struct input_event` on a 64-bit machine: two longs of time, type, code, value.
const EVENT_BYTES: usize = 24;
const EV_SYN: u16 = 0;
const SYN_REPORT: u16 = 0;
/// The kernel's buffer was full: events are missing that have arrived.
const SYN_DROPPED: u16 = 3;
const EV_KEY: u16 = 1;
const EV_ABS: u16 = 3;
const ABS_X: u16 = 0;
const BTN_LEFT: u16 = 0x110;
/// KEY_A to KEY_Z of `input-event-codes.h`, which are in the order of a keyboard.
const LETTERS: [u16; 26] = [
    30, 48, 46, 32, 18, 33, 34, 35, 23, 36, 37, 38, 50, 49, 24, 25, 16, 19, 31, 20, 22, 47, 17, 45,
    21, 44,
];
/// The last bits of a position are the scaling's.
const STEP: u64 = TABLET_STEP;
const POSITIONS: u64 = TABLET_POSITIONS;

/// `EVIOCSREP`: how long until a key that is held repeats itself, and how often, in milliseconds.
const SET_REPEAT: u32 = ioctl::request::<Repeat>(ioctl::WRITE, b'E', 0x03);

#[repr(C)]
struct Repeat([u32; 2]);

// SAFETY: two integers.
unsafe impl Plain for Repeat {}

struct Event {
    kind: u16,
    code: u16,
    value: i32,
}

impl Event {
    /// From the [`EVENT_BYTES`] of one.
    fn from_bytes(event: &[u8]) -> Self {
        let half = |at: usize| u16::from_ne_bytes([event[at], event[at + 1]]);
        let value = [event[20], event[21], event[22], event[23]];
        Self {
            kind: half(16),
            code: half(18),
            value: i32::from_ne_bytes(value),
        }
    }
}

/// Reads events until the report's stop; a device that is gone is noted and ends it.
fn events(path: &str, report: &str, mut take: impl FnMut(&Event, &mut Tally)) -> io::Result<()> {
    let mut file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    // A key whose release is late would fill the buffer. What does not repeat has no such setting.
    let _ = ioctl::with(&file, SET_REPEAT, &mut Repeat([0, 0]));
    // The report says that it has begun: from here on nothing is missed.
    let mut reporter = Reporter::new(report)?;
    let mut bytes = [0; 64 * EVENT_BYTES];
    while !reporter.poll()? {
        match file.read(&mut bytes) {
            Ok(len) => {
                for event in bytes[..len].chunks_exact(EVENT_BYTES) {
                    let event = Event::from_bytes(event);
                    if (event.kind, event.code) == (EV_SYN, SYN_DROPPED) {
                        let now = reporter.tally.now;
                        let full = format!("at {now:.1} s: evdev's buffer was full");
                        reporter.tally.failed(&full);
                    }
                    take(&event, &mut reporter.tally);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => {
                reporter.tally.failed(&error.to_string());
                break;
            }
        }
    }
    reporter.finish()
}

/// Counts keys that are pressed in the order of the alphabet.
pub fn keys(path: &str, report: &str) -> io::Result<()> {
    let mut first = true;
    events(path, report, |event, tally| {
        if (event.kind, event.value) != (EV_KEY, 1) {
            return;
        }
        match LETTERS.iter().position(|&code| code == event.code) {
            Some(letter) => tally.arrived(letter as u64, 26, std::mem::take(&mut first)),
            None => tally.malformed += 1,
        }
    })
}

/// Counts keys that are typed one in each `interval`: how much later than that each came after the one before.
pub fn key_pulse(path: &str, report: &str, interval: Duration) -> io::Result<()> {
    let mut file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let _ = ioctl::with(&file, SET_REPEAT, &mut Repeat([0, 0]));
    let mut keeper = Keeper::new(report)?;
    let mut last: Option<(usize, Instant)> = None;
    let mut bytes = [0; 64 * EVENT_BYTES];
    while !keeper.poll()? {
        let len = match file.read(&mut bytes) {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
            Err(error) => {
                keeper.pulse.failed(&error.to_string());
                break;
            }
        };
        for event in bytes[..len].chunks_exact(EVENT_BYTES) {
            let event = Event::from_bytes(event);
            if (event.kind, event.value) != (EV_KEY, 1) {
                continue;
            }
            let Some(letter) = LETTERS.iter().position(|&code| code == event.code) else {
                keeper.pulse.failed(&format!("key {}", event.code));
                continue;
            };
            let now = Instant::now();
            if let Some((before, at)) = last {
                let waited = (now - at).saturating_sub(interval);
                keeper.pulse.operation(waited.as_secs_f64() * 1e3);
                keeper.pulse.lost += ((letter + 26 - before - 1) % 26) as u64;
            }
            last = Some((letter, now));
        }
    }
    keeper.finish()
}

/// Counts clicks whose positions are numbered: the number is X divided by the step.
pub fn touches(path: &str, report: &str) -> io::Result<()> {
    let mut first = true;
    let (mut x, mut pressed) = (0, false);
    events(path, report, |event, tally| {
        match (event.kind, event.code) {
            (EV_ABS, ABS_X) => x = u64::try_from(event.value).unwrap_or(0),
            (EV_KEY, BTN_LEFT) => pressed = event.value == 1,
            // The button comes before the place of the same report.
            (EV_SYN, SYN_REPORT) if std::mem::take(&mut pressed) => {
                let number = (x + STEP / 2) / STEP % POSITIONS;
                tally.arrived(number, POSITIONS, std::mem::take(&mut first));
            }
            _ => (),
        }
    })
}

/// Types `count` letters at a HID gadget with boot keyboard reports, from letter number `first` on.
pub fn type_keys(path: &str, first: u64, count: u64, interval: Duration) -> io::Result<Tally> {
    let mut tally = Tally::default();
    let mut gadget = OpenOptions::new().write(true).open(path)?;
    for number in first..first + count {
        // HID usages 4 to 29 are the letters.
        let usage = 4 + (number % 26) as u8;
        for key in [usage, 0] {
            gadget.write_all(&[0, 0, key, 0, 0, 0, 0, 0])?;
        }
        tally.sent += 1;
        std::thread::sleep(interval);
    }
    tally.finished = true;
    Ok(tally)
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! An operation that its device is slow to answer, or never answers, beside other transfers of the same device.

use std::fs::File;
use std::io;
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::ioctl::{self, Plain, READ};
use crate::usbfs::{self, BULK, CONTROL, Transfer};

/// The simulated source and sink (`crates/usb-sim`): its configuration, interface and endpoints.
const CONFIGURATION: u8 = 3;
const INTERFACE: u8 = 0;
const BULK_IN: u8 = 0x81;
const BULK_OUT: u8 = 0x01;

const CLAIMINTERFACE: u32 = ioctl::request::<Number>(READ, b'U', 15);
const RESET: u32 = ioctl::request::<()>(0, b'U', 20);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// Reads and writes that are under way beside the operation.
const BESIDE: usize = 4;
/// Between two of them that are taken back.
const TAKE_BACK: Duration = Duration::from_millis(500);
/// How long what was taken back may take to come.
const COMES_BACK: Duration = Duration::from_secs(60);

#[repr(C)]
struct Number(u32);

// SAFETY: an integer.
unsafe impl Plain for Number {}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A control transfer with this SETUP packet.
    Control([u8; 8]),
    /// A reset of the port.
    Reset,
    /// Reads, writes and a question to endpoint 0, of a device that answers none.
    Everything,
}

impl FromStr for Operation {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Self> {
        Ok(match text {
            "set-interface" => Self::Control([0x01, 11, 0, 0, INTERFACE, 0, 0, 0]),
            "clear-halt" => Self::Control([0x02, 1, 0, 0, BULK_IN, 0, 0, 0]),
            "set-configuration" => Self::Control([0x00, 9, CONFIGURATION, 0, 0, 0, 0, 0]),
            "reset" => Self::Reset,
            "everything" => Self::Everything,
            _ => return Err(io::Error::other(format!("no operation {text:?}"))),
        })
    }
}

/// How it went.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// How long the operation was under way, in milliseconds.
    ms: u64,
    /// The number of the error that it ended with, 0 for none; of one that was taken back that of `ENOENT`.
    errno: i32,
    /// Reads and writes beside it that ended meanwhile, with whatever result.
    beside: u64,
}

/// Carries out an operation on the device at this node. It is taken back after `patience`.
pub fn run(node: &str, operation: Operation, patience: Duration) -> io::Result<Outcome> {
    let device = File::options().read(true).write(true).open(node)?;
    ioctl::with(&device, CLAIMINTERFACE, &mut Number(INTERFACE.into()))?;
    match operation {
        Operation::Control(setup) => {
            let control = |device: &File| Transfer::submit(device, CONTROL, 0, setup.to_vec());
            beside(&device, control, patience)
        }
        Operation::Everything => {
            // GET_STATUS of the device.
            let buffer = vec![0x80, 0, 0, 0, 0, 0, 2, 0, 0, 0];
            let control = |device: &File| Transfer::submit(device, CONTROL, 0, buffer);
            beside(&device, control, patience)
        }
        Operation::Reset => reset(&device),
    }
}

/// Some transfers are in flight when it begins; the guest's kernel lets no other be submitted meanwhile.
fn reset(device: &File) -> io::Result<Outcome> {
    let mut transfers = Vec::new();
    for _ in 0..BESIDE {
        transfers.extend(Transfer::submit(device, BULK, BULK_IN, vec![0; 512]));
    }
    let start = Instant::now();
    let result = ioctl::plain(device, RESET);
    let ms = start.elapsed().as_millis() as u64;
    let errno = result.map_or_else(|error| error.raw_os_error().unwrap_or(-1), |_| 0);
    let beside = take_all_back(device, &mut transfers)?;
    Ok(Outcome { ms, errno, beside })
}

fn beside(
    device: &File,
    control: impl FnOnce(&File) -> io::Result<Transfer>,
    patience: Duration,
) -> io::Result<Outcome> {
    // Under way before it begins, and after.
    let mut transfers = Vec::new();
    let mut count = 0;
    keep_busy(device, &mut transfers, 0);
    let start = Instant::now();
    let operation = control(device)?;
    let id = operation.id();
    transfers.push(operation);
    let mut taken_back = Instant::now();
    let (mut ms, mut errno, mut impatient) = (None, 0, false);
    while ms.is_none() {
        while let Some(over) = usbfs::reap(device, &mut transfers)? {
            if over.id() == id {
                ms = Some(start.elapsed().as_millis() as u64);
                errno = -over.status();
            } else {
                count += 1;
            }
        }
        if ms.is_some() {
            break;
        }
        if start.elapsed() > patience + COMES_BACK {
            return Err(io::Error::other("the operation does not come back"));
        }
        if start.elapsed() > patience && !impatient {
            impatient = true;
            let of = transfers.iter_mut().find(|one| one.id() == id);
            of.into_iter().for_each(|one| one.discard(device));
        }
        if taken_back.elapsed() > TAKE_BACK {
            taken_back = Instant::now();
            let other = transfers.iter_mut().find(|one| one.id() != id);
            other.into_iter().for_each(|one| one.discard(device));
        }
        keep_busy(device, &mut transfers, 1);
        thread::sleep(PAUSE);
    }
    let more = take_all_back(device, &mut transfers)?;
    Ok(Outcome {
        ms: ms.unwrap_or_default(),
        errno,
        beside: count + more,
    })
}

/// Reads and writes, so that `BESIDE` of them are under way besides `others`. One that the kernel does not
/// take now is none.
fn keep_busy(device: &File, transfers: &mut Vec<Transfer>, others: usize) {
    for number in transfers.len()..BESIDE + others {
        let endpoint = [BULK_IN, BULK_OUT][number % 2];
        match Transfer::submit(device, BULK, endpoint, vec![0; 512]) {
            Ok(transfer) => transfers.push(transfer),
            Err(_) => break,
        }
    }
}

/// How many came back.
fn take_all_back(device: &File, transfers: &mut Vec<Transfer>) -> io::Result<u64> {
    let start = Instant::now();
    for transfer in &mut *transfers {
        transfer.discard(device);
    }
    let mut count = 0;
    while !transfers.is_empty() {
        match usbfs::reap(device, transfers) {
            Ok(Some(_)) => count += 1,
            Ok(None) if start.elapsed() > COMES_BACK => {
                return Err(io::Error::other(
                    "a transfer that was taken back does not come",
                ));
            }
            Ok(None) => thread::sleep(PAUSE),
            // Nothing of a device that is gone comes back: the kernel has given it all back by then.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! A smart card through a CCID reader ("Specification for Integrated Circuit(s) Cards Interface
//! Devices", 1.1). Linux has no kernel driver for these: programs speak to them through usbfs, as
//! `pcscd` does.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use xen_vusb_lab::traffic::Tally;

use crate::ioctl::{self, Plain, READ};
use crate::report::Reporter;
use crate::usbfs;

/// How long a card may take.
const PATIENCE: Duration = Duration::from_secs(10);

#[repr(C)]
struct Interface(u32);

// SAFETY: an integer.
unsafe impl Plain for Interface {}

const USBDEVFS_CLAIMINTERFACE: u32 = ioctl::request::<Interface>(READ, b'U', 15);

/// Message types of the CCID specification, 6.1 and 6.2.
const ICC_POWER_ON: u8 = 0x62;
const XFR_BLOCK: u8 = 0x6f;
const DATA_BLOCK: u8 = 0x80;
const HEADER_BYTES: usize = 10;

/// What a card said of itself.
#[derive(Debug, Serialize)]
pub struct Atr {
    /// Answer to reset, in hexadecimal.
    pub atr: String,
}

/// An opened reader.
pub struct Reader {
    file: File,
    bulk_in: u8,
    bulk_out: u8,
    sequence: u8,
}

impl Reader {
    /// Claim the reader's interface 0.
    pub fn open(node: &str) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(node)?;
        // usbfs reads as the device's descriptors.
        let descriptors = fs::read(Path::new(node))?;
        let (mut bulk_in, mut bulk_out) = (None, None);
        let mut rest = descriptors.as_slice();
        while let [length, kind, ..] = *rest {
            let descriptor = rest.get(..usize::from(length)).unwrap_or(rest);
            // Endpoint descriptors of bulk endpoints (USB 2.0 table 9-13).
            if let (5, [_, _, address, attributes, ..]) = (kind, descriptor)
                && attributes & 3 == 2
            {
                let place = if address & 0x80 == 0 {
                    &mut bulk_out
                } else {
                    &mut bulk_in
                };
                place.get_or_insert(*address);
            }
            if length < 2 {
                break;
            }
            rest = rest.get(usize::from(length)..).unwrap_or_default();
        }
        let (Some(bulk_in), Some(bulk_out)) = (bulk_in, bulk_out) else {
            return Err(io::Error::other("the device has no two bulk endpoints"));
        };
        ioctl::with(&file, USBDEVFS_CLAIMINTERFACE, &mut Interface(0))?;
        Ok(Self {
            file,
            bulk_in,
            bulk_out,
            sequence: 0,
        })
    }

    /// A transfer as libusb, and so `pcscd`, does one: submitted, and then reaped. One that is waited for in a
    /// single call is cancelled when the task is frozen for a migration, and nobody can say whether it was sent.
    fn bulk(&self, endpoint: u8, data: &mut [u8]) -> io::Result<usize> {
        usbfs::transfer(&self.file, usbfs::BULK, endpoint, data, PATIENCE)
    }

    fn send(&mut self, kind: u8, data: &[u8]) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = vec![kind];
        message.extend_from_slice(&(data.len() as u32).to_le_bytes());
        message.extend_from_slice(&[0, self.sequence, 0, 0, 0]);
        message.extend_from_slice(data);
        self.bulk(self.bulk_out, &mut message).map(drop)
    }

    /// The answer to the last message; `None` when nothing came in time.
    fn receive(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut buffer = [0; 512];
        loop {
            let length = match self.bulk(self.bulk_in, &mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(None),
                Err(error) => return Err(error),
            };
            let message = &buffer[..length];
            let [
                DATA_BLOCK,
                l0,
                l1,
                _,
                _,
                _,
                sequence,
                status,
                error,
                _,
                data @ ..,
            ] = message
            else {
                return Err(io::Error::other(format!("no data block: {message:02x?}")));
            };
            // The answer to a message that was given up.
            if *sequence != self.sequence {
                continue;
            }
            if status & 0xc0 != 0 {
                return Err(io::Error::other(format!(
                    "the reader refused: status {status:#04x}, error {error:#04x}"
                )));
            }
            let expected = usize::from(u16::from_le_bytes([*l0, *l1]));
            if data.len() != expected {
                return Err(io::Error::other(format!(
                    "{} bytes of {expected} after {HEADER_BYTES}",
                    data.len()
                )));
            }
            return Ok(Some(data.to_vec()));
        }
    }

    /// Power the card; its answer to reset.
    pub fn power_on(&mut self) -> io::Result<Atr> {
        self.send(ICC_POWER_ON, &[])?;
        let atr = self
            .receive()?
            .ok_or_else(|| io::Error::other("the reader does not answer"))?;
        Ok(Atr {
            atr: atr.iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }

    /// A command with a number, which the card gives back: true if it did.
    fn numbered(&mut self, number: u32, tally: &mut Tally) -> io::Result<bool> {
        let mut command = vec![0x80, 0x10, 0, 0, 4];
        command.extend_from_slice(&number.to_be_bytes());
        self.send(XFR_BLOCK, &command)?;
        let Some(answer) = self.receive()? else {
            return Ok(false);
        };
        let mut wanted = number.to_be_bytes().to_vec();
        wanted.extend_from_slice(&[0x90, 0x00]);
        if answer != wanted {
            tally.malformed += 1;
            tally.failed(&format!("answer {answer:02x?} to command {number}"));
        }
        Ok(true)
    }
}

/// Commands without pause; one that was not answered counts as lost.
pub fn session(node: &str, report: &str) -> io::Result<()> {
    let mut reporter = Reporter::new(report)?;
    let result = (|| {
        let mut reader = Reader::open(node)?;
        reader.power_on()?;
        while !reporter.poll()? {
            let tally = &mut reporter.tally;
            tally.sent += 1;
            if reader.numbered(tally.sent as u32, tally)? {
                tally.received += 1;
                tally.last = tally.sent;
            } else {
                tally.lost += 1;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok::<_, io::Error>(())
    })();
    if let Err(error) = result {
        reporter.tally.failed(&error.to_string());
    }
    reporter.finish()
}

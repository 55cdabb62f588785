// SPDX-License-Identifier: GPL-3.0-or-later
//! A bus through Linux's USB monitor.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use xen_vusb_lab::usbmon::{Carries, DATA_BYTES, Event, HEADER_BYTES, Report, Watch};

use crate::ioctl::{self, Plain};
use crate::report::uptime;

/// The monitor's buffer: as large as may be.
const BUFFER_BYTES: usize = 1200 << 10;
/// `MON_IOCT_RING_SIZE`.
const SET_BUFFER: u32 = ioctl::request::<()>(0, 0x92, 4);
/// `MON_IOCG_STATS`.
const GET_STATS: u32 = ioctl::request::<Stats>(ioctl::READ, 0x92, 3);

#[repr(C)]
struct Stats {
    queued: u32,
    dropped: u32,
}

// SAFETY: two integers.
unsafe impl Plain for Stats {}

/// Counts what passes until it is told to stop; each of `devices` is a device's number and what it
/// carries, `5=keys`.
pub fn bus(number: u64, report: &str, devices: &[&str]) -> io::Result<()> {
    let devices = devices.iter().map(|device| {
        let (number, carries) = device.split_once('=').unwrap_or((device, ""));
        let number = number.parse::<u8>().map_err(io::Error::other)?;
        let carries: Carries = carries.parse().map_err(io::Error::other)?;
        Ok((number, carries))
    });
    let mut watch = Watch::new(devices.collect::<io::Result<Vec<_>>>()?);
    let mut file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(format!("/dev/usbmon{number}"))?;
    ioctl::with_number(&file, SET_BUFFER, BUFFER_BYTES)?;
    let stop = format!("{report}.stop");
    let _ = fs::remove_file(&stop);
    let mut dropped = 0;
    save(report, &watch.report())?;
    let mut saved = Instant::now();
    let mut bytes = vec![0; HEADER_BYTES + DATA_BYTES];
    loop {
        match file.read(&mut bytes) {
            Ok(len) => {
                if let Some(event) = Event::parse(&bytes[..len]) {
                    watch.take(&event, uptime());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => return Err(error),
        }
        if saved.elapsed() < Duration::from_secs(1) {
            continue;
        }
        let finished = Path::new(&stop).exists();
        let mut stats = Stats {
            queued: 0,
            dropped: 0,
        };
        ioctl::with(&file, GET_STATS, &mut stats)?;
        // The kernel counts from the last time that it was asked.
        dropped += u64::from(stats.dropped);
        let now = Report {
            dropped_events: dropped,
            finished,
            ..watch.report()
        };
        save(report, &now)?;
        if finished {
            return Ok(());
        }
        saved = Instant::now();
    }
}

fn save(path: &str, report: &Report) -> io::Result<()> {
    let temporary = format!("{path}.part");
    fs::write(&temporary, serde_json::to_vec(report)?)?;
    fs::rename(&temporary, path)
}

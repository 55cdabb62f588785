// SPDX-License-Identifier: GPL-3.0-or-later
//! Numbered records both ways through a serial line or a printer.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use xen_vusb_lab::traffic::{Records, record};

use crate::report::Reporter;

/// Before the first record.
const QUIET: Duration = Duration::from_secs(2);

/// Send records, one in each `interval`, and check those that arrive. There is a report when the line
/// is raw. With `go` they are sent at once; else when the reporter is told to, since a line echoes what comes, or
/// loses it, until both ends are raw.
pub fn stream(path: &str, report: &str, interval: Duration, mut go: bool) -> io::Result<()> {
    let mut tty = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
        .open(path)?;
    // A printer is raw.
    if tty.is_terminal() {
        raw(&tty)?;
    }
    let mut reporter = Reporter::new(report)?;
    let mut records = Records::default();
    let mut unsent: Vec<u8> = Vec::new();
    let mut due = Instant::now() + QUIET;
    let mut buffer = [0; 4096];
    // After the stop, what is on its way still arrives.
    let mut stopped: Option<Instant> = None;
    loop {
        if reporter.poll()? && stopped.is_none() {
            stopped = Some(Instant::now());
        }
        if stopped.is_some_and(|at| at.elapsed() > Duration::from_secs(3)) {
            break;
        }
        if !go && reporter.may_go() {
            go = true;
            due = Instant::now();
        }
        if go && stopped.is_none() && unsent.is_empty() && Instant::now() >= due {
            due += interval;
            reporter.tally.sent += 1;
            unsent.extend_from_slice(&record(reporter.tally.sent));
        }
        let mut idle = true;
        // A printer gadget refuses to write nothing.
        if !unsent.is_empty() {
            match tty.write(&unsent) {
                Ok(len) => {
                    idle &= len == 0;
                    unsent.drain(..len);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                Err(error) => {
                    reporter.tally.failed(&format!("write: {error}"));
                    break;
                }
            }
        }
        match tty.read(&mut buffer) {
            // A raw terminal without data; one that was hung up also reads as this, and its
            // writes fail.
            Ok(0) => (),
            Ok(len) => {
                idle = false;
                records.feed(&buffer[..len], &mut reporter.tally);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
            Err(error) => {
                reporter.tally.failed(&format!("read: {error}"));
                break;
            }
        }
        if idle {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    reporter.finish()
}

/// 8 bits, no echo, nothing translated, 115200 bits per second.
fn raw(tty: &File) -> io::Result<()> {
    let fd = tty.as_raw_fd();
    // SAFETY: zeroes are a valid termios.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the calls read and write the one structure that is borrowed for them.
    let result = unsafe {
        libc::tcgetattr(fd, &raw mut settings);
        libc::cfmakeraw(&raw mut settings);
        settings.c_cflag |= libc::CLOCAL | libc::CREAD;
        libc::cfsetspeed(&raw mut settings, libc::B115200);
        libc::tcflush(fd, libc::TCIOFLUSH);
        libc::tcsetattr(fd, libc::TCSANOW, &raw const settings)
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

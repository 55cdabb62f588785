// SPDX-License-Identifier: GPL-3.0-or-later
//! The kernel's `usbtest` driver, through the only way to it: usbfs passes an ioctl on to the
//! driver of an interface.

use std::fs::OpenOptions;
use std::io;

use serde::Serialize;

use crate::ioctl::{self, Plain, READ, WRITE};

/// `struct usbtest_param_64` of `drivers/usb/misc/usbtest.c`.
#[repr(C)]
struct Parameters {
    case: u32,
    iterations: u32,
    length: u32,
    vary: u32,
    sglen: u32,
    duration_s: i64,
    duration_us: i64,
}

/// `struct usbdevfs_ioctl` of `include/uapi/linux/usbdevice_fs.h`.
#[repr(C)]
struct Wrapper {
    interface: i32,
    request: i32,
    data: *mut Parameters,
}

// SAFETY: integers, and an address that is never read here.
unsafe impl Plain for Wrapper {}

const USBDEVFS_IOCTL: u32 = ioctl::request::<Wrapper>(READ | WRITE, b'U', 18);
const USBTEST_REQUEST: u32 = ioctl::request::<Parameters>(READ | WRITE, b'U', 100);

/// How a case went.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// 0, or the error's number.
    pub errno: i32,
    /// By the driver's clock.
    pub seconds: f64,
}

/// Run one case: its number, iterations, length, vary, sglen, as `testusb` means them.
pub fn run(node: &str, [case, iterations, length, vary, sglen]: [u32; 5]) -> io::Result<Outcome> {
    let file = OpenOptions::new().read(true).write(true).open(node)?;
    let mut parameters = Parameters {
        case,
        iterations,
        length,
        vary,
        sglen,
        duration_s: 0,
        duration_us: 0,
    };
    // The wrapped structure is copied in and out by its own request's size.
    let mut wrapper = Wrapper {
        interface: 0,
        request: USBTEST_REQUEST.cast_signed(),
        data: &raw mut parameters,
    };
    let result = ioctl::with(&file, USBDEVFS_IOCTL, &mut wrapper);
    let errno = match result {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap_or(-1),
    };
    Ok(Outcome {
        errno,
        seconds: parameters.duration_s as f64 + parameters.duration_us as f64 / 1e6,
    })
}

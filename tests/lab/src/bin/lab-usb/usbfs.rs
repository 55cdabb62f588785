// SPDX-License-Identifier: GPL-3.0-or-later
//! Transfers of a program through usbfs (`include/uapi/linux/usbdevice_fs.h`), submitted and reaped.

use std::fs::File;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crate::ioctl::{self, Plain, READ, WRITE};

/// USBDEVFS_URB_TYPE_CONTROL
pub const CONTROL: u8 = 2;
/// USBDEVFS_URB_TYPE_BULK
pub const BULK: u8 = 3;

/// How long to wait between two looks; processes that poll are dear under emulation.
const PAUSE: Duration = Duration::from_millis(5);

/// `struct usbdevfs_urb` without isochronous packets.
#[repr(C)]
struct Urb {
    transfer_type: u8,
    endpoint: u8,
    status: i32,
    flags: u32,
    buffer: *mut u8,
    buffer_length: i32,
    actual_length: i32,
    start_frame: i32,
    stream_id: u32,
    error_count: i32,
    signal: u32,
    context: *mut u8,
}

/// `struct usbdevfs_ctrltransfer`.
#[repr(C)]
struct Control {
    request_type: u8,
    request: u8,
    value: u16,
    index: u16,
    length: u16,
    timeout_ms: u32,
    data: *mut u8,
}

/// Address of the [`Urb`] that is over.
#[repr(C)]
struct Reaped(*mut Urb);

// SAFETY: integers, and addresses that are never read here.
unsafe impl Plain for Urb {}
// SAFETY: integers, and an address that is never read here.
unsafe impl Plain for Control {}
// SAFETY: an address that is never read here.
unsafe impl Plain for Reaped {}

const CONTROL_IOCTL: u32 = ioctl::request::<Control>(READ | WRITE, b'U', 0);
const RESET: u32 = ioctl::request::<()>(0, b'U', 20);

const SUBMITURB: u32 = ioctl::request::<Urb>(READ, b'U', 10);
const DISCARDURB: u32 = ioctl::request::<()>(0, b'U', 11);
const REAPURBNDELAY: u32 = ioctl::request::<Reaped>(WRITE, b'U', 13);

/// A transfer that the kernel has: it writes to it, and to the buffer, until it is reaped.
pub struct Transfer {
    urb: Box<Urb>,
    _buffer: Vec<u8>,
}

impl Transfer {
    /// Submit one. The buffer of a control transfer begins with the eight bytes of its SETUP packet.
    pub fn submit(
        device: &File,
        transfer_type: u8,
        endpoint: u8,
        mut buffer: Vec<u8>,
    ) -> io::Result<Self> {
        let mut urb = Box::new(Urb::new(transfer_type, endpoint, &mut buffer)?);
        ioctl::with(device, SUBMITURB, &mut *urb)?;
        Ok(Self {
            urb,
            _buffer: buffer,
        })
    }

    /// Tells it from all others that there are.
    pub fn id(&self) -> usize {
        (&raw const *self.urb).addr()
    }

    /// Ask the kernel to take it back; it is still to be reaped. It may be over by now.
    pub fn discard(&mut self, device: &File) {
        let _ = ioctl::with(device, DISCARDURB, &mut *self.urb);
    }

    /// The number of the error that it ended with, 0 for none. Only once it was reaped.
    pub fn status(&self) -> i32 {
        // SAFETY: a live structure. The kernel has written to it behind the compiler's back.
        unsafe { std::ptr::read_volatile(&raw const self.urb.status) }
    }
}

/// Takes one that is over out of `transfers`, if any is.
pub fn reap(device: &File, transfers: &mut Vec<Transfer>) -> io::Result<Option<Transfer>> {
    let mut reaped = Reaped(std::ptr::null_mut());
    match ioctl::with(device, REAPURBNDELAY, &mut reaped) {
        Ok(_) => {
            let id = reaped.0.addr();
            let at = transfers.iter().position(|one| one.id() == id);
            let at = at.ok_or_else(|| io::Error::other("a transfer that was not submitted"))?;
            Ok(Some(transfers.swap_remove(at)))
        }
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Urb {
    fn new(transfer_type: u8, endpoint: u8, buffer: &mut [u8]) -> io::Result<Self> {
        Ok(Self {
            transfer_type,
            endpoint,
            status: 0,
            flags: 0,
            buffer: buffer.as_mut_ptr(),
            buffer_length: i32::try_from(buffer.len()).map_err(io::Error::other)?,
            actual_length: 0,
            start_frame: 0,
            stream_id: 0,
            error_count: 0,
            signal: 0,
            context: std::ptr::null_mut(),
        })
    }
}

/// Carry out one transfer, and wait for it for so long. How many bytes were transferred; an error of the
/// kind [`io::ErrorKind::TimedOut`] if it was taken back. There must be no other transfer on the file.
pub fn transfer(
    device: &File,
    transfer_type: u8,
    endpoint: u8,
    data: &mut [u8],
    patience: Duration,
) -> io::Result<usize> {
    let mut urb = Urb::new(transfer_type, endpoint, data)?;
    ioctl::with(device, SUBMITURB, &mut urb)?;
    let start = Instant::now();
    let mut discarded = false;
    // The kernel writes to it, and to the buffer, only in the call that says that it is over.
    while let Err(error) = ioctl::with(device, REAPURBNDELAY, &mut Reaped(std::ptr::null_mut())) {
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR) => thread::sleep(PAUSE),
            _ => return Err(error),
        }
        if !discarded && start.elapsed() > patience {
            discarded = true;
            // It may be over by now.
            let _ = ioctl::with(device, DISCARDURB, &mut urb);
        }
    }
    // SAFETY: a live structure. The kernel has written to it behind the compiler's back.
    let (status, length) = unsafe {
        (
            std::ptr::read_volatile(&raw const urb.status),
            std::ptr::read_volatile(&raw const urb.actual_length),
        )
    };
    match -status {
        0 => Ok(usize::try_from(length).unwrap_or(0).min(data.len())),
        libc::ENOENT => Err(io::ErrorKind::TimedOut.into()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Reset a device so many times.
pub fn reset(node: &str, count: u32) -> io::Result<()> {
    let device = open(node)?;
    for _ in 0..count {
        ioctl::plain(&device, RESET)?;
    }
    Ok(())
}

/// Read a device's descriptor without pause for so long, whatever comes of it: how often it came.
pub fn read_descriptors(node: &str, time: Duration) -> io::Result<u64> {
    let device = open(node)?;
    let start = Instant::now();
    let mut data = [0; 18];
    let mut read = 0;
    while start.elapsed() < time {
        let mut transfer = Control {
            request_type: 0x80,
            request: 6,
            value: 0x100,
            index: 0,
            length: 18,
            timeout_ms: 5000,
            data: data.as_mut_ptr(),
        };
        if ioctl::with(&device, CONTROL_IOCTL, &mut transfer).is_ok_and(|length| length == 18) {
            read += 1;
        }
    }
    Ok(read)
}

fn open(node: &str) -> io::Result<File> {
    File::options().read(true).write(true).open(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<Urb>(), 56);
        assert_eq!(SUBMITURB, 0x8038_550a);
        assert_eq!(CONTROL_IOCTL, 0xc018_5500);
        assert_eq!(RESET, 0x5514);
        assert_eq!(DISCARDURB, 0x550b);
        assert_eq!(REAPURBNDELAY, 0x4008_550d);
    }
}

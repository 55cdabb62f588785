// SPDX-License-Identifier: GPL-3.0-or-later
//! An open device node.

use std::ffi::{c_int, c_uint, c_void};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::ptr;
use std::time::Duration;

use crate::kernel::{Kernel, Ready, Refused};
use crate::wake::{Wait, poll};
use crate::{Urb, sys};

/// The name of the driver that an interface has while a program holds it.
pub const USBFS_DRIVER: &str = "usbfs";

/// Bytes of one allocation of the kernel for a bulk transfer: longer ones it makes of several, where the host controller
/// takes that.
const PIECE: usize = 16 * 1024;
/// Longest data of a control transfer that [`Device::control`] takes: a page (`proc_control`).
const MAX_CONTROL: usize = 4096;

/// What the kernel and the host controller can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(u32);

impl Capabilities {
    /// Bulk transfers of any length without one allocation as long as they are.
    pub fn has_scatter_gather(self) -> bool {
        self.0 & sys::CAP_BULK_SCATTER_GATHER != 0
    }
}

/// An open device. Each call may block as long as the kernel is busy with the device, also because another program
/// does something with it. Closing it ends all its transfers.
#[derive(Debug)]
pub struct Device {
    // Closed before the transfers are freed: until then the kernel knows their addresses.
    node: File,
    in_flight: Vec<Urb>,
    capabilities: Capabilities,
}

impl Device {
    /// The node of the device with this address.
    pub fn path(bus: u8, address: u8) -> PathBuf {
        PathBuf::from(format!("/dev/bus/usb/{bus:03}/{address:03}"))
    }

    /// Opens a node.
    ///
    /// # Errors
    /// There is none, this user may not write to it, or it is not one of usbfs.
    pub fn open(path: &Path) -> io::Result<Self> {
        let node = File::options().read(true).write(true).open(path)?;
        let mut device = Self {
            node,
            in_flight: Vec::new(),
            capabilities: Capabilities::default(),
        };
        let mut capabilities = 0_u32;
        // SAFETY: the kernel writes a u32.
        unsafe { device.ioctl(sys::GET_CAPABILITIES, &raw mut capabilities) }?;
        device.capabilities = Capabilities(capabilities);
        Ok(device)
    }

    /// What the kernel and the host controller can do.
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// Takes an interface from the kernel's driver, if it has one, and claims it, in one step. What is claimed
    /// already stays so.
    ///
    /// # Errors
    /// `EBUSY`: another program has claimed it. `EINVAL`: there is no such interface in this configuration. In all
    /// cases it may have lost its driver: [`Device::connect`] gives it back.
    pub fn disconnect_claim(&self, interface: u8) -> io::Result<()> {
        let mut driver = [0; 256];
        driver[..USBFS_DRIVER.len()].copy_from_slice(USBFS_DRIVER.as_bytes());
        let mut claim = sys::DisconnectClaim {
            interface: interface.into(),
            flags: sys::EXCEPT_DRIVER,
            driver,
        };
        // SAFETY: the kernel reads this structure.
        unsafe { self.ioctl(sys::DISCONNECT_CLAIM, &raw mut claim) }.map(drop)
    }

    /// Lets go of an interface. Its setting becomes 0.
    ///
    /// # Errors
    /// It is not claimed, or the device is gone.
    pub fn release(&self, interface: u8) -> io::Result<()> {
        let mut number = c_uint::from(interface);
        // SAFETY: the kernel reads an unsigned int.
        unsafe { self.ioctl(sys::RELEASEINTERFACE, &raw mut number) }.map(drop)
    }

    /// Lets the kernel's drivers have an interface.
    ///
    /// # Errors
    /// `EBUSY`: it has a driver. The device is gone.
    pub fn connect(&self, interface: u8) -> io::Result<()> {
        let mut command = sys::DriverIoctl {
            interface: interface.into(),
            code: sys::CONNECT as c_int,
            data: ptr::null_mut(),
        };
        // SAFETY: the kernel reads this structure; CONNECT has no data.
        unsafe { self.ioctl(sys::IOCTL, &raw mut command) }.map(drop)
    }

    /// The driver of an interface; `None` without one.
    pub fn driver(&self, interface: u8) -> Option<String> {
        let mut answer = sys::GetDriver {
            interface: interface.into(),
            driver: [0; 256],
        };
        // SAFETY: the kernel reads and writes this structure.
        unsafe { self.ioctl(sys::GETDRIVER, &raw mut answer) }.ok()?;
        let name = answer.driver.split(|byte| *byte == 0).next()?;
        Some(String::from_utf8_lossy(name).into_owned())
    }

    /// SET_INTERFACE. Ends the transfers of the interface.
    ///
    /// # Errors
    /// `EINVAL`: there is no such setting. `EPIPE`: the device refused. `ETIMEDOUT`: it did not answer for 5
    /// seconds.
    pub fn set_interface(&self, interface: u8, setting: u8) -> io::Result<()> {
        let mut set = sys::SetInterface {
            interface: interface.into(),
            setting: setting.into(),
        };
        // SAFETY: the kernel reads this structure.
        unsafe { self.ioctl(sys::SETINTERFACE, &raw mut set) }.map(drop)
    }

    /// SET_CONFIGURATION, also of the one that is active, whose interfaces then start again. The kernel's drivers bind to a
    /// configuration that is another one.
    ///
    /// # Errors
    /// `EBUSY`: an interface is claimed, if only by us. The others as for [`Device::set_interface`].
    pub fn set_configuration(&self, value: u8) -> io::Result<()> {
        let mut value = c_uint::from(value);
        // SAFETY: the kernel reads an int.
        unsafe { self.ioctl(sys::SETCONFIGURATION, &raw mut value) }.map(drop)
    }

    /// CLEAR_FEATURE(ENDPOINT_HALT), of a bulk or interrupt endpoint.
    ///
    /// # Errors
    /// `ENOENT`: there is no such endpoint. The others as for [`Device::set_interface`].
    pub fn clear_halt(&self, endpoint: u8) -> io::Result<()> {
        let mut endpoint = c_uint::from(endpoint);
        // SAFETY: the kernel reads an unsigned int.
        unsafe { self.ioctl(sys::CLEAR_HALT, &raw mut endpoint) }.map(drop)
    }

    /// Resets the device's port. The kernel sets its configuration again. Interfaces that are claimed meanwhile lose
    /// that, and may get a driver of the kernel's.
    ///
    /// # Errors
    /// The device did not come back as what it was: it is gone.
    pub fn reset(&self) -> io::Result<()> {
        // SAFETY: no data.
        unsafe { self.ioctl::<c_void>(sys::RESET, ptr::null_mut()) }.map(drop)
    }

    /// A control transfer with IN data, which is awaited; its length.
    ///
    /// # Errors
    /// `EPIPE`: the device refused. `ETIMEDOUT`: it did not answer in time.
    ///
    /// # Panics
    /// `data` is longer than a page of 4,096 bytes.
    pub fn control(&self, setup: [u8; 6], data: &mut [u8], timeout: Duration) -> io::Result<usize> {
        assert!(data.len() <= MAX_CONTROL, "longer than a page");
        let [a, b, c, d, e, f] = setup;
        let [low, high] = (data.len() as u16).to_ne_bytes();
        let mut transfer = sys::ControlTransfer {
            setup: [a | 0x80, b, c, d, e, f, low, high],
            timeout_ms: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
            data: data.as_mut_ptr().cast(),
        };
        // SAFETY: the kernel reads this structure, and writes at most wLength bytes to `data`, which is as
        // long. wValue, wIndex and wLength are in the byte order of the machine there: USB's on all that Xen and we run on.
        let len = unsafe { self.ioctl(sys::CONTROL, &raw mut transfer) }?;
        Ok(usize::try_from(len).unwrap_or(0).min(data.len()))
    }

    /// Transfers that the kernel has.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// # Safety
    /// `argument` is what the kernel expects for this number.
    unsafe fn ioctl<T>(&self, number: u32, argument: *mut T) -> io::Result<c_int> {
        loop {
            // SAFETY: the caller's business.
            let result = unsafe { libc::ioctl(self.node.as_raw_fd(), number.into(), argument) };
            if result >= 0 {
                return Ok(result);
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EINTR) {
                return Err(error);
            }
        }
    }
}

impl Kernel for Device {
    fn submit(&mut self, mut urb: Urb) -> Result<(), Refused> {
        let raw = urb.start_piece(self.max_bulk());
        // SAFETY: a header with its packets behind it, and with a buffer that is as long as it says. All stays where it is and is not
        // touched until it is reaped: we own the transfer, and keep it. The kernel writes to it only when
        // it is reaped, through this descriptor, which is closed before the transfer is freed.
        match unsafe { self.ioctl(sys::SUBMITURB, raw.as_ptr()) } {
            Ok(_) => {
                self.in_flight.push(urb);
                Ok(())
            }
            Err(e) => {
                let errno = e.raw_os_error().unwrap_or(libc::EINVAL);
                Err(Refused { urb, errno })
            }
        }
    }

    fn discard(&mut self, context: u64) {
        if let Some(urb) = self.in_flight.iter().find(|u| u.context() == context) {
            // SAFETY: the kernel takes the address as a name, and looks it up among the transfers it has.
            let _ = unsafe { self.ioctl(sys::DISCARDURB, urb.address().as_ptr()) };
        }
    }

    fn reap(&mut self) -> Option<Urb> {
        let mut address: *mut c_void = ptr::null_mut();
        // SAFETY: the kernel writes a pointer, and, before that, the results to a transfer that was
        // submitted, which is in `in_flight`, and which nobody looks at now.
        unsafe { self.ioctl(sys::REAPURBNDELAY, &raw mut address) }.ok()?;
        let is_it = |u: &Urb| u.address().as_ptr().cast() == address;
        let at = self.in_flight.iter().position(is_it)?;
        Some(self.in_flight.swap_remove(at))
    }

    fn wait(&mut self, wake: BorrowedFd<'_>, watch: bool, timeout: Option<Duration>) -> Ready {
        let node = Wait {
            fd: self.node.as_fd(),
            events: libc::POLLOUT,
        };
        let [woken, node] = poll(wake, watch.then_some(node), timeout);
        Ready {
            woken: woken & libc::POLLIN != 0,
            reap: node & libc::POLLOUT != 0,
            gone: node & (libc::POLLERR | libc::POLLHUP) != 0,
        }
    }

    fn max_bulk(&self) -> usize {
        match self.capabilities.has_scatter_gather() {
            true => usize::MAX,
            false => PIECE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    #[test]
    fn the_node_of_a_device() {
        assert_eq!(
            Device::path(3, 17),
            Path::new("/dev/bus/usb/003/017").to_owned()
        );
    }

    #[test]
    fn what_is_not_a_device_is_not_opened() {
        for path in ["/dev/null", "/dev/bus/usb/999/999"] {
            assert!(Device::open(Path::new(path)).is_err());
        }
    }

    /// A transfer that was refused is the caller's again, and nothing of it stays behind.
    #[test]
    fn a_refused_transfer_comes_back() {
        let mut device = Device {
            node: File::options()
                .read(true)
                .write(true)
                .open("/dev/null")
                .unwrap(),
            in_flight: Vec::new(),
            capabilities: Capabilities::default(),
        };
        let mut urb = Urb::new(64);
        urb.set_context(5);
        urb.prepare(Kind::Bulk, 1, 0..64);
        let refused = device.submit(urb).unwrap_err();
        assert_eq!((refused.urb.context(), refused.errno), (5, libc::ENOTTY));
        assert_eq!(device.in_flight(), 0);
        assert!(device.reap().is_none());
        device.discard(5);
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! Event channels over `/dev/xen/evtchn` (Linux `include/uapi/xen/evtchn.h`).
//!
//! What the kernel does, as far as the contract of [`EventChannel`] rests on it:
//! - An open file has a queue of ports that fired. It polls readable while the queue is not
//!   empty. A port that fired is masked until it is written back, so it is in the queue at most
//!   once, and the queue cannot overflow. Each channel has a file of its own, so that its
//!   readiness is its own.
//! - Binding to a port of another domain leaves an event pending: Xen sets one on the local port
//!   (`evtchn_bind_interdomain`: notifications to the unbound port may have been lost), and the
//!   kernel unmasks the port while it binds it. That event arrives through the upcall, maybe
//!   only after the ioctl has returned. The file becomes readable then; but who calls
//!   `take_event` right after the bind would be told that nothing is pending. So the first
//!   `take_event` of such a channel says true in any case, and the kernel's own event counts as
//!   one of the spurious ones that everybody must expect.
//! - Closing the file closes the port. The peer's end becomes unbound and can be bound again.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::OpenError;
use crate::{DomId, EventChannel, EvtchnPort};

const PATH: &str = "/dev/xen/evtchn";

/// `_IOC(_IOC_NONE, 'E', number, size)` as x86 and arm64 define it.
const fn ioctl_number(number: u32, size: usize) -> u32 {
    (size as u32) << 16 | (b'E' as u32) << 8 | number
}

#[repr(C)]
struct BindInterdomain {
    remote_domain: u32,
    remote_port: u32,
}

#[repr(C)]
struct BindUnboundPort {
    remote_domain: u32,
}

#[repr(C)]
struct Notify {
    port: u32,
}

const BIND_INTERDOMAIN: u32 = ioctl_number(1, size_of::<BindInterdomain>());
const BIND_UNBOUND_PORT: u32 = ioctl_number(2, size_of::<BindUnboundPort>());
const NOTIFY: u32 = ioctl_number(4, size_of::<Notify>());

const _: () = {
    assert!(BIND_INTERDOMAIN == 0x0008_4501);
    assert!(BIND_UNBOUND_PORT == 0x0004_4502);
    assert!(NOTIFY == 0x0004_4504);
};

/// One end of an event channel, with a file of its own. Closed when dropped.
#[derive(Debug)]
pub struct LinuxChannel {
    file: File,
    port: EvtchnPort,
    /// The event that a new channel starts with was not taken yet.
    first_event: AtomicBool,
}

impl LinuxChannel {
    /// Whether there is a device, for an early and clear error.
    pub(super) fn check_device() -> Result<(), OpenError> {
        match open() {
            Ok(_) => Ok(()),
            Err(source) => Err(OpenError::EventChannels {
                path: Path::new(PATH).to_owned(),
                source,
            }),
        }
    }

    pub(super) fn bind_interdomain(dom: DomId, remote: EvtchnPort) -> io::Result<LinuxChannel> {
        let file = open()?;
        let mut argument = BindInterdomain {
            remote_domain: dom.0.into(),
            remote_port: remote.0,
        };
        // SAFETY: the structure of this ioctl.
        let port = unsafe { ioctl(&file, BIND_INTERDOMAIN, &mut argument) }?;
        Ok(LinuxChannel::new(file, port, true))
    }

    pub(super) fn alloc_unbound(dom: DomId) -> io::Result<LinuxChannel> {
        let file = open()?;
        let mut argument = BindUnboundPort {
            remote_domain: dom.0.into(),
        };
        // SAFETY: the structure of this ioctl.
        let port = unsafe { ioctl(&file, BIND_UNBOUND_PORT, &mut argument) }?;
        Ok(LinuxChannel::new(file, port, false))
    }

    fn new(file: File, port: u32, first_event: bool) -> LinuxChannel {
        LinuxChannel {
            file,
            port: EvtchnPort(port),
            first_event: AtomicBool::new(first_event),
        }
    }

    /// Takes our port from the kernel's queue and unmasks it, if it is there.
    fn take_from_queue(&self) -> io::Result<bool> {
        let mut port = [0; size_of::<u32>()];
        let read = repeat_interrupted(|| (&self.file).read(&mut port));
        match read {
            Ok(len) if len == port.len() => {}
            Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
        // Only now: the port is masked, so nothing can have fired in between.
        repeat_interrupted(|| (&self.file).write(&port))?;
        Ok(true)
    }
}

impl EventChannel for LinuxChannel {
    fn local_port(&self) -> EvtchnPort {
        self.port
    }

    fn notify(&self) -> io::Result<()> {
        let mut argument = Notify { port: self.port.0 };
        // SAFETY: the structure of this ioctl.
        unsafe { ioctl(&self.file, NOTIFY, &mut argument) }.map(drop)
    }

    fn take_event(&self) -> io::Result<bool> {
        let fired = self.take_from_queue()?;
        let first = self.first_event.swap(false, Ordering::AcqRel);
        Ok(fired || first)
    }
}

impl AsFd for LinuxChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn open() -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(PATH)
}

/// # Safety
/// `T` is the structure that the kernel expects for `number`.
unsafe fn ioctl<T>(file: &File, number: u32, argument: &mut T) -> io::Result<u32> {
    repeat_interrupted(|| {
        // SAFETY: the caller's promise; the descriptor is open.
        let result = unsafe {
            libc::ioctl(
                file.as_raw_fd(),
                number as libc::Ioctl,
                std::ptr::from_mut(argument),
            )
        };
        u32::try_from(result).map_err(|_| io::Error::last_os_error())
    })
}

fn repeat_interrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A channel whose kernel is a socket: what the test writes fires, what it reads unmasks.
    fn channel(first_event: bool) -> (LinuxChannel, UnixStream) {
        let (ours, kernel) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        kernel.set_nonblocking(true).unwrap();
        let file = File::from(OwnedFd::from(ours));
        (LinuxChannel::new(file, 7, first_event), kernel)
    }

    fn unmasked(mut kernel: &UnixStream) -> bool {
        let mut port = [0; 4];
        match kernel.read(&mut port) {
            Ok(4) => {
                assert_eq!(u32::from_ne_bytes(port), 7);
                true
            }
            Ok(len) => panic!("{len} bytes written"),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                false
            }
        }
    }

    #[test]
    fn a_port_that_fired_is_taken_once_and_unmasked() {
        let (channel, mut kernel) = channel(false);
        assert!(!channel.take_event().unwrap());
        assert!(!unmasked(&kernel));
        kernel.write_all(&7_u32.to_ne_bytes()).unwrap();
        assert!(channel.take_event().unwrap());
        assert!(unmasked(&kernel));
        assert!(!channel.take_event().unwrap());
        assert!(!unmasked(&kernel));
    }

    #[test]
    fn a_bound_channel_starts_with_an_event_before_the_kernel_delivers_its_own() {
        let (channel, mut kernel) = channel(true);
        assert!(channel.take_event().unwrap());
        assert!(!unmasked(&kernel));
        assert!(!channel.take_event().unwrap());
        // Xen's own, late.
        kernel.write_all(&7_u32.to_ne_bytes()).unwrap();
        assert!(channel.take_event().unwrap());
        assert!(unmasked(&kernel));
    }

    #[test]
    fn the_first_event_and_the_kernels_own_are_taken_together_and_unmasked() {
        let (channel, mut kernel) = channel(true);
        kernel.write_all(&7_u32.to_ne_bytes()).unwrap();
        assert!(channel.take_event().unwrap());
        assert!(unmasked(&kernel));
        assert!(!channel.take_event().unwrap());
    }

    #[test]
    fn a_device_that_went_away_is_an_error() {
        let (channel, kernel) = channel(false);
        drop(kernel);
        assert!(channel.take_event().is_err());
        // A socket knows no such ioctl.
        assert!(channel.notify().is_err());
    }
}

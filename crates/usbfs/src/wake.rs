// SPDX-License-Identifier: GPL-3.0-or-later
//! Waking a thread that waits for a device.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// An eventfd (eventfd(2)): wakes a thread out of `poll`.
#[derive(Debug)]
pub struct EventFd(File);

impl EventFd {
    /// One that nobody has set.
    ///
    /// # Errors
    /// The process has too many files open.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers are passed.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self(fd.into()))
    }

    /// Sets it. Never blocks.
    pub fn set(&self) {
        // It fails where the counter is full, and then it is set.
        let _ = (&self.0).write(&1_u64.to_ne_bytes());
    }

    /// Takes back all that was set. Never blocks.
    pub fn clear(&self) {
        let mut count = [0; 8];
        // It fails where it was not set.
        let _ = (&self.0).read(&mut count);
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A descriptor to wait for, and what is to come of it: `POLLIN` and the like.
pub(crate) struct Wait<'a> {
    pub(crate) fd: BorrowedFd<'a>,
    pub(crate) events: i16,
}

/// Waits until `wake` is set, or something comes of `other`, or for `timeout`; what came of each.
pub(crate) fn poll(
    wake: BorrowedFd<'_>,
    other: Option<Wait<'_>>,
    timeout: Option<Duration>,
) -> [i16; 2] {
    let entry = |fd, events| libc::pollfd {
        fd,
        events,
        revents: 0,
    };
    // poll(2) leaves negative descriptors out.
    let other = other.map_or(entry(-1, 0), |w| entry(w.fd.as_raw_fd(), w.events));
    let mut entries = [entry(wake.as_raw_fd(), libc::POLLIN), other];
    let timeout = timeout.map_or(-1, |t| {
        // Not shorter than asked for, or who waits for half a millisecond would spin.
        i32::try_from(t.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
    });
    // SAFETY: two entries, and both descriptors are open: they are borrowed.
    let result = unsafe { libc::poll(entries.as_mut_ptr(), 2, timeout) };
    match result {
        // A signal, or no memory: who waits looks again.
        ..0 => [0, 0],
        _ => entries.map(|entry| entry.revents),
    }
}

/// Whether it is set now.
#[cfg(test)]
pub(crate) fn is_set(event: &EventFd) -> bool {
    poll(event.as_fd(), None, Some(Duration::ZERO)) != [0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_set_until_it_is_cleared() {
        let event = EventFd::new().unwrap();
        assert!(!is_set(&event));
        event.set();
        event.set();
        assert!(is_set(&event));
        let ready = poll(event.as_fd(), None, Some(Duration::from_secs(60)));
        assert_eq!(ready, [libc::POLLIN, 0]);
        event.clear();
        event.clear();
        assert!(!is_set(&event));
    }

    #[test]
    fn either_wakes() {
        let (wake, other) = (EventFd::new().unwrap(), EventFd::new().unwrap());
        other.set();
        let wait = Wait {
            fd: other.as_fd(),
            events: libc::POLLIN,
        };
        assert_eq!(poll(wake.as_fd(), Some(wait), None), [0, libc::POLLIN]);
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! Waiting for a descriptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// Waits until `fd` is readable, for `timeout` at most. False: it is not. A signal counts as the
/// end of the wait.
pub(super) fn readable(fd: &impl AsFd, timeout: Duration) -> io::Result<bool> {
    let fd = fd.as_fd();
    let mut entry = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // Rounded up, or a wait for less than a millisecond would not wait at all.
    let millis = timeout.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32;
    // SAFETY: `entry` is one valid pollfd, and lives until the call returns.
    let count = unsafe { libc::poll(&raw mut entry, 1, millis) };
    if count < 0 {
        let error = io::Error::last_os_error();
        if error.kind() == io::ErrorKind::Interrupted {
            return Ok(false);
        }
        return Err(error);
    }
    Ok(count > 0)
}

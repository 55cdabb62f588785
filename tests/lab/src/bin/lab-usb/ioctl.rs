// SPDX-License-Identifier: GPL-3.0-or-later
//! One ioctl with a structure, and a poll: the only unsafe things that these programs do.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Bits 30 and 31 of a request: which way its structure is copied.
pub const WRITE: u32 = 1;
/// From the kernel.
pub const READ: u32 = 2;

/// The request number of `include/uapi/asm-generic/ioctl.h` for a structure of type `T`.
pub const fn request<T>(direction: u32, kind: u8, number: u8) -> u32 {
    (direction << 30) | ((size_of::<T>() as u32) << 16) | ((kind as u32) << 8) | number as u32
}

/// A structure that an ioctl may read and overwrite.
///
/// # Safety
/// Every bit pattern must be a value of the type, and it must be laid out as in C.
pub unsafe trait Plain {}

/// Call with a structure; the kernel's answer, which is not negative.
pub fn with<T: Plain>(file: &File, request: u32, value: &mut T) -> io::Result<i32> {
    // SAFETY: the request's size is that of T by construction (`request`), T is plain memory, and
    // it is borrowed until the call returns.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request as _, std::ptr::from_mut(value)) };
    checked(result)
}

/// Call without one.
pub fn plain(file: &File, request: u32) -> io::Result<i32> {
    // SAFETY: requests without a structure read no memory of ours.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request as _, 0) };
    checked(result)
}

/// Call with a number.
pub fn with_number(file: &File, request: u32, number: usize) -> io::Result<i32> {
    // SAFETY: the requests that take a number read no memory of ours; what takes a structure is called by
    // `with`.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request as _, number) };
    checked(result)
}

/// Does poll(2) say now that a write would not wait, or that something is wrong?
pub fn writable(file: &File) -> bool {
    let mut of = libc::pollfd {
        fd: file.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one structure, borrowed until the call returns, which is at once.
    unsafe { libc::poll(&mut of, 1, 0) != 0 }
}

fn checked(result: i32) -> io::Result<i32> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! Unix sockets that keep message boundaries and pass file descriptors (`SOCK_SEQPACKET`).

use std::ffi::OsStr;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

/// Largest message, bytes.
const MAX_MESSAGE: usize = 64 * 1024;
/// Most descriptors in one message.
const MAX_FDS: usize = 8;

/// One message.
#[derive(Debug)]
pub(crate) struct Packet {
    pub(crate) data: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// A connected socket.
#[derive(Debug)]
pub(crate) struct Socket(OwnedFd);

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Listener(OwnedFd);

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = check(unsafe {
        libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0)
    })?;
    // SAFETY: the descriptor is new and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    // SAFETY: sockaddr_un is plain data; all zeroes is a valid value.
    let mut addr: libc::sockaddr_un = unsafe { mem::zeroed() };
    addr.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = OsStr::as_bytes(path.as_os_str());
    if bytes.len() >= addr.sun_path.len() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("socket path too long: {}", path.display()),
        ));
    }
    for (to, from) in addr.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    Ok((addr, mem::size_of::<libc::sockaddr_un>() as libc::socklen_t))
}

impl Listener {
    /// Binds to `path`, replacing what is left of an earlier run.
    pub(crate) fn bind(path: &Path) -> io::Result<Listener> {
        match std::fs::remove_file(path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
            _ => {}
        }
        let fd = new_socket()?;
        let (addr, len) = address(path)?;
        // SAFETY: addr is a valid sockaddr_un of len bytes.
        check(unsafe { libc::bind(fd.as_raw_fd(), ptr::from_ref(&addr).cast(), len) })?;
        // SAFETY: no pointers are passed.
        check(unsafe { libc::listen(fd.as_raw_fd(), 64) })?;
        Ok(Listener(fd))
    }

    /// Waits for a connection. Fails once [`Listener::shutdown`] was called.
    pub(crate) fn accept(&self) -> io::Result<Socket> {
        loop {
            // SAFETY: null address pointers mean that the peer's address is not wanted.
            let fd = check(unsafe {
                libc::accept4(
                    self.0.as_raw_fd(),
                    ptr::null_mut(),
                    ptr::null_mut(),
                    libc::SOCK_CLOEXEC,
                )
            });
            match fd {
                // SAFETY: the descriptor is new and owned by nobody else.
                Ok(fd) => return Ok(Socket(unsafe { OwnedFd::from_raw_fd(fd) })),
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(err),
            }
        }
    }

    /// Wakes the thread in [`Listener::accept`].
    pub(crate) fn shutdown(&self) {
        // SAFETY: no pointers are passed.
        unsafe { libc::shutdown(self.0.as_raw_fd(), libc::SHUT_RDWR) };
    }
}

impl Socket {
    /// The process at the other end, as it was when it connected.
    pub(crate) fn peer_pid(&self) -> io::Result<i32> {
        // SAFETY: ucred is plain data; all zeroes is a valid value.
        let mut peer: libc::ucred = unsafe { mem::zeroed() };
        let mut len = mem::size_of::<libc::ucred>() as libc::socklen_t;
        // SAFETY: peer has room for the len bytes that are written at most.
        check(unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                ptr::from_mut(&mut peer).cast(),
                &mut len,
            )
        })?;
        Ok(peer.pid)
    }

    pub(crate) fn connect(path: &Path) -> io::Result<Socket> {
        let fd = new_socket()?;
        let (addr, len) = address(path)?;
        // SAFETY: addr is a valid sockaddr_un of len bytes.
        check(unsafe { libc::connect(fd.as_raw_fd(), ptr::from_ref(&addr).cast(), len) })?;
        Ok(Socket(fd))
    }

    pub(crate) fn from_fd(fd: OwnedFd) -> Socket {
        Socket(fd)
    }

    /// Sends one message.
    pub(crate) fn send(&self, data: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        if data.len() > MAX_MESSAGE || fds.len() > MAX_FDS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut iov = libc::iovec {
            iov_base: data.as_ptr().cast_mut().cast(),
            iov_len: data.len(),
        };
        let mut control = ControlBuffer::default();
        // SAFETY: msghdr is plain data; all zeroes is a valid value.
        let mut msg: libc::msghdr = unsafe { mem::zeroed() };
        msg.msg_iov = &raw mut iov;
        msg.msg_iovlen = 1;
        if !fds.is_empty() {
            let payload = mem::size_of_val(fds) as u32 / mem::size_of::<BorrowedFd<'_>>() as u32
                * mem::size_of::<RawFd>() as u32;
            msg.msg_control = control.0.as_mut_ptr().cast();
            // SAFETY: CMSG_SPACE only computes.
            msg.msg_controllen = unsafe { libc::CMSG_SPACE(payload) } as _;
            // SAFETY: msg_control points to msg_controllen bytes, aligned for cmsghdr, so the
            // first header exists and has room for the descriptors.
            unsafe {
                let header = libc::CMSG_FIRSTHDR(&msg);
                (*header).cmsg_level = libc::SOL_SOCKET;
                (*header).cmsg_type = libc::SCM_RIGHTS;
                (*header).cmsg_len = libc::CMSG_LEN(payload) as _;
                let slots: *mut RawFd = libc::CMSG_DATA(header).cast();
                for (i, fd) in fds.iter().enumerate() {
                    slots.add(i).write_unaligned(fd.as_raw_fd());
                }
            }
        }
        loop {
            // SAFETY: msg points to the buffers above, which outlive the call.
            let sent = unsafe { libc::sendmsg(self.0.as_raw_fd(), &msg, libc::MSG_NOSIGNAL) };
            if sent >= 0 {
                return Ok(());
            }
            let err = io::Error::last_os_error();
            if err.kind() != io::ErrorKind::Interrupted {
                return Err(err);
            }
        }
    }

    /// Waits for one message. `None` when the peer is gone.
    pub(crate) fn recv(&self) -> io::Result<Option<Packet>> {
        let mut data = vec![0; MAX_MESSAGE];
        let mut iov = libc::iovec {
            iov_base: data.as_mut_ptr().cast(),
            iov_len: data.len(),
        };
        let mut control = ControlBuffer::default();
        // SAFETY: msghdr is plain data; all zeroes is a valid value.
        let mut msg: libc::msghdr = unsafe { mem::zeroed() };
        msg.msg_iov = &raw mut iov;
        msg.msg_iovlen = 1;
        msg.msg_control = control.0.as_mut_ptr().cast();
        msg.msg_controllen = mem::size_of_val(&control.0) as _;
        let received = loop {
            // SAFETY: msg points to the buffers above, which outlive the call.
            let n = unsafe { libc::recvmsg(self.0.as_raw_fd(), &mut msg, libc::MSG_CMSG_CLOEXEC) };
            if n >= 0 {
                break n as usize;
            }
            let err = io::Error::last_os_error();
            match err.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::ConnectionReset => return Ok(None),
                _ => return Err(err),
            }
        };
        let mut fds = Vec::new();
        // SAFETY: the kernel filled msg_control; the CMSG_ macros walk it within its length, and
        // every descriptor in it is new and ours.
        unsafe {
            let mut header = libc::CMSG_FIRSTHDR(&msg);
            while !header.is_null() {
                if (*header).cmsg_level == libc::SOL_SOCKET
                    && (*header).cmsg_type == libc::SCM_RIGHTS
                {
                    let bytes = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                    let slots: *const RawFd = libc::CMSG_DATA(header).cast();
                    for i in 0..bytes / mem::size_of::<RawFd>() {
                        fds.push(OwnedFd::from_raw_fd(slots.add(i).read_unaligned()));
                    }
                }
                header = libc::CMSG_NXTHDR(&msg, header);
            }
        }
        if received == 0 {
            return Ok(None);
        }
        data.truncate(received);
        Ok(Some(Packet { data, fds }))
    }

    /// Wakes whoever waits in [`Socket::recv`], at both ends.
    pub(crate) fn shutdown(&self) {
        // SAFETY: no pointers are passed.
        unsafe { libc::shutdown(self.0.as_raw_fd(), libc::SHUT_RDWR) };
    }
}

/// Room for one `SCM_RIGHTS` header with [`MAX_FDS`] descriptors, aligned for `cmsghdr`.
#[derive(Default)]
struct ControlBuffer([u64; 16]);

// SPDX-License-Identifier: GPL-3.0-or-later
//! Where xenstored is reached, and the open connection to it.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

use super::Error;
use super::wire::{HEADER_LEN, PAYLOAD_MAX};

const SOCKETS: [&str; 2] = ["/run/xenstored/socket", "/var/run/xenstored/socket"];
const DEVICE: &str = "/dev/xen/xenbus";

/// Where xenstored is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// The daemon's Unix socket: in the domain that runs xenstored.
    Socket(PathBuf),
    /// The kernel's device, `/dev/xen/xenbus`: in any domain.
    Device(PathBuf),
}

impl Endpoint {
    /// The one that this host has: the socket in `/run` or `/var/run`, else the kernel's device,
    /// in the order of Xen's own library.
    ///
    /// # Errors
    /// [`Error::Unreachable`] when there is none.
    pub fn detect() -> Result<Endpoint, Error> {
        if let Some(socket) = SOCKETS.iter().find(|path| Path::new(path).exists()) {
            return Ok(Endpoint::Socket(socket.into()));
        }
        if Path::new(DEVICE).exists() {
            return Ok(Endpoint::Device(DEVICE.into()));
        }
        Err(Error::Unreachable {
            endpoint: format!("{}, {} or {DEVICE}", SOCKETS[0], SOCKETS[1]),
            source: Arc::new(io::ErrorKind::NotFound.into()),
        })
    }

    /// Bytes of payload in one request at most. The kernel's device assembles a request in a
    /// buffer of [`PAYLOAD_MAX`] bytes *with* its header (`struct xenbus_file_priv`).
    pub(super) fn payload_max(&self) -> usize {
        match self {
            Endpoint::Socket(_) => PAYLOAD_MAX,
            Endpoint::Device(_) => PAYLOAD_MAX - HEADER_LEN,
        }
    }

    pub(super) async fn open(&self) -> Result<Link, Error> {
        let link = match self {
            Endpoint::Socket(path) => UnixStream::connect(path).await.map(Link::Socket),
            Endpoint::Device(path) => open_device(path).map(Link::Device),
        };
        link.map_err(|error| Error::Unreachable {
            endpoint: self.to_string(),
            source: Arc::new(error),
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Socket(path) | Endpoint::Device(path) => path.display().fmt(f),
        }
    }
}

fn open_device(path: &Path) -> io::Result<AsyncFd<File>> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    // The device never polls writable, only readable.
    // SAFETY: the descriptor that a `File` gives is the same one, and open, for as long as the
    // `File` exists, which the `AsyncFd` owns.
    unsafe { AsyncFd::register_with_interest(file, Interest::READABLE) }.map_err(io::Error::from)
}

/// An open connection. Reads and writes may be cancelled at any await without losing bytes.
#[derive(Debug)]
pub(super) enum Link {
    Socket(UnixStream),
    Device(AsyncFd<File>),
}

impl Link {
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Link::Socket(stream) => loop {
                stream.readable().await?;
                match stream.try_read(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    done => return done,
                }
            },
            Link::Device(file) => {
                file.async_io(Interest::READABLE, |mut file| file.read(buffer))
                    .await
            }
        }
    }

    /// Writes some of `bytes`, which start with the rest of one message. To the device whole
    /// messages must be given: it takes each with one write.
    pub(super) async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Link::Socket(stream) => loop {
                stream.writable().await?;
                match stream.try_write(bytes) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    done => return done,
                }
            },
            // Not through the reactor: the device has no notion of writable. The write waits in
            // the kernel, for a watch as long as xenstored takes to answer.
            Link::Device(file) => file.get_ref().write(bytes),
        }
    }

    /// Whether a failed write concerns only the message written. The kernel's device refuses
    /// requests that way; on a socket it is the end of the connection.
    pub(super) fn refuses_by_write(&self) -> bool {
        matches!(self, Link::Device(_))
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! What can go wrong with the devices.

use std::io;
use std::path::PathBuf;

/// A failure of this host: of the device, not of a single grant.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device is not there.
    #[error(
        "{} is missing: run 'modprobe {module}' in a domain of Xen that has this module",
        path.display()
    )]
    NoDevice {
        /// The device.
        path: PathBuf,
        /// The kernel module that brings it.
        module: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The device is there, but cannot be opened.
    #[error("cannot open {}: it takes root", path.display())]
    Open {
        /// The device.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A call to the device failed.
    #[error("{call} failed")]
    Call {
        /// The ioctl, or mmap.
        call: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Xen refused at least one of the grants that were to be mapped. Which one and why, the
    /// kernel does not tell.
    #[error("a grant was refused, so none of this mapping's is mapped")]
    MapRefused {
        /// What the system said.
        source: io::Error,
    },
    /// None, or more than the device can count.
    #[error("{count} pages in one request")]
    PageCount {
        /// Pages asked for.
        count: usize,
    },
    /// The byte or page is outside the mapping.
    #[error("offset {offset} is outside a mapping of {len_bytes} bytes")]
    OutOfRange {
        /// Bytes from the start of the mapping.
        offset: usize,
        /// Bytes in the mapping.
        len_bytes: usize,
    },
}

impl Error {
    /// What the system said, where it said something.
    pub fn io_error(&self) -> Option<&io::Error> {
        match self {
            Error::NoDevice { source, .. }
            | Error::Open { source, .. }
            | Error::Call { source, .. }
            | Error::MapRefused { source } => Some(source),
            Error::PageCount { .. } | Error::OutOfRange { .. } => None,
        }
    }
}

impl From<Error> for io::Error {
    /// Keeps the kind, and the error itself as the source.
    fn from(error: Error) -> io::Error {
        let kind = error
            .io_error()
            .map_or(io::ErrorKind::InvalidInput, io::Error::kind);
        io::Error::new(kind, error)
    }
}

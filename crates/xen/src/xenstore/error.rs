// SPDX-License-Identifier: GPL-3.0-or-later
//! What can go wrong with a request.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::wire::MessageType;

/// The error names that xenstored sends, as listed in `io/xs_wire.h`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Errno {
    /// `ENOENT`: no such node, watch or transaction.
    NotFound,
    /// `EACCES`: the node's permissions forbid it.
    AccessDenied,
    /// `EAGAIN`: a transaction met a conflicting write; do it again from the start.
    Again,
    /// `EINVAL`: malformed path or argument.
    Invalid,
    /// `EEXIST`: the watch is set already.
    Exists,
    /// `ENOMEM`: the daemon, or the kernel's device, is out of memory.
    NoMemory,
    /// `ENOSPC`: a quota of this domain is used up.
    NoSpace,
    /// `E2BIG`: longer than the daemon allows, or a quota of this domain is used up.
    TooBig,
    /// `EBUSY`: another transaction is in the way.
    Busy,
    /// `EIO`
    Io,
    /// `ENOSYS`: the daemon does not know this request.
    NotSupported,
    /// `EROFS`
    ReadOnly,
    /// `EISDIR`
    IsDirectory,
    /// `ENOTEMPTY`
    NotEmpty,
    /// `EISCONN`: the domain is introduced already.
    Connected,
    /// Any other name, as the daemon sent it; with `/dev/xen/xenbus` also `errno N`, where the
    /// kernel refused the request by itself.
    Other(Box<str>),
}

const NAMES: [(Errno, &str); 15] = [
    (Errno::NotFound, "ENOENT"),
    (Errno::AccessDenied, "EACCES"),
    (Errno::Again, "EAGAIN"),
    (Errno::Invalid, "EINVAL"),
    (Errno::Exists, "EEXIST"),
    (Errno::NoMemory, "ENOMEM"),
    (Errno::NoSpace, "ENOSPC"),
    (Errno::TooBig, "E2BIG"),
    (Errno::Busy, "EBUSY"),
    (Errno::Io, "EIO"),
    (Errno::NotSupported, "ENOSYS"),
    (Errno::ReadOnly, "EROFS"),
    (Errno::IsDirectory, "EISDIR"),
    (Errno::NotEmpty, "ENOTEMPTY"),
    (Errno::Connected, "EISCONN"),
];

impl Errno {
    /// The error with this name.
    pub fn from_name(name: &str) -> Errno {
        NAMES
            .iter()
            .find(|(_, known)| *known == name)
            .map_or_else(|| Errno::Other(name.into()), |(errno, _)| errno.clone())
    }

    /// The name as it goes over the wire.
    pub fn name(&self) -> &str {
        match self {
            Errno::Other(name) => name,
            known => NAMES
                .iter()
                .find(|(errno, _)| errno == known)
                .map_or("EINVAL", |(_, name)| name),
        }
    }

    /// What the kernel's device said to a write.
    pub(super) fn from_io(error: &io::Error) -> Errno {
        match error.raw_os_error() {
            Some(libc::ENOENT) => Errno::NotFound,
            Some(libc::EACCES) => Errno::AccessDenied,
            Some(libc::EAGAIN) => Errno::Again,
            Some(libc::EINVAL) => Errno::Invalid,
            Some(libc::EEXIST) => Errno::Exists,
            Some(libc::ENOMEM) => Errno::NoMemory,
            Some(libc::ENOSPC) => Errno::NoSpace,
            Some(libc::E2BIG) => Errno::TooBig,
            Some(libc::EBUSY) => Errno::Busy,
            Some(libc::EIO) => Errno::Io,
            Some(other) => Errno::Other(format!("errno {other}").into()),
            None => Errno::Io,
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a request of xenstore failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// xenstored refused the request.
    #[error("xenstore {request:?} of '{subject}': {errno}")]
    Refused {
        /// What was asked.
        request: MessageType,
        /// The path, or the domain, that it was about; empty where there is none.
        subject: Box<str>,
        /// The reason.
        errno: Errno,
    },
    /// The connection to xenstored broke. Whether the request took effect is unknown. A
    /// transaction that was open is gone.
    #[error("the connection to xenstored was lost")]
    ConnectionLost,
    /// xenstored could not be reached in the first place.
    #[error("cannot connect to xenstored at {endpoint}: is xenstored running?")]
    Unreachable {
        /// Where it was looked for.
        endpoint: String,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The path cannot be one of xenstore's.
    #[error("bad xenstore path '{path}': {reason}")]
    BadPath {
        /// The path, cut after 64 bytes.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A nul byte where the protocol has no room for one.
    #[error("a xenstore token must not hold a nul byte")]
    BadToken,
    /// The request does not fit into a message.
    #[error("a xenstore request of {len_bytes} bytes: at most {max_bytes} are allowed")]
    TooLong {
        /// Bytes of payload that it would have had.
        len_bytes: usize,
        /// Bytes allowed.
        max_bytes: usize,
    },
    /// The value is not UTF-8.
    #[error("the value of '{path}' is not text")]
    NotText {
        /// The node.
        path: Box<str>,
    },
    /// The transaction was committed or aborted already.
    #[error("the xenstore transaction has ended already")]
    TransactionEnded,
    /// xenstored's answer is not one that the protocol allows.
    #[error("xenstored broke the protocol: {0}")]
    Protocol(&'static str),
}

impl Error {
    /// The daemon's reason, where it was the daemon that refused.
    pub fn errno(&self) -> Option<&Errno> {
        match self {
            Error::Refused { errno, .. } => Some(errno),
            _ => None,
        }
    }

    /// Whether the node does not exist (`ENOENT`).
    pub fn is_not_found(&self) -> bool {
        self.errno() == Some(&Errno::NotFound)
    }
}

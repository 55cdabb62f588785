// SPDX-License-Identifier: GPL-3.0-or-later
//! The messages on `hypervisor.sock`: hypercalls, for processes.
//!
//! One request, one response, each a JSON document in one packet with its descriptors beside it.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::seqpacket::Socket;

/// Why a domain does not run any more (`SHUTDOWN_*` of Xen's `sched.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShutdownReason {
    /// The guest powered itself off.
    Poweroff,
    /// The guest wants to be started again.
    Reboot,
    /// The guest is suspended: it can be resumed here, or elsewhere from its memory.
    Suspend,
    /// The guest's process died.
    Crash,
}

/// A domain as the hypervisor knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainInfo {
    /// Its number.
    pub domid: u16,
    /// The VM's uuid, which stays the same across migrations.
    pub uuid: String,
    /// Pages of memory.
    pub pages: usize,
    /// Paused by the toolstack.
    pub paused: bool,
    /// Set once the domain has shut down.
    pub shutdown: Option<ShutdownReason>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    // The toolstack.
    CreateDomain {
        uuid: String,
        pages: usize,
    },
    PauseDomain {
        domid: u16,
    },
    UnpauseDomain {
        domid: u16,
    },
    ResumeDomain {
        domid: u16,
    },
    DestroyDomain {
        domid: u16,
        /// Whether every backend was asked to close, and has.
        closed: bool,
    },
    DomainInfo {
        domid: u16,
    },
    ListDomains,
    /// Gives the memory.
    DomainMemory {
        domid: u16,
    },
    /// Gives the vcpu: the socket of the guest's process.
    GetContext {
        domid: u16,
    },
    /// Takes a vcpu.
    SetContext {
        domid: u16,
    },
    Violations,
    Shutdown,
    // A guest.
    Attach {
        domid: u16,
    },
    Suspend,
    GuestShutdown {
        reason: ShutdownReason,
    },
    AllocUnbound {
        remote: u16,
    },
    RegisterRing {
        frame: u32,
        ring: bool,
    },
    // A backend.
    Hello,
    GrantTable {
        domid: u16,
    },
    BindInterdomain {
        domid: u16,
        port: u32,
    },
    // Guest or backend.
    ClosePort {
        port: u32,
    },
    Violation {
        text: String,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Response {
    Ok,
    /// An errno.
    Error(i32),
    Domid(u16),
    Info(DomainInfo),
    Domains(Vec<DomainInfo>),
    /// With the memory.
    Memory {
        pages: usize,
    },
    /// With the vcpu's socket.
    Context,
    Violations {
        list: Vec<String>,
        truncated: usize,
    },
    /// The guest runs, first or again. With its memory and its grant table, unless `cancelled`.
    Running {
        domid: u16,
        pages: usize,
        dir: PathBuf,
        cancelled: bool,
    },
    /// With the track record of the new connection.
    Hello {
        connection: u32,
    },
    /// With memory, grant table and active table.
    Grants {
        pages: usize,
    },
    /// With the descriptor that this end polls and the one that it writes to.
    Port {
        port: u32,
    },
}

fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    serde_json::to_vec(message).expect("these types always serialize")
}

pub(crate) fn decode<'a, T: Deserialize<'a>>(data: &'a [u8]) -> io::Result<T> {
    serde_json::from_slice(data).map_err(io::Error::from)
}

/// Sends a response.
pub(crate) fn respond(
    socket: &Socket,
    response: &Response,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    socket.send(&encode(response), fds)
}

/// Sends a request that is not answered.
pub(crate) fn send(socket: &Socket, request: &Request) -> io::Result<()> {
    socket.send(&encode(request), &[])
}

/// Sends a request and waits for its response. An error response becomes an [`io::Error`].
pub(crate) fn call(
    socket: &Socket,
    request: &Request,
    fds: &[BorrowedFd<'_>],
) -> io::Result<(Response, Vec<OwnedFd>)> {
    socket.send(&encode(request), fds)?;
    let packet = socket.recv()?.ok_or(io::ErrorKind::ConnectionAborted)?;
    match decode(&packet.data)? {
        Response::Error(errno) => Err(io::Error::from_raw_os_error(errno)),
        response => Ok((response, packet.fds)),
    }
}

/// The error for a response of the wrong kind.
pub(crate) fn unexpected(response: &Response) -> io::Error {
    io::Error::other(format!("unexpected response {response:?}"))
}

/// Exactly `N` descriptors.
pub(crate) fn expect_fds<const N: usize>(fds: Vec<OwnedFd>) -> io::Result<[OwnedFd; N]> {
    fds.try_into()
        .map_err(|fds: Vec<OwnedFd>| io::Error::other(format!("{} descriptors", fds.len())))
}

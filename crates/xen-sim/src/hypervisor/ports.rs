// SPDX-License-Identifier: GPL-3.0-or-later
//! Event-channel ports.
//!
//! A channel is two eventfds, one for each direction. They are made with the guest's unbound port
//! and stay with it, so that a second backend can bind after the first one died. Writing to an
//! eventfd that is already readable changes nothing that its reader can see: events coalesce, and
//! the port is masked until the event is taken.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use xen::DomId;

use crate::grant_table::Locker;

/// Ports 1 and 2 are xenstore's and the console's, allocated by the toolstack.
const FIRST_GUEST_PORT: u32 = 3;
const FIRST_DOM0_PORT: u32 = 1;
/// Ports of one domain (`DEFAULT_MAX_EVTCHN_PORTS` of `xl`).
const MOST_PORTS: u32 = 1023;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PortState {
    Unbound { remote: DomId },
    Interdomain { remote: DomId, port: u32 },
}

/// One end.
#[derive(Clone, Debug)]
pub(super) struct Port {
    pub(super) state: PortState,
    /// Readable when this end has an event.
    pub(super) fires: Arc<OwnedFd>,
    /// Written to signal the other end.
    pub(super) signals: Arc<OwnedFd>,
    /// The backend connection that bound it; 0 for a guest.
    pub(super) owner: Locker,
}

/// All ports of a host.
#[derive(Debug, Default)]
pub(super) struct Ports(BTreeMap<(DomId, u32), Port>);

impl Ports {
    fn free_port(&self, dom: DomId, from: u32) -> Result<u32, i32> {
        (from..=MOST_PORTS)
            .find(|port| !self.0.contains_key(&(dom, *port)))
            .ok_or(libc::ENOSPC)
    }

    /// `EVTCHNOP_alloc_unbound`.
    pub(super) fn alloc_unbound(&mut self, dom: DomId, remote: DomId) -> Result<(u32, Port), i32> {
        let number = self.free_port(dom, FIRST_GUEST_PORT)?;
        let errno = |err: io::Error| err.raw_os_error().unwrap_or(libc::EIO);
        let port = Port {
            state: PortState::Unbound { remote },
            fires: Arc::new(eventfd().map_err(errno)?),
            signals: Arc::new(eventfd().map_err(errno)?),
            owner: 0,
        };
        self.0.insert((dom, number), port.clone());
        Ok((number, port))
    }

    /// `EVTCHNOP_bind_interdomain`, by a backend in dom0.
    pub(super) fn bind_interdomain(
        &mut self,
        owner: Locker,
        remote: DomId,
        remote_port: u32,
    ) -> Result<(u32, Port), i32> {
        let number = self.free_port(DomId(0), FIRST_DOM0_PORT)?;
        let other = self.0.get_mut(&(remote, remote_port)).ok_or(libc::EINVAL)?;
        if other.state != (PortState::Unbound { remote: DomId(0) }) {
            return Err(libc::EINVAL);
        }
        other.state = PortState::Interdomain {
            remote: DomId(0),
            port: number,
        };
        let port = Port {
            state: PortState::Interdomain {
                remote,
                port: remote_port,
            },
            fires: other.signals.clone(),
            signals: other.fires.clone(),
            owner,
        };
        // What the guest signalled before is lost on Xen; the pending event that a new binding
        // starts with stands for it.
        take(&port.fires);
        fire(&port.fires);
        self.0.insert((DomId(0), number), port.clone());
        Ok((number, port))
    }

    /// `EVTCHNOP_close`. The other end becomes unbound and can be bound again.
    pub(super) fn close(&mut self, dom: DomId, number: u32) -> Result<(), i32> {
        let port = self.0.remove(&(dom, number)).ok_or(libc::EINVAL)?;
        if let PortState::Interdomain { remote, port } = port.state
            && let Some(other) = self.0.get_mut(&(remote, port))
        {
            other.state = PortState::Unbound { remote: dom };
        }
        Ok(())
    }

    pub(super) fn get(&self, dom: DomId, number: u32) -> Option<&Port> {
        self.0.get(&(dom, number))
    }

    /// Closes what a dead backend left.
    pub(super) fn close_owned_by(&mut self, owner: Locker) {
        let left: Vec<_> = self
            .0
            .iter()
            .filter(|(_, port)| port.owner == owner)
            .map(|(key, _)| *key)
            .collect();
        for (dom, number) in left {
            let _ = self.close(dom, number);
        }
    }

    /// Closes the ports of a domain that ends. Gives those that dom0 had bound, as
    /// (domain's port, dom0's port).
    pub(super) fn close_domain(&mut self, dom: DomId) -> Vec<(u32, u32)> {
        let numbers: Vec<u32> = self
            .0
            .range((dom, 0)..=(dom, u32::MAX))
            .map(|((_, number), _)| *number)
            .collect();
        let mut bound = Vec::new();
        for number in numbers {
            if let Some(Port {
                state: PortState::Interdomain { port, .. },
                ..
            }) = self.0.get(&(dom, number))
            {
                bound.push((number, *port));
            }
            let _ = self.close(dom, number);
        }
        bound
    }

    /// Fires one bound port without a reason: the `choice`th, counting round.
    pub(super) fn fire_spurious(&self, choice: u64) {
        let bound: Vec<&Port> = self
            .0
            .values()
            .filter(|port| matches!(port.state, PortState::Interdomain { .. }))
            .collect();
        if !bound.is_empty() {
            fire(&bound[(choice % bound.len() as u64) as usize].fires);
        }
    }
}

fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes an eventfd readable.
pub(crate) fn fire(fd: &OwnedFd) {
    let one = 1u64.to_ne_bytes();
    // A full counter (EAGAIN) is as readable as can be; nothing else can fail.
    // SAFETY: eight readable bytes.
    unsafe { libc::write(fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
}

/// Makes an eventfd unreadable. True when it was readable.
pub(crate) fn take(fd: &OwnedFd) -> bool {
    let mut count = [0u8; 8];
    // SAFETY: eight writable bytes.
    unsafe { libc::read(fd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) == 8 }
}

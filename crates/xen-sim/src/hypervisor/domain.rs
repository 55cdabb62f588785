// SPDX-License-Identifier: GPL-3.0-or-later
//! The life of a domain.
//!
//! A guest's process is the domain's only virtual processor; its socket is what Xen saves as the
//! vcpu context. While the domain runs, a thread here answers the socket. When the guest suspends
//! nobody answers any more, and its process waits, until the domain is resumed here (the suspend
//! was cancelled) or the toolstack has given the socket to a new domain, on this host or another.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use xen::{DomId, PAGE_SIZE};

use super::{Hypervisor, Machine};
use crate::grant_table::{ActiveTable, DomainView, GrantTable, HOST_LOCKER};
use crate::seqpacket::Socket;
use crate::shm;
use crate::wire::{DomainInfo, Response, ShutdownReason};

/// Most pages of a domain: 1 GiB.
const MOST_PAGES: usize = 1 << 18;

#[derive(Debug)]
pub(super) struct Domain {
    uuid: String,
    grants: OwnedFd,
    active: OwnedFd,
    pub(super) view: Arc<DomainView>,
    pub(super) paused: bool,
    pub(super) shutdown: Option<ShutdownReason>,
    vcpu: Option<Vcpu>,
}

#[derive(Debug)]
struct Vcpu {
    socket: Arc<Socket>,
    state: VcpuState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum VcpuState {
    /// Will be told that it runs, once the domain is not paused.
    Waiting {
        cancelled: bool,
    },
    Running,
    /// Has shut down.
    Stopped,
}

impl Domain {
    /// Ends the guest's process, if it runs here. A suspended one may have gone elsewhere.
    pub(super) fn power_off(&mut self) {
        if let Some(vcpu) = self.vcpu.take()
            && vcpu.state == VcpuState::Running
        {
            vcpu.socket.shutdown();
        }
    }

    fn info(&self, domid: DomId) -> DomainInfo {
        DomainInfo {
            domid: domid.0,
            uuid: self.uuid.clone(),
            pages: self.view.pages,
            paused: self.paused,
            shutdown: self.shutdown,
        }
    }

    /// What the guest is told when it runs, with its memory and grant table.
    pub(super) fn running_message(
        &self,
        hypervisor: &Hypervisor,
        cancelled: bool,
    ) -> (Response, [BorrowedFd<'_>; 2]) {
        let message = Response::Running {
            domid: self.view.domid.0,
            pages: self.view.pages,
            dir: hypervisor.dir.clone(),
            cancelled,
        };
        (message, [self.view.memory_fd.as_fd(), self.grants.as_fd()])
    }

    pub(super) fn descriptors(&self) -> [BorrowedFd<'_>; 3] {
        [
            self.view.memory_fd.as_fd(),
            self.grants.as_fd(),
            self.active.as_fd(),
        ]
    }
}

impl Machine {
    pub(super) fn domain(&mut self, domid: u16) -> Result<&mut Domain, i32> {
        self.domains.get_mut(&DomId(domid)).ok_or(libc::ESRCH)
    }
}

impl Hypervisor {
    pub(super) fn create_domain(&self, uuid: String, pages: usize) -> Result<Response, i32> {
        if pages == 0 || pages > MOST_PAGES {
            return Err(libc::EINVAL);
        }
        let mut machine = self.machine();
        let domid = DomId(machine.next_domid);
        let build = || {
            let memory = shm::memfd(c"xen-sim-memory", pages * PAGE_SIZE)?;
            let grants = GrantTable::create()?;
            let active = ActiveTable::create(pages)?;
            let view = DomainView::new(domid, pages, memory, &grants, &active)?;
            Ok(Domain {
                uuid,
                grants,
                active,
                view: Arc::new(view),
                paused: true,
                shutdown: None,
                vcpu: None,
            })
        };
        let domain =
            build().map_err(|err: std::io::Error| err.raw_os_error().unwrap_or(libc::ENOMEM))?;
        // Like Xen, a number is not used again soon.
        machine.next_domid += 1;
        machine.domains.insert(domid, domain);
        Ok(Response::Domid(domid.0))
    }

    pub(super) fn domain_info(&self, domid: u16) -> Result<Response, i32> {
        let mut machine = self.machine();
        Ok(Response::Info(machine.domain(domid)?.info(DomId(domid))))
    }

    pub(super) fn list_domains(&self) -> Response {
        let machine = self.machine();
        let list = machine
            .domains
            .iter()
            .map(|(domid, domain)| domain.info(*domid));
        Response::Domains(list.collect())
    }

    pub(super) fn pause(&self, domid: u16) -> Result<Response, i32> {
        self.machine().domain(domid)?.paused = true;
        Ok(Response::Ok)
    }

    pub(super) fn unpause(self: &Arc<Self>, domid: u16) -> Result<Response, i32> {
        let mut machine = self.machine();
        machine.domain(domid)?.paused = false;
        self.start_vcpu(&mut machine, domid)?;
        self.changed.notify_all();
        Ok(Response::Ok)
    }

    /// Resumes a suspended domain where it is: the suspend was cancelled.
    pub(super) fn resume(self: &Arc<Self>, domid: u16) -> Result<Response, i32> {
        let mut machine = self.machine();
        let domain = machine.domain(domid)?;
        if domain.shutdown != Some(ShutdownReason::Suspend) {
            return Err(libc::EINVAL);
        }
        domain.shutdown = None;
        if let Some(vcpu) = &mut domain.vcpu {
            vcpu.state = VcpuState::Waiting { cancelled: true };
        }
        self.start_vcpu(&mut machine, domid)?;
        Ok(Response::Ok)
    }

    /// Ends a domain, and checks what it leaves behind. Backends that were not asked to close may let go of it
    /// later; whether they do is [looked at](Self::check_zombies) when the host ends.
    pub(super) fn destroy(&self, domid: u16, closed: bool) -> Result<Response, i32> {
        let mut machine = self.machine();
        let mut domain = machine.domains.remove(&DomId(domid)).ok_or(libc::ESRCH)?;
        domain.power_off();
        let bound = machine.ports.close_domain(DomId(domid));
        // From here on a backend that dies with the table's lock is recovered as a zombie's user.
        machine.zombies.push(domain.view.clone());
        drop(machine);
        // Under the lock: a mapping that is being made is either complete or refused.
        let table = domain.view.lock(HOST_LOCKER);
        domain.view.set_dying();
        drop(table);
        let mapped = domain.view.in_use();
        if closed && !mapped.is_empty() {
            self.violations.report(format!(
                "domain {domid} ended with {} grants still mapped: {}",
                mapped.len(),
                mapped
                    .iter()
                    .take(8)
                    .map(|gref| gref.to_string())
                    .collect::<Vec<_>>()
                    .join(" ")
            ));
        }
        for (theirs, ours) in bound.into_iter().filter(|_| closed) {
            self.violations.report(format!(
                "domain {domid} ended with its event channel {theirs} bound to port {ours} of domain 0"
            ));
        }
        self.prune_zombies();
        self.changed.notify_all();
        let _ = self.exception.send(());
        Ok(Response::Ok)
    }

    /// A guest's process takes the place of the domain's vcpu.
    pub(super) fn attach(
        self: &Arc<Self>,
        domid: u16,
        socket: Socket,
    ) -> Result<(), (Socket, i32)> {
        let mut machine = self.machine();
        let Ok(domain) = machine.domain(domid) else {
            return Err((socket, libc::ESRCH));
        };
        if domain.vcpu.is_some() || domain.shutdown.is_some() {
            return Err((socket, libc::EBUSY));
        }
        domain.vcpu = Some(Vcpu {
            socket: Arc::new(socket),
            state: VcpuState::Waiting { cancelled: false },
        });
        // The domain was looked up above.
        let _ = self.start_vcpu(&mut machine, domid);
        Ok(())
    }

    pub(super) fn context(&self, domid: u16) -> Result<OwnedFd, i32> {
        let mut machine = self.machine();
        let domain = machine.domain(domid)?;
        if domain.shutdown != Some(ShutdownReason::Suspend) {
            return Err(libc::EINVAL);
        }
        let vcpu = domain.vcpu.as_ref().ok_or(libc::EINVAL)?;
        vcpu.socket
            .as_fd()
            .try_clone_to_owned()
            .map_err(|_| libc::EMFILE)
    }

    pub(super) fn set_context(&self, domid: u16, context: OwnedFd) -> Result<Response, i32> {
        let mut machine = self.machine();
        let domain = machine.domain(domid)?;
        if domain.vcpu.is_some() || !domain.paused {
            return Err(libc::EBUSY);
        }
        domain.vcpu = Some(Vcpu {
            socket: Arc::new(Socket::from_fd(context)),
            state: VcpuState::Waiting { cancelled: false },
        });
        Ok(Response::Ok)
    }

    /// Lets the guest go on, if it waits for that and the domain is not paused.
    fn start_vcpu(self: &Arc<Self>, machine: &mut Machine, domid: u16) -> Result<(), i32> {
        let domain = machine.domain(domid)?;
        if domain.paused || domain.shutdown.is_some() {
            return Ok(());
        }
        let Some(vcpu) = &mut domain.vcpu else {
            return Ok(());
        };
        let VcpuState::Waiting { cancelled } = vcpu.state else {
            return Ok(());
        };
        vcpu.state = VcpuState::Running;
        let socket = vcpu.socket.clone();
        let hypervisor = self.clone();
        std::thread::Builder::new()
            .name(format!("vcpu-{domid}"))
            .spawn(move || hypervisor.run_vcpu(domid, &socket, cancelled))
            .map_err(|_| libc::EAGAIN)?;
        Ok(())
    }

    /// The domain has shut down: by request of its guest, or because its process died.
    pub(super) fn shut_down(&self, domid: u16, reason: ShutdownReason) {
        let mut machine = self.machine();
        if let Ok(domain) = machine.domain(domid) {
            domain.shutdown = Some(reason);
            if let Some(vcpu) = &mut domain.vcpu {
                vcpu.state = VcpuState::Stopped;
            }
        }
        drop(machine);
        let _ = self.exception.send(());
    }

    /// Waits while the domain is paused. False when it is gone.
    pub(super) fn wait_unpaused(&self, domid: u16) -> bool {
        let mut machine = self.machine();
        loop {
            match machine.domain(domid) {
                Err(_) => return false,
                Ok(domain) if !domain.paused => return true,
                Ok(_) => machine = self.changed.wait(machine).expect("no holder panics"),
            }
        }
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! Answers `hypervisor.sock`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use xen::DomId;

use super::Hypervisor;
use crate::grant_table::Locker;
use crate::seqpacket::{Listener, Packet, Socket};
use crate::wire::{self, Request, Response, ShutdownReason};

/// Violations in one answer.
const VIOLATIONS_SHOWN: usize = 100;

/// Accepts connections until the listener is shut down.
pub(crate) fn serve(hypervisor: &Arc<Hypervisor>, listener: &Listener) {
    while let Ok(socket) = listener.accept() {
        let hypervisor = hypervisor.clone();
        let spawned = std::thread::Builder::new()
            .name("hypercalls".into())
            .spawn(move || Connection::new(hypervisor).run(socket));
        if let Err(err) = spawned {
            eprintln!("xen-sim: cannot start a thread: {err}");
        }
    }
}

/// A connection of the toolstack or of a backend; one of a guest's process becomes a vcpu.
struct Connection {
    hypervisor: Arc<Hypervisor>,
    backend: Option<Locker>,
}

impl Connection {
    fn new(hypervisor: Arc<Hypervisor>) -> Connection {
        Connection {
            hypervisor,
            backend: None,
        }
    }

    fn run(mut self, socket: Socket) {
        while let Ok(Some(packet)) = socket.recv() {
            let Ok(request) = wire::decode::<Request>(&packet.data) else {
                break;
            };
            if let Request::Attach { domid } = request {
                if let Err((socket, errno)) = self.hypervisor.attach(domid, socket) {
                    let _ = wire::respond(&socket, &Response::Error(errno), &[]);
                }
                return;
            }
            if self.answer(&socket, request, packet).is_err() {
                break;
            }
        }
        if let Some(backend) = self.backend {
            self.hypervisor.remove_backend(backend);
        }
    }

    fn answer(&mut self, socket: &Socket, request: Request, packet: Packet) -> io::Result<()> {
        let hypervisor = &self.hypervisor;
        let reply = match request {
            Request::CreateDomain { uuid, pages } => hypervisor.create_domain(uuid, pages),
            Request::PauseDomain { domid } => hypervisor.pause(domid),
            Request::UnpauseDomain { domid } => hypervisor.unpause(domid),
            Request::ResumeDomain { domid } => hypervisor.resume(domid),
            Request::DestroyDomain { domid, closed } => hypervisor.destroy(domid, closed),
            Request::DomainInfo { domid } => hypervisor.domain_info(domid),
            Request::ListDomains => Ok(hypervisor.list_domains()),
            Request::DomainMemory { domid } => return self.send_memory(socket, domid),
            Request::GetContext { domid } => match hypervisor.context(domid) {
                Ok(fd) => return wire::respond(socket, &Response::Context, &[fd.as_fd()]),
                Err(errno) => Err(errno),
            },
            Request::SetContext { domid } => match wire::expect_fds::<1>(packet.fds) {
                Ok([fd]) => hypervisor.set_context(domid, fd),
                Err(_) => Err(libc::EINVAL),
            },
            Request::Violations => {
                let mut list = hypervisor.violations.list();
                let truncated = list.len().saturating_sub(VIOLATIONS_SHOWN);
                list.truncate(VIOLATIONS_SHOWN);
                Ok(Response::Violations { list, truncated })
            }
            Request::Shutdown => {
                // First the answer: the process ends at once.
                let answered = wire::respond(socket, &Response::Ok, &[]);
                hypervisor.request_stop();
                return answered;
            }
            Request::Hello => return self.hello(socket),
            Request::GrantTable { domid } => return self.send_grants(socket, domid),
            Request::BindInterdomain { domid, port } => {
                return self.bind_interdomain(socket, domid, port);
            }
            Request::ClosePort { port } => self.close_port(port),
            Request::Violation { text } => {
                hypervisor.violations.report(text);
                Ok(Response::Ok)
            }
            Request::Attach { .. }
            | Request::Suspend
            | Request::GuestShutdown { .. }
            | Request::AllocUnbound { .. }
            | Request::RegisterRing { .. } => Err(libc::EPERM),
        };
        wire::respond(socket, &reply.unwrap_or_else(Response::Error), &[])
    }

    fn hello(&mut self, socket: &Socket) -> io::Result<()> {
        if self.backend.is_some() {
            return wire::respond(socket, &Response::Error(libc::EBUSY), &[]);
        }
        let (connection, maptrack) = self.hypervisor.add_backend(socket.peer_pid()?)?;
        self.backend = Some(connection);
        wire::respond(socket, &Response::Hello { connection }, &[maptrack.as_fd()])
    }

    fn send_memory(&self, socket: &Socket, domid: u16) -> io::Result<()> {
        let mut machine = self.hypervisor.machine();
        match machine.domain(domid) {
            Ok(domain) => {
                let memory = Response::Memory {
                    pages: domain.view.pages,
                };
                wire::respond(socket, &memory, &[domain.view.memory_fd.as_fd()])
            }
            Err(errno) => wire::respond(socket, &Response::Error(errno), &[]),
        }
    }

    fn send_grants(&self, socket: &Socket, domid: u16) -> io::Result<()> {
        let mut machine = self.hypervisor.machine();
        match machine.domain(domid) {
            Ok(domain) => {
                let grants = Response::Grants {
                    pages: domain.view.pages,
                };
                wire::respond(socket, &grants, &domain.descriptors())
            }
            Err(errno) => wire::respond(socket, &Response::Error(errno), &[]),
        }
    }

    fn bind_interdomain(&self, socket: &Socket, domid: u16, port: u32) -> io::Result<()> {
        let Some(backend) = self.backend else {
            return wire::respond(socket, &Response::Error(libc::EPERM), &[]);
        };
        let mut machine = self.hypervisor.machine();
        let bound = machine
            .domain(domid)
            .map(|_| ())
            .and_then(|()| machine.ports.bind_interdomain(backend, DomId(domid), port));
        match bound {
            Ok((port, ends)) => wire::respond(
                socket,
                &Response::Port { port },
                &[ends.fires.as_fd(), ends.signals.as_fd()],
            ),
            Err(errno) => wire::respond(socket, &Response::Error(errno), &[]),
        }
    }

    fn close_port(&self, port: u32) -> Result<Response, i32> {
        let mut machine = self.hypervisor.machine();
        match machine.ports.get(DomId(0), port) {
            Some(end) if Some(end.owner) == self.backend => {
                machine.ports.close(DomId(0), port)?;
                Ok(Response::Ok)
            }
            _ => Err(libc::EINVAL),
        }
    }
}

impl Hypervisor {
    /// Serves a guest's process until it shuts down, is destroyed or dies.
    pub(super) fn run_vcpu(&self, domid: u16, socket: &Socket, cancelled: bool) {
        if self.tell_running(domid, socket, cancelled).is_err() {
            self.shut_down(domid, ShutdownReason::Crash);
            return;
        }
        loop {
            let Ok(Some(packet)) = socket.recv() else {
                self.shut_down(domid, ShutdownReason::Crash);
                return;
            };
            if !self.wait_unpaused(domid) {
                return;
            }
            let request = match wire::decode::<Request>(&packet.data) {
                // No answer: the guest waits for it, and gets it where it is resumed.
                Ok(Request::Suspend) => return self.shut_down(domid, ShutdownReason::Suspend),
                Ok(Request::GuestShutdown { reason }) => return self.shut_down(domid, reason),
                Ok(request) => request,
                Err(_) => return self.shut_down(domid, ShutdownReason::Crash),
            };
            let (response, fds) = match self.hypercall(domid, request) {
                Ok(done) => done,
                Err(errno) => (Response::Error(errno), Vec::new()),
            };
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
            if wire::respond(socket, &response, &fds).is_err() {
                return self.shut_down(domid, ShutdownReason::Crash);
            }
        }
    }

    fn tell_running(&self, domid: u16, socket: &Socket, cancelled: bool) -> io::Result<()> {
        let mut machine = self.machine();
        let domain = machine
            .domain(domid)
            .map_err(io::Error::from_raw_os_error)?;
        let (message, fds) = domain.running_message(self, cancelled);
        wire::respond(socket, &message, if cancelled { &[] } else { &fds })
    }

    fn hypercall(
        &self,
        domid: u16,
        request: Request,
    ) -> Result<(Response, Vec<Arc<OwnedFd>>), i32> {
        let mut machine = self.machine();
        match request {
            Request::AllocUnbound { remote } => {
                let (port, ends) = machine.ports.alloc_unbound(DomId(domid), DomId(remote))?;
                Ok((Response::Port { port }, vec![ends.fires, ends.signals]))
            }
            Request::ClosePort { port } => {
                machine.ports.close(DomId(domid), port)?;
                Ok((Response::Ok, Vec::new()))
            }
            Request::RegisterRing { frame, ring } => {
                let view = &machine.domain(domid)?.view;
                if frame as usize >= view.pages {
                    return Err(libc::EINVAL);
                }
                view.active.mark_ring(frame, ring);
                Ok((Response::Ok, Vec::new()))
            }
            Request::Violation { text } => {
                self.violations.report(text);
                Ok((Response::Ok, Vec::new()))
            }
            _ => Err(libc::EPERM),
        }
    }
}

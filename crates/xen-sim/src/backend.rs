// SPDX-License-Identifier: GPL-3.0-or-later
//! Xen for a backend's process in dom0.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use xen::{
    Access, Backend, CopyBuffer, CopyOp, CopyStatus, DomId, EventChannel, EvtchnPort, GrantError,
    GrantRef, Mapping, PAGE_SIZE,
};

use crate::channel::Ends;
use crate::grant_table::{DomainView, Locker, status};
use crate::maptrack::{FreeSlots, Maptrack, Use};
use crate::ring_watch;
use crate::seqpacket::Socket;
use crate::shm::Region;
use crate::wire::{self, Request, Response, expect_fds, unexpected};

/// A backend's access to a simulated host. Implements [`Backend`]; clones share one connection.
/// When the last clone, mapping and channel are gone, or the process is, the host cleans up.
#[derive(Clone, Debug)]
pub struct SimXen(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    socket: Mutex<Socket>,
    connection: Locker,
    maptrack: Maptrack,
    slots: FreeSlots,
    views: RwLock<HashMap<DomId, Arc<DomainView>>>,
}

impl Inner {
    fn call(&self, request: &Request) -> io::Result<(Response, Vec<std::os::fd::OwnedFd>)> {
        let socket = self.socket.lock().expect("no holder panics");
        wire::call(&socket, request, &[])
    }

    fn unmap(&self, view: &DomainView, uses: &[(u32, GrantRef)], access: Access) {
        let table = view.lock(self.connection);
        for (slot, gref) in uses {
            self.maptrack.clear(*slot);
            table.unpin(*gref, access);
        }
        drop(table);
        let slots: Vec<u32> = uses.iter().map(|(slot, _)| *slot).collect();
        self.slots.give_back(&slots);
    }
}

impl SimXen {
    /// Connects to the host whose sockets are in `dir`.
    pub fn connect(dir: &Path) -> io::Result<SimXen> {
        let socket = Socket::connect(&dir.join("hypervisor.sock"))?;
        let (response, fds) = wire::call(&socket, &Request::Hello, &[])?;
        let Response::Hello { connection } = response else {
            return Err(unexpected(&response));
        };
        let [maptrack] = expect_fds(fds)?;
        Ok(SimXen(Arc::new(Inner {
            socket: Mutex::new(socket),
            connection,
            maptrack: Maptrack::map(&maptrack)?,
            slots: FreeSlots::new(),
            views: RwLock::default(),
        })))
    }

    fn view(&self, dom: DomId) -> io::Result<Option<Arc<DomainView>>> {
        let views = self.0.views.read().expect("no holder panics");
        if let Some(view) = views.get(&dom)
            && !view.is_dying()
        {
            return Ok(Some(view.clone()));
        }
        drop(views);
        let mut views = self.0.views.write().expect("no holder panics");
        views.retain(|_, view| !view.is_dying());
        let (response, fds) = match self.0.call(&Request::GrantTable { domid: dom.0 }) {
            Err(err) if err.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            other => other?,
        };
        let Response::Grants { pages } = response else {
            return Err(unexpected(&response));
        };
        let [memory, grants, active] = expect_fds(fds)?;
        let view = Arc::new(DomainView::new(dom, pages, memory, &grants, &active)?);
        views.insert(dom, view.clone());
        Ok(Some(view))
    }

    /// The frame that a domain's grant names, from the table itself, as dom0 can read it with
    /// `XENMEM_acquire_resource`. `None` when the entry grants nothing or the domain is gone.
    pub fn granted_frame(&self, dom: DomId, gref: GrantRef) -> io::Result<Option<u32>> {
        Ok(self
            .view(dom)?
            .and_then(|view| view.grants.granted_frame(gref)))
    }

    /// Maps guest frames without a grant, as dom0 may (`xenforeignmemory_map`).
    pub fn map_foreign(
        &self,
        dom: DomId,
        frames: &[u32],
        access: Access,
    ) -> io::Result<SimMapping> {
        let view = self
            .view(dom)?
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
        if frames.iter().any(|frame| *frame as usize >= view.pages) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let region = map_frames(&view, frames, access)?;
        Ok(SimMapping {
            xen: self.0.clone(),
            view,
            frames: frames.to_vec(),
            uses: Vec::new(),
            access,
            region,
        })
    }

    /// Tells the host that a guest or backend broke the rules. The run fails.
    pub fn report_violation(&self, text: &str) {
        let text = text.to_owned();
        if let Err(err) = self.0.call(&Request::Violation { text: text.clone() }) {
            eprintln!("xen-sim: violation not reported ({err}): {text}");
        }
    }
}

fn map_frames(view: &DomainView, frames: &[u32], access: Access) -> io::Result<Region> {
    let region = Region::reserve(frames.len() * PAGE_SIZE)?;
    for (i, frame) in frames.iter().enumerate() {
        let from = *frame as usize * PAGE_SIZE;
        region.place(i * PAGE_SIZE, &view.memory_fd, from, PAGE_SIZE, access)?;
    }
    Ok(region)
}

fn refused(dom: DomId, gref: GrantRef, status: i16) -> GrantError {
    GrantError::Refused { dom, gref, status }
}

impl Backend for SimXen {
    type Mapping = SimMapping;
    type Channel = SimChannel;

    fn map(&self, dom: DomId, refs: &[GrantRef], access: Access) -> Result<SimMapping, GrantError> {
        let Some(first) = refs.first() else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
        };
        let view = self
            .view(dom)?
            .ok_or(refused(dom, *first, status::BAD_DOMAIN))?;
        let slots = self
            .0
            .slots
            .take(refs.len())
            .ok_or(io::Error::from_raw_os_error(libc::ENOSPC))?;
        let mut frames = Vec::with_capacity(refs.len());
        let mut uses = Vec::with_capacity(refs.len());
        let mut failed = None;
        let table = view.lock(self.0.connection);
        for (slot, gref) in slots.iter().zip(refs) {
            match table.pin(*gref, access) {
                Ok(frame) => {
                    let used = Use {
                        domid: dom,
                        gref: *gref,
                        access,
                    };
                    self.0.maptrack.set(*slot, used);
                    frames.push(frame);
                    uses.push((*slot, *gref));
                }
                Err(status) => {
                    failed = Some(refused(dom, *gref, status));
                    break;
                }
            }
        }
        drop(table);
        let region = match failed {
            Some(err) => Err(err),
            None => map_frames(&view, &frames, access).map_err(GrantError::from),
        };
        match region {
            Ok(region) => Ok(SimMapping {
                xen: self.0.clone(),
                view,
                frames,
                uses,
                access,
                region,
            }),
            Err(err) => {
                self.0.slots.give_back(&slots[uses.len()..]);
                self.0.unmap(&view, &uses, access);
                Err(err)
            }
        }
    }

    fn copy(&self, dom: DomId, ops: &mut [CopyOp<'_>]) -> Result<(), GrantError> {
        let Some(view) = self.view(dom)? else {
            for op in ops {
                op.status = CopyStatus::Refused(status::BAD_DOMAIN);
            }
            return Ok(());
        };
        // One hold of the lock for the batch. Should this process die in the middle, the host
        // takes the lock over and puts the table right.
        let table = view.lock(self.0.connection);
        for op in ops {
            let (access, len_bytes) = match &op.buffer {
                CopyBuffer::FromGuest(dst) => (Access::ReadOnly, dst.len()),
                CopyBuffer::ToGuest(src) => (Access::ReadWrite, src.len()),
            };
            let offset = usize::from(op.offset);
            if offset + len_bytes > PAGE_SIZE {
                op.status = CopyStatus::Refused(status::BAD_COPY_ARG);
                continue;
            }
            match table.pin(op.gref, access) {
                Ok(frame) => {
                    let at = frame as usize * PAGE_SIZE + offset;
                    match &mut op.buffer {
                        CopyBuffer::FromGuest(dst) => view.memory.read(at, dst),
                        CopyBuffer::ToGuest(src) => view.memory.write(at, src),
                    }
                    table.unpin(op.gref, access);
                    op.status = CopyStatus::Done;
                }
                Err(status) => op.status = CopyStatus::Refused(status),
            }
        }
        Ok(())
    }

    fn bind_interdomain(&self, dom: DomId, remote: EvtchnPort) -> io::Result<SimChannel> {
        let (response, fds) = self.0.call(&Request::BindInterdomain {
            domid: dom.0,
            port: remote.0,
        })?;
        let Response::Port { port } = response else {
            return Err(unexpected(&response));
        };
        Ok(SimChannel {
            xen: self.0.clone(),
            ends: Ends::new(port, expect_fds(fds)?),
        })
    }
}

/// Guest pages mapped in a backend's process.
#[derive(Debug)]
pub struct SimMapping {
    xen: Arc<Inner>,
    view: Arc<DomainView>,
    frames: Vec<u32>,
    /// Slot of the track record and grant of each page; empty for a foreign mapping.
    uses: Vec<(u32, GrantRef)>,
    access: Access,
    region: Region,
}

impl SimMapping {
    fn index(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4), "offset {offset} of an index");
        self.region.atomics(offset)
    }

    fn assert_writable(&self) {
        assert!(
            self.access == Access::ReadWrite,
            "a store to a read-only mapping of domain {}",
            self.view.domid
        );
    }
}

impl Mapping for SimMapping {
    fn len_bytes(&self) -> usize {
        self.region.len_bytes()
    }

    fn read(&self, offset: usize, dst: &mut [u8]) {
        self.region.read(offset, dst);
    }

    fn write(&self, offset: usize, src: &[u8]) {
        self.assert_writable();
        self.region.write(offset, src);
    }

    fn load_acquire(&self, offset: usize) -> u32 {
        self.index(offset).load(Ordering::Acquire)
    }

    fn store_release(&self, offset: usize, value: u32) {
        self.assert_writable();
        let page = offset / PAGE_SIZE;
        if self.view.active.is_ring(self.frames[page])
            && let Some(fault) = ring_watch::check_backend_store(
                |at| self.index(page * PAGE_SIZE + at),
                offset % PAGE_SIZE,
                value,
            )
        {
            let xen = SimXen(self.xen.clone());
            xen.report_violation(&format!(
                "backend of domain {}, ring in frame {}: {fault}",
                self.view.domid, self.frames[page]
            ));
        }
        self.index(offset).store(value, Ordering::Release);
    }
}

impl Drop for SimMapping {
    fn drop(&mut self) {
        if !self.uses.is_empty() {
            // The pages may stay in our page tables a moment longer than Xen's count says;
            // nothing can reach them any more.
            self.xen.unmap(&self.view, &self.uses, self.access);
        }
    }
}

/// A backend's end of an event channel.
#[derive(Debug)]
pub struct SimChannel {
    xen: Arc<Inner>,
    ends: Ends,
}

impl AsFd for SimChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ends.as_fd()
    }
}

impl EventChannel for SimChannel {
    fn local_port(&self) -> EvtchnPort {
        self.ends.port
    }

    fn notify(&self) -> io::Result<()> {
        self.ends.notify();
        Ok(())
    }

    fn take_event(&self) -> io::Result<bool> {
        Ok(self.ends.take_event())
    }
}

impl Drop for SimChannel {
    fn drop(&mut self) {
        // The host closes it with the connection, should this fail.
        let _ = self.xen.call(&Request::ClosePort {
            port: self.ends.port.0,
        });
    }
}

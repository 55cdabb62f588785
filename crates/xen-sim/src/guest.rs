// SPDX-License-Identifier: GPL-3.0-or-later
//! Xen for a guest's process.
//!
//! The process is the domain's only processor. What it keeps in its own variables survives a
//! migration as registers and kernel memory do; pages that it granted live in the domain's memory
//! and are found at the same addresses afterwards, with another domain's copy behind them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard};

use xen::{
    Access, DomId, EventChannel, EvtchnPort, GrantError, GrantRef, Guest, Mapping, PAGE_SIZE,
};

use crate::channel::Ends;
use crate::grant_table::{GRANT_ENTRIES, GrantTable, RESERVED_ENTRIES};
use crate::seqpacket::Socket;
use crate::shm::Region;
use crate::wire::{self, Request, Response, ShutdownReason, expect_fds, unexpected};

/// Frames that the allocator leaves alone: kernel image, store and console pages.
const FIRST_FREE_FRAME: usize = 16;

/// A guest's access to its simulated host. Implements [`Guest`]; clones share the domain.
///
/// While the guest is suspended every other call, also a load or store of a page, waits: no
/// processor of the domain runs.
#[derive(Clone, Debug)]
pub struct SimGuest(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Held for writing while suspended.
    domain: RwLock<Domain>,
    /// One hypercall at a time.
    socket: Mutex<Socket>,
    memory: Region,
    table: GrantTable,
    frames: Mutex<Vec<bool>>,
    free_refs: Mutex<Vec<u32>>,
}

/// What a migration changes.
#[derive(Debug)]
struct Domain {
    domid: DomId,
    dir: PathBuf,
    /// Counts resumes in a new domain; a channel of an earlier one is dead.
    generation: u64,
}

/// How a suspend ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resumed {
    /// It was cancelled: same domain, grants and channels go on.
    Cancelled,
    /// The guest runs as a new domain, here or on another host. Its memory is as it was, its
    /// grants, event channels and xenstore connection are gone.
    NewDomain,
}

impl SimGuest {
    /// Becomes the guest of a domain that the toolstack has made. Waits until it is unpaused.
    pub fn boot(dir: &Path, domid: DomId) -> io::Result<SimGuest> {
        let socket = Socket::connect(&dir.join("hypervisor.sock"))?;
        let (response, fds) = wire::call(&socket, &Request::Attach { domid: domid.0 }, &[])?;
        let Response::Running {
            domid, pages, dir, ..
        } = response
        else {
            return Err(unexpected(&response));
        };
        let [memory, table]: [OwnedFd; 2] = expect_fds(fds)?;
        let mut frames = vec![false; pages];
        for used in frames.iter_mut().take(FIRST_FREE_FRAME) {
            *used = true;
        }
        Ok(SimGuest(Arc::new(Inner {
            domain: RwLock::new(Domain {
                domid: DomId(domid),
                dir,
                generation: 0,
            }),
            socket: Mutex::new(socket),
            memory: Region::map(&memory, pages * PAGE_SIZE)?,
            table: GrantTable::map(&table)?,
            frames: Mutex::new(frames),
            free_refs: Mutex::new((RESERVED_ENTRIES..GRANT_ENTRIES).rev().collect()),
        })))
    }

    /// The domain's number now.
    pub fn domid(&self) -> DomId {
        self.0.running().domid
    }

    /// The host's directory now.
    pub fn host_dir(&self) -> PathBuf {
        self.0.running().dir.clone()
    }

    /// The guest's xenstore socket now. After [`Resumed::NewDomain`] it is another one.
    pub fn xenstore_path(&self) -> PathBuf {
        let domain = self.0.running();
        domain.dir.join(format!("dom-{}.sock", domain.domid))
    }

    /// Suspends the domain (`SCHEDOP_shutdown` with `SHUTDOWN_suspend`) and returns when it runs
    /// again. The guest has acknowledged `control/shutdown` and quiesced its devices before.
    ///
    /// Fails when the domain was destroyed instead.
    pub fn suspend(&self) -> io::Result<Resumed> {
        let mut domain = self.0.domain.write().expect("no holder panics");
        let socket = self.0.socket.lock().expect("no holder panics");
        let (response, fds) = wire::call(&socket, &Request::Suspend, &[])?;
        let Response::Running {
            domid,
            pages,
            dir,
            cancelled,
        } = response
        else {
            return Err(unexpected(&response));
        };
        if cancelled {
            return Ok(Resumed::Cancelled);
        }
        let [memory, table]: [OwnedFd; 2] = expect_fds(fds)?;
        let len_bytes = pages * PAGE_SIZE;
        if len_bytes != self.0.memory.len_bytes() {
            return Err(io::Error::other("resumed with another size of memory"));
        }
        self.0
            .memory
            .place(0, &memory, 0, len_bytes, Access::ReadWrite)?;
        self.0.table.replace(&table)?;
        domain.domid = DomId(domid);
        domain.dir = dir;
        domain.generation += 1;
        Ok(Resumed::NewDomain)
    }

    /// Ends the domain for another reason. The guest runs no further; what it still calls fails.
    pub fn shut_down(&self, reason: ShutdownReason) -> io::Result<()> {
        let _running = self.0.running();
        let socket = self.0.socket.lock().expect("no holder panics");
        wire::send(&socket, &Request::GuestShutdown { reason })
    }

    /// Tells the host that these pages are rings with Xen's ring header: from now on it watches
    /// the indices that the backend stores.
    pub fn register_rings(&self, pages: &GuestPages) -> io::Result<()> {
        for i in 0..pages.count {
            let frame = (pages.first_frame + i) as u32;
            self.0.call(&Request::RegisterRing { frame, ring: true })?;
        }
        pages.rings.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Tells the host that the backend, or this guest, broke the rules. The run fails.
    pub fn report_violation(&self, text: &str) {
        let text = text.to_owned();
        if let Err(err) = self.0.call(&Request::Violation { text: text.clone() }) {
            eprintln!("xen-sim: violation not reported ({err}): {text}");
        }
    }
}

impl Inner {
    /// Waits while the domain is suspended.
    fn running(&self) -> RwLockReadGuard<'_, Domain> {
        self.domain.read().expect("no holder panics")
    }

    fn call(&self, request: &Request) -> io::Result<(Response, Vec<OwnedFd>)> {
        let _running = self.running();
        let socket = self.socket.lock().expect("no holder panics");
        wire::call(&socket, request, &[])
    }

    fn alloc_frames(&self, count: usize) -> io::Result<usize> {
        let mut frames = self.frames.lock().expect("no holder panics");
        let first = frames
            .windows(count)
            .position(|run| run.iter().all(|used| !used))
            .ok_or(io::ErrorKind::OutOfMemory)?;
        frames[first..first + count].fill(true);
        Ok(first)
    }

    fn free_frames(&self, first: usize, count: usize) {
        let mut frames = self.frames.lock().expect("no holder panics");
        frames[first..first + count].fill(false);
    }
}

impl Guest for SimGuest {
    type Pages = GuestPages;
    type Channel = GuestChannel;

    fn grant_pages(
        &self,
        to: DomId,
        count: usize,
        access: Access,
    ) -> Result<(GuestPages, Vec<GrantRef>), GrantError> {
        if count == 0 {
            return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
        }
        let running = self.0.running();
        let mut free = self.0.free_refs.lock().expect("no holder panics");
        if free.len() < count {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC).into());
        }
        let first_frame = self.0.alloc_frames(count)?;
        let rest = free.len() - count;
        let refs: Vec<GrantRef> = free.split_off(rest).into_iter().map(GrantRef).collect();
        drop(free);
        for (i, gref) in refs.iter().enumerate() {
            let frame = first_frame + i;
            self.0.memory.write(frame * PAGE_SIZE, &[0; PAGE_SIZE]);
            self.0.table.grant(*gref, to, frame as u32, access);
        }
        drop(running);
        let pages = GuestPages {
            guest: self.0.clone(),
            first_frame,
            count,
            refs: refs.clone(),
            rings: AtomicBool::new(false),
        };
        Ok((pages, refs))
    }

    fn end_access(&self, mut pages: GuestPages) -> bool {
        // The pages' own drop would do the same; here the outcome is wanted.
        pages.release()
    }

    fn alloc_unbound(&self, to: DomId) -> io::Result<GuestChannel> {
        let running = self.0.running();
        let generation = running.generation;
        let socket = self.0.socket.lock().expect("no holder panics");
        let (response, fds) = wire::call(&socket, &Request::AllocUnbound { remote: to.0 }, &[])?;
        let Response::Port { port } = response else {
            return Err(unexpected(&response));
        };
        Ok(GuestChannel {
            guest: self.0.clone(),
            ends: Ends::new(port, expect_fds(fds)?),
            generation,
        })
    }
}

/// Pages of the guest's memory, granted. Revoked when dropped, or leaked if still in use.
#[derive(Debug)]
pub struct GuestPages {
    guest: Arc<Inner>,
    first_frame: usize,
    count: usize,
    refs: Vec<GrantRef>,
    /// Registered with the host as rings.
    rings: AtomicBool,
}

impl GuestPages {
    fn at(&self, offset: usize, len_bytes: usize) -> usize {
        assert!(
            offset
                .checked_add(len_bytes)
                .is_some_and(|end| end <= self.len_bytes()),
            "{len_bytes} bytes at {offset} leave {} pages",
            self.count
        );
        self.first_frame * PAGE_SIZE + offset
    }

    fn index(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4), "offset {offset} of an index");
        self.guest.memory.atomics(self.at(offset, 4))
    }

    /// Revokes the grants and frees what is not in use. True when that was all.
    fn release(&mut self) -> bool {
        if self.rings.swap(false, Ordering::Relaxed) {
            for i in 0..self.count {
                let frame = (self.first_frame + i) as u32;
                // It fails only when the domain is gone, and the host's record with it.
                let _ = self
                    .guest
                    .call(&Request::RegisterRing { frame, ring: false });
            }
        }
        let _running = self.guest.running();
        let mut all = true;
        for (i, gref) in self.refs.drain(..).enumerate() {
            if self.guest.table.end_access(gref) {
                self.guest.free_frames(self.first_frame + i, 1);
                self.guest
                    .free_refs
                    .lock()
                    .expect("no holder panics")
                    .push(gref.0);
            } else {
                all = false;
            }
        }
        all
    }
}

impl Mapping for GuestPages {
    fn len_bytes(&self) -> usize {
        self.count * PAGE_SIZE
    }

    fn read(&self, offset: usize, dst: &mut [u8]) {
        let _running = self.guest.running();
        self.guest.memory.read(self.at(offset, dst.len()), dst);
    }

    fn write(&self, offset: usize, src: &[u8]) {
        let _running = self.guest.running();
        self.guest.memory.write(self.at(offset, src.len()), src);
    }

    fn load_acquire(&self, offset: usize) -> u32 {
        let _running = self.guest.running();
        self.index(offset).load(Ordering::Acquire)
    }

    fn store_release(&self, offset: usize, value: u32) {
        let _running = self.guest.running();
        self.index(offset).store(value, Ordering::Release);
    }
}

impl Drop for GuestPages {
    fn drop(&mut self) {
        self.release();
    }
}

/// A guest's end of an event channel.
#[derive(Debug)]
pub struct GuestChannel {
    guest: Arc<Inner>,
    ends: Ends,
    generation: u64,
}

impl AsFd for GuestChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ends.as_fd()
    }
}

impl EventChannel for GuestChannel {
    fn local_port(&self) -> EvtchnPort {
        self.ends.port
    }

    /// Signals the peer. A channel from before a migration has none; as in Linux, where the
    /// interrupt is then bound to no port, that is no error.
    fn notify(&self) -> io::Result<()> {
        if self.guest.running().generation == self.generation {
            self.ends.notify();
        }
        Ok(())
    }

    fn take_event(&self) -> io::Result<bool> {
        let _running = self.guest.running();
        Ok(self.ends.take_event())
    }
}

impl Drop for GuestChannel {
    fn drop(&mut self) {
        let running = self.guest.running();
        // The new domain may use the same number for something else.
        if running.generation == self.generation {
            drop(running);
            let _ = self.guest.call(&Request::ClosePort {
                port: self.ends.port.0,
            });
        }
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! Xen's grants and event channels within one process.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use xen::{
    Access, Backend, CopyBuffer, CopyOp, CopyStatus, DomId, EventChannel, EvtchnPort, GrantError,
    GrantRef, Guest, Mapping, PAGE_SIZE,
};

const WORDS: usize = PAGE_SIZE / 4;

/// A page. Bytes are reached through the words that hold them.
struct Page([AtomicU32; WORDS]);

impl Page {
    fn new() -> Arc<Self> {
        Arc::new(Self([const { AtomicU32::new(0) }; WORDS]))
    }

    fn read(&self, offset: usize, dst: &mut [u8]) {
        for (n, byte) in dst.iter_mut().enumerate() {
            let at = offset + n;
            *byte = self.0[at / 4].load(Ordering::Relaxed).to_le_bytes()[at % 4];
        }
    }

    fn write(&self, offset: usize, src: &[u8]) {
        for (n, byte) in src.iter().enumerate() {
            let at = offset + n;
            let put = |word: u32| {
                let mut bytes = word.to_le_bytes();
                bytes[at % 4] = *byte;
                Some(u32::from_le_bytes(bytes))
            };
            let _ = self.0[at / 4].fetch_update(Ordering::Relaxed, Ordering::Relaxed, put);
        }
    }
}

struct Grant {
    page: Arc<Page>,
    /// Mappings that exist.
    mapped: u32,
}

#[derive(Default)]
struct State {
    grants: HashMap<u32, Grant>,
    next_ref: u32,
    /// The ends that wait to be bound.
    unbound: HashMap<u32, UnixStream>,
    next_port: u32,
}

/// One domain and its backend. Clones are the same machine.
#[derive(Clone, Default)]
pub(crate) struct Memory(Arc<Mutex<State>>);

impl Memory {
    /// Grants that exist.
    pub(crate) fn grant_count(&self) -> usize {
        self.0.lock().unwrap().grants.len()
    }

    fn pages(&self, refs: &[GrantRef], map: bool) -> Result<Vec<Arc<Page>>, GrantError> {
        let mut state = self.0.lock().unwrap();
        let mut pages = Vec::new();
        for gref in refs {
            let grant = state.grants.get_mut(&gref.0).ok_or(GrantError::Refused {
                dom: DomId(1),
                gref: *gref,
                status: -3,
            })?;
            grant.mapped += u32::from(map);
            pages.push(grant.page.clone());
        }
        Ok(pages)
    }
}

/// Pages on either side.
pub(crate) struct Pages {
    pages: Vec<Arc<Page>>,
    refs: Vec<GrantRef>,
    /// A backend's mapping.
    mapping_of: Option<Memory>,
}

impl Pages {
    /// Calls `access` for every piece of the range that lies in one page: offset in the range,
    /// page, offset in the page, length.
    fn pieces(
        &self,
        offset: usize,
        len: usize,
        mut access: impl FnMut(usize, &Page, usize, usize),
    ) {
        assert!(offset + len <= self.len_bytes(), "{len} bytes at {offset}");
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let piece = (len - done).min(PAGE_SIZE - at % PAGE_SIZE);
            access(done, &self.pages[at / PAGE_SIZE], at % PAGE_SIZE, piece);
            done += piece;
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if let Some(memory) = &self.mapping_of {
            let mut state = memory.0.lock().unwrap();
            for gref in &self.refs {
                if let Some(grant) = state.grants.get_mut(&gref.0) {
                    grant.mapped -= 1;
                }
            }
        }
    }
}

impl Mapping for Pages {
    fn len_bytes(&self) -> usize {
        self.pages.len() * PAGE_SIZE
    }
    fn read(&self, offset: usize, dst: &mut [u8]) {
        self.pieces(offset, dst.len(), |done, page, at, len| {
            page.read(at, &mut dst[done..done + len]);
        });
    }
    fn write(&self, offset: usize, src: &[u8]) {
        self.pieces(offset, src.len(), |done, page, at, len| {
            page.write(at, &src[done..done + len]);
        });
    }
    fn load_acquire(&self, offset: usize) -> u32 {
        self.pages[offset / PAGE_SIZE].0[offset % PAGE_SIZE / 4].load(Ordering::Acquire)
    }
    fn store_release(&self, offset: usize, value: u32) {
        self.pages[offset / PAGE_SIZE].0[offset % PAGE_SIZE / 4].store(value, Ordering::Release);
    }
}

/// One end of an event channel.
pub(crate) struct Channel {
    port: EvtchnPort,
    stream: UnixStream,
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl EventChannel for Channel {
    fn local_port(&self) -> EvtchnPort {
        self.port
    }
    fn notify(&self) -> io::Result<()> {
        match (&self.stream).write(&[1]) {
            // Full: an event is pending anyway. Broken: nobody is bound.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result.map(drop),
        }
    }
    fn take_event(&self) -> io::Result<bool> {
        match (&self.stream).read(&mut [0; 64]) {
            Ok(count) => Ok(count > 0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Guest for Memory {
    type Pages = Pages;
    type Channel = Channel;

    fn grant_pages(
        &self,
        _to: DomId,
        count: usize,
        _access: Access,
    ) -> Result<(Pages, Vec<GrantRef>), GrantError> {
        let mut state = self.0.lock().unwrap();
        let mut pages = Vec::new();
        let mut refs = Vec::new();
        for _ in 0..count {
            state.next_ref += 1;
            let gref = GrantRef(state.next_ref + 7);
            let page = Page::new();
            pages.push(page.clone());
            state.grants.insert(gref.0, Grant { page, mapped: 0 });
            refs.push(gref);
        }
        Ok((
            Pages {
                pages,
                refs: refs.clone(),
                mapping_of: None,
            },
            refs,
        ))
    }

    fn end_access(&self, pages: Pages) -> bool {
        let mut state = self.0.lock().unwrap();
        let mut released = true;
        for gref in &pages.refs {
            match state.grants.get(&gref.0) {
                Some(grant) if grant.mapped > 0 => released = false,
                _ => drop(state.grants.remove(&gref.0)),
            }
        }
        released
    }

    fn alloc_unbound(&self, _to: DomId) -> io::Result<Channel> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        let mut state = self.0.lock().unwrap();
        state.next_port += 1;
        let port = state.next_port;
        state.unbound.insert(port, theirs);
        Ok(Channel {
            port: EvtchnPort(port),
            stream: ours,
        })
    }
}

impl Backend for Memory {
    type Mapping = Pages;
    type Channel = Channel;

    fn map(&self, _dom: DomId, refs: &[GrantRef], _access: Access) -> Result<Pages, GrantError> {
        let pages = self.pages(refs, true)?;
        Ok(Pages {
            pages,
            refs: refs.to_vec(),
            mapping_of: Some(self.clone()),
        })
    }

    fn copy(&self, _dom: DomId, ops: &mut [CopyOp<'_>]) -> Result<(), GrantError> {
        for op in ops {
            let Ok(page) = self.pages(&[op.gref], false) else {
                op.status = CopyStatus::Refused(-3);
                continue;
            };
            match &mut op.buffer {
                CopyBuffer::FromGuest(dst) => page[0].read(usize::from(op.offset), dst),
                CopyBuffer::ToGuest(src) => page[0].write(usize::from(op.offset), src),
            }
            op.status = CopyStatus::Done;
        }
        Ok(())
    }

    fn bind_interdomain(&self, _dom: DomId, remote: EvtchnPort) -> io::Result<Channel> {
        let stream = self.0.lock().unwrap().unbound.remove(&remote.0);
        let stream = stream.ok_or(io::ErrorKind::NotFound)?;
        Ok(Channel {
            port: remote,
            stream,
        })
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! Granted memory for the data of URBs.
//!
//! Linux grants the pages of every URB anew. Here a buffer is granted once and used for many
//! URBs, which costs nothing per URB; see [`super::HostOptions::check_grants`] for the other way.

use usbif::Segment;
use xen::{Access, DomId, GrantRef, Guest, Mapping, PAGE_SIZE};

use crate::{HostError, UrbHandle};

/// Names a buffer, also after the domain has moved. Never valid again once freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferId(u32);

impl BufferId {
    /// A part of the buffer.
    pub fn slice(self, offset: usize, len: usize) -> BufferSlice {
        BufferSlice {
            buffer: self,
            offset,
            len,
        }
    }
}

/// A part of a buffer: the data of one URB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferSlice {
    /// The buffer.
    pub buffer: BufferId,
    /// Its first byte.
    pub offset: usize,
    /// Bytes.
    pub len: usize,
}

#[derive(Debug)]
struct Buffer<P> {
    pages: P,
    refs: Vec<GrantRef>,
    /// URBs that use it.
    users: u32,
    /// Used since it was granted last.
    used: bool,
}

pub(super) struct Buffers<G: Guest> {
    /// Indexed by id. Ids are not used again, so a stale one finds nothing.
    buffers: Vec<Option<Buffer<G::Pages>>>,
    users: Vec<(UrbHandle, BufferId)>,
}

impl<G: Guest> Default for Buffers<G> {
    fn default() -> Self {
        Self {
            buffers: Vec::new(),
            users: Vec::with_capacity(64),
        }
    }
}

impl<G: Guest> Buffers<G> {
    pub(super) fn alloc(
        &mut self,
        guest: &G,
        backend: DomId,
        len: usize,
    ) -> Result<BufferId, HostError> {
        let count = len.div_ceil(PAGE_SIZE).max(1);
        let (pages, refs) = guest.grant_pages(backend, count, Access::ReadWrite)?;
        let id = BufferId(self.buffers.len() as u32);
        self.buffers.push(Some(Buffer {
            pages,
            refs,
            users: 0,
            used: false,
        }));
        Ok(id)
    }

    pub(super) fn free(&mut self, guest: &G, id: BufferId) -> bool {
        let place = self.buffers.get_mut(id.0 as usize);
        match place.and_then(Option::take) {
            Some(buffer) => {
                assert_eq!(buffer.users, 0, "a URB still uses the buffer");
                guest.end_access(buffer.pages)
            }
            None => true,
        }
    }

    /// Its length in bytes; 0 when there is no such buffer.
    pub(super) fn len(&self, id: BufferId) -> usize {
        let buffer = self.buffers.get(id.0 as usize).and_then(Option::as_ref);
        buffer.map_or(0, |buffer| buffer.pages.len_bytes())
    }

    /// Whether no URB uses it.
    pub(super) fn is_idle(&self, id: BufferId) -> bool {
        !self.users.iter().any(|(_, buffer)| *buffer == id)
    }

    fn get(&self, slice: BufferSlice) -> Result<&Buffer<G::Pages>, HostError> {
        let buffer = self
            .buffers
            .get(slice.buffer.0 as usize)
            .and_then(Option::as_ref);
        let len = buffer.map_or(0, |buffer| buffer.pages.len_bytes());
        let end = slice.offset.saturating_add(slice.len);
        match buffer {
            Some(buffer) if end <= len => Ok(buffer),
            _ => Err(HostError::OutsideBuffer {
                offset: slice.offset,
                end,
                len,
            }),
        }
    }

    pub(super) fn write(&self, id: BufferId, offset: usize, src: &[u8]) -> Result<(), HostError> {
        self.get(id.slice(offset, src.len()))?
            .pages
            .write(offset, src);
        Ok(())
    }

    pub(super) fn read(
        &self,
        id: BufferId,
        offset: usize,
        dst: &mut [u8],
    ) -> Result<(), HostError> {
        self.get(id.slice(offset, dst.len()))?
            .pages
            .read(offset, dst);
        Ok(())
    }

    /// Cuts a slice into one segment per page. What does not fit in `segments` counts, but is left
    /// out: one more than a request can carry is enough to have it refused.
    pub(super) fn segments(
        &self,
        slice: BufferSlice,
        segments: &mut [Segment],
    ) -> Result<usize, HostError> {
        let buffer = self.get(slice)?;
        let (mut at, mut left, mut count) = (slice.offset, slice.len, 0);
        while left > 0 && count < segments.len() {
            let offset = at % PAGE_SIZE;
            let length = left.min(PAGE_SIZE - offset);
            segments[count] = Segment {
                gref: buffer.refs[at / PAGE_SIZE].0,
                // Both at most 4,096.
                offset: offset as u16,
                length: length as u16,
            };
            at += length;
            left -= length;
            count += 1;
        }
        Ok(count)
    }

    pub(super) fn use_by(&mut self, id: BufferId, urb: UrbHandle) {
        if let Some(Some(buffer)) = self.buffers.get_mut(id.0 as usize) {
            buffer.users += 1;
            buffer.used = true;
            self.users.push((urb, id));
        }
    }

    pub(super) fn done(&mut self, urb: UrbHandle) {
        // Isochronous URBs have two: data and frame descriptors.
        while let Some(at) = self.users.iter().position(|(user, _)| *user == urb) {
            let (_, id) = self.users.swap_remove(at);
            if let Some(Some(buffer)) = self.buffers.get_mut(id.0 as usize) {
                buffer.users -= 1;
            }
        }
    }

    /// All grants are gone with the domain; the memory is not. Answers the references that pages
    /// in use had, with their new ones.
    pub(super) fn grant_again(
        &mut self,
        guest: &G,
        backend: DomId,
    ) -> Result<Vec<(GrantRef, GrantRef)>, HostError> {
        let mut anew = Vec::new();
        for buffer in self.buffers.iter_mut().flatten() {
            let before = buffer.refs.clone();
            replace_pages(guest, backend, buffer)?;
            if buffer.users > 0 {
                anew.extend(before.into_iter().zip(buffer.refs.iter().copied()));
            }
        }
        Ok(anew)
    }

    /// Ends the grants of buffers that have been used and are not in use, and grants new pages.
    pub(super) fn grant_idle_again(
        &mut self,
        guest: &G,
        backend: DomId,
        mut still_mapped: impl FnMut(BufferId),
    ) -> Result<(), HostError> {
        for (n, buffer) in self.buffers.iter_mut().enumerate() {
            let Some(buffer) = buffer
                .as_mut()
                .filter(|buffer| buffer.used && buffer.users == 0)
            else {
                continue;
            };
            let old = replace_pages(guest, backend, buffer)?;
            if !guest.end_access(old) {
                still_mapped(BufferId(n as u32));
            }
            buffer.used = false;
        }
        Ok(())
    }
}

fn replace_pages<G: Guest>(
    guest: &G,
    backend: DomId,
    buffer: &mut Buffer<G::Pages>,
) -> Result<G::Pages, HostError> {
    let count = buffer.refs.len();
    let (pages, refs) = guest.grant_pages(backend, count, Access::ReadWrite)?;
    let mut page = [0; PAGE_SIZE];
    for offset in (0..count * PAGE_SIZE).step_by(PAGE_SIZE) {
        buffer.pages.read(offset, &mut page);
        pages.write(offset, &page);
    }
    buffer.refs = refs;
    Ok(std::mem::replace(&mut buffer.pages, pages))
}

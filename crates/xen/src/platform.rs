// SPDX-License-Identifier: GPL-3.0-or-later
//! What a backend and a frontend need of Xen, besides xenstore.

use std::io;
use std::os::fd::AsFd;

use crate::{DomId, EvtchnPort, GrantRef};

/// What a mapping may be used for. A writable mapping of a grant that is read-only fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Loads only.
    ReadOnly,
    /// Loads and stores.
    ReadWrite,
}

/// Why a grant could not be mapped or copied.
#[derive(Debug, thiserror::Error)]
pub enum GrantError {
    /// Xen refused this reference: not granted, granted to another domain, read-only, or revoked.
    /// The granting domain's fault.
    #[error("grant {gref} of domain {dom} refused by Xen (status {status})")]
    Refused {
        /// The granting domain.
        dom: DomId,
        /// The reference that was refused.
        gref: GrantRef,
        /// Xen's `GNTST_*` status, negative.
        status: i16,
    },
    /// The call itself failed. This host's fault: the device is missing, out of memory, a limit.
    #[error("grant operation failed on this host")]
    Host(#[from] io::Error),
}

/// Shared memory of another domain, mapped here. Unmapped when dropped.
///
/// The peer may write to it at any time. It is therefore never a slice: bytes are copied in and
/// out with volatile accesses, and indices are loaded and stored atomically.
/// Offsets are in bytes from the start of the first page. Every method panics when the range is
/// outside the mapping: offsets come from our own code, never from the peer.
pub trait Mapping: Send {
    /// Length of the mapping: pages times [`crate::PAGE_SIZE`].
    fn len_bytes(&self) -> usize;
    /// Copies `dst.len()` bytes from `offset`.
    fn read(&self, offset: usize, dst: &mut [u8]);
    /// Copies `src` to `offset`.
    fn write(&self, offset: usize, src: &[u8]);
    /// Loads a 32-bit index with acquire ordering. `offset` is a multiple of four.
    fn load_acquire(&self, offset: usize) -> u32;
    /// Stores a 32-bit index with release ordering. `offset` is a multiple of four.
    fn store_release(&self, offset: usize, value: u32);
    /// Full memory barrier (`xen_mb`): between publishing an index and reading the peer's event
    /// index, see `RING_PUSH_*_AND_CHECK_NOTIFY` and `RING_FINAL_CHECK_*` in Xen's `ring.h`.
    fn full_barrier(&self) {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }
}

/// One end of an event channel, bound. Closed when dropped.
///
/// The descriptor polls readable when the port fired. Events coalesce, and may be spurious.
pub trait EventChannel: AsFd + Send {
    /// Our end's port number.
    fn local_port(&self) -> EvtchnPort;
    /// Signals the peer.
    fn notify(&self) -> io::Result<()>;
    /// Takes the pending event, if any, and unmasks the port so that it can fire again.
    /// Never blocks. Call it before looking at the ring, so that nothing is missed.
    fn take_event(&self) -> io::Result<bool>;
}

/// Our side of a grant copy.
#[derive(Debug)]
pub enum CopyBuffer<'a> {
    /// From the guest's page into this buffer.
    FromGuest(&'a mut [u8]),
    /// From this buffer into the guest's page.
    ToGuest(&'a [u8]),
}

/// One segment of a grant copy: up to a page of one grant.
#[derive(Debug)]
pub struct CopyOp<'a> {
    /// The guest's page.
    pub gref: GrantRef,
    /// First byte in the guest's page. `offset + buffer length` is at most a page.
    pub offset: u16,
    /// Our buffer, at most a page long; it may cross page boundaries of our own.
    pub buffer: CopyBuffer<'a>,
    /// What became of this segment. [`CopyStatus::Pending`] before the call.
    pub status: CopyStatus,
}

/// What became of one segment of a grant copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyStatus {
    /// Not tried yet.
    Pending,
    /// Copied.
    Done,
    /// Xen refused the reference, with this `GNTST_*` status (negative).
    Refused(i16),
}

/// What a backend needs of Xen. Cheap to clone: clones share their handles.
pub trait Backend: Clone + Send + Sync + 'static {
    /// Mapped grants.
    type Mapping: Mapping + 'static;
    /// A bound event channel.
    type Channel: EventChannel + 'static;

    /// Maps the pages of `refs`, granted by `dom`, one after another into one range.
    fn map(
        &self,
        dom: DomId,
        refs: &[GrantRef],
        access: Access,
    ) -> Result<Self::Mapping, GrantError>;

    /// Carries out a batch of copies to and from pages granted by `dom`, in one call where the
    /// platform can. A refused segment sets its own status and leaves the others alone.
    fn copy(&self, dom: DomId, ops: &mut [CopyOp<'_>]) -> Result<(), GrantError>;

    /// Binds to the unbound port `remote` of `dom`. The new channel starts with an event pending,
    /// because the peer may have signalled before.
    fn bind_interdomain(&self, dom: DomId, remote: EvtchnPort) -> io::Result<Self::Channel>;
}

/// What a frontend needs of Xen: pages of its own that it grants, and event channels.
pub trait Guest: Clone + Send + Sync + 'static {
    /// Pages of the guest's own memory, granted to a backend. Not freed while the backend still
    /// maps them.
    type Pages: Mapping + 'static;
    /// A bound event channel.
    type Channel: EventChannel + 'static;

    /// Allocates `count` zeroed pages and grants each to `to`.
    fn grant_pages(
        &self,
        to: DomId,
        count: usize,
        access: Access,
    ) -> Result<(Self::Pages, Vec<GrantRef>), GrantError>;

    /// Ends the grants of `pages`. False when a backend still maps one: then the pages are kept
    /// and leak, as Linux's frontends do.
    fn end_access(&self, pages: Self::Pages) -> bool;

    /// Allocates an unbound port that `to` may bind.
    fn alloc_unbound(&self, to: DomId) -> io::Result<Self::Channel>;
}

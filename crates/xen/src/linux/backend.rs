// SPDX-License-Identifier: GPL-3.0-or-later
//! [`Backend`] on Linux.

use std::io;

use xengnttab::{CopySegment, Gntdev, GrantStatus, MappedGrants};

use super::evtchn::LinuxChannel;
use super::{OpenError, impl_mapping};
use crate::{
    Access, Backend, CopyBuffer, CopyOp, CopyStatus, DomId, EvtchnPort, GrantError, GrantRef,
};

/// Segments of one call to the kernel, on the stack. A larger batch takes several.
const SEGMENTS_PER_CALL: usize = 64;

/// Xen, as a backend in this domain sees it.
#[derive(Clone, Debug)]
pub struct LinuxXen {
    gntdev: Gntdev,
}

/// Pages of another domain, mapped through `gntdev`.
#[derive(Debug)]
pub struct LinuxMapping(MappedGrants);

impl_mapping!(LinuxMapping);

impl LinuxMapping {
    /// Tells the kernel what to do when this mapping is undone, also by the end of the process.
    ///
    /// # Errors
    /// Those of [`MappedGrants::set_unmap_notify`].
    pub fn set_unmap_notify(&self, notify: xengnttab::UnmapNotify) -> Result<(), xengnttab::Error> {
        self.0.set_unmap_notify(notify)
    }
}

impl LinuxXen {
    /// Opens the devices.
    ///
    /// # Errors
    /// [`OpenError`], which says what is missing and how to get it.
    pub fn open() -> Result<LinuxXen, OpenError> {
        let gntdev = Gntdev::open()?;
        LinuxChannel::check_device()?;
        Ok(LinuxXen { gntdev })
    }

    /// The verdict that the kernel does not tell when it refuses to map `refs`: which of them
    /// Xen refuses, and why. Tried out one by one, which is slow, but only a guest that breaks
    /// the rules gets here.
    fn find_refused(
        &self,
        dom: DomId,
        refs: &[GrantRef],
        access: Access,
        refusal: xengnttab::Error,
    ) -> GrantError {
        let refused = |gref, status: GrantStatus| GrantError::Refused {
            dom,
            gref,
            status: status.0,
        };
        for gref in refs {
            let mut byte = [0];
            let Ok(segment) = CopySegment::from_grant(dom.0, gref.0, 0, &mut byte) else {
                continue;
            };
            let mut segments = [segment];
            if let Err(error) = self.gntdev.copy(&mut segments) {
                return error.into();
            }
            if let Err(status) = segments[0].status().into_result() {
                return refused(*gref, status);
            }
        }
        // It can be read, so it must be the writing, or the mapping as such.
        for gref in refs {
            match self.gntdev.map(dom.0, &[gref.0], access.into()) {
                Ok(_) => {}
                Err(xengnttab::Error::MapRefused { .. }) => {
                    return refused(*gref, GrantStatus::GENERAL_ERROR);
                }
                Err(error) => return error.into(),
            }
        }
        refusal.into()
    }

    fn copy_some(&self, dom: DomId, ops: &mut [CopyOp<'_>]) -> Result<(), GrantError> {
        let count = ops.len();
        let mut segments: [CopySegment<'_>; SEGMENTS_PER_CALL] =
            std::array::from_fn(|_| CopySegment::empty());
        for (segment, op) in segments.iter_mut().zip(&mut *ops) {
            let made = match &mut op.buffer {
                CopyBuffer::FromGuest(buffer) => {
                    CopySegment::from_grant(dom.0, op.gref.0, op.offset, buffer)
                }
                CopyBuffer::ToGuest(buffer) => {
                    CopySegment::to_grant(dom.0, op.gref.0, op.offset, buffer)
                }
            };
            *segment =
                made.map_err(|invalid| io::Error::new(io::ErrorKind::InvalidInput, invalid))?;
        }
        let segments = &mut segments[..count];
        self.gntdev.copy(segments)?;
        let mut statuses = [GrantStatus::OKAY; SEGMENTS_PER_CALL];
        for (status, segment) in statuses.iter_mut().zip(segments) {
            *status = segment.status();
        }
        for (op, status) in ops.iter_mut().zip(statuses) {
            op.status = match status.into_result() {
                Ok(()) => CopyStatus::Done,
                Err(status) => CopyStatus::Refused(status.0),
            };
        }
        Ok(())
    }
}

impl Backend for LinuxXen {
    type Mapping = LinuxMapping;
    type Channel = LinuxChannel;

    fn map(
        &self,
        dom: DomId,
        refs: &[GrantRef],
        access: Access,
    ) -> Result<LinuxMapping, GrantError> {
        let numbers: Vec<u32> = refs.iter().map(|gref| gref.0).collect();
        match self.gntdev.map(dom.0, &numbers, access.into()) {
            Ok(mapped) => Ok(LinuxMapping(mapped)),
            Err(refusal @ xengnttab::Error::MapRefused { .. }) => {
                Err(self.find_refused(dom, refs, access, refusal))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A segment that crosses the end of its page is this side's mistake and fails with
    /// [`io::ErrorKind::InvalidInput`]. As after any failure on this host, segments that are
    /// still [`CopyStatus::Pending`] may or may not have been copied.
    fn copy(&self, dom: DomId, ops: &mut [CopyOp<'_>]) -> Result<(), GrantError> {
        ops.chunks_mut(SEGMENTS_PER_CALL)
            .try_for_each(|some| self.copy_some(dom, some))
    }

    fn bind_interdomain(&self, dom: DomId, remote: EvtchnPort) -> io::Result<LinuxChannel> {
        LinuxChannel::bind_interdomain(dom, remote)
    }
}

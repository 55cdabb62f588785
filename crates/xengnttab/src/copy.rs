// SPDX-License-Identifier: GPL-3.0-or-later
//! Segments of a grant copy.

use std::fmt;
use std::marker::PhantomData;

use crate::PAGE_SIZE;
use crate::abi::{CopyEnd, ForeignEnd, GNTCOPY_DEST_GREF, GNTCOPY_SOURCE_GREF, GrantCopySegment};

/// Xen's verdict on one grant (`GNTST_*` of `grant_table.h`): zero or negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GrantStatus(pub i16);

impl GrantStatus {
    /// `GNTST_okay`
    pub const OKAY: GrantStatus = GrantStatus(0);
    /// `GNTST_general_error`: also of a segment that no call has processed.
    pub const GENERAL_ERROR: GrantStatus = GrantStatus(-1);
    /// `GNTST_bad_domain`: no such domain.
    pub const BAD_DOMAIN: GrantStatus = GrantStatus(-2);
    /// `GNTST_bad_gntref`: no such reference, or not granted to us.
    pub const BAD_GNTREF: GrantStatus = GrantStatus(-3);
    /// `GNTST_permission_denied`
    pub const PERMISSION_DENIED: GrantStatus = GrantStatus(-8);

    /// Whether the copy was made.
    pub fn is_okay(self) -> bool {
        self == GrantStatus::OKAY
    }

    /// The status as an error, unless it is [`GrantStatus::OKAY`].
    ///
    /// # Errors
    /// The status itself.
    pub fn into_result(self) -> Result<(), GrantStatus> {
        if self.is_okay() { Ok(()) } else { Err(self) }
    }
}

impl fmt::Display for GrantStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let meaning = match self.0 {
            0 => "okay",
            -1 => "general error",
            -2 => "unknown domain",
            -3 => "bad grant reference",
            -4 => "bad handle",
            -5 => "bad virtual address",
            -6 => "bad device address",
            -7 => "no device space",
            -8 => "permission denied",
            -9 => "bad page",
            -10 => "range outside the page",
            -11 => "address too big",
            -12 => "try again",
            -13 => "out of space",
            _ => "unknown",
        };
        write!(f, "grant status {} ({meaning})", self.0)
    }
}

impl std::error::Error for GrantStatus {}

/// The part of the foreign page crosses its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len_bytes} bytes at offset {offset} do not fit into a page")]
pub struct InvalidSegment {
    /// First byte in the foreign page.
    pub offset: u16,
    /// Bytes to copy.
    pub len_bytes: usize,
}

/// One segment of [`crate::Gntdev::copy`]: between a buffer of ours and a part of one foreign
/// page. Exactly what the kernel takes, so an array of them is passed on as it is.
#[repr(transparent)]
pub struct CopySegment<'a> {
    raw: GrantCopySegment,
    buffer: PhantomData<&'a mut [u8]>,
}

// SAFETY: it stands for the borrow of a byte slice, which may go to another thread.
unsafe impl Send for CopySegment<'_> {}
// SAFETY: as above; nothing can be done with a shared reference but to read plain numbers.
unsafe impl Sync for CopySegment<'_> {}

impl<'a> CopySegment<'a> {
    /// From the page that `domid` granted as `gref`, from its byte `offset` on, into `buffer`.
    ///
    /// # Errors
    /// [`InvalidSegment`] when that crosses the end of the page.
    pub fn from_grant(
        domid: u16,
        gref: u32,
        offset: u16,
        buffer: &'a mut [u8],
    ) -> Result<CopySegment<'a>, InvalidSegment> {
        let len = checked_len(offset, buffer.len())?;
        Ok(CopySegment::new(
            foreign(domid, gref, offset),
            CopyEnd {
                local: buffer.as_mut_ptr().cast(),
            },
            len,
            GNTCOPY_SOURCE_GREF,
        ))
    }

    /// From `buffer` into the page that `domid` granted as `gref`, from its byte `offset` on.
    ///
    /// # Errors
    /// [`InvalidSegment`] when that crosses the end of the page.
    pub fn to_grant(
        domid: u16,
        gref: u32,
        offset: u16,
        buffer: &'a [u8],
    ) -> Result<CopySegment<'a>, InvalidSegment> {
        let len = checked_len(offset, buffer.len())?;
        Ok(CopySegment::new(
            CopyEnd {
                // The kernel only reads from the source.
                local: buffer.as_ptr().cast_mut().cast(),
            },
            foreign(domid, gref, offset),
            len,
            GNTCOPY_DEST_GREF,
        ))
    }

    /// A segment of no bytes, to fill an array with before the real ones are known.
    pub fn empty() -> CopySegment<'static> {
        CopySegment::new(
            foreign(0, 0, 0),
            CopyEnd {
                local: std::ptr::null_mut(),
            },
            0,
            GNTCOPY_SOURCE_GREF,
        )
    }

    fn new(source: CopyEnd, dest: CopyEnd, len: u16, flags: u16) -> CopySegment<'a> {
        CopySegment {
            raw: GrantCopySegment {
                source,
                dest,
                len,
                flags,
                status: GrantStatus::GENERAL_ERROR.0,
            },
            buffer: PhantomData,
        }
    }

    /// What became of this segment. [`GrantStatus::GENERAL_ERROR`] before the call.
    pub fn status(&self) -> GrantStatus {
        GrantStatus(self.raw.status)
    }

    pub(crate) fn as_raw(segments: &mut [CopySegment<'a>]) -> *mut GrantCopySegment {
        // The layout is that of the field, because of `repr(transparent)`.
        segments.as_mut_ptr().cast()
    }
}

impl fmt::Debug for CopySegment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CopySegment")
            .field("from_grant", &(self.raw.flags == GNTCOPY_SOURCE_GREF))
            .field("len_bytes", &self.raw.len)
            .field("status", &self.raw.status)
            .finish()
    }
}

fn foreign(domid: u16, gref: u32, offset: u16) -> CopyEnd {
    CopyEnd {
        foreign: ForeignEnd {
            gref,
            offset,
            domid,
        },
    }
}

fn checked_len(offset: u16, len_bytes: usize) -> Result<u16, InvalidSegment> {
    let invalid = InvalidSegment { offset, len_bytes };
    if len_bytes > PAGE_SIZE || usize::from(offset) + len_bytes > PAGE_SIZE {
        return Err(invalid);
    }
    u16::try_from(len_bytes).map_err(|_| invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes that the kernel sees.
    fn bytes(segment: &CopySegment<'_>) -> [u8; 22] {
        let mut bytes = [0; 22];
        let start = (&raw const segment.raw).cast::<u8>();
        for (at, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: the first 22 of 24 bytes; the last two are padding.
            *byte = unsafe { start.add(at).read() };
        }
        bytes
    }

    #[test]
    fn a_segment_from_a_grant_has_the_kernels_layout() {
        let mut buffer = [0; 32];
        let address = buffer.as_ptr().addr() as u64;
        let segment = CopySegment::from_grant(5, 0x01020304, 0x0607, &mut buffer).unwrap();
        let mut expected = Vec::new();
        expected.extend_from_slice(&0x01020304_u32.to_ne_bytes());
        expected.extend_from_slice(&0x0607_u16.to_ne_bytes());
        expected.extend_from_slice(&5_u16.to_ne_bytes());
        expected.extend_from_slice(&address.to_ne_bytes());
        expected.extend_from_slice(&32_u16.to_ne_bytes());
        expected.extend_from_slice(&1_u16.to_ne_bytes());
        expected.extend_from_slice(&(-1_i16).to_ne_bytes());
        assert_eq!(bytes(&segment)[..], expected[..]);
    }

    #[test]
    fn a_segment_to_a_grant_has_the_kernels_layout() {
        let buffer = [0; 4096];
        let address = buffer.as_ptr().addr() as u64;
        let segment = CopySegment::to_grant(0x7fef, 9, 0, &buffer).unwrap();
        let mut expected = Vec::new();
        expected.extend_from_slice(&address.to_ne_bytes());
        expected.extend_from_slice(&9_u32.to_ne_bytes());
        expected.extend_from_slice(&0_u16.to_ne_bytes());
        expected.extend_from_slice(&0x7fef_u16.to_ne_bytes());
        expected.extend_from_slice(&4096_u16.to_ne_bytes());
        expected.extend_from_slice(&2_u16.to_ne_bytes());
        expected.extend_from_slice(&(-1_i16).to_ne_bytes());
        assert_eq!(bytes(&segment)[..], expected[..]);
    }

    #[test]
    fn a_segment_that_crosses_the_page_is_refused() {
        // The kernel would fail the whole call, other guests' segments and all.
        let mut buffer = vec![0; 70_000];
        for (offset, len) in [(0, 4097), (4096, 1), (4095, 2), (0xffff, 1), (0, 65_536)] {
            let invalid = InvalidSegment {
                offset,
                len_bytes: len,
            };
            let from = CopySegment::from_grant(1, 1, offset, &mut buffer[..len]);
            assert_eq!(from.map(|_| ()), Err(invalid));
            let to = CopySegment::to_grant(1, 1, offset, &buffer[..len]);
            assert_eq!(to.map(|_| ()), Err(invalid));
        }
        for (offset, len) in [(0, 4096), (4095, 1), (4096, 0)] {
            assert!(CopySegment::from_grant(1, 1, offset, &mut buffer[..len]).is_ok());
        }
    }

    #[test]
    fn a_status_says_what_it_means() {
        assert_eq!(
            GrantStatus::BAD_GNTREF.to_string(),
            "grant status -3 (bad grant reference)"
        );
        assert!(GrantStatus(0).into_result().is_ok());
        assert_eq!(
            GrantStatus(-8).into_result(),
            Err(GrantStatus::PERMISSION_DENIED)
        );
    }
}

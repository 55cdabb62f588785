// SPDX-License-Identifier: GPL-3.0-or-later
//! Structures and numbers of Linux's `include/uapi/xen/gntdev.h` and `gntalloc.h`.

use std::ffi::c_void;
use std::mem::{align_of, offset_of, size_of};

/// `_IOC(_IOC_NONE, 'G', number, size)` as x86 and arm64 define it.
const fn ioctl_number(number: u32, size: usize) -> u32 {
    (size as u32) << 16 | (b'G' as u32) << 8 | number
}

pub(crate) const GNTDEV_MAP_GRANT_REF: u32 = ioctl_number(0, size_of::<MapGrantRef>());
pub(crate) const GNTDEV_UNMAP_GRANT_REF: u32 = ioctl_number(1, size_of::<UnmapGrantRef>());
pub(crate) const GNTALLOC_ALLOC_GREF: u32 = ioctl_number(5, size_of::<AllocGref>());
pub(crate) const GNTALLOC_DEALLOC_GREF: u32 = ioctl_number(6, size_of::<DeallocGref>());
/// The same for both devices.
pub(crate) const SET_UNMAP_NOTIFY: u32 = ioctl_number(7, size_of::<SetUnmapNotify>());
pub(crate) const GNTDEV_GRANT_COPY: u32 = ioctl_number(8, size_of::<GrantCopy>());

/// One grant to be mapped.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct GrantRef {
    pub(crate) domid: u32,
    pub(crate) gref: u32,
}

/// `refs` really has `count` entries: the structure is laid out by hand, see
/// [`crate::Gntdev::map`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapGrantRef {
    pub(crate) count: u32,
    pub(crate) pad: u32,
    /// Out: the offset for mmap.
    pub(crate) index: u64,
    pub(crate) refs: [GrantRef; 1],
}

#[repr(C)]
#[derive(Debug)]
pub(crate) struct UnmapGrantRef {
    pub(crate) index: u64,
    pub(crate) count: u32,
    pub(crate) pad: u32,
}

/// Of both devices.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct SetUnmapNotify {
    /// The byte, as an offset into the device's file.
    pub(crate) index: u64,
    pub(crate) action: u32,
    pub(crate) event_channel_port: u32,
}

pub(crate) const UNMAP_NOTIFY_CLEAR_BYTE: u32 = 1;
pub(crate) const UNMAP_NOTIFY_SEND_EVENT: u32 = 2;

#[repr(C)]
#[derive(Debug)]
pub(crate) struct GrantCopy {
    pub(crate) count: u32,
    pub(crate) segments: *mut GrantCopySegment,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) union CopyEnd {
    pub(crate) local: *mut c_void,
    pub(crate) foreign: ForeignEnd,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct ForeignEnd {
    pub(crate) gref: u32,
    pub(crate) offset: u16,
    pub(crate) domid: u16,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct GrantCopySegment {
    pub(crate) source: CopyEnd,
    pub(crate) dest: CopyEnd,
    pub(crate) len: u16,
    pub(crate) flags: u16,
    /// Out: `GNTST_*`.
    pub(crate) status: i16,
}

pub(crate) const GNTCOPY_SOURCE_GREF: u16 = 1;
pub(crate) const GNTCOPY_DEST_GREF: u16 = 2;

/// `gref_ids` really has `count` entries.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct AllocGref {
    pub(crate) domid: u16,
    pub(crate) flags: u16,
    pub(crate) count: u32,
    /// Out: the offset for mmap.
    pub(crate) index: u64,
    /// Out: the references.
    pub(crate) gref_ids: [u32; 1],
}

pub(crate) const GNTALLOC_FLAG_WRITABLE: u16 = 1;

#[repr(C)]
#[derive(Debug)]
pub(crate) struct DeallocGref {
    pub(crate) index: u64,
    pub(crate) count: u32,
}

// What the compiler of a 64-bit kernel makes of the headers.
#[cfg(target_pointer_width = "64")]
const _: () = {
    assert!(GNTDEV_MAP_GRANT_REF == 0x0018_4700);
    assert!(GNTDEV_UNMAP_GRANT_REF == 0x0010_4701);
    assert!(GNTALLOC_ALLOC_GREF == 0x0018_4705);
    assert!(GNTALLOC_DEALLOC_GREF == 0x0010_4706);
    assert!(SET_UNMAP_NOTIFY == 0x0010_4707);
    assert!(GNTDEV_GRANT_COPY == 0x0010_4708);

    assert!(size_of::<GrantRef>() == 8);
    assert!(size_of::<MapGrantRef>() == 24);
    assert!(offset_of!(MapGrantRef, index) == 8);
    assert!(offset_of!(MapGrantRef, refs) == 16);
    assert!(size_of::<UnmapGrantRef>() == 16);
    assert!(size_of::<SetUnmapNotify>() == 16);
    assert!(offset_of!(SetUnmapNotify, event_channel_port) == 12);
    assert!(size_of::<GrantCopy>() == 16);
    assert!(offset_of!(GrantCopy, segments) == 8);
    assert!(size_of::<CopyEnd>() == 8);
    assert!(offset_of!(ForeignEnd, offset) == 4);
    assert!(offset_of!(ForeignEnd, domid) == 6);
    assert!(size_of::<GrantCopySegment>() == 24);
    assert!(align_of::<GrantCopySegment>() == 8);
    assert!(offset_of!(GrantCopySegment, dest) == 8);
    assert!(offset_of!(GrantCopySegment, len) == 16);
    assert!(offset_of!(GrantCopySegment, flags) == 18);
    assert!(offset_of!(GrantCopySegment, status) == 20);
    assert!(size_of::<AllocGref>() == 24);
    assert!(offset_of!(AllocGref, count) == 4);
    assert!(offset_of!(AllocGref, index) == 8);
    assert!(offset_of!(AllocGref, gref_ids) == 16);
    assert!(size_of::<DeallocGref>() == 16);
};

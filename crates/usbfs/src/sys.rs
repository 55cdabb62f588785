// SPDX-License-Identifier: GPL-3.0-or-later
//! Structures and ioctl numbers of `linux/usbdevice_fs.h`, for 64-bit machines.

use std::ffi::{c_int, c_uint, c_void};

/// Most packets of an isochronous transfer (`proc_do_submiturb`).
pub const MAX_PACKETS: usize = 128;

pub(crate) const TYPE_ISO: u8 = 0;
pub(crate) const TYPE_INTERRUPT: u8 = 1;
pub(crate) const TYPE_CONTROL: u8 = 2;
pub(crate) const TYPE_BULK: u8 = 3;

pub(crate) const FLAG_ISO_ASAP: c_uint = 0x02;
pub(crate) const FLAG_ZERO_PACKET: c_uint = 0x40;

pub(crate) const CAP_BULK_SCATTER_GATHER: u32 = 0x08;

/// Flag of [`DisconnectClaim`]: not where the interface has this driver.
pub(crate) const EXCEPT_DRIVER: c_uint = 0x02;

/// `struct usbdevfs_urb`, without the packets that follow it.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct RawUrb {
    pub(crate) kind: u8,
    pub(crate) endpoint: u8,
    pub(crate) status: c_int,
    pub(crate) flags: c_uint,
    pub(crate) buffer: *mut c_void,
    pub(crate) buffer_length: c_int,
    pub(crate) actual_length: c_int,
    pub(crate) start_frame: c_int,
    pub(crate) number_of_packets: c_int,
    pub(crate) error_count: c_int,
    pub(crate) signr: c_uint,
    pub(crate) usercontext: *mut c_void,
}

/// `struct usbdevfs_iso_packet_desc`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct RawPacket {
    pub(crate) length: c_uint,
    pub(crate) actual_length: c_uint,
    pub(crate) status: c_uint,
}

/// `struct usbdevfs_ctrltransfer`.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct ControlTransfer {
    pub(crate) setup: [u8; 8],
    pub(crate) timeout_ms: u32,
    pub(crate) data: *mut c_void,
}

/// `struct usbdevfs_setinterface`.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct SetInterface {
    pub(crate) interface: c_uint,
    pub(crate) setting: c_uint,
}

/// `struct usbdevfs_getdriver`.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct GetDriver {
    pub(crate) interface: c_uint,
    pub(crate) driver: [u8; 256],
}

/// `struct usbdevfs_ioctl`.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct DriverIoctl {
    pub(crate) interface: c_int,
    pub(crate) code: c_int,
    pub(crate) data: *mut c_void,
}

/// `struct usbdevfs_disconnect_claim`.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct DisconnectClaim {
    pub(crate) interface: c_uint,
    pub(crate) flags: c_uint,
    pub(crate) driver: [u8; 256],
}

/// `_IOC` of `asm-generic/ioctl.h`, of type 'U'. `direction`: 1 write, 2 read.
const fn ioc(direction: u32, number: u32, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | (b'U' as u32) << 8 | number
}

const fn io(number: u32) -> u32 {
    ioc(0, number, 0)
}

/// What the kernel calls reading is what the program writes, in most of these.
const fn ior<T>(number: u32) -> u32 {
    ioc(2, number, size_of::<T>())
}

const fn iow<T>(number: u32) -> u32 {
    ioc(1, number, size_of::<T>())
}

const fn iowr<T>(number: u32) -> u32 {
    ioc(3, number, size_of::<T>())
}

pub(crate) const CONTROL: u32 = iowr::<ControlTransfer>(0);
pub(crate) const SETINTERFACE: u32 = ior::<SetInterface>(4);
pub(crate) const SETCONFIGURATION: u32 = ior::<c_uint>(5);
pub(crate) const GETDRIVER: u32 = iow::<GetDriver>(8);
pub(crate) const SUBMITURB: u32 = ior::<RawUrb>(10);
pub(crate) const DISCARDURB: u32 = io(11);
pub(crate) const REAPURBNDELAY: u32 = iow::<*mut c_void>(13);
pub(crate) const RELEASEINTERFACE: u32 = ior::<c_uint>(16);
pub(crate) const IOCTL: u32 = iowr::<DriverIoctl>(18);
pub(crate) const RESET: u32 = io(20);
pub(crate) const CLEAR_HALT: u32 = ior::<c_uint>(21);
pub(crate) const CONNECT: u32 = io(23);
pub(crate) const GET_CAPABILITIES: u32 = ior::<u32>(26);
pub(crate) const DISCONNECT_CLAIM: u32 = ior::<DisconnectClaim>(27);

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    /// The numbers that a C compiler makes of the header (x86-64, Linux 6.12's).
    #[test]
    fn ioctl_numbers_are_those_of_the_header() {
        for (ours, header) in [
            (CONTROL, 0xc018_5500_u32),
            (SETINTERFACE, 0x8008_5504),
            (SETCONFIGURATION, 0x8004_5505),
            (GETDRIVER, 0x4104_5508),
            (SUBMITURB, 0x8038_550a),
            (DISCARDURB, 0x550b),
            (REAPURBNDELAY, 0x4008_550d),
            (RELEASEINTERFACE, 0x8004_5510),
            (IOCTL, 0xc010_5512),
            (RESET, 0x5514),
            (CLEAR_HALT, 0x8004_5515),
            (CONNECT, 0x5517),
            (GET_CAPABILITIES, 0x8004_551a),
            (DISCONNECT_CLAIM, 0x8108_551b),
        ] {
            assert_eq!(ours, header, "{ours:#x}");
        }
    }

    #[test]
    fn structures_are_those_of_the_header() {
        assert_eq!(size_of::<RawUrb>(), 56);
        assert_eq!(size_of::<RawPacket>(), 12);
        assert_eq!(size_of::<ControlTransfer>(), 24);
        assert_eq!(size_of::<SetInterface>(), 8);
        assert_eq!(size_of::<GetDriver>(), 260);
        assert_eq!(size_of::<DriverIoctl>(), 16);
        assert_eq!(size_of::<DisconnectClaim>(), 264);
        for (ours, header) in [
            (offset_of!(RawUrb, kind), 0),
            (offset_of!(RawUrb, endpoint), 1),
            (offset_of!(RawUrb, status), 4),
            (offset_of!(RawUrb, flags), 8),
            (offset_of!(RawUrb, buffer), 16),
            (offset_of!(RawUrb, buffer_length), 24),
            (offset_of!(RawUrb, actual_length), 28),
            (offset_of!(RawUrb, start_frame), 32),
            (offset_of!(RawUrb, number_of_packets), 36),
            (offset_of!(RawUrb, error_count), 40),
            (offset_of!(RawUrb, signr), 44),
            (offset_of!(RawUrb, usercontext), 48),
            (offset_of!(ControlTransfer, timeout_ms), 8),
            (offset_of!(ControlTransfer, data), 16),
            (offset_of!(GetDriver, driver), 4),
            (offset_of!(DriverIoctl, data), 8),
            (offset_of!(DisconnectClaim, driver), 8),
        ] {
            assert_eq!(ours, header);
        }
    }
}

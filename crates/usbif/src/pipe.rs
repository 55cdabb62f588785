// SPDX-License-Identifier: GPL-3.0-or-later
//! The pipe word of a request: where it goes and how.

use core::fmt;

use crate::DeviceAddress;

const PORT_MASK: u32 = 0x1f;
const UNLINK: u32 = 0x20;
const DIRECTION_IN: u32 = 0x80;
const DEVICE_SHIFT: u32 = 8;
const DEVICE_MASK: u32 = 0x7f;
const ENDPOINT_SHIFT: u32 = 15;
const ENDPOINT_MASK: u32 = 0xf;
const TYPE_SHIFT: u32 = 30;

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the host to the device.
    Out,
    /// From the device to the host.
    In,
}

/// The four transfer types (USB 2.0, 5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransferType {
    /// Periodic, without retries.
    Isochronous,
    /// Polled at an interval.
    Interrupt,
    /// Setup, optional data, status.
    Control,
    /// As bandwidth allows.
    Bulk,
}

/// The `pipe` word of a request, as the frontend wrote it. Undefined bits are ignored.
///
/// The port bits name the port of the device **on its own hub**: for a device with an address
/// they say nothing about the virtual controller's port, and may be anything from 0 to 31. Only
/// for address 0 do they say which port is meant.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pipe(pub u32);

impl Pipe {
    /// A pipe for submitting. `port_bits` and `endpoint` are cut to 5 and 4 bits.
    pub const fn new(
        port_bits: u8,
        device: DeviceAddress,
        endpoint: u8,
        direction: Direction,
        transfer_type: TransferType,
    ) -> Self {
        let type_bits = match transfer_type {
            TransferType::Isochronous => 0,
            TransferType::Interrupt => 1,
            TransferType::Control => 2,
            TransferType::Bulk => 3,
        };
        let direction_bit = match direction {
            Direction::In => DIRECTION_IN,
            Direction::Out => 0,
        };
        Self(
            (port_bits as u32 & PORT_MASK)
                | direction_bit
                | (device.get() as u32) << DEVICE_SHIFT
                | (endpoint as u32 & ENDPOINT_MASK) << ENDPOINT_SHIFT
                | type_bits << TYPE_SHIFT,
        )
    }

    /// The same pipe, for unlinking a request.
    pub const fn with_unlink(self) -> Self {
        Self(self.0 | UNLINK)
    }

    /// The port bits, 0 to 31: unchecked, see the type.
    pub const fn port_bits(self) -> u8 {
        (self.0 & PORT_MASK) as u8
    }

    /// Whether the request unlinks an earlier one.
    pub const fn is_unlink(self) -> bool {
        self.0 & UNLINK != 0
    }

    /// The direction of the data. For a control request the setup packet has the last word, see
    /// [`crate::UrbRequest::direction`].
    pub const fn direction(self) -> Direction {
        if self.0 & DIRECTION_IN != 0 {
            Direction::In
        } else {
            Direction::Out
        }
    }

    /// The device's address.
    pub const fn device(self) -> DeviceAddress {
        match DeviceAddress::new(((self.0 >> DEVICE_SHIFT) & DEVICE_MASK) as u8) {
            Some(address) => address,
            // Seven bits are always an address.
            None => DeviceAddress::DEFAULT,
        }
    }

    /// The endpoint's number without its direction, 0 to 15.
    pub const fn endpoint(self) -> u8 {
        ((self.0 >> ENDPOINT_SHIFT) & ENDPOINT_MASK) as u8
    }

    /// The endpoint's address as in its descriptor: bit 7 set for IN (USB 2.0, 9.6.6).
    pub const fn endpoint_address(self) -> u8 {
        self.endpoint() | (self.0 & DIRECTION_IN) as u8
    }

    /// The transfer type.
    pub const fn transfer_type(self) -> TransferType {
        match self.0 >> TYPE_SHIFT {
            0 => TransferType::Isochronous,
            1 => TransferType::Interrupt,
            2 => TransferType::Control,
            _ => TransferType::Bulk,
        }
    }
}

impl fmt::Debug for Pipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Pipe({:?} {:?} device {} endpoint {} port {}{})",
            self.transfer_type(),
            self.direction(),
            self.device(),
            self.endpoint(),
            self.port_bits(),
            if self.is_unlink() { " unlink" } else { "" }
        )
    }
}

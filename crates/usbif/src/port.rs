// SPDX-License-Identifier: GPL-3.0-or-later
//! What is plugged in where: ports, device addresses, speeds.

use core::fmt;

/// A port of the virtual host controller, 1 to 31 (`XENUSB_MAX_PORTNR`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortNumber(u8);

impl PortNumber {
    /// The highest port.
    pub const MAX: u8 = 31;

    /// `None` outside 1 to 31.
    pub const fn new(number: u8) -> Option<Self> {
        if number >= 1 && number <= Self::MAX {
            Some(Self(number))
        } else {
            None
        }
    }

    /// 1 to 31.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// 0 to 30, for tables.
    pub const fn index(self) -> usize {
        self.0 as usize - 1
    }

    /// Every port from 1 to `count`; `count` above 31 counts as 31.
    pub fn first(count: u8) -> impl DoubleEndedIterator<Item = Self> + Clone {
        (1..=count.min(Self::MAX)).map(Self)
    }
}

impl fmt::Display for PortNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A USB device address, 0 to 127 (USB 2.0, 9.4.6). 0 is the default address: the device that was
/// reset last and has none of its own yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceAddress(u8);

impl DeviceAddress {
    /// The default address.
    pub const DEFAULT: Self = Self(0);
    /// The highest address.
    pub const MAX: u8 = 127;

    /// `None` above 127.
    pub const fn new(address: u8) -> Option<Self> {
        if address <= Self::MAX {
            Some(Self(address))
        } else {
            None
        }
    }

    /// 0 to 127.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Whether this is the default address, 0.
    pub const fn is_default(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for DeviceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The speed of what is plugged into a port (`XENUSB_SPEED_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Speed {
    /// Nothing is plugged in.
    #[default]
    None,
    /// 1.5 Mbit/s.
    Low,
    /// 12 Mbit/s.
    Full,
    /// 480 Mbit/s.
    High,
}

impl Speed {
    /// From `XENUSB_SPEED_*`; `None` when undefined.
    pub const fn from_wire(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::None),
            1 => Some(Self::Low),
            2 => Some(Self::Full),
            3 => Some(Self::High),
            _ => None,
        }
    }

    /// `XENUSB_SPEED_*`.
    pub const fn to_wire(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Low => 1,
            Self::Full => 2,
            Self::High => 3,
        }
    }
}

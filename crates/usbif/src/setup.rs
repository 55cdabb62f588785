// SPDX-License-Identifier: GPL-3.0-or-later
//! The setup packet of a control transfer (USB 2.0, 9.3).

use crate::Direction;
use crate::wire::{get_u16, put_u16};

/// The eight bytes that begin a control transfer, as on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Setup(pub [u8; 8]);

impl Setup {
    /// `bRequest` of GET_DESCRIPTOR.
    pub const GET_DESCRIPTOR: u8 = 6;
    /// `bRequest` of SET_ADDRESS.
    pub const SET_ADDRESS: u8 = 5;
    /// `bRequest` of SET_CONFIGURATION.
    pub const SET_CONFIGURATION: u8 = 9;
    /// `bRequest` of CLEAR_FEATURE.
    pub const CLEAR_FEATURE: u8 = 1;
    /// `bRequest` of SET_INTERFACE.
    pub const SET_INTERFACE: u8 = 11;

    /// From its fields.
    pub fn new(request_type: u8, request: u8, value: u16, index: u16, length: u16) -> Self {
        let mut bytes = [request_type, request, 0, 0, 0, 0, 0, 0];
        put_u16(&mut bytes, 2, value);
        put_u16(&mut bytes, 4, index);
        put_u16(&mut bytes, 6, length);
        Self(bytes)
    }

    /// `bmRequestType`: direction, type and recipient.
    pub const fn request_type(self) -> u8 {
        self.0[0]
    }

    /// `bRequest`.
    pub const fn request(self) -> u8 {
        self.0[1]
    }

    /// `wValue`.
    pub fn value(self) -> u16 {
        get_u16(&self.0, 2)
    }

    /// `wIndex`.
    pub fn index(self) -> u16 {
        get_u16(&self.0, 4)
    }

    /// `wLength`: bytes of the data stage.
    pub fn length(self) -> u16 {
        get_u16(&self.0, 6)
    }

    /// The same with another `wLength`.
    #[must_use]
    pub fn with_length(mut self, length: u16) -> Self {
        put_u16(&mut self.0, 6, length);
        self
    }

    /// The direction of the data stage. Without one it says nothing.
    pub const fn direction(self) -> Direction {
        if self.0[0] & 0x80 != 0 {
            Direction::In
        } else {
            Direction::Out
        }
    }

    /// Whether this is the standard SET_ADDRESS request to the device. It never reaches a device
    /// from a guest.
    pub const fn is_set_address(self) -> bool {
        self.0[0] == 0 && self.0[1] == Self::SET_ADDRESS
    }
}

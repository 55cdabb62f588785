// SPDX-License-Identifier: GPL-3.0-or-later
//! One port of the virtual root hub.

use usbif::{DeviceAddress, Speed};

/// A change that the guest is to be told on the connection ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnEvent {
    /// The port.
    pub port: usbif::PortNumber,
    /// What is plugged in now.
    pub speed: Speed,
}

/// What a hand-off must carry over for one port, so that the guest notices nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortState {
    /// What the guest was told last. Telling it the same again is invisible to it.
    pub speed: Speed,
    /// The address that the guest gave the device.
    pub address: Option<DeviceAddress>,
}

/// All that is known of a port, to be kept beyond the end of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortSnapshot {
    /// What is plugged in.
    pub speed: Speed,
    /// The address that the guest gave it.
    pub address: Option<DeviceAddress>,
    /// Requests wait.
    pub held: bool,
    /// What the guest is still to be told, oldest first.
    pub events: [Option<Speed>; 2],
    /// Whether the device is to be reset.
    pub reset: ResetDue,
}

/// Whether a guest's reset of the port has still to reach the device.
///
/// The ring has no request for a port reset. What tells of one is a request to address 0, which a
/// device has after a reset only (USB 2.0 §9.1.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ResetDue {
    /// No. The device was reset when it was leased, or has been since.
    #[default]
    No,
    /// The device has no address that the guest knows, but is not as after a reset. The guest's next
    /// request to address 0 says that it has reset the port.
    AtDefaultAddress,
    /// The guest has reset the port. Requests to it are held until the device was reset, or are
    /// about to be.
    Now,
}

/// What is plugged into a port.
#[derive(Clone, Copy, Debug, Default, Hash)]
pub(crate) struct Port {
    pub(crate) speed: Speed,
    pub(crate) address: Option<DeviceAddress>,
    /// Requests wait: the lease is not claimed yet, or a device reset is under way.
    pub(crate) held: bool,
    /// Events not yet told, oldest first. Two are enough: a disconnect, and what came after it.
    pub(crate) events: [Option<Speed>; 2],
    pub(crate) reset: ResetDue,
}

impl Port {
    pub(crate) fn is_empty(&self) -> bool {
        self.speed == Speed::None
    }

    /// Queues an event, so that what is told last is true. A disconnect that was not told yet and
    /// the connect after it both stay; an untold connect before a disconnect need not be told.
    pub(crate) fn announce(&mut self, speed: Speed) {
        self.events = match (self.events, speed) {
            ([Some(Speed::None), _], Speed::None) => [Some(Speed::None), None],
            ([Some(Speed::None), _], speed) => [Some(Speed::None), Some(speed)],
            (_, speed) => [Some(speed), None],
        };
    }
}

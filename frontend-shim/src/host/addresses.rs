// SPDX-License-Identifier: GPL-3.0-or-later
//! Device addresses.

use usbif::{DeviceAddress, PortNumber};

/// Which device addresses are in use, and on which port.
#[derive(Debug)]
pub(super) struct Addresses([Option<PortNumber>; 128]);

impl Default for Addresses {
    fn default() -> Self {
        Self([None; 128])
    }
}

impl Addresses {
    /// Takes a free one for the device at `port`.
    pub(super) fn take(&mut self, port: PortNumber) -> Option<DeviceAddress> {
        let free = (1..128).find(|n| self.0[*n].is_none())?;
        self.0[free] = Some(port);
        DeviceAddress::new(free as u8)
    }

    /// Gives back those of the devices at `port`.
    pub(super) fn release(&mut self, port: PortNumber) {
        for owner in &mut self.0 {
            if *owner == Some(port) {
                *owner = None;
            }
        }
    }
}

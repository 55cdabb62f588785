// SPDX-License-Identifier: GPL-3.0-or-later
//! Devices that are pulled out and plugged in elsewhere: what tells them from others, and what a guest
//! has set at one, which the next one gets.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{DeviceInfo, DeviceSelector, Lease, VmUuid};

/// What a guest sees while its device is pulled out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnExchange {
    /// The port is disconnected, and connected when the device is back.
    Replug,
    /// Nothing but a pause, where the device comes back with the same descriptors.
    Pause,
}

impl fmt::Display for OnExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Replug => "replug",
            Self::Pause => "pause",
        })
    }
}

/// How an attachment follows its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Exchange {
    /// What the guest sees.
    pub on: OnExchange,
    /// How long it waits, in seconds, 1 to [`Exchange::MAX_SECONDS`].
    pub seconds: u32,
    /// Whether it is an attachment of a place: what is plugged in there takes the device's place, also
    /// where it is another device. Else it is an attachment of the device.
    #[serde(default)]
    pub at_place: bool,
}

impl Exchange {
    /// A day.
    pub const MAX_SECONDS: u32 = 86_400;
}

impl DeviceInfo {
    /// What tells this device from all others; `None` without a serial number.
    pub fn identity(&self) -> Option<DeviceSelector> {
        let serial = self.serial.clone().filter(|s| !s.is_empty())?;
        Some(DeviceSelector::Kind {
            vendor: self.vendor,
            product: self.product,
            serial: Some(serial),
        })
    }
}

impl Lease {
    /// Whether it is for this port.
    pub fn is_at(&self, vm: VmUuid, controller: u16, port: u8) -> bool {
        (self.vm, self.controller, self.port) == (vm, controller, port)
    }
}

/// SHA-256 over all descriptors of a device as a guest is shown them, in an order of the exporter's
/// choice: equal where they are, byte for byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

/// What a guest has set at its device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Configured {
    /// bConfigurationValue; 0 for none.
    pub configuration: u8,
    /// Interfaces that have another setting than 0, in their order, each with its bAlternateSetting.
    pub alternates: Vec<(u8, u8)>,
}

/// bmRequestType and bRequest of SET_CONFIGURATION and SET_INTERFACE (USB 2.0 §9.4).
const SET_CONFIGURATION: [u8; 2] = [0x00, 9];
const SET_INTERFACE: [u8; 2] = [0x01, 11];

impl Configured {
    /// Whether a control transfer with this SETUP packet sets something that is noted here.
    pub fn is_changed_by(setup: [u8; 8]) -> bool {
        matches!([setup[0], setup[1]], SET_CONFIGURATION | SET_INTERFACE)
    }

    /// A control transfer with this SETUP packet has succeeded. Answers whether that changed anything.
    pub fn apply(&mut self, setup: [u8; 8]) -> bool {
        match [setup[0], setup[1]] {
            SET_CONFIGURATION => {
                let new = Self {
                    configuration: setup[2],
                    alternates: Vec::new(),
                };
                std::mem::replace(self, new) != *self
            }
            SET_INTERFACE => {
                let (setting, interface) = (setup[2], setup[4]);
                let at = self.alternates.binary_search_by_key(&interface, |a| a.0);
                match (at, setting) {
                    (Ok(at), 0) => drop(self.alternates.remove(at)),
                    (Ok(at), _) if self.alternates[at].1 == setting => return false,
                    (Ok(at), _) => self.alternates[at].1 = setting,
                    (Err(_), 0) => return false,
                    (Err(at), _) => self.alternates.insert(at, (interface, setting)),
                }
                true
            }
            _ => false,
        }
    }

    /// The SETUP packets that set all this, in order.
    pub fn requests(&self) -> impl Iterator<Item = [u8; 8]> + '_ {
        let [kind, request] = SET_CONFIGURATION;
        let configuration = [kind, request, self.configuration, 0, 0, 0, 0, 0];
        let [kind, request] = SET_INTERFACE;
        let alternates = self.alternates.iter();
        let alternates = alternates
            .map(move |&(interface, setting)| [kind, request, setting, 0, interface, 0, 0, 0]);
        let first = (self.configuration != 0).then_some(configuration);
        first
            .into_iter()
            .chain(alternates.filter(move |_| first.is_some()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn set_configuration(value: u8) -> [u8; 8] {
        [0, 9, value, 0, 0, 0, 0, 0]
    }

    const fn set_interface(interface: u8, setting: u8) -> [u8; 8] {
        [1, 11, setting, 0, interface, 0, 0, 0]
    }

    #[test]
    fn what_was_set_last_is_set_again_and_nothing_else() {
        let mut configured = Configured::default();
        assert_eq!(configured.requests().count(), 0);
        assert!(configured.apply(set_configuration(1)));
        assert!(!configured.apply(set_configuration(1)));
        for (interface, setting) in [(2, 1), (1, 3), (2, 4), (5, 1), (5, 0)] {
            assert!(configured.apply(set_interface(interface, setting)));
        }
        assert!(!configured.apply(set_interface(2, 4)));
        assert!(!configured.apply(set_interface(7, 0)));
        // GET_DESCRIPTOR, and a class request that looks alike.
        assert!(!configured.apply([0x80, 6, 0, 1, 0, 0, 18, 0]));
        assert!(!configured.apply([0x21, 9, 5, 2, 0, 0, 1, 0]));
        let again: Vec<_> = configured.requests().collect();
        let expected = [
            set_configuration(1),
            set_interface(1, 3),
            set_interface(2, 4),
        ];
        assert_eq!(again, expected);
        let mut copy = Configured::default();
        for request in again {
            copy.apply(request);
        }
        assert_eq!(copy, configured);
        // Another configuration has its own interfaces.
        assert!(configured.apply(set_configuration(2)));
        assert_eq!(
            configured.requests().collect::<Vec<_>>(),
            [set_configuration(2)]
        );
        assert!(configured.apply(set_configuration(0)));
        assert_eq!(configured, Configured::default());
    }
}

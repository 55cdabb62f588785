// SPDX-License-Identifier: GPL-3.0-or-later
//! The configurations of a device: what its descriptors say, read once. (USB 2.0 §9.6)

use crate::descriptors;

const CONFIGURATION: u8 = 2;
const INTERFACE: u8 = 4;
const ENDPOINT: u8 = 5;
const DEVICE_LEN: usize = 18;
/// Mass storage, bulk-only transport: bInterfaceClass, bInterfaceProtocol.
const BULK_ONLY: (u8, u8) = (8, 0x50);

/// The configurations, each with all its descriptors.
#[derive(Debug, Default)]
pub(super) struct Configurations(Vec<Vec<u8>>);

/// A setting of an interface, or an endpoint of it.
#[derive(Clone, Copy, Debug)]
enum Item {
    Setting { number: u8, class: u8, protocol: u8 },
    Endpoint { address: u8, max_packet_size: u16 },
}

impl Configurations {
    /// Of what sysfs has as a device's `descriptors`. What does not make sense is left out.
    pub(super) fn new(raw: &[u8]) -> Self {
        if let Some((_, configurations)) = descriptors::split(raw) {
            return Self(configurations.into_iter().map(<[u8]>::to_vec).collect());
        }
        // A device that is wrong about its length; the kernel takes it.
        let mut all: Vec<Vec<u8>> = Vec::new();
        for descriptor in Descriptors(raw.get(DEVICE_LEN..).unwrap_or_default()) {
            match (descriptor[1], all.last_mut()) {
                (CONFIGURATION, _) => all.push(descriptor.to_vec()),
                (_, Some(last)) => last.extend_from_slice(descriptor),
                (_, None) => (),
            }
        }
        Self(all)
    }

    /// What is in the configuration with this bConfigurationValue.
    fn items(&self, value: u8) -> impl Iterator<Item = Item> {
        let found = self.0.iter().find(|c| c.get(5) == Some(&value));
        found.into_iter().flat_map(|c| items(c))
    }

    /// The numbers of its interfaces, each once.
    pub(super) fn interfaces(&self, value: u8) -> Vec<u8> {
        let mut numbers = Vec::new();
        for item in self.items(value) {
            if let Item::Setting { number, .. } = item
                && !numbers.contains(&number)
            {
                numbers.push(number);
            }
        }
        numbers
    }

    /// The endpoints of all settings of an interface.
    pub(super) fn endpoints_of(&self, value: u8, interface: u8) -> Vec<u8> {
        let mut endpoints = Vec::new();
        let mut is_it = false;
        for item in self.items(value) {
            match item {
                Item::Setting { number, .. } => is_it = number == interface,
                Item::Endpoint { address, .. } if is_it && !endpoints.contains(&address) => {
                    endpoints.push(address);
                }
                Item::Endpoint { .. } => (),
            }
        }
        endpoints
    }

    /// wMaxPacketSize of an endpoint, in the first setting that has it.
    pub(super) fn packet_len(&self, value: u8, endpoint: u8) -> Option<u16> {
        self.items(value).find_map(|item| match item {
            Item::Endpoint {
                address,
                max_packet_size,
            } if address == endpoint => Some(max_packet_size & 0x7ff),
            _ => None,
        })
    }

    /// Bit = number: the OUT endpoints of bulk-only mass storage, in all configurations.
    pub(super) fn bulk_only(&self) -> u16 {
        let mut numbers = 0;
        for configuration in &self.0 {
            let mut is_it = false;
            for item in items(configuration) {
                match item {
                    Item::Setting {
                        class, protocol, ..
                    } => is_it = (class, protocol) == BULK_ONLY,
                    Item::Endpoint { address, .. } if is_it && address & 0x80 == 0 => {
                        numbers |= 1 << (address & 0x0f);
                    }
                    Item::Endpoint { .. } => (),
                }
            }
        }
        numbers
    }
}

fn items(configuration: &[u8]) -> impl Iterator<Item = Item> {
    Descriptors(configuration).filter_map(|descriptor| match *descriptor {
        [_, INTERFACE, number, _, _, class, _, protocol, ..] => Some(Item::Setting {
            number,
            class,
            protocol,
        }),
        [_, ENDPOINT, address, _, low, high, ..] => Some(Item::Endpoint {
            address,
            max_packet_size: u16::from_le_bytes([low, high]),
        }),
        _ => None,
    })
}

/// Descriptors one after the other, until one is not whole.
struct Descriptors<'a>(&'a [u8]);

impl<'a> Iterator for Descriptors<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let len = usize::from(*self.0.first()?);
        let (descriptor, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        (len >= 2).then_some(descriptor)
    }
}

#[cfg(test)]
mod tests {
    use usb_sim::{Disk, Function, MemoryStorage};

    use super::*;

    /// Two configurations: the first has interface 3 with two settings, and a disk.
    fn raw() -> Vec<u8> {
        let mut raw = vec![0; DEVICE_LEN];
        raw[17] = 2;
        let setting = |number, setting, class, protocol| {
            [9, INTERFACE, number, setting, 1, class, 6, protocol, 0]
        };
        let endpoint = |address, low, high| [7, ENDPOINT, address, 2, low, high, 0];
        let mut first = vec![9, CONFIGURATION, 0, 0, 2, 1, 0, 0, 0];
        first.extend(setting(3, 0, 0xff, 0));
        first.extend([5, 0x24, 1, 2, 3]);
        first.extend(setting(3, 1, 0xff, 0));
        first.extend(endpoint(0x83, 0, 0x14));
        first.extend(setting(0, 0, 8, 0x50));
        first.extend(endpoint(0x02, 0, 2));
        first.extend(endpoint(0x81, 0, 2));
        first[2] = first.len() as u8;
        raw.extend(first);
        raw.extend([9, CONFIGURATION, 18, 0, 1, 5, 0, 0, 0]);
        raw.extend(setting(0, 0, 0xff, 0));
        raw
    }

    #[test]
    fn they_are_as_the_descriptors_say() {
        let all = Configurations::new(&raw());
        assert_eq!(all.interfaces(1), [3, 0]);
        assert_eq!(all.interfaces(5), [0]);
        assert_eq!(all.interfaces(2), [0_u8; 0]);
        assert_eq!(all.endpoints_of(1, 3), [0x83]);
        assert_eq!(all.endpoints_of(1, 0), [0x02, 0x81]);
        assert_eq!(all.endpoints_of(5, 0), [0_u8; 0]);
        assert_eq!(all.packet_len(1, 0x81), Some(512));
        assert_eq!(
            all.packet_len(1, 0x83),
            Some(0x400),
            "without the multiplier"
        );
        assert_eq!(all.packet_len(1, 0x01), None);
        assert_eq!(all.bulk_only(), 1 << 2);
    }

    #[test]
    fn a_device_that_is_wrong_about_its_length_has_interfaces_all_the_same() {
        let mut raw = raw();
        raw[DEVICE_LEN + 2] = 200;
        let all = Configurations::new(&raw);
        assert_eq!(
            (all.interfaces(1), all.interfaces(5)),
            (vec![3, 0], vec![0])
        );
    }

    #[test]
    fn whatever_a_device_says_is_taken() {
        let raw = raw();
        for len in 0..raw.len() {
            let all = Configurations::new(&raw[..len]);
            all.interfaces(1);
            all.bulk_only();
        }
        for at in 0..raw.len() {
            for value in [0, 1, 255] {
                let mut raw = raw.clone();
                raw[at] = value;
                Configurations::new(&raw).endpoints_of(1, 3);
            }
        }
    }

    #[test]
    fn the_disk_of_the_simulation() {
        let disk = Disk::super_speed(MemoryStorage::new(4096), "1", true);
        let of = disk.descriptors();
        let all = Configurations::new(&[&*of.device, &*of.configurations[0]].concat());
        assert_eq!(all.interfaces(1), [0]);
        assert_ne!(all.bulk_only(), 0);
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! Descriptors put together (USB 2.0 §9.6).

/// Values of bmAttributes of an endpoint.
pub(crate) mod endpoint_type {
    pub(crate) const ISOCHRONOUS: u8 = 1;
    pub(crate) const ISOCHRONOUS_ASYNCHRONOUS: u8 = 5;
    pub(crate) const ISOCHRONOUS_ADAPTIVE: u8 = 9;
    pub(crate) const BULK: u8 = 2;
    pub(crate) const INTERRUPT: u8 = 3;
}

/// What differs between our device descriptors. Strings 1, 2 and 3 are the manufacturer, the
/// product and the serial number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Device {
    /// bcdUSB.
    pub(crate) usb: u16,
    /// bDeviceClass, bDeviceSubClass, bDeviceProtocol.
    pub(crate) class: [u8; 3],
    pub(crate) max_packet_size0: u8,
    pub(crate) vendor: u16,
    pub(crate) product: u16,
    pub(crate) configurations: u8,
}

impl Device {
    pub(crate) fn descriptor(&self) -> Vec<u8> {
        let mut bytes = vec![18, 1];
        bytes.extend_from_slice(&self.usb.to_le_bytes());
        bytes.extend_from_slice(&self.class);
        bytes.push(self.max_packet_size0);
        bytes.extend_from_slice(&self.vendor.to_le_bytes());
        bytes.extend_from_slice(&self.product.to_le_bytes());
        bytes.extend_from_slice(&0x0100_u16.to_le_bytes());
        bytes.extend_from_slice(&[1, 2, 3, self.configurations]);
        bytes
    }

    /// The device qualifier of a device that is the same at the other speed.
    pub(crate) fn qualifier(&self) -> Vec<u8> {
        let mut bytes = vec![10, 6];
        bytes.extend_from_slice(&self.usb.to_le_bytes());
        bytes.extend_from_slice(&self.class);
        bytes.extend_from_slice(&[64, self.configurations, 0]);
        bytes
    }
}

/// A configuration of these parts, bus powered.
pub(crate) fn configuration(value: u8, milliamperes: u16, parts: &[&[u8]]) -> Vec<u8> {
    let is_interface = |part: &&&[u8]| part.get(1) == Some(&4) && part.get(3) == Some(&0);
    let interfaces = parts.iter().filter(is_interface).count() as u8;
    let total = 9 + parts.iter().map(|p| p.len()).sum::<usize>();
    let [low, high] = (total as u16).to_le_bytes();
    let power = (milliamperes / 2) as u8;
    let mut bytes = vec![9, 2, low, high, interfaces, value, 0, 0x80, power];
    for part in parts {
        bytes.extend_from_slice(part);
    }
    bytes
}

/// The same, as an other-speed configuration (§9.6.4).
pub(crate) fn other_speed(mut configuration: Vec<u8>) -> Vec<u8> {
    configuration[1] = 7;
    configuration
}

/// An interface with its class, subclass and protocol.
pub(crate) fn interface(number: u8, setting: u8, endpoints: u8, class: [u8; 3]) -> [u8; 9] {
    let [class, subclass, protocol] = class;
    [
        9, 4, number, setting, endpoints, class, subclass, protocol, 0,
    ]
}

pub(crate) fn endpoint(address: u8, attributes: u8, max_packet: u16, interval: u8) -> [u8; 7] {
    let [low, high] = max_packet.to_le_bytes();
    [7, 5, address, attributes, low, high, interval]
}

/// The strings of our devices.
pub(crate) fn strings(product: &str, serial: &str) -> Vec<String> {
    vec!["xen-vusb".to_owned(), product.to_owned(), serial.to_owned()]
}

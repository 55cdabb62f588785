// SPDX-License-Identifier: GPL-3.0-or-later
//! How a device is described to clients.

use session::Speed;
use usb_sim::{Function, Port};

/// Bytes of a path and of a bus id.
const PATH_LEN: usize = 256;
pub(crate) const BUS_ID_LEN: usize = 32;

/// All of our devices are on this bus.
const BUS: u32 = 1;

/// Descriptor type INTERFACE.
const INTERFACE: u8 = 4;

/// A device's record in OP_REP_DEVLIST and OP_REP_IMPORT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRecord {
    /// Made-up path in sysfs, at most 255 bytes.
    pub path: String,
    /// Bus id, at most 31 bytes.
    pub bus_id: String,
    /// Bus number.
    pub bus: u32,
    /// Device number.
    pub device: u32,
    /// Speed.
    pub speed: Speed,
    /// idVendor.
    pub vendor: u16,
    /// idProduct.
    pub product: u16,
    /// bcdDevice.
    pub release: u16,
    /// bDeviceClass, bDeviceSubClass, bDeviceProtocol.
    pub class: [u8; 3],
    /// bConfigurationValue of the active configuration.
    pub configuration: u8,
    /// bNumConfigurations.
    pub configurations: u8,
    /// bInterfaceClass, bInterfaceSubClass, bInterfaceProtocol of each interface of the active
    /// configuration, or of the first one.
    pub interfaces: Vec<[u8; 3]>,
}

impl DeviceRecord {
    /// The `number`th device, from 1: its bus id is `1-number`.
    pub fn new<F: Function>(number: u32, port: &Port<F>) -> Self {
        let descriptors = port.function().descriptors();
        let byte = |at: usize| descriptors.device.get(at).copied().unwrap_or(0);
        let word = |at: usize| u16::from_le_bytes([byte(at), byte(at + 1)]);
        let configuration = match port.configuration() {
            0 => descriptors.configurations.first(),
            value => descriptors
                .configurations
                .iter()
                .find(|c| c.get(5) == Some(&value)),
        };
        let bus_id = format!("{BUS}-{number}");
        Self {
            path: format!("/sys/devices/platform/simulated/usb{BUS}/{bus_id}"),
            bus_id,
            bus: BUS,
            device: number + 1,
            speed: port.function().speed(),
            vendor: word(8),
            product: word(10),
            release: word(12),
            class: [byte(4), byte(5), byte(6)],
            configuration: port.configuration(),
            configurations: byte(17),
            interfaces: interfaces(configuration.map_or(&[], Vec::as_slice)),
        }
    }

    /// The devid of commands to it.
    pub fn id(&self) -> u32 {
        self.bus << 16 | self.device
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        padded(out, &self.path, PATH_LEN);
        padded(out, &self.bus_id, BUS_ID_LEN);
        // enum usb_device_speed of Linux
        let speed = match self.speed {
            Speed::Low => 1_u32,
            Speed::Full => 2,
            Speed::High => 3,
            Speed::Super => 5,
        };
        for field in [self.bus, self.device, speed] {
            out.extend_from_slice(&field.to_be_bytes());
        }
        for field in [self.vendor, self.product, self.release] {
            out.extend_from_slice(&field.to_be_bytes());
        }
        out.extend_from_slice(&self.class);
        let interfaces = self.interfaces.len() as u8;
        out.extend_from_slice(&[self.configuration, self.configurations, interfaces]);
    }

    pub(crate) fn encode_interfaces(&self, out: &mut Vec<u8>) {
        for [class, subclass, protocol] in &self.interfaces {
            out.extend_from_slice(&[*class, *subclass, *protocol, 0]);
        }
    }
}

/// `text`, cut if need be, and zeroes: at least one.
fn padded(out: &mut Vec<u8>, text: &str, len: usize) {
    let end = out.len() + len;
    out.extend_from_slice(&text.as_bytes()[..text.len().min(len - 1)]);
    out.resize(end, 0);
}

/// Setting 0 of each interface.
fn interfaces(mut configuration: &[u8]) -> Vec<[u8; 3]> {
    let mut found = Vec::new();
    while let Some((part, rest)) = configuration
        .first()
        .and_then(|len| configuration.split_at_checked(usize::from(*len).max(2)))
    {
        if let [_, INTERFACE, _, 0, _, class, subclass, protocol, ..] = part {
            found.push([*class, *subclass, *protocol]);
        }
        configuration = rest;
    }
    found
}

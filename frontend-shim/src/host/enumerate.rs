// SPDX-License-Identifier: GPL-3.0-or-later
//! Enumeration of a device, as the USB core does it (USB 2.0, 9.1.2).

use std::time::Duration;

use usbif::{DeviceAddress, Direction, PortNumber, Setup};
use xen::Guest;

use super::{ControlData, Target, UsbHost, standard};
use crate::HostError;

const TIMEOUT: Duration = Duration::from_secs(5);
const DEVICE: u16 = 0x0100;
const CONFIGURATION: u16 = 0x0200;

/// What a device says of itself (USB 2.0, 9.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceDescriptor {
    /// `bcdUSB`.
    pub usb_version: u16,
    /// `bDeviceClass`.
    pub class: u8,
    /// `bMaxPacketSize0`.
    pub max_packet_0: u8,
    /// `idVendor`.
    pub vendor: u16,
    /// `idProduct`.
    pub product: u16,
    /// `bNumConfigurations`.
    pub configurations: u8,
}

/// An endpoint of an interface (USB 2.0, 9.6.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `bEndpointAddress`: bit 7 set for IN.
    pub address: u8,
    /// `bmAttributes`: bits 0 and 1 are the transfer type.
    pub attributes: u8,
    /// `wMaxPacketSize`.
    pub max_packet: u16,
    /// `bInterval`.
    pub interval: u8,
}

impl Endpoint {
    /// Whether it is a bulk endpoint.
    pub fn is_bulk(&self) -> bool {
        self.attributes & 3 == 2
    }

    /// Whether it is an interrupt endpoint.
    pub fn is_interrupt(&self) -> bool {
        self.attributes & 3 == 3
    }

    /// Whether it is an IN endpoint.
    pub fn is_in(&self) -> bool {
        self.address & 0x80 != 0
    }
}

/// An interface, in one of its settings (USB 2.0, 9.6.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// `bInterfaceNumber`.
    pub number: u8,
    /// `bAlternateSetting`.
    pub alternate: u8,
    /// `bInterfaceClass`.
    pub class: u8,
    /// `bInterfaceSubClass`.
    pub subclass: u8,
    /// `bInterfaceProtocol`.
    pub protocol: u8,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// An enumerated and configured device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Where it is.
    pub target: Target,
    /// What it says of itself.
    pub descriptor: DeviceDescriptor,
    /// The configuration that is set.
    pub configuration: u8,
    /// The interfaces of that configuration, in all their settings.
    pub interfaces: Vec<Interface>,
}

impl<G: Guest> UsbHost<G> {
    /// Enumerates what is plugged into `port`: gives it an address, reads its descriptors and
    /// sets its first configuration.
    ///
    /// # Errors
    /// [`HostError::Descriptor`], and those of [`control`](Self::control).
    pub fn enumerate(&mut self, port: PortNumber) -> Result<Device, HostError> {
        let unaddressed = Target {
            port,
            address: DeviceAddress::DEFAULT,
        };
        // Linux asks for 64 bytes first, and looks only at the size of endpoint 0.
        let mut first = [0; 64];
        let got = self.get_descriptor(unaddressed, DEVICE, &mut first)?;
        if got < 8 {
            return Err(HostError::Descriptor("the device descriptor is too short"));
        }
        let address = self.addresses.take(port);
        let address = address.ok_or(HostError::Descriptor("all addresses are taken"))?;
        let set_address = standard(
            Direction::Out,
            Setup::SET_ADDRESS,
            u16::from(address.get()),
            0,
            0,
        );
        self.control(unaddressed, set_address, ControlData::None, TIMEOUT)?;
        let target = Target { port, address };
        let mut device = [0; 18];
        if self.get_descriptor(target, DEVICE, &mut device)? < 18 {
            return Err(HostError::Descriptor("the device descriptor is too short"));
        }
        let descriptor = parse_device(&device);
        let mut head = [0; 9];
        if self.get_descriptor(target, CONFIGURATION, &mut head)? < 9 {
            return Err(HostError::Descriptor(
                "the configuration descriptor is too short",
            ));
        }
        let total = usize::from(u16::from_le_bytes([head[2], head[3]]));
        let mut all = vec![0; total.max(9)];
        let got = self.get_descriptor(target, CONFIGURATION, &mut all)?;
        all.truncate(got);
        let configuration = head[5];
        let set_configuration = standard(
            Direction::Out,
            Setup::SET_CONFIGURATION,
            u16::from(configuration),
            0,
            0,
        );
        self.control(target, set_configuration, ControlData::None, TIMEOUT)?;
        let interfaces = parse_interfaces(&all);
        Ok(Device {
            target,
            descriptor,
            configuration,
            interfaces,
        })
    }

    /// GET_DESCRIPTOR of a descriptor of the device (`value`: type and index).
    ///
    /// # Errors
    /// Those of [`control`](Self::control).
    pub fn get_descriptor(
        &mut self,
        target: Target,
        value: u16,
        data: &mut [u8],
    ) -> Result<usize, HostError> {
        let setup = standard(Direction::In, Setup::GET_DESCRIPTOR, value, 0, 0);
        self.control(target, setup, ControlData::In(data), TIMEOUT)
    }
}

fn parse_device(bytes: &[u8; 18]) -> DeviceDescriptor {
    let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    DeviceDescriptor {
        usb_version: word(2),
        class: bytes[4],
        max_packet_0: bytes[7],
        vendor: word(8),
        product: word(10),
        configurations: bytes[17],
    }
}

/// Interfaces and endpoints out of a configuration; what is cut off or unknown is left out.
fn parse_interfaces(mut bytes: &[u8]) -> Vec<Interface> {
    let mut interfaces: Vec<Interface> = Vec::new();
    while let [length, kind, ..] = *bytes {
        let length = usize::from(length);
        if length < 2 || length > bytes.len() {
            break;
        }
        let (descriptor, rest) = bytes.split_at(length);
        match (kind, descriptor) {
            (4, [_, _, number, alternate, _, class, subclass, protocol, ..]) => {
                interfaces.push(Interface {
                    number: *number,
                    alternate: *alternate,
                    class: *class,
                    subclass: *subclass,
                    protocol: *protocol,
                    endpoints: Vec::new(),
                });
            }
            (5, [_, _, address, attributes, low, high, interval, ..]) => {
                if let Some(interface) = interfaces.last_mut() {
                    interface.endpoints.push(Endpoint {
                        address: *address,
                        attributes: *attributes,
                        max_packet: u16::from_le_bytes([*low, *high]),
                        interval: *interval,
                    });
                }
            }
            _ => {}
        }
        bytes = rest;
    }
    interfaces
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! The keyboard's descriptors.

use crate::descriptor::{self, Device, endpoint_type};
use crate::function::Descriptors;

pub(super) const REPORTS_IN: u8 = 0x81;
/// Descriptor types (HID §7.1).
pub(super) const HID: u8 = 0x21;
pub(super) const REPORT: u8 = 0x22;

/// HID §6.2.1: version 1.11, no country, one report descriptor.
pub(super) const HID_DESCRIPTOR: &[u8] = &[
    9,
    HID,
    0x11,
    0x01,
    0,
    1,
    REPORT,
    REPORT_DESCRIPTOR.len() as u8,
    0,
];

/// The boot keyboard (HID appendix B.1).
#[rustfmt::skip]
pub(super) const REPORT_DESCRIPTOR: &[u8] = &[
    0x05, 0x01,                     // usage page: generic desktop
    0x09, 0x06,                     // usage: keyboard
    0xa1, 0x01,                     // collection: application
    0x05, 0x07,                     //   usage page: key codes
    0x19, 0xe0, 0x29, 0xe7,         //   usages: the modifiers
    0x15, 0x00, 0x25, 0x01,         //   logical 0 to 1
    0x75, 0x01, 0x95, 0x08,         //   8 times 1 bit
    0x81, 0x02,                     //   input: data, variable, absolute
    0x95, 0x01, 0x75, 0x08,         //   a byte
    0x81, 0x01,                     //   input: constant
    0x95, 0x05, 0x75, 0x01,         //   5 times 1 bit
    0x05, 0x08,                     //   usage page: LEDs
    0x19, 0x01, 0x29, 0x05,         //   usages: Num Lock to Kana
    0x91, 0x02,                     //   output: data, variable, absolute
    0x95, 0x01, 0x75, 0x03,         //   3 bits
    0x91, 0x01,                     //   output: constant
    0x95, 0x06, 0x75, 0x08,         //   6 bytes
    0x15, 0x00, 0x25, 0x65,         //   logical 0 to 101
    0x05, 0x07,                     //   usage page: key codes
    0x19, 0x00, 0x29, 0x65,         //   usages: 0 to 101
    0x81, 0x00,                     //   input: data, array
    0xc0,                           // end
];

pub(super) fn of_keyboard(serial: &str) -> Descriptors {
    let device = Device {
        usb: 0x0110,
        class: [0; 3],
        max_packet_size0: 8,
        vendor: 0x1209,
        product: 0x0002,
        configurations: 1,
    };
    Descriptors {
        device: device.descriptor(),
        qualifier: Vec::new(),
        configurations: vec![descriptor::configuration(
            1,
            100,
            &[
                // HID, boot interface, keyboard
                &descriptor::interface(0, 0, 1, [3, 1, 1]),
                HID_DESCRIPTOR,
                &descriptor::endpoint(REPORTS_IN, endpoint_type::INTERRUPT, 8, 10),
            ],
        )],
        other_speed: Vec::new(),
        bos: Vec::new(),
        strings: descriptor::strings("Simulated keyboard", serial),
    }
}

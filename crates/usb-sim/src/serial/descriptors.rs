// SPDX-License-Identifier: GPL-3.0-or-later
//! The adapter's descriptors and its notification.

use crate::descriptor::{self, Device, endpoint_type};
use crate::function::Descriptors;

pub(super) const CONTROL_INTERFACE: u8 = 0;
const DATA_INTERFACE: u8 = 1;
pub(super) const DATA_OUT: u8 = 0x01;
pub(super) const DATA_IN: u8 = 0x81;
pub(super) const NOTIFICATIONS: u8 = 0x82;

/// Functional descriptors (CDC §5.2.3, PSTN §5.3).
#[rustfmt::skip]
const FUNCTIONAL: &[u8] = &[
    5, 0x24, 0x00, 0x20, 0x01,                  // header: CDC 1.20
    5, 0x24, 0x01, 0x00, DATA_INTERFACE,        // call management: none
    4, 0x24, 0x02, 0x06,                        // ACM: line coding and state, break
    5, 0x24, 0x06, CONTROL_INTERFACE, DATA_INTERFACE, // union
];

/// The notification SERIAL_STATE (PSTN §6.5.4).
pub(super) fn serial_state(state: u16) -> [u8; 10] {
    let [low, high] = state.to_le_bytes();
    [0xa1, 0x20, 0, 0, CONTROL_INTERFACE, 0, 2, 0, low, high]
}

pub(super) fn of_serial(serial: &str) -> Descriptors {
    let device = Device {
        usb: 0x0110,
        class: [2, 0, 0],
        max_packet_size0: 64,
        vendor: 0x1209,
        product: 0x0003,
        configurations: 1,
    };
    Descriptors {
        device: device.descriptor(),
        qualifier: Vec::new(),
        configurations: vec![descriptor::configuration(
            1,
            100,
            &[
                // Communications, abstract control model, AT commands
                &descriptor::interface(CONTROL_INTERFACE, 0, 1, [2, 2, 1]),
                FUNCTIONAL,
                &descriptor::endpoint(NOTIFICATIONS, endpoint_type::INTERRUPT, 16, 16),
                &descriptor::interface(DATA_INTERFACE, 0, 2, [0x0a, 0, 0]),
                &descriptor::endpoint(DATA_OUT, endpoint_type::BULK, 64, 0),
                &descriptor::endpoint(DATA_IN, endpoint_type::BULK, 64, 0),
            ],
        )],
        other_speed: Vec::new(),
        bos: Vec::new(),
        strings: descriptor::strings("Simulated serial loop", serial),
    }
}

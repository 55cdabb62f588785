// SPDX-License-Identifier: GPL-3.0-or-later
//! The test device's descriptors.

use session::Speed;

use crate::descriptor::{self, Device, endpoint_type};
use crate::function::Descriptors;

/// bConfigurationValue of source and sink, and of the loop; gadget zero's.
pub(super) const SOURCE_SINK: u8 = 3;
pub(super) const LOOP: u8 = 2;

pub(super) const BULK_OUT: u8 = 0x01;
pub(super) const BULK_IN: u8 = 0x81;
pub(super) const ISO_OUT: u8 = 0x02;
pub(super) const ISO_IN: u8 = 0x82;
pub(super) const INTERRUPT_OUT: u8 = 0x03;
pub(super) const INTERRUPT_IN: u8 = 0x83;

/// Vendor specific.
const CLASS: [u8; 3] = [0xff, 0, 0];

/// wMaxPacketSize of the endpoints.
pub(super) struct PacketSizes {
    pub(super) bulk: u16,
    pub(super) interrupt: u16,
    pub(super) isochronous: u16,
}

pub(super) fn packet_sizes(speed: Speed) -> PacketSizes {
    match speed {
        Speed::High => PacketSizes {
            bulk: 512,
            interrupt: 64,
            isochronous: 1024,
        },
        _ => PacketSizes {
            bulk: 64,
            interrupt: 64,
            isochronous: 1023,
        },
    }
}

/// bInterval for 1 ms, of isochronous and of interrupt endpoints. (Interrupt endpoints at full
/// speed count frames, isochronous ones powers of two.)
fn interval(speed: Speed) -> u8 {
    match speed {
        Speed::High => 4,
        _ => 1,
    }
}

/// Setting 0 has no bandwidth to reserve (USB 2.0 §5.6.3); setting 1 adds isochronous endpoints,
/// like gadget zero's; setting 2 interrupt endpoints; setting 3 has all six.
fn source_sink(speed: Speed) -> Vec<u8> {
    let sizes = packet_sizes(speed);
    let interval = interval(speed);
    let bulk = [BULK_IN, BULK_OUT]
        .map(|a| descriptor::endpoint(a, endpoint_type::BULK, sizes.bulk, 0))
        .concat();
    let isochronous = [ISO_IN, ISO_OUT]
        .map(|a| descriptor::endpoint(a, endpoint_type::ISOCHRONOUS, sizes.isochronous, interval))
        .concat();
    let interrupt = [INTERRUPT_IN, INTERRUPT_OUT]
        .map(|a| descriptor::endpoint(a, endpoint_type::INTERRUPT, sizes.interrupt, interval))
        .concat();
    descriptor::configuration(
        SOURCE_SINK,
        2,
        &[
            &descriptor::interface(0, 0, 2, CLASS),
            &bulk,
            &descriptor::interface(0, 1, 4, CLASS),
            &bulk,
            &isochronous,
            &descriptor::interface(0, 2, 4, CLASS),
            &bulk,
            &interrupt,
            &descriptor::interface(0, 3, 6, CLASS),
            &bulk,
            &isochronous,
            &interrupt,
        ],
    )
}

fn loopback(speed: Speed) -> Vec<u8> {
    let bulk = packet_sizes(speed).bulk;
    descriptor::configuration(
        LOOP,
        2,
        &[
            &descriptor::interface(0, 0, 2, CLASS),
            &descriptor::endpoint(BULK_IN, endpoint_type::BULK, bulk, 0),
            &descriptor::endpoint(BULK_OUT, endpoint_type::BULK, bulk, 0),
        ],
    )
}

fn configurations(speed: Speed) -> Vec<Vec<u8>> {
    vec![source_sink(speed), loopback(speed)]
}

pub(super) fn of_source_sink(speed: Speed, serial: &str) -> Descriptors {
    // The ids by which usbtest knows a gadget zero.
    let device = Device {
        usb: 0x0200,
        class: CLASS,
        max_packet_size0: 64,
        vendor: 0x0525,
        product: 0xa4a0,
        configurations: 2,
    };
    let other = match speed {
        Speed::High => Speed::Full,
        _ => Speed::High,
    };
    let other_speed = configurations(other).into_iter();
    Descriptors {
        device: device.descriptor(),
        qualifier: device.qualifier(),
        configurations: configurations(speed),
        other_speed: other_speed.map(descriptor::other_speed).collect(),
        bos: Vec::new(),
        strings: descriptor::strings("Simulated source and sink", serial),
    }
}

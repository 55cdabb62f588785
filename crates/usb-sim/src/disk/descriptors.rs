// SPDX-License-Identifier: GPL-3.0-or-later
//! The descriptors of a bulk-only disk.

use crate::descriptor::{self, Device, endpoint_type};
use crate::function::Descriptors;

pub(super) const BULK_IN: u8 = 0x81;
pub(super) const BULK_OUT: u8 = 0x02;
/// Of the bulk endpoints; at high speed it is always this (USB 2.0 §5.8.3), at SuperSpeed that (USB
/// 3.2 §9.6.6).
pub(super) const MAX_PACKET: usize = 512;
pub(super) const SUPER_MAX_PACKET: usize = 1024;

/// Mass storage, SCSI transparent, bulk-only or UAS.
const BULK_ONLY: [u8; 3] = [8, 6, 0x50];
const UAS: [u8; 3] = [8, 6, 0x62];

/// pid.codes keeps 1209:0001 for tests.
const VENDOR: u16 = 0x1209;
const PRODUCT: u16 = 0x0001;

pub(super) fn of_disk(serial: &str) -> Descriptors {
    let [vendor_low, vendor_high] = VENDOR.to_le_bytes();
    let [product_low, product_high] = PRODUCT.to_le_bytes();
    #[rustfmt::skip]
    let device = vec![
        18, 1,                      // bLength, DEVICE
        0x00, 0x02,                 // bcdUSB 2.00
        0, 0, 0,                    // class, subclass, protocol: of the interface
        64,                         // bMaxPacketSize0
        vendor_low, vendor_high, product_low, product_high,
        0x00, 0x01,                 // bcdDevice 1.00
        1, 2, 3,                    // iManufacturer, iProduct, iSerialNumber
        1,                          // bNumConfigurations
    ];
    #[rustfmt::skip]
    let qualifier = vec![
        10, 6,                      // bLength, DEVICE_QUALIFIER
        0x00, 0x02,                 // bcdUSB 2.00
        0, 0, 0,                    // class, subclass, protocol
        64,                         // bMaxPacketSize0
        1,                          // bNumConfigurations
        0,
    ];
    let [packet_low, packet_high] = (MAX_PACKET as u16).to_le_bytes();
    #[rustfmt::skip]
    let configuration = vec![
        9, 2, 32, 0,                // bLength, CONFIGURATION, wTotalLength
        1, 1, 0,                    // bNumInterfaces, bConfigurationValue, iConfiguration
        0x80, 50,                   // bus powered, 100 mA
        9, 4, 0, 0, 2,              // bLength, INTERFACE 0, setting 0, endpoints
        0x08, 0x06, 0x50, 0,        // mass storage, SCSI transparent, bulk-only
        7, 5, BULK_IN, 2, packet_low, packet_high, 0,
        7, 5, BULK_OUT, 2, packet_low, packet_high, 0,
    ];
    Descriptors {
        device,
        qualifier,
        configurations: vec![configuration],
        other_speed: Vec::new(),
        bos: Vec::new(),
        strings: vec![
            "xen-vusb".to_owned(),
            "Simulated disk".to_owned(),
            serial.to_owned(),
        ],
    }
}

/// A disk at SuperSpeed. With `with_uas` it has a second setting for UAS, as most have.
pub(super) fn of_super_speed_disk(serial: &str, with_uas: bool) -> Descriptors {
    let device = Device {
        usb: 0x0320,
        class: [0; 3],
        // 2⁹
        max_packet_size0: 9,
        vendor: VENDOR,
        product: PRODUCT,
        configurations: 1,
    };
    let bulk =
        |address| descriptor::endpoint(address, endpoint_type::BULK, SUPER_MAX_PACKET as u16, 0);
    // Bursts of 16 packets; for UAS 2⁵ streams (USB 3.2 §9.6.7).
    let companion = |streams| [6, 0x30, 15, streams, 0, 0];
    let mut settings = descriptor::interface(0, 0, 2, BULK_ONLY).to_vec();
    for endpoint in [BULK_IN, BULK_OUT] {
        settings.extend_from_slice(&bulk(endpoint));
        settings.extend_from_slice(&companion(0));
    }
    if with_uas {
        settings.extend_from_slice(&descriptor::interface(0, 1, 4, UAS));
        // Pipe ids (UAS §5.2.3): data in, data out, status, command; the last has no streams.
        for (endpoint, streams, pipe) in [
            (BULK_IN, 5, 3),
            (BULK_OUT, 5, 4),
            (0x83, 5, 2),
            (0x04, 0, 1),
        ] {
            settings.extend_from_slice(&bulk(endpoint));
            settings.extend_from_slice(&companion(streams));
            settings.extend_from_slice(&[4, 0x24, pipe, 0]);
        }
    }
    let mut configuration = descriptor::configuration(1, 0, &[&settings]);
    // One interface; 896 mA in the unit of SuperSpeed, 8 mA.
    configuration[4] = 1;
    configuration[8] = 112;
    #[rustfmt::skip]
    let bos = vec![
        5, 15, 22, 0, 2,                            // BOS, two capabilities
        7, 16, 2, 0x02, 0, 0, 0,                    // USB 2.0 extension: LPM
        10, 16, 3, 0, 0x0e, 0, 1, 10, 0xff, 0x07,   // SuperSpeed: full to SuperSpeed, latencies
    ];
    Descriptors {
        device: device.descriptor(),
        qualifier: Vec::new(),
        configurations: vec![configuration],
        other_speed: Vec::new(),
        bos,
        strings: descriptor::strings("Simulated disk", serial),
    }
}

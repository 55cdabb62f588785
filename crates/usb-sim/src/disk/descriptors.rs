// SPDX-License-Identifier: GPL-3.0-or-later
//! The descriptors of a high-speed bulk-only disk.

use crate::function::Descriptors;

pub(super) const BULK_IN: u8 = 0x81;
pub(super) const BULK_OUT: u8 = 0x02;
/// Of the bulk endpoints; at high speed it is always this (USB 2.0 §5.8.3).
pub(super) const MAX_PACKET: usize = 512;

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
        strings: vec![
            "xen-vusb".to_owned(),
            "Simulated disk".to_owned(),
            serial.to_owned(),
        ],
    }
}

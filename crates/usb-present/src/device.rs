// SPDX-License-Identifier: GPL-3.0-or-later
//! The device descriptor and the device qualifier.

/// USB 2.00: with 2.01 or more the guest would ask for a BOS.
const USB_2_00: [u8; 2] = [0x00, 0x02];
/// bMaxPacketSize0 at high speed (USB2 §5.5.3). SuperSpeed has 9 there, for 2⁹.
const MAX_PACKET_SIZE_0: u8 = 64;

const DEVICE_QUALIFIER: u8 = 6;
const QUALIFIER_LEN: usize = 10;

/// Changes a SuperSpeed device descriptor (USB3 §9.6.1), or its beginning, into that of a
/// high-speed device (USB2 §9.6.1). Returns its length.
pub fn device(descriptor: &mut [u8]) -> usize {
    if let Some(usb) = descriptor.get_mut(2..4) {
        usb.copy_from_slice(&USB_2_00);
    }
    if let Some(max_packet_size) = descriptor.get_mut(7) {
        *max_packet_size = MAX_PACKET_SIZE_0;
    }
    descriptor.len()
}

/// Changes a SuperSpeed device descriptor into a high-speed device's qualifier (USB2 §9.6.2): there
/// is no configuration for full speed. Returns its length, 0 where the descriptor is too short.
pub fn device_qualifier(descriptor: &mut [u8]) -> usize {
    let Some(&mut [_, _, _, _, class, subclass, protocol, ..]) = descriptor.first_chunk_mut::<18>()
    else {
        return 0;
    };
    let [usb_low, usb_high] = USB_2_00;
    let qualifier: [u8; QUALIFIER_LEN] = [
        QUALIFIER_LEN as u8,
        DEVICE_QUALIFIER,
        usb_low,
        usb_high,
        class,
        subclass,
        protocol,
        MAX_PACKET_SIZE_0,
        0,
        0,
    ];
    descriptor[..QUALIFIER_LEN].copy_from_slice(&qualifier);
    QUALIFIER_LEN
}

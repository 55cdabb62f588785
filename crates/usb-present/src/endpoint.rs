// SPDX-License-Identifier: GPL-3.0-or-later
//! Endpoint descriptors.

/// Bytes of a USB 2.0 endpoint descriptor. Audio devices of version 1 have longer ones.
pub(crate) const ENDPOINT_LEN: usize = 7;

/// Largest wMaxPacketSize without the high-bandwidth bits, at high speed as at SuperSpeed.
const MAX_PACKET: u32 = 1024;
/// Most transactions in a microframe (USB2 §9.6.6).
const MAX_TRANSACTIONS: u32 = 3;
const BULK_MAX_PACKET: u16 = 512;
const CONTROL_MAX_PACKET: u16 = 64;

/// A SuperSpeed endpoint companion descriptor (USB3 §9.6.7).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Companion {
    max_burst: u8,
    attributes: u8,
    bytes_per_interval: u16,
}

impl Companion {
    pub(crate) fn parse(descriptor: &[u8]) -> Option<Self> {
        let fields: &[u8; 6] = descriptor.first_chunk()?;
        Some(Self {
            max_burst: fields[2],
            attributes: fields[3],
            bytes_per_interval: u16::from_le_bytes([fields[4], fields[5]]),
        })
    }

    /// Most bytes in a service interval.
    fn periodic_bytes(&self, max_packet: u32, is_isochronous: bool) -> u32 {
        let burst = u32::from(self.max_burst.min(15)) + 1;
        let mult = match is_isochronous {
            true => u32::from(self.attributes & 3) + 1,
            false => 1,
        };
        let most = max_packet * burst * mult;
        // Bit 7: the SuperSpeedPlus companion has the true number, and it is beyond ours anyway.
        match u32::from(self.bytes_per_interval) {
            0 => most,
            _ if self.attributes & 0x80 != 0 && is_isochronous => most,
            bytes => bytes.min(most),
        }
    }
}

/// Changes an endpoint descriptor into that of a high-speed device (USB2 §9.6.6). Too short ones
/// stay as they are.
pub(crate) fn to_high_speed(descriptor: &mut [u8], companion: Companion) {
    let Some(fields) = descriptor.first_chunk_mut::<ENDPOINT_LEN>() else {
        return;
    };
    let max_packet = u32::from(u16::from_le_bytes([fields[4], fields[5]]) & 0x7ff);
    let max_packet = max_packet.min(MAX_PACKET);
    let transfer_type = fields[3] & 3;
    let size = match transfer_type {
        0 => CONTROL_MAX_PACKET,
        2 => BULK_MAX_PACKET,
        _ => periodic_size(companion.periodic_bytes(max_packet, transfer_type == 1)),
    };
    fields[4..6].copy_from_slice(&size.to_le_bytes());
    if transfer_type != 1 {
        // Only isochronous endpoints have more attributes in USB 2.0.
        fields[3] = transfer_type;
    }
    if transfer_type & 1 != 0 {
        // The same exponent of the same 125 µs.
        fields[6] = fields[6].clamp(1, 16);
    }
}

/// wMaxPacketSize, with high-bandwidth bits, that carries so many bytes in a microframe, if any
/// does: as few transactions as possible (USB2 table 9-14 wants that, too).
fn periodic_size(bytes: u32) -> u16 {
    let bytes = bytes.min(MAX_PACKET * MAX_TRANSACTIONS);
    let transactions = bytes.div_ceil(MAX_PACKET).max(1);
    let size = bytes.div_ceil(transactions);
    (size | (transactions - 1) << 11) as u16
}

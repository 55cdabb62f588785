// SPDX-License-Identifier: GPL-3.0-or-later
//! The packets of an isochronous transfer: in the session's body, and in the kernel's buffer.
//!
//! The guest says where in its buffer each packet lies; the kernel has them one after the other.

use session::frame::{ISO_PACKET_LEN, MAX_ISO_PACKETS, TransferStatus};

/// A packet in the guest's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Packet {
    offset: u32,
    length: u32,
}

impl Packet {
    fn range(self) -> std::ops::Range<usize> {
        let start = self.offset as usize;
        start..start + self.length as usize
    }
}

/// How a packet ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PacketResult {
    pub(super) status: TransferStatus,
    pub(super) actual_length: u32,
}

/// The packets of one transfer. Its memory serves the next one, too.
#[derive(Debug, Default)]
pub(super) struct Packets(Vec<Packet>);

impl Packets {
    pub(super) fn new() -> Self {
        Self(Vec::with_capacity(MAX_ISO_PACKETS))
    }

    /// Takes the packets of a transfer with a buffer of `length` bytes from the descriptors at the
    /// front of its body. Answers the sum of their lengths, at most `limit`; `None` where they do not
    /// fit, or there are none.
    pub(super) fn parse(&mut self, descriptors: &[u8], length: u32, limit: usize) -> Option<usize> {
        self.0.clear();
        let (descriptors, []) = descriptors.as_chunks::<ISO_PACKET_LEN>() else {
            return None;
        };
        if !(1..=MAX_ISO_PACKETS).contains(&descriptors.len()) {
            return None;
        }
        let mut sum = 0;
        for descriptor in descriptors {
            let packet = Packet {
                offset: field(descriptor, 0),
                length: field(descriptor, 4),
            };
            if packet.offset.checked_add(packet.length)? > length {
                return None;
            }
            // Packets may lie over each other; then the sum is more than the buffer.
            sum += packet.length as usize;
            if sum > limit {
                return None;
            }
            self.0.push(packet);
        }
        Some(sum)
    }

    pub(super) fn lengths(&self) -> impl Iterator<Item = u32> {
        self.0.iter().map(|p| p.length)
    }

    /// Copies the data of an OUT transfer out of the guest's buffer, packet after packet.
    pub(super) fn gather(&self, buffer: &[u8], mut into: &mut [u8]) {
        for packet in &self.0 {
            let (piece, rest) = into.split_at_mut(packet.length as usize);
            // Of a body that is too short the device gets zeros; the server refuses such before.
            match buffer.get(packet.range()) {
                Some(data) => piece.copy_from_slice(data),
                None => piece.fill(0),
            }
            into = rest;
        }
    }

    /// Appends the body of the completion: descriptors and, of an IN transfer (`length` is given),
    /// the guest's whole buffer, with zeros where no data came.
    pub(super) fn write_body(
        &self,
        results: impl Iterator<Item = PacketResult> + Clone,
        data: &[u8],
        length: Option<u32>,
        out: &mut Vec<u8>,
    ) {
        for (packet, result) in self.0.iter().zip(results.clone()) {
            let actual_length = result.actual_length.min(packet.length);
            let status = result.status as u32;
            for field in [packet.offset, packet.length, actual_length, status] {
                out.extend_from_slice(&field.to_le_bytes());
            }
        }
        let Some(length) = length else {
            return;
        };
        let start = out.len();
        out.resize(start + length as usize, 0);
        let buffer = &mut out[start..];
        let mut rest = data;
        for (packet, result) in self.0.iter().zip(results) {
            let Some((piece, after)) = rest.split_at_checked(packet.length as usize) else {
                return;
            };
            rest = after;
            let actual = (result.actual_length as usize).min(piece.len());
            // `parse` has seen that it fits.
            buffer[packet.range()][..actual].copy_from_slice(&piece[..actual]);
        }
    }
}

/// The bytes that all packets moved, and how many packets failed.
pub(super) fn totals(results: impl Iterator<Item = PacketResult>) -> (u32, u32) {
    results.fold((0, 0), |(bytes, errors), result| {
        let failed = result.status != TransferStatus::Completed;
        (
            bytes.saturating_add(result.actual_length),
            errors + u32::from(failed),
        )
    })
}

fn field(descriptor: &[u8; ISO_PACKET_LEN], at: usize) -> u32 {
    let [a, b, c, d] = [0, 1, 2, 3].map(|i| descriptor[at + i]);
    u32::from_le_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptors(packets: &[(u32, u32)]) -> Vec<u8> {
        let fields = packets
            .iter()
            .flat_map(|&(offset, length)| [offset, length, 0, 0]);
        fields.flat_map(u32::to_le_bytes).collect()
    }

    fn ok(actual_length: u32) -> PacketResult {
        PacketResult {
            status: TransferStatus::Completed,
            actual_length,
        }
    }

    #[test]
    fn packets_must_lie_within_the_buffer() {
        let mut packets = Packets::new();
        let mut parse = |list: &[(u32, u32)]| packets.parse(&descriptors(list), 100, 100);
        assert_eq!(parse(&[(0, 50), (50, 50)]), Some(100));
        assert_eq!(parse(&[(100, 0)]), Some(0));
        assert_eq!(parse(&[(51, 50)]), None);
        assert_eq!(parse(&[(u32::MAX, 2)]), None);
        assert_eq!(parse(&[]), None);
        assert_eq!(parse(&[(0, 60), (0, 60)]), None, "more than the buffer");
        assert_eq!(parse(&[(0, 0); MAX_ISO_PACKETS]), Some(0));
        assert_eq!(parse(&[(0, 0); MAX_ISO_PACKETS + 1]), None);
        assert_eq!(packets.parse(&[0; 17], 100, 100), None);
    }

    #[test]
    fn data_goes_out_without_its_gaps() {
        let mut packets = Packets::new();
        let sum = packets.parse(&descriptors(&[(4, 2), (0, 3)]), 8, 100);
        let mut into = [0xff; 5];
        packets.gather(&[0, 1, 2, 3, 4, 5, 6, 7], &mut into);
        assert_eq!((sum, into), (Some(5), [4, 5, 0, 1, 2]));
    }

    #[test]
    fn data_comes_in_where_the_guest_wants_it() {
        let mut packets = Packets::new();
        packets.parse(&descriptors(&[(5, 3), (0, 3), (3, 1)]), 9, 100);
        let failed = PacketResult {
            status: TransferStatus::Overflow,
            actual_length: 1,
        };
        let results = [ok(2), ok(3), failed];
        assert_eq!(totals(results.into_iter()), (6, 1));
        let mut out = vec![0xee];
        let data = [1, 2, 0x99, 3, 4, 5, 6];
        packets.write_body(results.into_iter(), &data, Some(9), &mut out);
        let (table, buffer) = out[1..].split_at(3 * ISO_PACKET_LEN);
        assert_eq!(
            table[..16],
            descriptors(&[(5, 3)])[..8]
                .iter()
                .copied()
                .chain([2, 0, 0, 0, 0, 0, 0, 0])
                .collect::<Vec<_>>()
        );
        assert_eq!(table[40..48], [1, 0, 0, 0, 3, 0, 0, 0]);
        assert_eq!(buffer, [3, 4, 5, 6, 0, 1, 2, 0, 0]);
        // OUT: descriptors only.
        let mut out = Vec::new();
        packets.write_body(results.into_iter(), &[], None, &mut out);
        assert_eq!(out.len(), 3 * ISO_PACKET_LEN);
    }

    #[test]
    fn a_device_cannot_write_beyond_its_packets() {
        let mut packets = Packets::new();
        packets.parse(&descriptors(&[(0, 2), (2, 2)]), 4, 100);
        let mut out = Vec::new();
        packets.write_body([ok(9), ok(1)].into_iter(), &[1, 2, 3, 4], Some(4), &mut out);
        assert_eq!(out[8], 2);
        assert_eq!(out[2 * ISO_PACKET_LEN..], [1, 2, 3, 0]);
    }
}

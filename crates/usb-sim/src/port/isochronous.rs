// SPDX-License-Identifier: GPL-3.0-or-later
//! Isochronous transfers: their packets, and their time on the bus.

use session::frame::{ISO_PACKET_LEN, Transfer, TransferStatus, TransferType};
use session::server::Outcome;

use super::schedule::Slot;
use super::{Port, Waiting};
use crate::function::{Answer, Function, IsoPacket};

impl<F: Function> Port<F> {
    /// Takes bus time for an isochronous transfer, where there is a clock.
    pub(super) fn slot(&mut self, transfer: &Transfer) -> Option<Slot> {
        if transfer.transfer_type != TransferType::Isochronous {
            return None;
        }
        let endpoint = self.endpoint(transfer.endpoint)?;
        if endpoint.transfer_type() != TransferType::Isochronous {
            return None;
        }
        let interval = endpoint.interval(self.function.speed())?;
        let (slot, missed) =
            self.schedule
                .as_mut()?
                .take(transfer.endpoint, transfer.iso_packets(), interval);
        if missed > 0 {
            self.function.isochronous_missed(transfer.endpoint, missed);
        }
        Some(slot)
    }

    /// Gives back the bus time of a cancelled transfer.
    pub(super) fn vacate(&mut self, cancelled: &Waiting) {
        let endpoint = cancelled.transfer.endpoint;
        let (Some(slot), Some(schedule)) = (&cancelled.slot, &mut self.schedule) else {
            return;
        };
        let remaining = self
            .waiting
            .iter()
            .filter(|w| w.transfer.endpoint == endpoint);
        let last = remaining
            .filter_map(|w| w.slot.as_ref())
            .map(|s| s.end)
            .max();
        let missed = schedule.vacate(endpoint, slot, last);
        if missed > 0 {
            self.function.isochronous_missed(endpoint, missed);
        }
    }

    /// Carries one out.
    pub(super) fn isochronous(
        &mut self,
        transfer: &Transfer,
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> Option<Outcome> {
        let invalid = Outcome::new(TransferStatus::Invalid, 0);
        let table_len = transfer.iso_packets() * ISO_PACKET_LEN;
        let Some((table, data)) = body.split_at_checked(table_len) else {
            return Some(invalid);
        };
        let buffer_len = transfer.length as usize;
        let packets = table.chunks_exact(ISO_PACKET_LEN).map(|p| {
            let offset = u32::from_le_bytes([p[0], p[1], p[2], p[3]]) as usize;
            let len = u32::from_le_bytes([p[4], p[5], p[6], p[7]]) as usize;
            let fits = offset.checked_add(len).is_some_and(|end| end <= buffer_len);
            fits.then_some(IsoPacket {
                offset,
                len,
                actual_len: 0,
            })
        });
        let Some(mut packets) = packets.collect::<Option<Vec<_>>>() else {
            return Some(invalid);
        };
        if !self.has_endpoint(transfer.endpoint, TransferType::Isochronous) {
            return Some(invalid);
        }
        let mut buffer = data.to_vec();
        buffer.resize(buffer_len, 0);
        let failed = match self.packets(transfer.endpoint, &mut packets, &mut buffer) {
            Ok(failed) => failed,
            Err(Answer::Nak) => return None,
            Err(_) => return Some(invalid),
        };
        let mut actual = 0;
        for (at, packet) in packets.iter().enumerate() {
            let actual_len = packet.actual_len.min(packet.len);
            let status = match failed.contains(&at) {
                true => TransferStatus::Protocol,
                false => TransferStatus::Completed,
            };
            actual += actual_len;
            for field in [
                packet.offset as u32,
                packet.len as u32,
                actual_len as u32,
                status as u32,
            ] {
                out.extend_from_slice(&field.to_le_bytes());
            }
        }
        if transfer.is_in() {
            out.extend_from_slice(&buffer);
        }
        Some(Outcome {
            error_count: failed.len() as u32,
            ..Outcome::new(TransferStatus::Completed, actual as u32)
        })
    }

    /// Has the device carry out isochronous packets, but for those that fail on the bus; answers
    /// which do.
    fn packets(
        &mut self,
        endpoint: u8,
        packets: &mut [IsoPacket],
        buffer: &mut [u8],
    ) -> Result<Vec<usize>, Answer> {
        let mut failed = Vec::new();
        let mut done = 0;
        while self.faults.threaten(endpoint) && done < packets.len() {
            self.faults.strike(endpoint);
            // For the device this interval had no packet.
            self.function.isochronous_missed(endpoint, 1);
            failed.push(done);
            done += 1;
        }
        let rest = &mut packets[done..];
        if rest.is_empty() {
            return Ok(failed);
        }
        match self.function.isochronous(endpoint, rest, buffer) {
            Answer::Done(_) => Ok(failed),
            other => Err(other),
        }
    }
}

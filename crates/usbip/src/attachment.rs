// SPDX-License-Identifier: GPL-3.0-or-later
//! A client's hold on a device.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::time::Duration;

use session::frame::{self, FLAG_SHORT_NOT_OK, Transfer, TransferStatus, TransferType};
use session::server::Outcome;
use usb_sim::{Function, Host, Port};

use crate::ProtocolError;
use crate::hold::{Delay, Holds, Slow};
use crate::urb::{self, Command, IsoPacket, Reply, Submit, flag};

/// Most transfers at a time, and the most bytes of all their buffers.
const MAX_TRANSFERS: usize = 4096;
const MAX_BYTES: u64 = 64 << 20;

/// Linux's error numbers, as transfers end with them.
const EXDEV: i32 = -18;
const ENODEV: i32 = -19;
const EPIPE: i32 = -32;
const EPROTO: i32 = -71;
const EOVERFLOW: i32 = -75;
const ECONNRESET: i32 = -104;
const ETIMEDOUT: i32 = -110;
const EREMOTEIO: i32 = -121;

/// The state machine of an attached device. Feed it with what the client sends
/// ([`Attachment::handle_input`]) and with the time ([`Attachment::advance`], when
/// [`usb_sim::Port::next_event`] says so), and send what [`Attachment::output`] holds.
///
/// The port is given to each call: it outlives its attachments.
#[derive(Debug, Default)]
pub struct Attachment {
    input: Vec<u8>,
    replies: Replies,
    holds: Holds,
    now: Duration,
}

impl Attachment {
    /// A client attaches the device: it is as after a reset, its clock runs.
    pub fn new<F: Function>(port: &mut Port<F>, now: Duration) -> Self {
        let mut attachment = Self::default();
        port.start_clock(now);
        port.reset(&mut attachment.replies);
        attachment.now = now;
        attachment
    }

    /// From now on the device gets such transfers so much later, or never; with `None` it gets them at once again.
    pub fn hold(&mut self, slow: Slow, delay: Option<Delay>) {
        self.holds.set(slow, delay);
    }

    /// Bytes of the client. After an error nothing more can be understood.
    pub fn handle_input<F: Function>(
        &mut self,
        port: &mut Port<F>,
        bytes: &[u8],
    ) -> Result<(), ProtocolError> {
        self.input.extend_from_slice(bytes);
        let mut taken = 0;
        while let Some((command, len)) = urb::decode(&self.input[taken..])? {
            let bytes = &self.input[taken..taken + len];
            taken += len;
            match &command {
                Command::Submit(submit) if self.holds.hold(submit, bytes, self.now) => {
                    let (count, bytes) = self.holds.load();
                    limited("transfers that are held", count, MAX_TRANSFERS as u64)?;
                    limited("bytes that are held", bytes, MAX_BYTES)?;
                }
                &Command::Unlink { sequence, victim } if self.holds.take_back(victim) => {
                    urb::encode_unlinked(&mut self.replies.output, sequence, ECONNRESET);
                }
                _ => self.replies.take(port, command)?,
            }
        }
        self.input.drain(..taken);
        Ok(())
    }

    /// It is `now`. After an error nothing more can be understood.
    pub fn advance<F: Function>(
        &mut self,
        port: &mut Port<F>,
        now: Duration,
    ) -> Result<(), ProtocolError> {
        self.now = now;
        port.advance(now, &mut self.replies);
        while let Some(bytes) = self.holds.due(now) {
            if let Some((command, _)) = urb::decode(&bytes)? {
                self.replies.take(port, command)?;
            }
        }
        Ok(())
    }

    /// When the next transfer that is held is due, beside [`Port::next_event`].
    pub fn next_event(&self) -> Option<Duration> {
        self.holds.next_event()
    }

    /// The owner changes the device, see [`Port::update`].
    pub fn update<F: Function, R>(
        &mut self,
        port: &mut Port<F>,
        change: impl FnOnce(&mut F) -> R,
    ) -> R {
        port.update(&mut self.replies, change)
    }

    /// What is to be sent.
    pub fn output(&self) -> &[u8] {
        &self.replies.output
    }

    /// The first `len` bytes of it were sent.
    pub fn sent(&mut self, len: usize) {
        self.replies.output.drain(..len);
    }

    /// The client is gone: its transfers are.
    pub fn end<F: Function>(self, port: &mut Port<F>) {
        port.forget_all();
    }
}

/// A transfer that was submitted.
#[derive(Debug)]
struct Pending {
    raw_packets: u32,
    packets: Vec<IsoPacket>,
    is_in: bool,
    length: u32,
}

/// The transfers, and what is to be sent.
#[derive(Debug, Default)]
struct Replies {
    pending: HashMap<u32, Pending>,
    /// Bytes of all their buffers.
    pending_bytes: u64,
    /// The one that is being cancelled.
    unlinking: Option<u32>,
    output: Vec<u8>,
    body: Vec<u8>,
}

impl Replies {
    fn take<F: Function>(
        &mut self,
        port: &mut Port<F>,
        command: Command<'_>,
    ) -> Result<(), ProtocolError> {
        match command {
            Command::Submit(submit) => self.submit(port, submit),
            Command::Unlink { sequence, victim } => {
                let status = match self.pending.contains_key(&victim) {
                    true => {
                        self.unlinking = Some(victim);
                        port.cancel(victim.into(), self);
                        self.unlinking = None;
                        ECONNRESET
                    }
                    false => 0,
                };
                urb::encode_unlinked(&mut self.output, sequence, status);
                Ok(())
            }
        }
    }

    fn submit<F: Function>(
        &mut self,
        port: &mut Port<F>,
        submit: Submit<'_>,
    ) -> Result<(), ProtocolError> {
        let bytes = self.pending_bytes + u64::from(submit.length);
        let count = self.pending.len() as u64 + 1;
        limited("transfers", count, MAX_TRANSFERS as u64)?;
        limited("bytes in transfers", bytes, MAX_BYTES)?;
        if self.pending.contains_key(&submit.sequence) {
            return Err(ProtocolError::SequenceNumber(submit.sequence));
        }
        let transfer = transfer(port, &submit);
        let mut body = Vec::with_capacity(transfer.submit_body_len());
        for packet in &submit.packets {
            for field in [packet.offset, packet.length, 0, 0] {
                body.extend_from_slice(&field.to_le_bytes());
            }
        }
        body.extend_from_slice(submit.data);
        self.pending_bytes = bytes;
        self.pending.insert(
            submit.sequence,
            Pending {
                raw_packets: submit.raw_packets,
                packets: submit.packets,
                is_in: submit.is_in,
                length: submit.length,
            },
        );
        port.submit(submit.sequence.into(), &transfer, &body, self);
        Ok(())
    }

    fn reply(&mut self, sequence: u32, pending: Pending, outcome: Outcome) {
        let status = status_number(outcome.status);
        let mut actual_length = outcome.actual_length;
        let mut error_count = outcome.error_count;
        let mut packets = pending.packets;
        let mut data: &[u8] = &self.body;
        let gathered;
        if !packets.is_empty() {
            gathered = gather(&mut packets, data, pending.is_in);
            data = &gathered;
            // Linux checks that it is the sum, in both directions.
            actual_length = packets.iter().map(|p| p.actual_length).sum();
            error_count = packets.iter().filter(|p| p.status != 0).count() as u32;
        } else {
            let len = (actual_length as usize).min(data.len());
            data = &data[..len];
        }
        if !pending.is_in {
            data = &[];
        } else if packets.is_empty() {
            actual_length = data.len() as u32;
        }
        let reply = Reply {
            sequence,
            status,
            actual_length,
            start_frame: outcome.start_frame.into(),
            raw_packets: pending.raw_packets,
            error_count,
            data,
            packets: &packets,
        };
        urb::encode_reply(&mut self.output, &reply);
    }
}

impl Host for Replies {
    fn complete(
        &mut self,
        request: u64,
        fill: &mut dyn FnMut(&mut Vec<u8>) -> Option<Outcome>,
    ) -> bool {
        let Ok(sequence) = u32::try_from(request) else {
            return false;
        };
        self.body.clear();
        let Some(outcome) = fill(&mut self.body) else {
            return false;
        };
        let Some(pending) = self.pending.remove(&sequence) else {
            return false;
        };
        self.pending_bytes -= u64::from(pending.length);
        // An unlinked transfer has no reply of its own.
        if self.unlinking != Some(sequence) {
            self.reply(sequence, pending, outcome);
        }
        true
    }
}

fn limited(field: &'static str, value: u64, limit: u64) -> Result<(), ProtocolError> {
    if value > limit {
        return Err(ProtocolError::TooMuch {
            field,
            value,
            limit,
        });
    }
    Ok(())
}

/// The transfer that a submit is. Its type is the endpoint's; who asks for one that does not exist
/// gets bulk, which fails.
fn transfer<F: Function>(port: &Port<F>, submit: &Submit<'_>) -> Transfer {
    let direction = if submit.is_in { 0x80 } else { 0 };
    let endpoint = submit.endpoint | direction;
    let mut setup = submit.setup;
    let transfer_type = match submit.endpoint {
        0 => TransferType::Control,
        _ if !submit.packets.is_empty() => {
            let [low, high] = (submit.packets.len() as u16).to_le_bytes();
            setup = [low, high, 0, 0, 0, 0, 0, 0];
            TransferType::Isochronous
        }
        _ => match port.endpoint(endpoint).map(|e| e.transfer_type()) {
            Some(TransferType::Interrupt) => TransferType::Interrupt,
            _ => TransferType::Bulk,
        },
    };
    let mut flags = 0;
    if submit.flags & flag::SHORT_NOT_OK != 0 {
        flags |= FLAG_SHORT_NOT_OK;
    }
    Transfer {
        transfer_type,
        endpoint,
        flags,
        length: submit.length,
        interval: submit.interval,
        setup,
    }
}

/// Fills in the packets from a completion's body: a table, and for IN the buffer. Returns the data
/// of all packets without gaps. What does not fit together fails.
fn gather(packets: &mut [IsoPacket], body: &[u8], is_in: bool) -> Vec<u8> {
    let mut data = Vec::new();
    let table_len = packets.len() * frame::ISO_PACKET_LEN;
    let (table, buffer) = body.split_at_checked(table_len).unwrap_or((&[], &[]));
    let mut rows = table.chunks_exact(frame::ISO_PACKET_LEN);
    for packet in packets {
        packet.actual_length = 0;
        packet.status = EXDEV;
        let Some(row) = rows.next() else {
            continue;
        };
        let field =
            |at: usize| u32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]]);
        let (offset, actual) = (packet.offset as usize, field(8));
        if is_in {
            let end = offset.saturating_add(actual as usize);
            let Some(bytes) = buffer.get(offset..end) else {
                continue;
            };
            data.extend_from_slice(bytes);
        }
        packet.actual_length = actual;
        packet.status = match TransferStatus::from_u32(field(12)) {
            Some(status) => status_number(status),
            None => EPROTO,
        };
    }
    data
}

fn status_number(status: TransferStatus) -> i32 {
    match status {
        TransferStatus::Completed => 0,
        TransferStatus::Stall => EPIPE,
        TransferStatus::Cancelled => ECONNRESET,
        TransferStatus::Overflow => EOVERFLOW,
        TransferStatus::NoDevice => ENODEV,
        TransferStatus::TimedOut => ETIMEDOUT,
        TransferStatus::ShortPacket => EREMOTEIO,
        // An endpoint that is not there does not answer.
        TransferStatus::Protocol | TransferStatus::Invalid | TransferStatus::Unknown => EPROTO,
    }
}

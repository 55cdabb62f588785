// SPDX-License-Identifier: GPL-3.0-or-later
//! Commands for an attached device, and replies to them.

use crate::ProtocolError;

/// Bytes of every header, whatever the command.
pub const HEADER_LEN: usize = 48;
/// Bytes of an isochronous packet descriptor.
pub const ISO_PACKET_LEN: usize = 16;
/// Longest transfer buffer that we take. (The protocol has no limit.)
pub const MAX_LENGTH: u32 = 4 << 20;
/// Most isochronous packets in a transfer (USBIP_MAX_ISO_PACKETS of Linux).
pub const MAX_ISO_PACKETS: u32 = 1024;

const CMD_SUBMIT: u32 = 1;
const CMD_UNLINK: u32 = 2;
const RET_SUBMIT: u32 = 3;
const RET_UNLINK: u32 = 4;

/// number_of_packets of transfers that are not isochronous. Linux sends 0 instead.
const NO_PACKETS: u32 = 0xffff_ffff;

/// transfer_flags that matter to us (include/uapi/linux/usbip.h).
pub mod flag {
    /// USBIP_URB_SHORT_NOT_OK.
    pub const SHORT_NOT_OK: u32 = 0x0001;
}

/// A packet of an isochronous transfer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IsoPacket {
    /// Where it is in the transfer buffer.
    pub offset: u32,
    /// Bytes asked for.
    pub length: u32,
    /// Bytes transferred.
    pub actual_length: u32,
    /// 0, or a negative Linux error number.
    pub status: i32,
}

/// USBIP_CMD_SUBMIT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submit<'a> {
    /// Its number.
    pub sequence: u32,
    /// The device: bus number in the high half, device number in the low one.
    pub device: u32,
    /// Whether data flows to the client.
    pub is_in: bool,
    /// Endpoint number.
    pub endpoint: u8,
    /// See [`flag`].
    pub flags: u32,
    /// transfer_buffer_length.
    pub length: u32,
    /// number_of_packets as it came: the reply has the same, but for isochronous transfers it is
    /// 0 or 0xffff_ffff.
    pub raw_packets: u32,
    /// Polling interval, in the unit of the endpoint.
    pub interval: u32,
    /// SETUP packet of a control transfer.
    pub setup: [u8; 8],
    /// Data of an OUT transfer.
    pub data: &'a [u8],
    /// Packets of an isochronous transfer; empty for others.
    pub packets: Vec<IsoPacket>,
}

/// What a client wants of an attached device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// A transfer.
    Submit(Submit<'a>),
    /// USBIP_CMD_UNLINK: cancel a transfer.
    Unlink {
        /// Number of the command.
        sequence: u32,
        /// Number of the transfer.
        victim: u32,
    },
}

/// USBIP_RET_SUBMIT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    /// Number of the transfer.
    pub sequence: u32,
    /// 0, or a negative Linux error number.
    pub status: i32,
    /// Bytes transferred: with packets, the sum of theirs.
    pub actual_length: u32,
    /// Isochronous: the frame it started in.
    pub start_frame: u32,
    /// As it came with the transfer.
    pub raw_packets: u32,
    /// Isochronous: packets that failed.
    pub error_count: u32,
    /// IN data: `actual_length` bytes. That of isochronous packets follows each other without gaps.
    pub data: &'a [u8],
    /// As many as were submitted.
    pub packets: &'a [IsoPacket],
}

/// Takes a command off the front of `input`, with its length. `None` when it is not all there yet.
pub fn decode(input: &[u8]) -> Result<Option<(Command<'_>, usize)>, ProtocolError> {
    let Some((header, rest)) = input.split_first_chunk::<HEADER_LEN>() else {
        return Ok(None);
    };
    let sequence = word(header, 4);
    match word(header, 0) {
        CMD_SUBMIT => decode_submit(header, rest),
        CMD_UNLINK => Ok(Some((
            Command::Unlink {
                sequence,
                victim: word(header, 0x14),
            },
            HEADER_LEN,
        ))),
        other => Err(ProtocolError::Command(other)),
    }
}

fn decode_submit<'a>(
    header: &[u8; HEADER_LEN],
    rest: &'a [u8],
) -> Result<Option<(Command<'a>, usize)>, ProtocolError> {
    let is_in = match word(header, 0x0c) {
        0 => false,
        other => at_most("direction", other, 1)? == 1,
    };
    let endpoint = at_most("endpoint", word(header, 0x10), 15)? as u8;
    let length = at_most("transfer_buffer_length", word(header, 0x18), MAX_LENGTH)?;
    let raw_packets = word(header, 0x20);
    let packets = match raw_packets {
        NO_PACKETS => 0,
        other if endpoint == 0 => at_most("number_of_packets of endpoint 0", other, 0)?,
        other => at_most("number_of_packets", other, MAX_ISO_PACKETS)?,
    };
    let data_len = if is_in { 0 } else { length as usize };
    let table_len = packets as usize * ISO_PACKET_LEN;
    let Some(body) = rest.get(..data_len + table_len) else {
        return Ok(None);
    };
    let (data, table) = body.split_at(data_len);
    let packets = table.chunks_exact(ISO_PACKET_LEN).map(|packet| IsoPacket {
        offset: word(packet, 0),
        length: word(packet, 4),
        actual_length: word(packet, 8),
        status: word(packet, 12) as i32,
    });
    let mut setup = [0; 8];
    setup.copy_from_slice(&header[0x28..0x30]);
    let submit = Submit {
        sequence: word(header, 4),
        device: word(header, 8),
        is_in,
        endpoint,
        flags: word(header, 0x14),
        length,
        raw_packets,
        interval: word(header, 0x24),
        setup,
        data,
        packets: packets.collect(),
    };
    Ok(Some((Command::Submit(submit), HEADER_LEN + body.len())))
}

/// Appends a USBIP_RET_SUBMIT.
pub fn encode_reply(out: &mut Vec<u8>, reply: &Reply<'_>) {
    let start = out.len();
    for field in [
        RET_SUBMIT,
        reply.sequence,
        0,
        0,
        0,
        reply.status as u32,
        reply.actual_length,
        reply.start_frame,
        reply.raw_packets,
        reply.error_count,
    ] {
        out.extend_from_slice(&field.to_be_bytes());
    }
    out.resize(start + HEADER_LEN, 0);
    out.extend_from_slice(reply.data);
    for packet in reply.packets {
        for field in [
            packet.offset,
            packet.length,
            packet.actual_length,
            packet.status as u32,
        ] {
            out.extend_from_slice(&field.to_be_bytes());
        }
    }
}

/// Appends a USBIP_RET_UNLINK. `status` is -104 (ECONNRESET) where the transfer was cancelled and
/// will not be replied to, 0 where its reply was sent before.
pub fn encode_unlinked(out: &mut Vec<u8>, sequence: u32, status: i32) {
    let start = out.len();
    for field in [RET_UNLINK, sequence, 0, 0, 0, status as u32] {
        out.extend_from_slice(&field.to_be_bytes());
    }
    out.resize(start + HEADER_LEN, 0);
}

/// The big-endian word at `at`, which is within `bytes`.
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn at_most(field: &'static str, value: u32, limit: u32) -> Result<u32, ProtocolError> {
    match value <= limit {
        true => Ok(value),
        false => Err(ProtocolError::TooMuch {
            field,
            value: value.into(),
            limit: limit.into(),
        }),
    }
}

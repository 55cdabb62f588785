// SPDX-License-Identifier: GPL-3.0-or-later
//! A transfer, and how it ended.

use super::ISO_PACKET_LEN;

/// Flag: a short packet is an error (URB_SHORT_NOT_OK).
pub const FLAG_SHORT_NOT_OK: u8 = 1;

/// Transfer type, USB 2.0 table 9-13 (bmAttributes of an endpoint descriptor).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TransferType {
    /// Control.
    Control = 0,
    /// Isochronous.
    Isochronous = 1,
    /// Bulk.
    Bulk = 2,
    /// Interrupt.
    Interrupt = 3,
}

/// How a transfer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum TransferStatus {
    /// Done. A short transfer is done, too, unless the request said otherwise.
    Completed = 0,
    /// The endpoint answered STALL, or is halted.
    Stall = 1,
    /// Cancelled; the actual length tells how far it came.
    Cancelled = 2,
    /// The device sent more than was asked for (babble).
    Overflow = 3,
    /// The device is gone.
    NoDevice = 4,
    /// Bus errors that retries did not cure.
    Protocol = 5,
    /// No answer in time.
    TimedOut = 6,
    /// The exporter could not carry it out: no such endpoint, malformed, no resources.
    Invalid = 7,
    /// Shorter than asked for, and the request said that this is an error.
    ShortPacket = 8,
    /// Nobody knows whether the device saw it. Never repeated by itself.
    Unknown = 9,
}

impl TransferStatus {
    /// Whether the transfer is done.
    pub fn is_success(self) -> bool {
        matches!(self, Self::Completed | Self::ShortPacket)
    }

    /// From its number on the wire.
    pub fn from_u32(value: u32) -> Option<Self> {
        Some(match value {
            0 => Self::Completed,
            1 => Self::Stall,
            2 => Self::Cancelled,
            3 => Self::Overflow,
            4 => Self::NoDevice,
            5 => Self::Protocol,
            6 => Self::TimedOut,
            7 => Self::Invalid,
            8 => Self::ShortPacket,
            9 => Self::Unknown,
            _ => return None,
        })
    }
}

/// A transfer to be carried out: the header fields of a [`Kind::Submit`](super::Kind::Submit).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Transfer {
    /// Its type.
    pub transfer_type: TransferType,
    /// bEndpointAddress: number 0 to 15, bit 7 set for IN. For control, the direction is that of
    /// the data stage.
    pub endpoint: u8,
    /// [`FLAG_SHORT_NOT_OK`] or 0.
    pub flags: u8,
    /// Bytes of the data stage or buffer, 0 to 65,536.
    pub length: u32,
    /// Interrupt and isochronous: polling interval in the unit of usbif.h (frames or microframes).
    pub interval: u32,
    /// The SETUP packet of a control transfer. For isochronous see [`Transfer::iso_packets`].
    pub setup: [u8; 8],
}

impl Transfer {
    /// See [`Transfer::is_set_address`].
    pub const SET_ADDRESS: Self = Self {
        transfer_type: TransferType::Control,
        endpoint: 0,
        flags: 0,
        length: 0,
        interval: 0,
        setup: [0, 5, 0, 0, 0, 0, 0, 0],
    };

    /// Whether data flows from the device to the guest.
    pub fn is_in(&self) -> bool {
        self.endpoint & 0x80 != 0
    }

    /// Whether it waits for data from the device on a bulk or interrupt endpoint.
    pub fn is_stream(&self) -> bool {
        self.is_in()
            && matches!(
                self.transfer_type,
                TransferType::Bulk | TransferType::Interrupt
            )
    }

    /// Whether it is the standard request SET_ADDRESS (USB 2.0 §9.4.6). It is for no device: an
    /// exporter completes it when the cookie that came before it, and what else it was told, is on its
    /// disk.
    pub fn is_set_address(&self) -> bool {
        self.transfer_type == TransferType::Control && self.setup[..2] == [0, 5]
    }

    /// Number of isochronous packets; 0 for other types.
    pub fn iso_packets(&self) -> usize {
        match self.transfer_type {
            TransferType::Isochronous => {
                usize::from(u16::from_le_bytes([self.setup[0], self.setup[1]]))
            }
            _ => 0,
        }
    }

    /// Length of the body of its [`Kind::Submit`](super::Kind::Submit) frame: packet descriptors, and OUT data.
    pub fn submit_body_len(&self) -> usize {
        self.body_len(!self.is_in())
    }

    /// Greatest length of the body of its [`Kind::Complete`](super::Kind::Complete) frame: packet descriptors, and IN data.
    pub fn complete_body_limit(&self) -> usize {
        self.body_len(self.is_in())
    }

    fn body_len(&self, with_data: bool) -> usize {
        let data = if with_data { self.length as usize } else { 0 };
        self.iso_packets() * ISO_PACKET_LEN + data
    }
}

/// How a transfer ended: the header fields of a [`Kind::Complete`](super::Kind::Complete).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Request number.
    pub request: u64,
    /// Completion number: 1, 2, 3 … within the epoch.
    pub number: u64,
    /// How it ended.
    pub status: TransferStatus,
    /// Bytes transferred, at most the requested length.
    pub actual_length: u32,
    /// Isochronous: packets that failed.
    pub error_count: u32,
    /// Isochronous: the frame it started in.
    pub start_frame: u16,
}

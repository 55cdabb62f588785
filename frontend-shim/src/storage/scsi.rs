// SPDX-License-Identifier: GPL-3.0-or-later
//! SCSI commands (SPC, SBC) and what they return.

use std::fmt;

pub(super) const TEST_UNIT_READY: u8 = 0x00;
pub(super) const REQUEST_SENSE: u8 = 0x03;
pub(super) const INQUIRY: u8 = 0x12;
pub(super) const READ_CAPACITY_10: u8 = 0x25;
pub(super) const READ_10: u8 = 0x28;
pub(super) const WRITE_10: u8 = 0x2a;
pub(super) const SYNCHRONIZE_CACHE_10: u8 = 0x35;

pub(super) const SENSE_BYTES: usize = 18;
pub(super) const INQUIRY_BYTES: usize = 36;

pub(super) fn test_unit_ready() -> [u8; 6] {
    [TEST_UNIT_READY, 0, 0, 0, 0, 0]
}

pub(super) fn request_sense() -> [u8; 6] {
    [REQUEST_SENSE, 0, 0, 0, SENSE_BYTES as u8, 0]
}

pub(super) fn inquiry() -> [u8; 6] {
    [INQUIRY, 0, 0, 0, INQUIRY_BYTES as u8, 0]
}

pub(super) fn read_capacity() -> [u8; 10] {
    ten(READ_CAPACITY_10, 0, 0)
}

pub(super) fn read(block: u32, blocks: u16) -> [u8; 10] {
    ten(READ_10, block, blocks)
}

pub(super) fn write(block: u32, blocks: u16) -> [u8; 10] {
    ten(WRITE_10, block, blocks)
}

pub(super) fn synchronize_cache() -> [u8; 10] {
    ten(SYNCHRONIZE_CACHE_10, 0, 0)
}

fn ten(command: u8, block: u32, blocks: u16) -> [u8; 10] {
    let b = block.to_be_bytes();
    let n = blocks.to_be_bytes();
    [command, 0, b[0], b[1], b[2], b[3], 0, n[0], n[1], 0]
}

/// What a disk calls itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inquiry {
    /// Peripheral device type; 0 is a disk.
    pub device_type: u8,
    /// Whether the medium can be taken out.
    pub removable: bool,
    /// Vendor, trimmed.
    pub vendor: String,
    /// Product, trimmed.
    pub product: String,
    /// Revision, trimmed.
    pub revision: String,
}

impl Inquiry {
    pub(super) fn parse(bytes: &[u8; INQUIRY_BYTES]) -> Self {
        let text = |range: std::ops::Range<usize>| {
            String::from_utf8_lossy(&bytes[range])
                .trim_matches([' ', '\0'])
                .to_owned()
        };
        Self {
            device_type: bytes[0] & 0x1f,
            removable: bytes[1] & 0x80 != 0,
            vendor: text(8..16),
            product: text(16..32),
            revision: text(32..36),
        }
    }
}

/// The size of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Number of blocks.
    pub blocks: u64,
    /// Bytes of a block.
    pub block_bytes: u32,
}

impl Capacity {
    pub(super) fn parse(bytes: &[u8; 8]) -> Self {
        let last = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let block_bytes = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        Self {
            blocks: u64::from(last) + 1,
            block_bytes,
        }
    }

    /// Bytes of the disk.
    pub fn len_bytes(&self) -> u64 {
        self.blocks * u64::from(self.block_bytes)
    }
}

/// The sense keys that a disk driver acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SenseKey {
    /// Nothing to say.
    NoSense,
    /// Cannot be accessed now.
    NotReady,
    /// Bad medium.
    MediumError,
    /// Broken device.
    HardwareError,
    /// Bad command.
    IllegalRequest,
    /// Reset, or medium changed, since the last command.
    UnitAttention,
    /// Write-protected.
    DataProtect,
    /// Another one, as it is.
    Other(u8),
}

/// Why a command failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    /// The kind of failure.
    pub key: SenseKey,
    /// Additional sense code.
    pub code: u8,
    /// Additional sense code qualifier.
    pub qualifier: u8,
}

impl Sense {
    /// From fixed-format sense data.
    pub(super) fn parse(bytes: &[u8; SENSE_BYTES]) -> Self {
        let key = match bytes[2] & 0x0f {
            0x0 => SenseKey::NoSense,
            0x2 => SenseKey::NotReady,
            0x3 => SenseKey::MediumError,
            0x4 => SenseKey::HardwareError,
            0x5 => SenseKey::IllegalRequest,
            0x6 => SenseKey::UnitAttention,
            0x7 => SenseKey::DataProtect,
            other => SenseKey::Other(other),
        };
        Self {
            key,
            code: bytes[12],
            qualifier: bytes[13],
        }
    }
}

impl fmt::Display for Sense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} ({:02x}/{:02x})",
            self.key, self.code, self.qualifier
        )
    }
}

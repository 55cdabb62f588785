// SPDX-License-Identifier: GPL-3.0-or-later
//! The SCSI block device (SPC-4, SBC-3): one logical unit, 512-byte blocks, removable medium.

use crate::storage::{Storage, StorageError};

const BLOCK_LEN: u64 = 512;
/// READ(10) from Linux is at most 240 blocks, from Windows 128; a hostile guest may ask for more,
/// which is given in pieces anyhow.
const VENDOR: &[u8; 8] = b"xen-vusb";
const PRODUCT: &[u8; 16] = b"Simulated disk  ";
const REVISION: &[u8; 4] = b"1.0 ";

/// Operation codes.
mod op {
    pub(super) const TEST_UNIT_READY: u8 = 0x00;
    pub(super) const REQUEST_SENSE: u8 = 0x03;
    pub(super) const INQUIRY: u8 = 0x12;
    pub(super) const MODE_SENSE_6: u8 = 0x1a;
    pub(super) const START_STOP_UNIT: u8 = 0x1b;
    pub(super) const PREVENT_ALLOW: u8 = 0x1e;
    pub(super) const READ_FORMAT_CAPACITIES: u8 = 0x23;
    pub(super) const READ_CAPACITY_10: u8 = 0x25;
    pub(super) const READ_10: u8 = 0x28;
    pub(super) const WRITE_10: u8 = 0x2a;
    pub(super) const VERIFY_10: u8 = 0x2f;
    pub(super) const SYNCHRONIZE_CACHE_10: u8 = 0x35;
    pub(super) const MODE_SENSE_10: u8 = 0x5a;
    pub(super) const READ_16: u8 = 0x88;
    pub(super) const WRITE_16: u8 = 0x8a;
    pub(super) const SYNCHRONIZE_CACHE_16: u8 = 0x91;
    pub(super) const SERVICE_ACTION_IN_16: u8 = 0x9e;
    pub(super) const REPORT_LUNS: u8 = 0xa0;
}

/// Sense key, additional sense code and its qualifier (SPC-4 §4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sense {
    key: u8,
    code: u8,
    qualifier: u8,
}

impl Sense {
    const fn new(key: u8, code: u8, qualifier: u8) -> Self {
        Self {
            key,
            code,
            qualifier,
        }
    }

    const NONE: Self = Self::new(0, 0, 0);
    const NO_MEDIUM: Self = Self::new(2, 0x3a, 0);
    const WRITE_ERROR: Self = Self::new(3, 0x0c, 0);
    const READ_ERROR: Self = Self::new(3, 0x11, 0);
    const INVALID_OPCODE: Self = Self::new(5, 0x20, 0);
    const LBA_OUT_OF_RANGE: Self = Self::new(5, 0x21, 0);
    const INVALID_FIELD: Self = Self::new(5, 0x24, 0);
    const NO_SUCH_LUN: Self = Self::new(5, 0x25, 0);
    const WRITE_PROTECTED: Self = Self::new(7, 0x27, 0);

    /// Fixed format (SPC-4 §4.5.3).
    fn encode(self) -> Vec<u8> {
        let mut data = vec![0; 18];
        data[0] = 0x70;
        data[2] = self.key;
        data[7] = 10;
        data[12] = self.code;
        data[13] = self.qualifier;
        data
    }
}

/// The command failed: CHECK CONDITION, with sense data to be asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failed;

/// A command's data phase: what is still to be moved.
#[derive(Debug)]
pub(super) enum Data {
    None,
    /// To the host.
    Answer {
        bytes: Vec<u8>,
        given: usize,
    },
    /// Blocks to the host.
    Read {
        offset: u64,
        len: u64,
    },
    /// Blocks from the host.
    Write {
        offset: u64,
        len: u64,
    },
}

impl Data {
    fn answer(mut bytes: Vec<u8>, allocated: usize) -> Self {
        bytes.truncate(allocated);
        match bytes.is_empty() {
            true => Self::None,
            false => Self::Answer { bytes, given: 0 },
        }
    }

    /// Bytes left.
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Answer { bytes, given } => (bytes.len() - given) as u64,
            Self::Read { len, .. } | Self::Write { len, .. } => *len,
        }
    }

    pub(super) fn is_in(&self) -> bool {
        !matches!(self, Self::Write { .. })
    }

    /// At most `limit` bytes of it.
    pub(super) fn limit(mut self, limit: u64) -> Self {
        match &mut self {
            Self::None => (),
            Self::Answer { bytes, .. } => {
                bytes.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
            }
            Self::Read { len, .. } | Self::Write { len, .. } => *len = limit.min(*len),
        }
        self
    }
}

/// The logical unit.
#[derive(Debug)]
pub(super) struct Scsi<S> {
    storage: S,
    serial: String,
    sense: Sense,
    ejected: bool,
}

impl<S: Storage> Scsi<S> {
    pub(super) fn new(storage: S, serial: &str) -> Self {
        Self {
            storage,
            serial: serial.to_owned(),
            sense: Sense::NONE,
            ejected: false,
        }
    }

    pub(super) fn storage(&self) -> &S {
        &self.storage
    }

    /// As after power on: an ejected medium is back.
    pub(super) fn reset(&mut self) {
        self.sense = Sense::NONE;
        self.ejected = false;
    }

    fn blocks(&self) -> u64 {
        self.storage.len_bytes() / BLOCK_LEN
    }

    /// Starts a command: its data phase.
    pub(super) fn execute(&mut self, lun: u8, cdb: &[u8]) -> Result<Data, Failed> {
        // A short CDB has zeros where bytes are missing.
        let mut block = [0; 16];
        let len = cdb.len().min(16);
        block[..len].copy_from_slice(&cdb[..len]);
        match self.dispatch(lun, &block) {
            Ok(data) => {
                if block[0] != op::REQUEST_SENSE {
                    self.sense = Sense::NONE;
                }
                Ok(data)
            }
            Err(sense) => {
                self.sense = sense;
                Err(Failed)
            }
        }
    }

    fn dispatch(&mut self, lun: u8, cdb: &[u8; 16]) -> Result<Data, Sense> {
        if lun != 0 && !matches!(cdb[0], op::INQUIRY | op::REQUEST_SENSE | op::REPORT_LUNS) {
            return Err(Sense::NO_SUCH_LUN);
        }
        match cdb[0] {
            op::TEST_UNIT_READY => self.ready().map(|()| Data::None),
            op::REQUEST_SENSE => {
                let sense = std::mem::replace(&mut self.sense, Sense::NONE);
                Ok(Data::answer(sense.encode(), cdb[4].into()))
            }
            op::INQUIRY => self.inquiry(lun, cdb),
            op::MODE_SENSE_6 => self.mode_sense(cdb[2], 4, cdb[4].into()),
            op::MODE_SENSE_10 => self.mode_sense(cdb[2], 8, be16(cdb, 7).into()),
            op::START_STOP_UNIT => {
                if cdb[4] & 0x02 != 0 {
                    self.ejected = cdb[4] & 0x01 == 0;
                }
                Ok(Data::None)
            }
            op::PREVENT_ALLOW => Ok(Data::None),
            op::READ_FORMAT_CAPACITIES => {
                self.ready()?;
                let mut bytes = vec![0, 0, 0, 8];
                bytes.extend_from_slice(&clamp32(self.blocks()).to_be_bytes());
                // Formatted media, block length in 24 bits.
                bytes.extend_from_slice(&((2 << 24) | BLOCK_LEN as u32).to_be_bytes());
                Ok(Data::answer(bytes, be16(cdb, 7).into()))
            }
            op::READ_CAPACITY_10 => {
                self.ready()?;
                let mut bytes = clamp32(self.blocks().saturating_sub(1))
                    .to_be_bytes()
                    .to_vec();
                bytes.extend_from_slice(&(BLOCK_LEN as u32).to_be_bytes());
                Ok(Data::answer(bytes, 8))
            }
            op::SERVICE_ACTION_IN_16 if cdb[1] & 0x1f == 0x10 => {
                self.ready()?;
                let mut bytes = self.blocks().saturating_sub(1).to_be_bytes().to_vec();
                bytes.extend_from_slice(&(BLOCK_LEN as u32).to_be_bytes());
                bytes.resize(32, 0);
                Ok(Data::answer(bytes, be32(cdb, 10) as usize))
            }
            op::READ_10 => self.read_blocks(be32(cdb, 2).into(), be16(cdb, 7).into()),
            op::READ_16 => self.read_blocks(be64(cdb, 2), be32(cdb, 10).into()),
            op::WRITE_10 => self.write_blocks(be32(cdb, 2).into(), be16(cdb, 7).into()),
            op::WRITE_16 => self.write_blocks(be64(cdb, 2), be32(cdb, 10).into()),
            // Without BYTCHK there is nothing to compare, and the medium does not fail.
            op::VERIFY_10 if cdb[1] & 0x06 == 0 => self
                .range(be32(cdb, 2).into(), be16(cdb, 7).into())
                .map(|_| Data::None),
            op::SYNCHRONIZE_CACHE_10 | op::SYNCHRONIZE_CACHE_16 => {
                self.ready()?;
                self.storage.flush().map_err(|_| Sense::WRITE_ERROR)?;
                Ok(Data::None)
            }
            op::REPORT_LUNS => {
                let mut bytes = vec![0; 16];
                bytes[3] = 8;
                Ok(Data::answer(bytes, be32(cdb, 6) as usize))
            }
            op::SERVICE_ACTION_IN_16 | op::VERIFY_10 => Err(Sense::INVALID_FIELD),
            _ => Err(Sense::INVALID_OPCODE),
        }
    }

    fn ready(&self) -> Result<(), Sense> {
        match self.ejected {
            true => Err(Sense::NO_MEDIUM),
            false => Ok(()),
        }
    }

    /// Offset and length in bytes.
    fn range(&self, lba: u64, blocks: u64) -> Result<(u64, u64), Sense> {
        self.ready()?;
        match lba.checked_add(blocks) {
            // Also without any blocks the address must exist (SBC-3 §5.7).
            Some(end) if end <= self.blocks() && lba < self.blocks().max(1) => {
                Ok((lba * BLOCK_LEN, blocks * BLOCK_LEN))
            }
            _ => Err(Sense::LBA_OUT_OF_RANGE),
        }
    }

    fn read_blocks(&self, lba: u64, blocks: u64) -> Result<Data, Sense> {
        let (offset, len) = self.range(lba, blocks)?;
        Ok(Data::Read { offset, len })
    }

    fn write_blocks(&self, lba: u64, blocks: u64) -> Result<Data, Sense> {
        let (offset, len) = self.range(lba, blocks)?;
        match self.storage.is_read_only() {
            true => Err(Sense::WRITE_PROTECTED),
            false => Ok(Data::Write { offset, len }),
        }
    }

    fn inquiry(&self, lun: u8, cdb: &[u8; 16]) -> Result<Data, Sense> {
        let allocated = be16(cdb, 3).into();
        // Peripheral qualifier: no such logical unit, or a disk.
        let peripheral = if lun == 0 { 0x00 } else { 0x7f };
        if cdb[1] & 1 == 0 {
            if cdb[2] != 0 {
                return Err(Sense::INVALID_FIELD);
            }
            let mut bytes = vec![peripheral, 0x80, 6, 2, 31, 0, 0, 0];
            bytes.extend_from_slice(VENDOR);
            bytes.extend_from_slice(PRODUCT);
            bytes.extend_from_slice(REVISION);
            return Ok(Data::answer(bytes, allocated));
        }
        let page = match cdb[2] {
            0x00 => vec![0x00, 0x80, 0x83],
            0x80 => self.serial.as_bytes().to_vec(),
            0x83 => {
                // One designator: T10 vendor ID based, ASCII.
                let mut id = VENDOR.to_vec();
                id.extend_from_slice(self.serial.as_bytes());
                id.truncate(255);
                let mut page = vec![0x02, 0x01, 0, id.len() as u8];
                page.extend_from_slice(&id);
                page
            }
            _ => return Err(Sense::INVALID_FIELD),
        };
        let [high, low] = (page.len() as u16).to_be_bytes();
        let mut bytes = vec![peripheral, cdb[2], high, low];
        bytes.extend_from_slice(&page);
        Ok(Data::answer(bytes, allocated))
    }

    /// MODE SENSE with a header of 4 or 8 bytes (SPC-4 §7.5.5), no block descriptors.
    fn mode_sense(&self, page: u8, header_len: usize, allocated: usize) -> Result<Data, Sense> {
        // Changeable values (page control 1): none. Saved values: not kept.
        let (control, page) = (page >> 6, page & 0x3f);
        if control == 3 {
            return Err(Sense::new(5, 0x39, 0));
        }
        let mut bytes = vec![0; header_len];
        if matches!(page, 0x08 | 0x3f) {
            // Caching (SBC-3 §6.5.6): WCE, so that hosts send SYNCHRONIZE CACHE.
            let mut caching = [0; 20];
            (caching[0], caching[1]) = (0x08, 18);
            caching[2] = if control == 1 { 0 } else { 0x04 };
            bytes.extend_from_slice(&caching);
        } else if page != 0 {
            return Err(Sense::INVALID_FIELD);
        }
        let write_protected = if self.storage.is_read_only() { 0x80 } else { 0 };
        if header_len == 4 {
            bytes[0] = (bytes.len() - 1) as u8;
            bytes[2] = write_protected;
        } else {
            let [high, low] = ((bytes.len() - 2) as u16).to_be_bytes();
            (bytes[0], bytes[1]) = (high, low);
            bytes[3] = write_protected;
        }
        Ok(Data::answer(bytes, allocated))
    }

    /// Gives the next `len` bytes of a data phase to the host. On failure `out` is as before.
    pub(super) fn read(
        &mut self,
        data: &mut Data,
        len: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Failed> {
        match data {
            Data::Answer { bytes, given } => {
                out.extend_from_slice(&bytes[*given..*given + len]);
                *given += len;
            }
            Data::Read { offset, len: left } => {
                let start = out.len();
                out.resize(start + len, 0);
                if let Err(StorageError(_)) = self.storage.read(*offset, &mut out[start..]) {
                    out.truncate(start);
                    self.sense = Sense::READ_ERROR;
                    return Err(Failed);
                }
                *offset += len as u64;
                *left -= len as u64;
            }
            Data::None | Data::Write { .. } => (),
        }
        Ok(())
    }

    /// Takes the next bytes of a data phase from the host.
    pub(super) fn write(&mut self, data: &mut Data, bytes: &[u8]) -> Result<(), Failed> {
        let Data::Write { offset, len } = data else {
            return Ok(());
        };
        let at = *offset;
        *offset += bytes.len() as u64;
        *len -= bytes.len() as u64;
        self.storage.write(at, bytes).map_err(|StorageError(_)| {
            self.sense = Sense::WRITE_ERROR;
            Failed
        })
    }
}

fn clamp32(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn be16(cdb: &[u8; 16], at: usize) -> u16 {
    u16::from_be_bytes([cdb[at], cdb[at + 1]])
}

fn be32(cdb: &[u8; 16], at: usize) -> u32 {
    u32::from(be16(cdb, at)) << 16 | u32::from(be16(cdb, at + 2))
}

fn be64(cdb: &[u8; 16], at: usize) -> u64 {
    u64::from(be32(cdb, at)) << 32 | u64::from(be32(cdb, at + 4))
}

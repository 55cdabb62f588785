// SPDX-License-Identifier: GPL-3.0-or-later
//! A mass-storage disk: bulk-only transport (USB Mass Storage Class, Bulk-Only Transport 1.0; "BOT"
//! below) around a SCSI block device.

mod descriptors;
mod scsi;
#[cfg(test)]
mod tests;

use session::Speed;

use crate::function::{Answer, Descriptors, Function, Setup};
use crate::standard::give;
use crate::storage::Storage;
use descriptors::{BULK_IN, BULK_OUT, MAX_PACKET, SUPER_MAX_PACKET};
use scsi::{Data, Scsi};

const CBW_LEN: usize = 31;
const CBW_SIGNATURE: u32 = 0x4342_5355;
const CSW_LEN: usize = 13;
const CSW_SIGNATURE: u32 = 0x5342_5355;
const BULK_ONLY_RESET: (u8, u8) = (0x21, 0xff);
const GET_MAX_LUN: (u8, u8) = (0xa1, 0xfe);

/// dCSWStatus (BOT table 5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Passed = 0,
    Failed = 1,
    PhaseError = 2,
}

/// What the disk expects next (BOT figure 2).
#[derive(Debug)]
enum Phase {
    Command,
    In {
        data: Data,
        tag: u32,
        /// What the host still wants (dCBWDataTransferLength less what was given).
        host: u64,
        status: Status,
    },
    Out {
        data: Data,
        tag: u32,
        /// What the host still has to give.
        host: u64,
        /// dCSWDataResidue so far: what was taken and not used.
        unused: u64,
        status: Status,
    },
    Status {
        tag: u32,
        residue: u64,
        status: Status,
    },
    /// After an invalid CBW everything stalls until reset recovery (BOT §5.3.4, §6.6.1).
    Broken,
}

/// The disk.
#[derive(Debug)]
pub struct Disk<S> {
    scsi: Scsi<S>,
    descriptors: Descriptors,
    speed: Speed,
    /// 1 is UAS.
    setting: u8,
    phase: Phase,
    /// An endpoint to be halted after this transfer.
    halt: Option<u8>,
}

impl<S: Storage> Disk<S> {
    /// A disk with this serial number string. The class wants at least twelve hexadecimal digits
    /// in capitals (BOT §4.1.1).
    pub fn new(storage: S, serial: &str) -> Self {
        Self {
            scsi: Scsi::new(storage, serial),
            descriptors: descriptors::of_disk(serial),
            speed: Speed::High,
            setting: 0,
            phase: Phase::Command,
            halt: None,
        }
    }

    /// The same at SuperSpeed. With `with_uas` it also has the descriptors of a UAS setting, whose
    /// endpoints only stall: nobody is to use it.
    pub fn super_speed(storage: S, serial: &str, with_uas: bool) -> Self {
        Self {
            descriptors: descriptors::of_super_speed_disk(serial, with_uas),
            speed: Speed::Super,
            ..Self::new(storage, serial)
        }
    }

    /// Of the bulk endpoints.
    fn max_packet(&self) -> usize {
        match self.speed {
            Speed::Super => SUPER_MAX_PACKET,
            _ => MAX_PACKET,
        }
    }

    /// Where its blocks are.
    pub fn storage(&self) -> &S {
        self.scsi.storage()
    }

    fn command(&mut self, cbw: &[u8]) -> Answer {
        let Some(command) = Command::parse(cbw) else {
            self.phase = Phase::Broken;
            self.halt = Some(BULK_IN);
            return Answer::Stall(0);
        };
        let Command {
            tag, length, is_in, ..
        } = command;
        let host = u64::from(length);
        let (data, mut status) = match self.scsi.execute(command.lun, command.cdb()) {
            Ok(data) => (data, Status::Passed),
            Err(scsi::Failed) => (Data::None, Status::Failed),
        };
        let (device, device_is_in) = (data.len(), data.is_in());
        // The thirteen cases (BOT §6.7): more than the host wants, or the other direction, is a
        // phase error.
        if device > host || (device > 0 && device_is_in != is_in) {
            status = Status::PhaseError;
        }
        let mismatch = device > 0 && device_is_in != is_in;
        let data = if mismatch {
            Data::None
        } else {
            data.limit(host)
        };
        self.phase = match (host, is_in) {
            (0, _) => Phase::Status {
                tag,
                residue: 0,
                status,
            },
            (_, true) if data.len() == 0 => {
                self.halt = Some(BULK_IN);
                Phase::Status {
                    tag,
                    residue: host,
                    status,
                }
            }
            (_, false) if data.len() == 0 => {
                self.halt = Some(BULK_OUT);
                Phase::Status {
                    tag,
                    residue: host,
                    status,
                }
            }
            (_, true) => Phase::In {
                data,
                tag,
                host,
                status,
            },
            (_, false) => Phase::Out {
                data,
                tag,
                host,
                unused: 0,
                status,
            },
        };
        Answer::Done(cbw.len())
    }

    fn give_status(&mut self, length: usize, out: &mut Vec<u8>) -> Answer {
        let Phase::Status {
            tag,
            residue,
            status,
        } = self.phase
        else {
            return Answer::Nak;
        };
        if length < CSW_LEN {
            return Answer::Babble;
        }
        out.extend_from_slice(&CSW_SIGNATURE.to_le_bytes());
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&(residue as u32).to_le_bytes());
        out.push(status as u8);
        self.phase = Phase::Command;
        Answer::Done(CSW_LEN)
    }
}

impl<S: Storage> Function for Disk<S> {
    fn speed(&self) -> Speed {
        self.speed
    }

    fn descriptors(&self) -> &Descriptors {
        &self.descriptors
    }

    fn control(&mut self, setup: &Setup, _data: &[u8], out: &mut Vec<u8>) -> Answer {
        match (setup.request_type, setup.request) {
            BULK_ONLY_RESET => {
                // Halts stay: the host clears them (BOT §5.3.4).
                self.phase = Phase::Command;
                Answer::Done(0)
            }
            GET_MAX_LUN => give(out, setup, &[0]),
            _ => Answer::Stall(0),
        }
    }

    fn transfer_out(&mut self, endpoint: u8, bytes: &[u8]) -> Answer {
        let max_packet = self.max_packet();
        if endpoint != BULK_OUT || self.setting != 0 {
            return Answer::Stall(0);
        }
        match &mut self.phase {
            Phase::Command => self.command(bytes),
            Phase::Out {
                data,
                tag,
                host,
                unused,
                status,
            } => {
                let taken = (bytes.len() as u64).min(*host) as usize;
                let used = taken.min(usize::try_from(data.len()).unwrap_or(usize::MAX));
                if self.scsi.write(data, &bytes[..used]).is_err() {
                    *status = Status::Failed;
                }
                *unused += (taken - used) as u64;
                *host -= taken as u64;
                let is_short = bytes.is_empty() || !bytes.len().is_multiple_of(max_packet);
                if *host == 0 || is_short {
                    self.phase = Phase::Status {
                        tag: *tag,
                        residue: *unused + *host,
                        status: *status,
                    };
                }
                Answer::Done(bytes.len())
            }
            Phase::Broken => Answer::Stall(0),
            Phase::In { .. } | Phase::Status { .. } => Answer::Nak,
        }
    }

    fn transfer_in(&mut self, endpoint: u8, length: usize, out: &mut Vec<u8>) -> Answer {
        if endpoint != BULK_IN || self.setting != 0 {
            return Answer::Stall(0);
        }
        match &mut self.phase {
            Phase::In {
                data,
                tag,
                host,
                status,
            } => {
                let wanted = (length as u64).min(*host) as usize;
                let given = wanted.min(usize::try_from(data.len()).unwrap_or(usize::MAX));
                let failed = self.scsi.read(data, given, out).is_err();
                if failed {
                    // Nothing of this transfer was given; the host learns why from the sense data.
                    self.phase = Phase::Status {
                        tag: *tag,
                        residue: *host,
                        status: Status::Failed,
                    };
                    return Answer::Stall(0);
                }
                *host -= given as u64;
                if *host == 0 || given < length {
                    self.phase = Phase::Status {
                        tag: *tag,
                        residue: *host,
                        status: *status,
                    };
                }
                Answer::Done(given)
            }
            Phase::Status { .. } => self.give_status(length, out),
            Phase::Broken => Answer::Stall(0),
            Phase::Command | Phase::Out { .. } => Answer::Nak,
        }
    }

    fn take_halt(&mut self) -> Option<u8> {
        self.halt.take()
    }

    fn clear_halt(&mut self, _endpoint: u8) -> bool {
        !matches!(self.phase, Phase::Broken)
    }

    fn configured(&mut self, _configuration: u8) {
        self.setting = 0;
        self.phase = Phase::Command;
        self.halt = None;
        self.scsi.reset();
    }

    fn interface_set(&mut self, _interface: u8, setting: u8) {
        self.setting = setting;
        self.phase = Phase::Command;
        self.halt = None;
    }
}

/// A command block wrapper (BOT §5.1), found valid and meaningful (§6.2).
struct Command {
    tag: u32,
    length: u32,
    is_in: bool,
    lun: u8,
    cdb: [u8; 16],
    cdb_len: usize,
}

impl Command {
    fn parse(cbw: &[u8]) -> Option<Self> {
        let cbw: &[u8; CBW_LEN] = cbw.try_into().ok()?;
        let word = |at: usize| u32::from_le_bytes([cbw[at], cbw[at + 1], cbw[at + 2], cbw[at + 3]]);
        let mut cdb = [0; 16];
        cdb.copy_from_slice(&cbw[15..]);
        let command = Self {
            tag: word(4),
            length: word(8),
            is_in: cbw[12] & 0x80 != 0,
            lun: cbw[13] & 0x0f,
            cdb,
            cdb_len: usize::from(cbw[14] & 0x1f),
        };
        let valid = word(0) == CBW_SIGNATURE && (1..=16).contains(&command.cdb_len);
        valid.then_some(command)
    }

    fn cdb(&self) -> &[u8] {
        &self.cdb[..self.cdb_len]
    }
}

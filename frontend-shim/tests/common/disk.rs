// SPDX-License-Identifier: GPL-3.0-or-later
//! A bulk-only mass-storage device in memory, that misbehaves on demand.

use std::sync::{Arc, Mutex};

use usbif::{Setup, UrbStatus};

/// Blocks of 512 bytes.
pub(crate) const BLOCKS: usize = 4096;
pub(crate) const BULK_IN: u8 = 0x81;
pub(crate) const BULK_OUT: u8 = 0x02;
/// Has nothing to say, ever.
pub(crate) const INTERRUPT_IN: u8 = 0x83;

const DEVICE: [u8; 18] = [
    18, 1, 0, 2, 0, 0, 0, 64, 0x34, 0x12, 0x78, 0x56, 0, 1, 0, 0, 0, 1,
];
#[rustfmt::skip]
const CONFIGURATION: [u8; 39] = [
    9, 2, 39, 0, 1, 1, 0, 0x80, 50,
    9, 4, 0, 0, 3, 8, 6, 0x50, 0,
    7, 5, BULK_IN, 2, 0, 2, 0,
    7, 5, BULK_OUT, 2, 0, 2, 0,
    7, 5, INTERRUPT_IN, 3, 8, 0, 4,
];

/// What goes wrong next, once each.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mischief {
    /// Stalls the data phase and reports failure.
    pub(crate) stall_data: bool,
    /// Stalls the first reading of the status.
    pub(crate) stall_status: bool,
    /// Sends a status with another tag.
    pub(crate) wrong_tag: bool,
    /// Reports this sense key instead of carrying the command out.
    pub(crate) sense: Option<u8>,
}

#[derive(Debug)]
enum Phase {
    Command,
    DataIn(Vec<u8>),
    DataOut { at: usize, len: usize },
    Status { residue: u32, failed: bool },
}

pub(crate) struct DiskDevice {
    pub(crate) media: Arc<Mutex<Vec<u8>>>,
    pub(crate) mischief: Arc<Mutex<Mischief>>,
    phase: Phase,
    tag: u32,
    halted: bool,
    sense: u8,
    pub(crate) configured: u8,
    /// Reset recoveries seen.
    pub(crate) resets: Arc<Mutex<u32>>,
}

impl DiskDevice {
    pub(crate) fn new() -> Self {
        Self {
            media: Arc::new(Mutex::new(vec![0; BLOCKS * 512])),
            mischief: Arc::default(),
            phase: Phase::Command,
            tag: 0,
            halted: false,
            // As after any reset.
            sense: 6,
            configured: 0,
            resets: Arc::default(),
        }
    }

    /// A control transfer: the data of an IN stage, or nothing.
    pub(crate) fn control(&mut self, setup: Setup) -> Result<Vec<u8>, UrbStatus> {
        let cut = |bytes: &[u8]| bytes[..bytes.len().min(usize::from(setup.length()))].to_vec();
        match (setup.request_type(), setup.request(), setup.value()) {
            (0x80, Setup::GET_DESCRIPTOR, 0x0100) => Ok(cut(&DEVICE)),
            (0x80, Setup::GET_DESCRIPTOR, 0x0200) => Ok(cut(&CONFIGURATION)),
            (0x00, Setup::SET_CONFIGURATION, value) => {
                self.configured = value as u8;
                Ok(Vec::new())
            }
            (0x02, Setup::CLEAR_FEATURE, 0) => {
                self.halted = false;
                Ok(Vec::new())
            }
            (0x21, 0xff, _) => {
                *self.resets.lock().unwrap() += 1;
                self.phase = Phase::Command;
                Ok(Vec::new())
            }
            _ => Err(UrbStatus::STALL),
        }
    }

    pub(crate) fn bulk_out(&mut self, data: &[u8]) -> Result<usize, UrbStatus> {
        if self.halted {
            return Err(UrbStatus::STALL);
        }
        match std::mem::replace(&mut self.phase, Phase::Command) {
            Phase::Command if data.len() == 31 && data.starts_with(b"USBC") => {
                self.command(data);
                Ok(31)
            }
            Phase::DataOut { at, len } if data.len() == len => {
                self.media.lock().unwrap()[at..at + len].copy_from_slice(data);
                self.phase = Phase::Status {
                    residue: 0,
                    failed: false,
                };
                Ok(len)
            }
            Phase::Status {
                residue,
                failed: true,
            } => {
                self.phase = Phase::Status {
                    residue,
                    failed: true,
                };
                self.halted = true;
                Err(UrbStatus::STALL)
            }
            _ => {
                self.halted = true;
                Err(UrbStatus::STALL)
            }
        }
    }

    pub(crate) fn bulk_in(&mut self, room: usize) -> Result<Vec<u8>, UrbStatus> {
        if self.halted {
            return Err(UrbStatus::STALL);
        }
        let mut mischief = self.mischief.lock().unwrap();
        match std::mem::replace(&mut self.phase, Phase::Command) {
            Phase::DataIn(data) if data.len() <= room => {
                self.phase = Phase::Status {
                    residue: 0,
                    failed: false,
                };
                Ok(data)
            }
            // The data phase of a command that failed.
            Phase::Status {
                residue,
                failed: true,
            } if residue > 0 && room != 13 => {
                self.phase = Phase::Status {
                    residue,
                    failed: true,
                };
                self.halted = true;
                Err(UrbStatus::STALL)
            }
            Phase::Status { residue, failed } => {
                if std::mem::take(&mut mischief.stall_status) {
                    self.phase = Phase::Status { residue, failed };
                    self.halted = true;
                    return Err(UrbStatus::STALL);
                }
                let wrong = u32::from(std::mem::take(&mut mischief.wrong_tag));
                let mut csw = b"USBS".to_vec();
                csw.extend((self.tag ^ wrong).to_le_bytes());
                csw.extend(residue.to_le_bytes());
                csw.push(u8::from(failed));
                Ok(csw)
            }
            _ => {
                self.halted = true;
                Err(UrbStatus::STALL)
            }
        }
    }

    fn command(&mut self, cbw: &[u8]) {
        let word = |at: usize| u32::from_le_bytes(cbw[at..at + 4].try_into().unwrap());
        self.tag = word(4);
        let wanted = word(8);
        let cdb = &cbw[15..];
        let block = u32::from_be_bytes(cdb[2..6].try_into().unwrap()) as usize;
        let blocks = usize::from(u16::from_be_bytes([cdb[7], cdb[8]]));
        let mut mischief = self.mischief.lock().unwrap();
        if let Some(sense) = mischief.sense.take() {
            self.sense = sense;
        }
        if std::mem::take(&mut mischief.stall_data) {
            self.sense = 3;
        }
        let exempt = matches!(cdb[0], 0x03 | 0x12);
        if self.sense != 0 && !exempt {
            self.phase = Phase::Status {
                residue: wanted,
                failed: true,
            };
            return;
        }
        self.phase = match cdb[0] {
            0x00 | 0x35 => Phase::Status {
                residue: 0,
                failed: false,
            },
            0x03 => {
                let mut sense = vec![0; 18];
                sense[0] = 0x70;
                sense[2] = std::mem::take(&mut self.sense);
                Phase::DataIn(sense)
            }
            0x12 => {
                let mut data = b"\0\x80\x05\x02\x1f\0\0\0ACME    Test disk       1.0 ".to_vec();
                data.truncate(36);
                Phase::DataIn(data)
            }
            0x25 => {
                let mut data = (BLOCKS as u32 - 1).to_be_bytes().to_vec();
                data.extend(512u32.to_be_bytes());
                Phase::DataIn(data)
            }
            0x28 if block + blocks <= BLOCKS => {
                let media = self.media.lock().unwrap();
                Phase::DataIn(media[block * 512..(block + blocks) * 512].to_vec())
            }
            0x2a if block + blocks <= BLOCKS => Phase::DataOut {
                at: block * 512,
                len: blocks * 512,
            },
            _ => {
                self.sense = 5;
                Phase::Status {
                    residue: wanted,
                    failed: true,
                }
            }
        };
    }
}

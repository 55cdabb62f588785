// SPDX-License-Identifier: GPL-3.0-or-later
//! The bulk-only transport: one command at a time, in three phases.

use std::time::Duration;

use usbif::Setup;
use xen::Guest;

use super::StorageError;
use super::wrapper::{CBW_BYTES, CSW_BYTES, CommandStatus, StatusWrapper, command_wrapper};
use crate::{
    BufferId, BufferSlice, ControlData, Device, HostError, Target, TransferError, UsbHost,
};

const CONTROL_TIMEOUT: Duration = Duration::from_secs(5);
const MASS_STORAGE: u8 = 0x08;
const BULK_ONLY: u8 = 0x50;

/// The data phase of a command.
#[derive(Clone, Copy, Debug)]
pub enum DataPhase {
    /// None.
    None,
    /// From the device.
    In(BufferSlice),
    /// To the device.
    Out(BufferSlice),
}

/// What a command came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Bytes of the data phase that count.
    Passed(usize),
    /// The reason is to be asked for with REQUEST SENSE.
    Failed,
}

/// The transport to one device.
#[derive(Debug)]
pub(super) struct Transport {
    target: Target,
    interface: u8,
    bulk_in: u8,
    bulk_out: u8,
    /// CBW at 0, CSW in the second half.
    wrappers: BufferId,
    tag: u32,
    timeout: Duration,
}

const CSW_OFFSET: usize = 2048;

impl Transport {
    pub(super) fn open<G: Guest>(
        host: &mut UsbHost<G>,
        device: &Device,
        timeout: Duration,
    ) -> Result<Self, StorageError> {
        let interface = device
            .interfaces
            .iter()
            .find(|i| i.class == MASS_STORAGE && i.protocol == BULK_ONLY)
            .ok_or(StorageError::NotStorage)?;
        let mut bulk = interface.endpoints.iter().filter(|e| e.is_bulk());
        let bulk_in = bulk
            .clone()
            .find(|e| e.is_in())
            .ok_or(StorageError::NotStorage)?;
        let bulk_out = bulk.find(|e| !e.is_in()).ok_or(StorageError::NotStorage)?;
        Ok(Self {
            target: device.target,
            interface: interface.number,
            bulk_in: bulk_in.address,
            bulk_out: bulk_out.address,
            wrappers: host.alloc_buffer(xen::PAGE_SIZE)?,
            tag: 0,
            timeout,
        })
    }

    /// Carries out a command of 1 to 16 bytes.
    pub(super) fn command<G: Guest>(
        &mut self,
        host: &mut UsbHost<G>,
        command: &[u8],
        data: DataPhase,
    ) -> Result<Outcome, StorageError> {
        self.tag = self.tag.wrapping_add(1);
        let (slice, data_in) = match data {
            DataPhase::None => (None, false),
            DataPhase::In(slice) => (Some(slice), true),
            DataPhase::Out(slice) => (Some(slice), false),
        };
        // At most 64 KiB: more does not fit in a URB.
        let data_len = slice.map_or(0, |slice| slice.len) as u32;
        let cbw = command_wrapper(self.tag, data_len, data_in, command);
        host.write_buffer(self.wrappers, 0, &cbw)?;
        let cbw_slice = self.wrappers.slice(0, CBW_BYTES);
        match host.bulk(self.target, self.bulk_out, cbw_slice, self.timeout) {
            Ok(CBW_BYTES) => {}
            Ok(_) => return self.fail(host, "the command was cut off"),
            // A stall here means that the device did not like the wrapper (6.6.1).
            Err(HostError::Transfer(TransferError::Stall)) => {
                return self.fail(host, "the command wrapper stalled");
            }
            Err(error) => return Err(error.into()),
        }
        let mut moved = 0;
        if let Some(slice) = slice {
            let endpoint = if data_in { self.bulk_in } else { self.bulk_out };
            match host.bulk(self.target, endpoint, slice, self.timeout) {
                Ok(count) => moved = count,
                // The device ends a data phase early by stalling it; the status tells the rest.
                Err(HostError::Transfer(TransferError::Stall)) => self.unstall(host, endpoint)?,
                Err(error) => return Err(error.into()),
            }
        }
        let Some(csw) = self.status(host, data_len)? else {
            return self.fail(host, "the status wrapper is not valid");
        };
        match csw.status {
            CommandStatus::Passed => {
                let processed = (data_len - csw.residue) as usize;
                // An IN phase that was cut off by a stall may have moved fewer.
                Ok(Outcome::Passed(if data_in {
                    moved.min(processed)
                } else {
                    processed
                }))
            }
            CommandStatus::Failed => Ok(Outcome::Failed),
            CommandStatus::PhaseError => self.fail(host, "phase error"),
        }
    }

    /// Reads the status; a second time after a stall (Figure 2 of the specification).
    fn status<G: Guest>(
        &mut self,
        host: &mut UsbHost<G>,
        data_len: u32,
    ) -> Result<Option<StatusWrapper>, StorageError> {
        let slice = self.wrappers.slice(CSW_OFFSET, CSW_BYTES);
        let got = match host.bulk(self.target, self.bulk_in, slice, self.timeout) {
            Err(HostError::Transfer(TransferError::Stall)) => {
                self.unstall(host, self.bulk_in)?;
                host.bulk(self.target, self.bulk_in, slice, self.timeout)
            }
            result => result,
        };
        let got = match got {
            Err(HostError::Transfer(TransferError::Stall)) => return Ok(None),
            got => got?,
        };
        let mut csw = [0; CSW_BYTES];
        host.read_buffer(self.wrappers, CSW_OFFSET, &mut csw)?;
        Ok(StatusWrapper::parse(&csw[..got], self.tag, data_len))
    }

    fn fail<G: Guest, T>(
        &mut self,
        host: &mut UsbHost<G>,
        reason: &'static str,
    ) -> Result<T, StorageError> {
        self.reset(host)?;
        Err(StorageError::Transport(reason))
    }

    /// Reset recovery (5.3.4).
    pub(super) fn reset<G: Guest>(&mut self, host: &mut UsbHost<G>) -> Result<(), StorageError> {
        let reset = Setup::new(0x21, 0xff, 0, u16::from(self.interface), 0);
        host.control(self.target, reset, ControlData::None, CONTROL_TIMEOUT)?;
        self.unstall(host, self.bulk_in)?;
        self.unstall(host, self.bulk_out)?;
        Ok(())
    }

    /// CLEAR_FEATURE(ENDPOINT_HALT).
    fn unstall<G: Guest>(&self, host: &mut UsbHost<G>, endpoint: u8) -> Result<(), HostError> {
        let clear = Setup::new(0x02, Setup::CLEAR_FEATURE, 0, u16::from(endpoint), 0);
        host.control(self.target, clear, ControlData::None, CONTROL_TIMEOUT)?;
        Ok(())
    }

    pub(super) fn close<G: Guest>(self, host: &mut UsbHost<G>) {
        host.free_buffer(self.wrappers);
    }
}

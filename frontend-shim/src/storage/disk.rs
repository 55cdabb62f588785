// SPDX-License-Identifier: GPL-3.0-or-later
//! A disk.

use std::time::Duration;

use xen::Guest;

use super::StorageError;
use super::scsi::{self, Capacity, INQUIRY_BYTES, Inquiry, SENSE_BYTES, Sense, SenseKey};
use super::transport::{DataPhase, Outcome, Transport};
use crate::{BufferId, Device, HostError, UsbHost};

/// Bytes of one command's data phase at most: one URB of 16 pages.
pub const MAX_TRANSFER_BYTES: usize = usbif::MAX_BUFFER_BYTES;

const SENSE_OFFSET: usize = MAX_TRANSFER_BYTES;

/// As long as Linux's `sd` waits.
const TIMEOUT: Duration = Duration::from_secs(30);
/// UNIT ATTENTION and the like are expected after a reset; a disk has this many goes.
const READY_ATTEMPTS: u32 = 5;

/// A mass-storage device, opened. Blocking; everything goes through the host that is passed in.
#[derive(Debug)]
pub struct Disk {
    transport: Transport,
    /// Data of commands, 16 pages, and a page for sense data: a command that is repeated after a
    /// REQUEST SENSE must still find its own data.
    data: BufferId,
    inquiry: Inquiry,
    capacity: Capacity,
}

impl Disk {
    /// Opens an enumerated device: asks who it is, waits until it is ready and reads its size.
    ///
    /// # Errors
    /// [`StorageError::NotStorage`] when it is something else.
    pub fn open<G: Guest>(host: &mut UsbHost<G>, device: &Device) -> Result<Self, StorageError> {
        let transport = Transport::open(host, device, TIMEOUT)?;
        let data = host.alloc_buffer(SENSE_OFFSET + SENSE_BYTES)?;
        let mut disk = Self {
            transport,
            data,
            inquiry: Inquiry::parse(&[0; INQUIRY_BYTES]),
            capacity: Capacity {
                blocks: 0,
                block_bytes: 512,
            },
        };
        disk.inquiry = disk.inquire(host)?;
        disk.wait_until_ready(host)?;
        let mut bytes = [0; 8];
        disk.fetch(host, &scsi::read_capacity(), &mut bytes)?;
        disk.capacity = Capacity::parse(&bytes);
        let block_bytes = disk.capacity.block_bytes as usize;
        if block_bytes == 0 || block_bytes > MAX_TRANSFER_BYTES {
            return Err(StorageError::NotStorage);
        }
        Ok(disk)
    }

    /// What it calls itself.
    pub fn inquiry(&self) -> &Inquiry {
        &self.inquiry
    }

    /// Its size.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Reads whole blocks, starting at `block`, until `dst` is full. Up to 64 KiB per command.
    ///
    /// # Errors
    /// [`StorageError::Range`] before anything is sent; else what the first command that failed
    /// came to.
    pub fn read<G: Guest>(
        &mut self,
        host: &mut UsbHost<G>,
        block: u64,
        dst: &mut [u8],
    ) -> Result<(), StorageError> {
        let first = self.check_range(block, dst.len())?;
        let step = self.blocks_per_command() * self.block_bytes();
        let mut at = first;
        for part in dst.chunks_mut(step) {
            let blocks = part.len() / self.block_bytes();
            let slice = self.data.slice(0, part.len());
            let command = scsi::read(at, blocks as u16);
            self.exact(host, &command, DataPhase::In(slice), part.len())?;
            host.read_buffer(self.data, 0, part)?;
            at += blocks as u32;
        }
        Ok(())
    }

    /// Writes whole blocks, starting at `block`. Up to 64 KiB per command. They are on the medium
    /// after [`sync`](Self::sync).
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write<G: Guest>(
        &mut self,
        host: &mut UsbHost<G>,
        block: u64,
        src: &[u8],
    ) -> Result<(), StorageError> {
        let first = self.check_range(block, src.len())?;
        let step = self.blocks_per_command() * self.block_bytes();
        let mut at = first;
        for part in src.chunks(step) {
            let blocks = part.len() / self.block_bytes();
            host.write_buffer(self.data, 0, part)?;
            let slice = self.data.slice(0, part.len());
            let command = scsi::write(at, blocks as u16);
            self.exact(host, &command, DataPhase::Out(slice), part.len())?;
            at += blocks as u32;
        }
        Ok(())
    }

    /// Has the device write its cache to the medium.
    ///
    /// # Errors
    /// [`StorageError::Command`] and those of the transport.
    pub fn sync<G: Guest>(&mut self, host: &mut UsbHost<G>) -> Result<(), StorageError> {
        self.exact(host, &scsi::synchronize_cache(), DataPhase::None, 0)
    }

    /// Asks who it is.
    ///
    /// # Errors
    /// [`StorageError::Command`] and those of the transport.
    pub fn inquire<G: Guest>(&mut self, host: &mut UsbHost<G>) -> Result<Inquiry, StorageError> {
        let mut bytes = [0; INQUIRY_BYTES];
        self.fetch(host, &scsi::inquiry(), &mut bytes)?;
        Ok(Inquiry::parse(&bytes))
    }

    /// Any command, of 1 to 16 bytes. Returns the bytes of the data phase that count.
    ///
    /// # Errors
    /// [`StorageError::Command`] when the device refuses it, and those of the transport.
    pub fn command<G: Guest>(
        &mut self,
        host: &mut UsbHost<G>,
        command: &[u8],
        data: DataPhase,
    ) -> Result<usize, StorageError> {
        match self.transport.command(host, command, data) {
            Ok(Outcome::Passed(count)) => Ok(count),
            Ok(Outcome::Failed) => {
                let sense = self.request_sense(host)?;
                let command = command.first().copied().unwrap_or(0);
                Err(StorageError::Command { command, sense })
            }
            Err(StorageError::Host(HostError::TimedOut(timeout))) => {
                self.transport.reset(host)?;
                Err(HostError::TimedOut(timeout).into())
            }
            Err(error) => Err(error),
        }
    }

    /// Frees the disk's buffers.
    pub fn close<G: Guest>(self, host: &mut UsbHost<G>) {
        self.transport.close(host);
        host.free_buffer(self.data);
    }

    fn exact<G: Guest>(
        &mut self,
        host: &mut UsbHost<G>,
        command: &[u8],
        data: DataPhase,
        wanted: usize,
    ) -> Result<(), StorageError> {
        let got = match self.command(host, command, data) {
            // Told once after a reset, and says nothing about this command.
            Err(StorageError::Command { sense, .. }) if sense.key == SenseKey::UnitAttention => {
                self.command(host, command, data)?
            }
            result => result?,
        };
        if got == wanted {
            Ok(())
        } else {
            Err(StorageError::Short { got, wanted })
        }
    }

    /// A command whose data is small and belongs to its whole into `dst`.
    fn fetch<G: Guest>(
        &mut self,
        host: &mut UsbHost<G>,
        command: &[u8],
        dst: &mut [u8],
    ) -> Result<(), StorageError> {
        let slice = self.data.slice(0, dst.len());
        self.exact(host, command, DataPhase::In(slice), dst.len())?;
        host.read_buffer(self.data, 0, dst)?;
        Ok(())
    }

    fn wait_until_ready<G: Guest>(&mut self, host: &mut UsbHost<G>) -> Result<(), StorageError> {
        let mut attempt = 1;
        loop {
            match self.command(host, &scsi::test_unit_ready(), DataPhase::None) {
                Ok(_) => return Ok(()),
                Err(StorageError::Command { .. }) if attempt < READY_ATTEMPTS => attempt += 1,
                Err(error) => return Err(error),
            }
        }
    }

    fn request_sense<G: Guest>(&mut self, host: &mut UsbHost<G>) -> Result<Sense, StorageError> {
        let slice = self.data.slice(SENSE_OFFSET, SENSE_BYTES);
        match self
            .transport
            .command(host, &scsi::request_sense(), DataPhase::In(slice))?
        {
            Outcome::Passed(_) => {
                let mut bytes = [0; SENSE_BYTES];
                host.read_buffer(self.data, SENSE_OFFSET, &mut bytes)?;
                Ok(Sense::parse(&bytes))
            }
            Outcome::Failed => Err(StorageError::Transport("REQUEST SENSE failed")),
        }
    }

    fn block_bytes(&self) -> usize {
        self.capacity.block_bytes as usize
    }

    fn blocks_per_command(&self) -> usize {
        MAX_TRANSFER_BYTES / self.block_bytes()
    }

    /// The first block, when the range is whole blocks on the disk.
    fn check_range(&self, block: u64, len: usize) -> Result<u32, StorageError> {
        let blocks = (len / self.block_bytes()) as u64;
        let end = block
            .checked_add(blocks)
            .filter(|end| *end <= self.capacity.blocks);
        match (end, u32::try_from(block)) {
            (Some(_), Ok(first)) if len.is_multiple_of(self.block_bytes()) => Ok(first),
            _ => Err(StorageError::Range { block, len }),
        }
    }
}

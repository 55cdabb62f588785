// SPDX-License-Identifier: GPL-3.0-or-later
//! A bulk-only driver that keeps all URBs of a command in flight at once, and goes on with a
//! command exactly where a suspend has interrupted it.
//!
//! The storage driver of `frontend-shim` waits for each phase, as Linux's does. This one is harder
//! to please: a byte that is executed twice, or reported and not executed, breaks the transport.

use anyhow::{Context, Result, bail};
use frontend_shim::{
    BufferId, BufferSlice, Completion, Device, Target, TransferError, Urb, UrbHandle, UsbHost,
};
use usbif::UrbKind;
use xen::Guest;

/// Data of a command at most: four URBs.
pub(super) const MAX_DATA_BYTES: usize = 4 * MAX_URB_BYTES;
const MAX_URB_BYTES: usize = 64 * 1024;
const CBW_BYTES: usize = 31;
const CSW_BYTES: usize = 13;
const CSW_OFFSET: usize = 2048;

/// Direction of the data of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Data {
    In(usize),
    Out(usize),
    None,
}

/// One URB of a command, as far as it got.
#[derive(Debug)]
struct Stage {
    endpoint: u8,
    slice: BufferSlice,
    done: usize,
    in_flight: Option<UrbHandle>,
}

impl Stage {
    fn is_over(&self) -> bool {
        self.done == self.slice.len
    }
}

/// The driver of one disk.
#[derive(Debug)]
pub(super) struct Driver {
    target: Target,
    bulk_in: u8,
    bulk_out: u8,
    wrappers: BufferId,
    data: BufferId,
    tag: u32,
    stages: Vec<Stage>,
}

impl Driver {
    pub(super) fn open<G: Guest>(host: &mut UsbHost<G>, device: &Device) -> Result<Self> {
        let endpoints = device.interfaces.iter().flat_map(|i| &i.endpoints);
        let bulk = |is_in| {
            let mut all = endpoints.clone();
            all.find(|e| e.is_bulk() && e.is_in() == is_in)
                .map(|e| e.address)
                .context("a disk without bulk endpoints")
        };
        Ok(Self {
            target: device.target,
            bulk_in: bulk(true)?,
            bulk_out: bulk(false)?,
            wrappers: host.alloc_buffer(xen::PAGE_SIZE)?,
            data: host.alloc_buffer(MAX_DATA_BYTES)?,
            tag: 0,
            stages: Vec::new(),
        })
    }

    /// Prepares a command. Nothing else is in flight. Data to write is in the buffer already.
    pub(super) fn start<G: Guest>(
        &mut self,
        host: &mut UsbHost<G>,
        command: &[u8],
        data: Data,
    ) -> Result<()> {
        self.tag = self.tag.wrapping_add(1);
        let (len, endpoint) = match data {
            Data::In(len) => (len, self.bulk_in),
            Data::Out(len) => (len, self.bulk_out),
            Data::None => (0, 0),
        };
        let flags = if matches!(data, Data::In(_)) { 0x80 } else { 0 };
        let mut wrapper = [0; CBW_BYTES];
        wrapper[..4].copy_from_slice(b"USBC");
        wrapper[4..8].copy_from_slice(&self.tag.to_le_bytes());
        wrapper[8..12].copy_from_slice(&(len as u32).to_le_bytes());
        wrapper[12] = flags;
        wrapper[14] = command.len() as u8;
        wrapper[15..15 + command.len()].copy_from_slice(command);
        host.write_buffer(self.wrappers, 0, &wrapper)?;
        host.write_buffer(self.wrappers, CSW_OFFSET, &[0; CSW_BYTES])?;
        let stage = |endpoint, slice| Stage {
            endpoint,
            slice,
            done: 0,
            in_flight: None,
        };
        self.stages.clear();
        let first = self.wrappers.slice(0, CBW_BYTES);
        self.stages.push(stage(self.bulk_out, first));
        for at in (0..len).step_by(MAX_URB_BYTES) {
            let part = self.data.slice(at, MAX_URB_BYTES.min(len - at));
            self.stages.push(stage(endpoint, part));
        }
        let last = self.wrappers.slice(CSW_OFFSET, CSW_BYTES);
        self.stages.push(stage(self.bulk_in, last));
        Ok(())
    }

    /// Submits what is left of the command. Gives the number of URBs.
    pub(super) fn submit<G: Guest>(&mut self, host: &mut UsbHost<G>) -> Result<u64> {
        let mut count = 0;
        let open = self.stages.iter_mut().enumerate();
        for (index, stage) in open.filter(|(_, s)| s.in_flight.is_none() && !s.is_over()) {
            let BufferSlice {
                buffer,
                offset,
                len,
            } = stage.slice;
            let urb = Urb {
                target: self.target,
                endpoint: stage.endpoint,
                kind: UrbKind::Bulk,
                data: Some(buffer.slice(offset + stage.done, len - stage.done)),
                short_not_ok: false,
                tag: index as u64,
            };
            stage.in_flight = Some(host.submit(&urb)?);
            count += 1;
        }
        Ok(count)
    }

    /// Takes everything back, the last first, as the USB core does (`usb_hcd_flush_endpoint`): a
    /// URB must not be carried out after the one before it was not.
    pub(super) fn unlink<G: Guest>(&self, host: &mut UsbHost<G>) {
        for urb in self.stages.iter().rev().filter_map(|s| s.in_flight) {
            host.unlink(urb);
        }
    }

    /// A URB is over. An error means that the command cannot be saved.
    pub(super) fn completed(&mut self, completion: &Completion) -> Result<()> {
        let stage = self
            .stages
            .iter_mut()
            .find(|s| s.in_flight == Some(completion.urb))
            .context("a completion of no URB in flight")?;
        stage.in_flight = None;
        stage.done += completion.actual_length;
        match completion.result {
            Ok(()) if stage.is_over() => Ok(()),
            Ok(()) => bail!(
                "stage {} of command {}: {} of {} bytes",
                completion.tag,
                self.tag,
                stage.done,
                stage.slice.len
            ),
            Err(TransferError::Unlinked) => Ok(()),
            Err(e) => bail!("stage {} of command {}: {e}", completion.tag, self.tag),
        }
    }

    /// URBs in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.stages.iter().filter(|s| s.in_flight.is_some()).count()
    }

    /// Whether the command is carried out, and well.
    pub(super) fn is_done<G: Guest>(&self, host: &UsbHost<G>) -> Result<bool> {
        if !self.stages.iter().all(Stage::is_over) {
            return Ok(false);
        }
        let mut status = [0; CSW_BYTES];
        host.read_buffer(self.wrappers, CSW_OFFSET, &mut status)?;
        let mut good = [0; CSW_BYTES];
        good[..4].copy_from_slice(b"USBS");
        good[4..8].copy_from_slice(&self.tag.to_le_bytes());
        if status != good {
            bail!("status of command {}: {status:02x?}", self.tag);
        }
        Ok(true)
    }

    pub(super) fn data(&self) -> BufferId {
        self.data
    }

    /// Frees its buffers; nothing is in flight.
    pub(super) fn close<G: Guest>(self, host: &mut UsbHost<G>) {
        host.free_buffer(self.wrappers);
        host.free_buffer(self.data);
    }
}

/// READ (10) or WRITE (10).
pub(super) fn ten(operation: u8, block: u32, count: u16) -> [u8; 10] {
    let b = block.to_be_bytes();
    let n = count.to_be_bytes();
    [operation, 0, b[0], b[1], b[2], b[3], 0, n[0], n[1], 0]
}

pub(super) const READ_10: u8 = 0x28;
pub(super) const WRITE_10: u8 = 0x2a;
pub(super) const SYNCHRONIZE_CACHE_10: u8 = 0x35;

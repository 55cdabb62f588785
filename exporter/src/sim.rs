// SPDX-License-Identifier: GPL-3.0-or-later
//! Simulated devices.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use session::frame::{Transfer, TransferType};
use session::server::{Outcome, Server};
use session::{DeviceId, DeviceInfo};
use usb_sim::{Disk, Host, Port, Storage, StorageError};

use crate::config::{Simulated, SimulatedKind};

/// A disk, its blocks in a file.
pub(crate) struct SimulatedDisk {
    port: Port<Disk<FileStorage>>,
    info: DeviceInfo,
}

impl SimulatedDisk {
    /// The device of the `number`th entry, from 1.
    pub(crate) fn open(config: &Simulated, number: usize) -> io::Result<Self> {
        let Simulated {
            kind: SimulatedKind::Disk,
            file,
            size_mib,
            serial,
            sync,
        } = config;
        let storage = FileStorage::open(file, size_mib << 20, *sync)?;
        let serial = match serial {
            Some(serial) => serial.clone(),
            None => format!("{number:012X}"),
        };
        let port = Port::new(Disk::new(storage, &serial));
        let info = port.info(DeviceId(format!("0-{number}")));
        Ok(Self { port, info })
    }

    pub(crate) fn info(&self) -> &DeviceInfo {
        &self.info
    }

    pub(crate) fn submit(
        &mut self,
        server: &mut Server,
        request: u64,
        transfer: &Transfer,
        body: &[u8],
    ) {
        self.port
            .submit(request, transfer, body, &mut ToServer(server));
    }

    pub(crate) fn cancel(&mut self, server: &mut Server, request: u64) {
        self.port.cancel(request, &mut ToServer(server));
    }

    pub(crate) fn reset(&mut self, server: &mut Server) {
        self.port.reset(&mut ToServer(server));
    }

    pub(crate) fn abandon(&mut self) {
        self.port.forget_all();
    }

    /// Makes it what it was for its holder before the exporter was started again: configured. A
    /// real device never knew that the exporter was away.
    pub(crate) fn restore(&mut self) {
        let set_configuration = Transfer {
            transfer_type: TransferType::Control,
            endpoint: 0,
            flags: 0,
            length: 0,
            interval: 0,
            setup: [0, 9, 1, 0, 0, 0, 0, 0],
        };
        self.port.submit(0, &set_configuration, &[], &mut Nobody);
    }

    pub(crate) fn release(&mut self) {
        self.port.forget_all();
        self.port.reset(&mut Nobody);
    }
}

struct ToServer<'a>(&'a mut Server);

impl Host for ToServer<'_> {
    fn complete(
        &mut self,
        request: u64,
        fill: &mut dyn FnMut(&mut Vec<u8>) -> Option<Outcome>,
    ) -> bool {
        self.0.try_complete(self.0.epoch(), request, fill)
    }
}

/// Has transfers carried out and their results dropped.
struct Nobody;

impl Host for Nobody {
    fn complete(
        &mut self,
        _request: u64,
        fill: &mut dyn FnMut(&mut Vec<u8>) -> Option<Outcome>,
    ) -> bool {
        fill(&mut Vec::new()).is_some()
    }
}

/// A disk's blocks in a file, or in a block device.
///
/// Reads and writes go to the page cache, so they do not hold up the thread for long.
#[derive(Debug)]
struct FileStorage {
    file: File,
    len_bytes: u64,
    sync: bool,
}

impl FileStorage {
    fn open(path: &Path, new_len_bytes: u64, sync: bool) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path)?;
        // Two exporters on one file would destroy what is in it.
        file.try_lock().map_err(|e| match e {
            TryLockError::Error(e) => e,
            TryLockError::WouldBlock => io::Error::other("another process uses it"),
        })?;
        let mut len_bytes = io::Seek::seek(&mut &file, io::SeekFrom::End(0))?;
        if len_bytes == 0 {
            file.set_len(new_len_bytes)?;
            len_bytes = new_len_bytes;
        }
        Ok(Self {
            file,
            len_bytes,
            sync,
        })
    }
}

impl Storage for FileStorage {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        self.file.read_exact_at(into, offset).map_err(failed)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), StorageError> {
        self.file.write_all_at(data, offset).map_err(failed)
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        match self.sync {
            true => self.file.sync_data().map_err(failed),
            false => Ok(()),
        }
    }
}

fn failed(error: io::Error) -> StorageError {
    StorageError(error.to_string())
}

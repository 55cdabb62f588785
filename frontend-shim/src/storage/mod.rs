// SPDX-License-Identifier: GPL-3.0-or-later
//! A driver for USB mass storage: bulk-only transport (USB Mass Storage Class, Bulk-Only
//! Transport 1.0) with SCSI commands, as Linux's `usb-storage` and `sd` use it.

mod disk;
mod scsi;
mod transport;
mod wrapper;

#[cfg(test)]
mod tests;

pub use disk::{Disk, MAX_TRANSFER_BYTES};
pub use scsi::{Capacity, Inquiry, Sense, SenseKey};
pub use transport::DataPhase;

use crate::HostError;

/// Why a storage operation failed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// A transfer failed beyond recovery.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The device has no bulk-only SCSI interface.
    #[error("not a bulk-only mass-storage device")]
    NotStorage,
    /// The device refused the command, and says why.
    #[error("command {command:#04x} failed: {sense}")]
    Command {
        /// The operation code.
        command: u8,
        /// The device's reason.
        sense: Sense,
    },
    /// The device broke the transport's protocol. It has been reset.
    #[error("bulk-only transport: {0}")]
    Transport(&'static str),
    /// Fewer bytes were transferred than the command is about.
    #[error("{got} of {wanted} bytes transferred")]
    Short {
        /// Bytes transferred.
        got: usize,
        /// Bytes of the command.
        wanted: usize,
    },
    /// The range is not on the disk, or not whole blocks.
    #[error("{len} bytes at block {block} are not whole blocks of the disk")]
    Range {
        /// First block.
        block: u64,
        /// Bytes.
        len: usize,
    },
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! What becomes of a URB.

use usbif::UrbStatus;

use super::UrbHandle;

/// How a URB failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum TransferError {
    /// No such device (`-ENODEV`).
    #[error("no such device")]
    NoDevice,
    /// The backend found the request senseless (`-EINVAL`).
    #[error("invalid request")]
    Invalid,
    /// The endpoint stalled (`-EPIPE`).
    #[error("endpoint stalled")]
    Stall,
    /// The transfer failed on the bus (`-EPROTO`).
    #[error("transfer failed")]
    Io,
    /// The device sent more than was asked for (`-EOVERFLOW`).
    #[error("device sent too much")]
    Babble,
    /// Fewer bytes than asked for, where that is an error (`-EREMOTEIO`).
    #[error("transfer too short")]
    Short,
    /// It was unlinked (`-ECONNRESET`).
    #[error("unlinked")]
    Unlinked,
    /// The controller or the device is going away (`-ESHUTDOWN`).
    #[error("controller shut down")]
    Shutdown,
}

/// What became of a URB. Every URB that was taken gets exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Which.
    pub urb: UrbHandle,
    /// As submitted.
    pub tag: u64,
    /// How it went.
    pub result: Result<(), TransferError>,
    /// Bytes transferred, at most the buffer's length. Counts also after an error.
    pub actual_length: usize,
    /// Isochronous: packets that failed.
    pub error_count: u32,
    /// Isochronous: the frame in which it started.
    pub start_frame: u16,
}

/// What a response says besides its status.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Extent {
    pub(super) actual_length: usize,
    pub(super) error_count: u32,
    pub(super) start_frame: u16,
}

/// What `xenhcd_translate_status` makes of a status.
pub(super) fn translate(status: UrbStatus) -> Result<(), TransferError> {
    Err(match status {
        UrbStatus::OK => return Ok(()),
        UrbStatus::NODEV => TransferError::NoDevice,
        UrbStatus::INVAL => TransferError::Invalid,
        UrbStatus::STALL => TransferError::Stall,
        UrbStatus::IOERROR => TransferError::Io,
        UrbStatus::BABBLE => TransferError::Babble,
        _ => TransferError::Shutdown,
    })
}

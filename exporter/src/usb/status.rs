// SPDX-License-Identifier: GPL-3.0-or-later
//! From libusb's words for how something ended to the session's.
//!
//! libusb gives Linux's error numbers of a transfer in few words: bus errors, timeouts of split
//! transactions and what it does not know are all `ERROR`. usbif.h has one word for those, too.

use std::os::raw::c_int;

use rusb::constants::{
    LIBUSB_ERROR_IO, LIBUSB_ERROR_NO_DEVICE, LIBUSB_TRANSFER_CANCELLED, LIBUSB_TRANSFER_COMPLETED,
    LIBUSB_TRANSFER_NO_DEVICE, LIBUSB_TRANSFER_OVERFLOW, LIBUSB_TRANSFER_STALL,
    LIBUSB_TRANSFER_TIMED_OUT,
};
use session::frame::{TransferStatus, TransferType};

/// How a transfer, or one of its isochronous packets, ended.
pub(super) fn of_transfer(status: c_int) -> TransferStatus {
    match status {
        LIBUSB_TRANSFER_COMPLETED => TransferStatus::Completed,
        LIBUSB_TRANSFER_TIMED_OUT => TransferStatus::TimedOut,
        LIBUSB_TRANSFER_CANCELLED => TransferStatus::Cancelled,
        LIBUSB_TRANSFER_STALL => TransferStatus::Stall,
        LIBUSB_TRANSFER_NO_DEVICE => TransferStatus::NoDevice,
        LIBUSB_TRANSFER_OVERFLOW => TransferStatus::Overflow,
        _ => TransferStatus::Protocol,
    }
}

/// Why a transfer could not be submitted: libusb's error, and the kernel's number behind it.
pub(super) fn of_submission(
    error: c_int,
    errno: Option<i32>,
    transfer_type: TransferType,
) -> TransferStatus {
    match (error, errno, transfer_type) {
        (LIBUSB_ERROR_NO_DEVICE, ..) => TransferStatus::NoDevice,
        // The kernel knows of no such interface or endpoint and does not ask the device, which
        // would have stalled the request.
        (LIBUSB_ERROR_IO, Some(libc::ENOENT), TransferType::Control) => TransferStatus::Stall,
        _ => TransferStatus::Invalid,
    }
}

/// How an operation that failed looks to the guest. `errno` is the kernel's number, which libusb
/// keeps to itself where it has no word for it.
pub(super) fn of_operation(error: rusb::Error, errno: Option<i32>) -> TransferStatus {
    match (error, errno) {
        (rusb::Error::NoDevice, _) => TransferStatus::NoDevice,
        (rusb::Error::Timeout, _) | (rusb::Error::Other, Some(libc::ETIMEDOUT)) => {
            TransferStatus::TimedOut
        }
        // There is no such configuration, setting or endpoint, or the device said so.
        (rusb::Error::Pipe | rusb::Error::NotFound | rusb::Error::InvalidParam, _)
        | (rusb::Error::Other, Some(libc::EPIPE)) => TransferStatus::Stall,
        _ => TransferStatus::Protocol,
    }
}

#[cfg(test)]
mod tests {
    use rusb::constants::{LIBUSB_ERROR_INVALID_PARAM, LIBUSB_ERROR_NO_MEM, LIBUSB_TRANSFER_ERROR};

    use super::*;

    #[test]
    fn transfers() {
        for (status, expected) in [
            (LIBUSB_TRANSFER_COMPLETED, TransferStatus::Completed),
            (LIBUSB_TRANSFER_ERROR, TransferStatus::Protocol),
            (LIBUSB_TRANSFER_TIMED_OUT, TransferStatus::TimedOut),
            (LIBUSB_TRANSFER_CANCELLED, TransferStatus::Cancelled),
            (LIBUSB_TRANSFER_STALL, TransferStatus::Stall),
            (LIBUSB_TRANSFER_NO_DEVICE, TransferStatus::NoDevice),
            (LIBUSB_TRANSFER_OVERFLOW, TransferStatus::Overflow),
            (77, TransferStatus::Protocol),
        ] {
            assert_eq!(of_transfer(status), expected, "{status}");
        }
    }

    #[test]
    fn submissions() {
        use TransferType::{Bulk, Control};
        for (error, errno, transfer_type, expected) in [
            (LIBUSB_ERROR_NO_DEVICE, None, Bulk, TransferStatus::NoDevice),
            (
                LIBUSB_ERROR_IO,
                Some(libc::ENOENT),
                Bulk,
                TransferStatus::Invalid,
            ),
            (
                LIBUSB_ERROR_IO,
                Some(libc::ENOENT),
                Control,
                TransferStatus::Stall,
            ),
            (
                LIBUSB_ERROR_IO,
                Some(libc::ENOMEM),
                Control,
                TransferStatus::Invalid,
            ),
            (
                LIBUSB_ERROR_INVALID_PARAM,
                None,
                Control,
                TransferStatus::Invalid,
            ),
            (LIBUSB_ERROR_NO_MEM, None, Bulk, TransferStatus::Invalid),
        ] {
            assert_eq!(
                of_submission(error, errno, transfer_type),
                expected,
                "{error}"
            );
        }
    }

    #[test]
    fn operations() {
        for (error, errno, expected) in [
            (rusb::Error::NoDevice, None, TransferStatus::NoDevice),
            (
                rusb::Error::NotFound,
                Some(libc::EINVAL),
                TransferStatus::Stall,
            ),
            (rusb::Error::Other, Some(libc::EPIPE), TransferStatus::Stall),
            (
                rusb::Error::Other,
                Some(libc::ETIMEDOUT),
                TransferStatus::TimedOut,
            ),
            (
                rusb::Error::Other,
                Some(libc::ENOSPC),
                TransferStatus::Protocol,
            ),
            (rusb::Error::Busy, None, TransferStatus::Protocol),
        ] {
            assert_eq!(of_operation(error, errno), expected, "{error}");
        }
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! From the kernel's words for how something ended to the session's.

use session::frame::{TransferStatus, TransferType};
use usbfs::Status;

/// How a transfer ended, or why it was not taken.
pub(super) fn of_transfer(status: Status, transfer_type: TransferType) -> TransferStatus {
    match status {
        Status::Completed => TransferStatus::Completed,
        Status::Stall => TransferStatus::Stall,
        Status::Cancelled => TransferStatus::Cancelled,
        Status::Overflow => TransferStatus::Overflow,
        Status::NoDevice => TransferStatus::NoDevice,
        Status::Protocol | Status::Suspended => TransferStatus::Protocol,
        Status::TimedOut => TransferStatus::TimedOut,
        // The kernel knows of no such interface or endpoint and does not ask the device, which would have
        // stalled the request.
        Status::NoEndpoint if transfer_type == TransferType::Control => TransferStatus::Stall,
        // usbif.h has no word for a bus without room for a periodic endpoint.
        Status::NoEndpoint | Status::NoBandwidth | Status::Invalid => TransferStatus::Invalid,
    }
}

/// How an operation that failed looks to the guest: a request that the device did not take.
pub(super) fn of_operation(status: Status) -> TransferStatus {
    match status {
        // There is no such configuration, setting or endpoint, or the device said so.
        Status::NoEndpoint | Status::Stall => TransferStatus::Stall,
        Status::NoDevice => TransferStatus::NoDevice,
        Status::TimedOut => TransferStatus::TimedOut,
        _ => TransferStatus::Protocol,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfers() {
        use TransferType::{Bulk, Control, Isochronous};
        for (status, transfer_type, expected) in [
            (Status::Completed, Bulk, TransferStatus::Completed),
            (Status::Stall, Bulk, TransferStatus::Stall),
            (Status::Cancelled, Bulk, TransferStatus::Cancelled),
            (Status::Overflow, Bulk, TransferStatus::Overflow),
            (Status::NoDevice, Bulk, TransferStatus::NoDevice),
            (Status::Protocol, Bulk, TransferStatus::Protocol),
            (Status::Suspended, Bulk, TransferStatus::Protocol),
            (Status::TimedOut, Control, TransferStatus::TimedOut),
            (Status::NoEndpoint, Bulk, TransferStatus::Invalid),
            (Status::NoEndpoint, Control, TransferStatus::Stall),
            (Status::NoBandwidth, Isochronous, TransferStatus::Invalid),
            (Status::Invalid, Control, TransferStatus::Invalid),
        ] {
            assert_eq!(of_transfer(status, transfer_type), expected, "{status:?}");
        }
    }

    #[test]
    fn operations() {
        for (status, expected) in [
            (Status::NoDevice, TransferStatus::NoDevice),
            (Status::NoEndpoint, TransferStatus::Stall),
            (Status::Stall, TransferStatus::Stall),
            (Status::TimedOut, TransferStatus::TimedOut),
            (Status::NoBandwidth, TransferStatus::Protocol),
            (Status::Protocol, TransferStatus::Protocol),
        ] {
            assert_eq!(of_operation(status), expected, "{status:?}");
        }
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! Between the words of `usbif.h` and those of the exporter session.

use session::frame::{FLAG_SHORT_NOT_OK, MAX_ISO_PACKETS, Transfer, TransferStatus, TransferType};
use usbif::{Direction, UrbKind, UrbRequest, UrbStatus};

/// The transfer that a request asks for; `None` for an unlink, and for an isochronous request with
/// more packets than an exporter takes.
pub fn transfer_of(request: &UrbRequest) -> Option<Transfer> {
    // At most 65,536: 16 segments of a page.
    let length = request.transfer_len() as u32;
    let (transfer_type, interval, setup) = match request.kind {
        // No more is asked for than there is room for, and a usbfs takes no setup packet that does.
        // At most `wLength`, so 16 bits.
        UrbKind::Control { setup } => {
            (TransferType::Control, 0, setup.with_length(length as u16).0)
        }
        UrbKind::Bulk => (TransferType::Bulk, 0, [0; 8]),
        UrbKind::Interrupt { interval } => (TransferType::Interrupt, interval.into(), [0; 8]),
        UrbKind::Isochronous {
            interval,
            start_frame,
            packets,
        } => {
            if usize::from(packets) > MAX_ISO_PACKETS {
                return None;
            }
            let [p0, p1] = packets.to_le_bytes();
            let [f0, f1] = start_frame.to_le_bytes();
            let setup = [p0, p1, f0, f1, 0, 0, 0, 0];
            (TransferType::Isochronous, interval.into(), setup)
        }
        UrbKind::Unlink { .. } => return None,
    };
    let direction_bit = match request.direction() {
        Direction::In => 0x80,
        Direction::Out => 0,
    };
    Some(Transfer {
        transfer_type,
        endpoint: request.pipe.endpoint() | direction_bit,
        flags: if request.short_not_ok() {
            FLAG_SHORT_NOT_OK
        } else {
            0
        },
        length,
        interval,
        setup,
    })
}

/// What the guest is told. A short packet is no error here: its USB core compares the lengths
/// itself where the driver asked for it.
pub fn urb_status(status: TransferStatus) -> UrbStatus {
    match status {
        TransferStatus::Completed | TransferStatus::ShortPacket => UrbStatus::OK,
        TransferStatus::Stall => UrbStatus::STALL,
        TransferStatus::Overflow => UrbStatus::BABBLE,
        TransferStatus::NoDevice => UrbStatus::NODEV,
        TransferStatus::Invalid => UrbStatus::INVAL,
        TransferStatus::Cancelled
        | TransferStatus::Protocol
        | TransferStatus::TimedOut
        | TransferStatus::Unknown => UrbStatus::IOERROR,
    }
}

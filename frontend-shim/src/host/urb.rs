// SPDX-License-Identifier: GPL-3.0-or-later
//! A URB as drivers make it.

use usbif::{
    DeviceAddress, Direction, Pipe, PortNumber, SHORT_NOT_OK, Segment, TransferType, UrbKind,
    UrbRequest,
};

use super::BufferSlice;
use crate::{HostError, Submission};

/// A device as URBs address it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The controller's port that it hangs on.
    pub port: PortNumber,
    /// Its address.
    pub address: DeviceAddress,
}

/// A URB for [`UsbHost::submit`].
#[derive(Clone, Copy, Debug)]
pub struct Urb {
    /// The device.
    pub target: Target,
    /// The endpoint's address, bit 7 set for IN. For a control URB the endpoint is 0 and bit 7
    /// the direction of the data.
    pub endpoint: u8,
    /// What to do.
    pub kind: UrbKind,
    /// Where the data is.
    pub data: Option<BufferSlice>,
    /// Whether less data than asked for is an error.
    pub short_not_ok: bool,
    /// Comes back in the completion.
    pub tag: u64,
}

impl Urb {
    /// A transfer that may end short, without a tag.
    pub(super) fn plain(
        target: Target,
        endpoint: u8,
        kind: UrbKind,
        data: Option<BufferSlice>,
    ) -> Self {
        Self {
            target,
            endpoint,
            kind,
            data,
            short_not_ok: false,
            tag: 0,
        }
    }

    /// What to submit, with its data in these segments.
    pub(super) fn submission(&self, segments: &[Segment]) -> Result<Submission, HostError> {
        let direction = if self.endpoint & 0x80 != 0 {
            Direction::In
        } else {
            Direction::Out
        };
        let transfer_type = match self.kind {
            UrbKind::Control { .. } => TransferType::Control,
            UrbKind::Bulk | UrbKind::Unlink { .. } => TransferType::Bulk,
            UrbKind::Interrupt { .. } => TransferType::Interrupt,
            UrbKind::Isochronous { .. } => TransferType::Isochronous,
        };
        let Target { port, address } = self.target;
        let pipe = Pipe::new(port.get(), address, self.endpoint, direction, transfer_type);
        let flags = if self.short_not_ok { SHORT_NOT_OK } else { 0 };
        Ok(Submission {
            root_port: port,
            request: UrbRequest::new(0, pipe, flags, self.kind, segments)?,
            tag: self.tag,
        })
    }
}

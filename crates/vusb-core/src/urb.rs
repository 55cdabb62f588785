// SPDX-License-Identifier: GPL-3.0-or-later
//! A request that has not been answered.

use session::frame::Transfer;
use usbif::{PortNumber, UrbKind, UrbRequest};

/// Where a [`Urb`] is kept until it is answered: 0 to 15, the ring has no more slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot(pub(crate) u8);

impl Slot {
    /// 0 to 15, for tables beside this one.
    pub fn index(self) -> usize {
        self.0.into()
    }
}

/// A transfer that the guest asked for and has no answer to.
#[derive(Clone, Copy, Debug, Hash)]
pub struct Urb {
    pub(crate) order: u64,
    /// The request as it was on the ring: where the data is.
    pub request: UrbRequest,
    /// The device's port.
    pub port: PortNumber,
    /// The same for an exporter.
    pub transfer: Transfer,
    /// Its number in the device's session, once submitted.
    pub submitted: Option<u64>,
    /// The id of the request that unlinks it.
    pub unlinked_by: Option<u16>,
}

impl Urb {
    /// Whether it is a SET_ADDRESS, which no device sees.
    pub fn sets_address(&self) -> bool {
        matches!(self.request.kind, UrbKind::Control { setup } if setup.is_set_address())
    }

    /// Whether it is a request to the device that the guest has just reset, other than to give it an
    /// address.
    pub(crate) fn is_to_default_address(&self) -> bool {
        self.request.pipe.device().is_default() && !self.sets_address()
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! What is kept becomes worthless when its endpoint is reset, or is another one now.

use super::{Place, Server};
use crate::frame::{Transfer, TransferType};

impl Server {
    /// Forgets what is kept for the endpoints that `which` names (bEndpointAddress), and what is
    /// still to come: they were reset, or are others now.
    pub fn forget(&mut self, which: impl Fn(u8) -> bool) {
        self.stash.forget(&which);
        for executing in &mut self.executing {
            if matches!(executing.place, Place::Kept | Place::Recalled)
                && executing.stream.is_some_and(|s| which(s.endpoint))
            {
                executing.place = Place::Device;
            }
        }
        let endpoints: Vec<u8> = self.away.endpoints.keys().copied().collect();
        for address in endpoints.into_iter().filter(|&a| which(a)) {
            self.away.forget_poll(address);
            self.settle(address);
        }
    }
}

/// For which endpoints what is kept is worthless.
pub(super) enum Forgotten {
    /// For all.
    All,
    /// For the one with this bEndpointAddress.
    Endpoint(u8),
}

/// What a standard request makes worthless. SET_INTERFACE, too, but who knows which endpoints an
/// interface has must say so: see [`set_interface`].
pub(super) fn forgotten_with(transfer: &Transfer) -> Option<Forgotten> {
    const CLEAR_FEATURE: u8 = 1;
    const SET_CONFIGURATION: u8 = 9;
    const ENDPOINT_HALT: [u8; 2] = [0, 0];
    let [request_type, request, value, value_high, index, ..] = transfer.setup;
    match (request_type, request) {
        (0x00, SET_CONFIGURATION) => Some(Forgotten::All),
        (0x02, CLEAR_FEATURE) if [value, value_high] == ENDPOINT_HALT => {
            Some(Forgotten::Endpoint(index))
        }
        _ => None,
    }
}

/// The interface that a SET_INTERFACE (USB 2.0 §9.4.10) is for: what is kept for its endpoints is to
/// be [forgotten](Server::forget).
pub fn set_interface(transfer: &Transfer) -> Option<u8> {
    let is_it = transfer.transfer_type == TransferType::Control
        && transfer.setup[0] == 0x01
        && transfer.setup[1] == 11;
    is_it.then_some(transfer.setup[4])
}

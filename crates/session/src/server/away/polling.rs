// SPDX-License-Identifier: GPL-3.0-or-later
//! An interrupt endpoint is polled on while its guest is away.

use super::{Away, Endpoint, Order, Outcome, Server};
use crate::frame::{Transfer, TransferStatus};
use crate::stash::Brought;

/// Set in the numbers of polls, which are no requests of a backend.
const POLL: u64 = 1 << 63;
/// Polls of one endpoint whose data found no room, after which it is not polled any more.
const MAX_OVERFLOWS: u32 = 65_536;

/// Whether a request number is that of a poll, which [`Order::Submit`] asked for: it outlives epochs.
pub fn is_poll(request: u64) -> bool {
    request & POLL != 0
}

/// A poll that is at the device.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) struct Polling {
    request: u64,
    /// Bytes that it asks for.
    length: u32,
    cancelled: bool,
    /// What it brings is of no use any more.
    unwanted: bool,
}

impl Away {
    /// Polls the endpoint of `transfer`, which has no poll at the device.
    pub(super) fn start_poll(&mut self, transfer: Transfer) {
        let Some(endpoint) = self.endpoints.get_mut(&transfer.endpoint) else {
            return;
        };
        self.last_poll += 1;
        let request = POLL | self.last_poll;
        endpoint.polling = Some(Polling {
            request,
            length: transfer.length,
            cancelled: false,
            unwanted: false,
        });
        self.orders.push_back(Order::Submit { request, transfer });
    }

    /// Ends the polling of an endpoint. What a poll at the device still brings is of no use.
    pub(super) fn forget_poll(&mut self, endpoint: u8) {
        if let Some(endpoint) = self.endpoints.get_mut(&endpoint) {
            endpoint.poll = None;
            if let Some(polling) = &mut endpoint.polling {
                polling.unwanted = true;
            }
        }
        self.cancel_poll(endpoint);
    }

    /// Cancels the poll that is at the device. What it brings until then is kept.
    pub(super) fn cancel_poll(&mut self, endpoint: u8) {
        let polling = self
            .endpoints
            .get_mut(&endpoint)
            .and_then(|e| e.polling.as_mut());
        if let Some(polling) = polling.filter(|p| !p.cancelled) {
            polling.cancelled = true;
            let request = polling.request;
            self.orders.push_back(Order::Cancel { request });
        }
    }
}

impl Server {
    /// A poll is over.
    pub(in crate::server) fn polled(
        &mut self,
        request: u64,
        fill: impl FnOnce(&mut Vec<u8>) -> Option<Outcome>,
    ) -> bool {
        let is_it = |e: &Endpoint| e.polling.is_some_and(|p| p.request == request);
        let found = self.away.endpoints.iter_mut().find(|(_, e)| is_it(e));
        let Some((&address, endpoint)) = found else {
            return false;
        };
        let mut data = Vec::new();
        let Some(outcome) = fill(&mut data) else {
            return false;
        };
        let Some(Polling {
            length, unwanted, ..
        }) = endpoint.polling.take()
        else {
            return false;
        };
        data.truncate(outcome.actual_length as usize);
        let done = outcome.status.is_success();
        if !unwanted && (done || !data.is_empty()) {
            let brought = Brought {
                place: self.stash.arrived(),
                data: &data,
                ended: done && Brought::is_ended(data.len(), length as usize, endpoint.packet_len),
                packet_len: endpoint.packet_len,
            };
            if !self.stash.keep(address, brought) {
                endpoint.overflows += 1;
                if endpoint.overflows >= MAX_OVERFLOWS {
                    endpoint.poll = None;
                }
            }
        }
        self.stop_polling_after(address, outcome.status);
        self.settle(address);
        true
    }

    /// A device that has halted the endpoint, or is gone, is not polled any more.
    pub(super) fn stop_polling_after(&mut self, address: u8, status: TransferStatus) {
        if !status.is_success() && status != TransferStatus::Cancelled {
            self.stop_polling(address);
        }
    }

    pub(super) fn stop_polling(&mut self, address: u8) {
        if let Some(endpoint) = self.away.endpoints.get_mut(&address) {
            endpoint.poll = None;
        }
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! Endpoints whose guest is away: it was asked to suspend, and has taken its transfers back.
//!
//! What arrives for a transfer that was taken back is kept ([`crate::stash`]), and an interrupt
//! endpoint is polled on. The guest's next transfers, here or at another host, first get what was
//! kept. They wait meanwhile for the endpoint to be idle: data that the device sends to a poll that
//! is being cancelled comes before what it sends to them.
//!
//! Nothing of this concerns an endpoint that nobody has taken transfers back from.

mod forgotten;
mod polling;
mod supply;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use super::{Executing, Outcome, Place, Server};
use crate::StashCounters;
use crate::frame::{Transfer, TransferStatus, TransferType};
use crate::stash::{self, Brought};
use forgotten::{Forgotten, forgotten_with};
use polling::Polling;
use supply::Beginning;

pub use forgotten::set_interface;
pub use polling::is_poll;

/// What is to be done at the device besides what the backend asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// Carry out an IN transfer and call [`Server::complete`].
    Submit {
        /// Its number.
        request: u64,
        /// What to do.
        transfer: Transfer,
    },
    /// Cancel one; [`Server::complete`] is still due.
    Cancel {
        /// Its number.
        request: u64,
    },
}

/// An endpoint that transfers were taken back from.
#[derive(Clone, Debug, Default, Hash)]
struct Endpoint {
    packet_len: Option<u16>,
    /// Requests that wait, oldest first.
    parked: VecDeque<u64>,
    /// How it is polled, as long as the guest does not do so itself.
    poll: Option<Transfer>,
    /// What is at the device.
    polling: Option<Polling>,
    overflows: u32,
}

/// The endpoints, and what is to be done.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Away {
    endpoints: BTreeMap<u8, Endpoint>,
    /// What requests at the device have got already.
    beginnings: Vec<Beginning>,
    orders: VecDeque<Order>,
    last_poll: u64,
    /// Counts what was taken back.
    changes: u64,
}

impl Server {
    /// Whether anything of a guest that is or was away is left.
    pub fn is_away(&self) -> bool {
        !self.away.endpoints.is_empty() || !self.away.beginnings.is_empty()
    }

    /// Changes whenever the guest takes something back: what does not change any more while the
    /// guest runs is not waited for.
    pub fn away_changes(&self) -> u64 {
        self.away.changes
    }

    /// What has become of the data that was kept.
    pub fn stash_counters(&self) -> StashCounters {
        self.stash.counters()
    }

    /// What is to be done at the device.
    pub fn next_order(&mut self) -> Option<Order> {
        self.away.orders.pop_front()
    }

    /// The requests that the device has, polls left out.
    pub fn at_device(&self) -> impl Iterator<Item = u64> + '_ {
        let at_device = self.executing.iter().filter(|e| e.place != Place::Parked);
        at_device.map(|e| e.request)
    }

    /// The endpoint of a request that is executing, or not acknowledged yet.
    pub fn endpoint_of(&self, request: u64) -> Option<u8> {
        let found = self.executing.iter().find(|e| e.request == request);
        match found {
            Some(e) => e.stream.map(|s| s.endpoint),
            None => self.log.transfer_of(request).map(|t| t.endpoint),
        }
    }

    /// The guest took `request` back because it is being suspended. `packet_len` is the
    /// wMaxPacketSize of its endpoint in bytes, where that is known.
    pub fn keep(&mut self, request: u64, packet_len: Option<u16>) {
        let found = self.executing.iter_mut().find(|e| e.request == request);
        let Some(executing) = found else {
            self.keep_completed(request, packet_len);
            return;
        };
        let Some(transfer) = executing.stream else {
            self.away.orders.push_back(Order::Cancel { request });
            return;
        };
        let was_parked = executing.place == Place::Parked;
        if !was_parked {
            executing.place = Place::Kept;
            self.away.orders.push_back(Order::Cancel { request });
        }
        self.taken_back(&transfer, packet_len);
        if was_parked {
            self.cancel_parked(request);
        }
    }

    /// The guest took it back, and it was done already.
    fn keep_completed(&mut self, request: u64, packet_len: Option<u16>) {
        let Some((transfer, place, data, outrun)) = self.log.put_aside(request) else {
            return;
        };
        match outrun {
            // The guest has what came after it, and an order that is wrong is worse than a gap:
            // a host controller, too, loses what crosses with a cancellation.
            true => self.stash.missed(),
            false => {
                let ended = Brought::is_ended(data.len(), transfer.length as usize, packet_len);
                let brought = Brought {
                    place,
                    data,
                    ended,
                    packet_len,
                };
                self.stash.keep(transfer.endpoint, brought);
            }
        }
        self.taken_back(&transfer, packet_len);
        self.settle(transfer.endpoint);
    }

    /// The guest asks for `request`, of an interrupt IN endpoint, because it is being suspended, and
    /// uses what has come of it. `packet_len` as in [`Server::keep`].
    pub fn recall(&mut self, request: u64, packet_len: Option<u16>) {
        let found = self.executing.iter_mut().find(|e| e.request == request);
        let Some(executing) = found else {
            if let Some(transfer) = self.log.transfer_of(request) {
                self.taken_back(&transfer, packet_len);
                self.settle(transfer.endpoint);
            }
            return;
        };
        if executing.place == Place::Parked {
            if let Some(transfer) = executing.stream {
                self.taken_back(&transfer, packet_len);
            }
            self.cancel_parked(request);
            return;
        }
        self.away.orders.push_back(Order::Cancel { request });
        if let Some(transfer) = executing.stream {
            executing.place = Place::Recalled;
            self.taken_back(&transfer, packet_len);
        }
    }

    fn taken_back(&mut self, transfer: &Transfer, packet_len: Option<u16>) {
        self.away.changes += 1;
        let endpoint = self.away.endpoints.entry(transfer.endpoint).or_default();
        endpoint.packet_len = packet_len;
        if transfer.transfer_type == TransferType::Interrupt {
            endpoint.poll = Some(*transfer);
        }
    }

    /// A request for an endpoint arrived. Returns whether it is seen to here.
    pub(super) fn take_charge(&mut self, request: u64, transfer: &Transfer) -> bool {
        if transfer.transfer_type == TransferType::Control {
            match forgotten_with(transfer) {
                Some(Forgotten::All) => self.forget(|_| true),
                Some(Forgotten::Endpoint(address)) => self.forget(|e| e == address),
                None => (),
            }
            return false;
        }
        let address = transfer.endpoint;
        let Some(endpoint) = self.away.endpoints.get_mut(&address) else {
            return false;
        };
        // The guest is back.
        endpoint.poll = None;
        endpoint.parked.push_back(request);
        if let Some(e) = self.executing.iter_mut().find(|e| e.request == request) {
            e.place = Place::Parked;
        }
        self.away.cancel_poll(address);
        self.settle(address);
        true
    }

    /// Goes on with an endpoint, if the device is done with what was asked of it.
    fn settle(&mut self, address: u8) {
        loop {
            let ending = |e: &Executing| {
                matches!(e.place, Place::Kept | Place::Recalled)
                    && e.stream.is_some_and(|s| s.endpoint == address)
            };
            let Some(endpoint) = self.away.endpoints.get_mut(&address) else {
                return;
            };
            if endpoint.polling.is_some() || self.executing.iter().any(ending) {
                return;
            }
            if let Some(request) = endpoint.parked.pop_front() {
                self.supply(request);
                continue;
            }
            if let Some(transfer) = endpoint.poll {
                self.away.start_poll(transfer);
            } else if self.stash.is_empty(address) {
                self.away.endpoints.remove(&address);
            }
            return;
        }
    }

    /// Cancels a request that the device does not have.
    pub(super) fn cancel_parked(&mut self, request: u64) {
        let Some(at) = self.executing.iter().position(|e| e.request == request) else {
            return;
        };
        let address = self.executing[at].stream.map(|s| s.endpoint);
        let cancelled = Outcome::new(TransferStatus::Cancelled, 0);
        self.complete_at(at, stash::Place::default(), |_| Some(cancelled));
        let Some(address) = address else { return };
        if let Some(endpoint) = self.away.endpoints.get_mut(&address) {
            endpoint.parked.retain(|&r| r != request);
        }
        self.settle(address);
    }

    /// Everything of the old epoch is forgotten, but not what is kept, and the polls.
    pub(super) fn claimed(&mut self) {
        let away = &mut self.away;
        away.beginnings.clear();
        away.orders.retain(|order| match order {
            Order::Submit { request, .. } | Order::Cancel { request } => is_poll(*request),
        });
        for endpoint in away.endpoints.values_mut() {
            endpoint.parked.clear();
        }
        let endpoints: Vec<u8> = away.endpoints.keys().copied().collect();
        for address in endpoints {
            self.settle(address);
        }
    }

    /// Nobody will ask for what is kept.
    pub(super) fn give_up(&mut self) {
        self.stash.forget(|_| true);
        let last_poll = self.away.last_poll;
        self.away = Away {
            last_poll,
            ..Away::default()
        };
        for executing in &mut self.executing {
            executing.place = Place::Device;
        }
    }
}

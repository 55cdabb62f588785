// SPDX-License-Identifier: GPL-3.0-or-later
//! Endpoints whose guest is away: it was asked to suspend, and has taken its transfers back.
//!
//! What arrives for a transfer that was taken back is kept ([`crate::stash`]), and an interrupt
//! endpoint is polled on. The guest's next transfers, here or at another host, first get what was
//! kept. They wait meanwhile for the endpoint to be idle: data that the device sends to a poll that
//! is being cancelled comes before what it sends to them.
//!
//! Nothing of this concerns an endpoint that nobody has taken transfers back from.

use std::collections::{BTreeMap, VecDeque};

use super::{Executing, Outcome, Place, Server};
use crate::StashCounters;
use crate::frame::{Transfer, TransferStatus, TransferType};
use crate::stash::{self, Brought, Taken};

/// Set in the numbers of polls, which are no requests of a backend.
const POLL: u64 = 1 << 63;
/// Polls of one endpoint whose data found no room, after which it is not polled any more.
const MAX_OVERFLOWS: u32 = 65_536;

/// Whether a request number is that of a poll, which [`Order::Submit`] asked for: it outlives epochs.
pub fn is_poll(request: u64) -> bool {
    request & POLL != 0
}

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

#[derive(Clone, Copy, Debug, Hash)]
struct Polling {
    request: u64,
    /// Bytes that it asks for.
    length: u32,
    cancelled: bool,
    /// What it brings is of no use any more.
    unwanted: bool,
}

#[derive(Clone, Debug, Hash)]
struct Beginning {
    request: u64,
    place: stash::Place,
    data: Vec<u8>,
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

impl Away {
    fn cancel_poll(&mut self, endpoint: u8) {
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
            if let Some(endpoint) = self.away.endpoints.get_mut(&address) {
                endpoint.poll = None;
                if let Some(polling) = &mut endpoint.polling {
                    polling.unwanted = true;
                }
            }
            self.away.cancel_poll(address);
            self.settle(address);
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
                self.away.last_poll += 1;
                let request = POLL | self.away.last_poll;
                endpoint.polling = Some(Polling {
                    request,
                    length: transfer.length,
                    cancelled: false,
                    unwanted: false,
                });
                self.away
                    .orders
                    .push_back(Order::Submit { request, transfer });
            } else if self.stash.is_empty(address) {
                self.away.endpoints.remove(&address);
            }
            return;
        }
    }

    /// Gives a parked request what is kept, or hands it to the device.
    fn supply(&mut self, request: u64) {
        let Some(at) = self.executing.iter().position(|e| e.request == request) else {
            return;
        };
        let executing = &mut self.executing[at];
        executing.place = Place::Device;
        let Some(mut transfer) = executing.stream else {
            return;
        };
        let place = self.stash.next(transfer.endpoint).unwrap_or_default();
        let mut data = Vec::new();
        let taken = self
            .stash
            .take(transfer.endpoint, transfer.length as usize, &mut data);
        match taken {
            Taken::Whole | Taken::Babble => self.complete_from_stash(at, taken, place, &data),
            Taken::Nothing | Taken::Beginning => {
                transfer.length -= data.len() as u32;
                if taken == Taken::Beginning {
                    self.away.beginnings.push(Beginning {
                        request,
                        place,
                        data,
                    });
                }
                self.away
                    .orders
                    .push_back(Order::Submit { request, transfer });
            }
        }
    }

    fn complete_from_stash(&mut self, at: usize, taken: Taken, place: stash::Place, data: &[u8]) {
        let executing = self.executing[at];
        let flags = executing.stream.map_or(0, |s| s.flags);
        let short = data.len() < executing.length as usize;
        let status = match taken {
            Taken::Babble => TransferStatus::Overflow,
            _ if short && flags & crate::frame::FLAG_SHORT_NOT_OK != 0 => {
                TransferStatus::ShortPacket
            }
            _ => TransferStatus::Completed,
        };
        let outcome = Outcome::new(status, data.len() as u32);
        self.complete_at(at, place, |out| {
            out.extend_from_slice(data);
            Some(outcome)
        });
    }

    /// A bulk or interrupt IN request is over, at a device some of whose endpoints are away.
    pub(super) fn complete_stream(
        &mut self,
        at: usize,
        fill: impl FnOnce(&mut Vec<u8>) -> Option<Outcome>,
    ) -> bool {
        let Executing {
            request,
            length,
            stream: Some(transfer),
            place: at_place,
            ..
        } = self.executing[at]
        else {
            return false;
        };
        let beginnings = &mut self.away.beginnings;
        let begun = beginnings.iter().position(|b| b.request == request);
        let begun = begun.map(|at| beginnings.swap_remove(at));
        let (place, mut data) = match begun {
            Some(Beginning { place, data, .. }) => (Some(place), data),
            None => (None, Vec::new()),
        };
        let beginning_len = data.len();
        let Some(outcome) = fill(&mut data) else {
            if let Some(place) = place {
                data.truncate(beginning_len);
                self.away.beginnings.push(Beginning {
                    request,
                    place,
                    data,
                });
            }
            return false;
        };
        let place = place.unwrap_or_else(|| self.stash.arrived());
        let actual = beginning_len + outcome.actual_length as usize;
        data.truncate(actual.min(length as usize));
        let address = transfer.endpoint;
        let done = outcome.status.is_success();
        let packet_len = self.away.endpoints.get(&address).and_then(|e| e.packet_len);
        let brought = Brought {
            place,
            data: &data,
            ended: done && Brought::is_ended(data.len(), length as usize, packet_len),
            packet_len,
        };
        match at_place {
            Place::Kept => {
                if done || !data.is_empty() {
                    self.stash.keep(address, brought);
                }
                self.stop_polling_after(address, outcome.status);
                let cancelled = Outcome::new(TransferStatus::Cancelled, 0);
                self.complete_at(at, place, |_| Some(cancelled));
                self.settle(address);
            }
            Place::Recalled => {
                // The guest goes on behind a beginning, which no poll can.
                if !done && !data.is_empty() {
                    self.stop_polling(address);
                }
                self.stop_polling_after(address, outcome.status);
                let outcome = Outcome {
                    actual_length: data.len() as u32,
                    ..outcome
                };
                self.complete_at(at, place, |out| {
                    out.extend_from_slice(&data);
                    Some(outcome)
                });
                self.settle(address);
            }
            // What came before it goes first.
            _ if done && !self.stash.is_empty(address) => {
                self.stash.keep(address, brought);
                data = Vec::new();
                let place = self.stash.next(address).unwrap_or_default();
                let taken = self.stash.take(address, length as usize, &mut data);
                self.complete_from_stash(at, taken, place, &data);
                self.settle(address);
            }
            _ => {
                let outcome = Outcome {
                    actual_length: data.len() as u32,
                    ..outcome
                };
                self.complete_at(at, place, |out| {
                    out.extend_from_slice(&data);
                    Some(outcome)
                });
            }
        }
        true
    }

    /// A poll is over.
    pub(super) fn polled(
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
    fn stop_polling_after(&mut self, address: u8, status: TransferStatus) {
        if !status.is_success() && status != TransferStatus::Cancelled {
            self.stop_polling(address);
        }
    }

    fn stop_polling(&mut self, address: u8) {
        if let Some(endpoint) = self.away.endpoints.get_mut(&address) {
            endpoint.poll = None;
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

enum Forgotten {
    All,
    Endpoint(u8),
}

/// What a standard request makes worthless. SET_INTERFACE, too, but who knows which endpoints an
/// interface has must say so: see [`set_interface`].
fn forgotten_with(transfer: &Transfer) -> Option<Forgotten> {
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

#[cfg(test)]
mod tests;

// SPDX-License-Identifier: GPL-3.0-or-later
//! A request of a guest that is back gets what was kept for it.

use super::{Executing, Order, Outcome, Place, Server};
use crate::frame::{FLAG_SHORT_NOT_OK, TransferStatus};
use crate::stash::{self, Brought, Taken};

/// What a request at the device has got already.
#[derive(Clone, Debug, Hash)]
pub(super) struct Beginning {
    request: u64,
    place: stash::Place,
    data: Vec<u8>,
}

impl Server {
    /// Gives a parked request what is kept, or hands it to the device.
    pub(super) fn supply(&mut self, request: u64) {
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
            _ if short && flags & FLAG_SHORT_NOT_OK != 0 => TransferStatus::ShortPacket,
            _ => TransferStatus::Completed,
        };
        self.complete_with(at, place, Outcome::new(status, 0), data);
    }

    fn complete_with(&mut self, at: usize, place: stash::Place, outcome: Outcome, data: &[u8]) {
        let outcome = Outcome {
            actual_length: data.len() as u32,
            ..outcome
        };
        self.complete_at(at, place, |out| {
            out.extend_from_slice(data);
            Some(outcome)
        });
    }

    /// A bulk or interrupt IN request is over, at a device some of whose endpoints are away.
    pub(in crate::server) fn complete_stream(
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
                self.complete_with(at, place, outcome, &data);
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
            _ => self.complete_with(at, place, outcome, &data),
        }
        true
    }
}

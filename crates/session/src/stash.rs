// SPDX-License-Identifier: GPL-3.0-or-later
//! Data that a device sent while its guest was away: kept for each IN endpoint in order, for the
//! first transfers after the guest is back.
//!
//! What is kept are transfers, not bytes: a transfer ends where the device ended it with a short
//! packet (USB 2.0 §5.7.3, §5.8.3), and what it ended is never joined to what came after. So a
//! report stays a report and a message a message, also where the transfers that take the data are
//! of other lengths than those that it came with. What a transfer brought before it was cancelled is
//! whole packets without an end: the next transfer begins with them and goes on at the device.
//!
//! Bounded for each endpoint. What comes first is kept, what does not fit is counted.

use std::collections::{BTreeMap, VecDeque};

use crate::StashCounters;

/// Most transfers kept for an endpoint: a mouse that reports every millisecond, for a second.
pub const MAX_TRANSFERS: usize = 1024;
/// Most bytes kept for an endpoint: all that the slots of a ring can ask for.
pub const MAX_BYTES: usize = 1024 * 1024;

/// Where data has its place in the order in which the device sent it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    arrival: u64,
    /// Bytes of that arrival which come before.
    offset: usize,
}

/// What one transfer brought.
#[derive(Clone, Copy, Debug)]
pub struct Brought<'a> {
    /// When: see [`Stash::arrived`].
    pub place: Place,
    /// The data.
    pub data: &'a [u8],
    /// Whether the device ended it with a short packet.
    pub ended: bool,
    /// The endpoint's wMaxPacketSize in bytes, where that is known.
    pub packet_len: Option<u16>,
}

impl Brought<'_> {
    /// Whether a transfer of `length` bytes that is over after `actual` ones ended with a short
    /// packet. Where packets are unknown it did: else its receiver might wait for more for ever.
    pub fn is_ended(actual: usize, length: usize, packet_len: Option<u16>) -> bool {
        let whole_packets = |len: u16| len > 0 && actual.is_multiple_of(usize::from(len));
        actual < length || !packet_len.is_some_and(whole_packets)
    }
}

#[derive(Clone, Debug, Hash)]
struct Kept {
    /// Of the first byte of `data`.
    place: Place,
    data: Vec<u8>,
    /// Bytes given away already.
    given: usize,
    ended: bool,
    packet_len: Option<u16>,
}

impl Kept {
    /// The place of what was not given away.
    fn next(&self) -> Place {
        Place {
            offset: self.place.offset + self.given,
            ..self.place
        }
    }
}

/// What a transfer gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Nothing is kept.
    Nothing,
    /// Its beginning: the rest comes from the device.
    Beginning,
    /// All that it will get: it is full, or the data ended.
    Whole,
    /// More than fits came in one packet (USB 2.0 §8.7.4, babble). The packet is lost.
    Babble,
}

/// The data of a device's IN endpoints.
#[derive(Clone, Debug, Default, Hash)]
pub struct Stash {
    /// By bEndpointAddress. None is empty.
    endpoints: BTreeMap<u8, VecDeque<Kept>>,
    counters: StashCounters,
    arrivals: u64,
}

impl Stash {
    /// Something has arrived from the device: its place, after all that came before. Completions
    /// cross with cancellations, so what is kept is not always learnt in order.
    pub fn arrived(&mut self) -> Place {
        self.arrivals += 1;
        Place {
            arrival: self.arrivals,
            offset: 0,
        }
    }

    /// Keeps what a transfer brought. Returns whether there was room for it.
    pub fn keep(&mut self, endpoint: u8, brought: Brought<'_>) -> bool {
        let queue = self.endpoints.entry(endpoint).or_default();
        let at = queue.partition_point(|k| k.next() < brought.place);
        let kept = Kept {
            place: brought.place,
            data: brought.data.to_vec(),
            given: 0,
            ended: brought.ended,
            packet_len: brought.packet_len,
        };
        queue.insert(at, kept);
        self.counters.kept += 1;
        let bytes: usize = queue.iter().map(|k| k.data.len()).sum();
        let fits = queue.len() <= MAX_TRANSFERS && bytes <= MAX_BYTES;
        if !fits {
            queue.pop_back();
            self.counters.kept -= 1;
            self.counters.overflowed += 1;
        }
        if queue.is_empty() {
            self.endpoints.remove(&endpoint);
        }
        fits
    }

    /// Data of an endpoint was lost before it could be kept.
    pub fn missed(&mut self) {
        self.counters.overflowed += 1;
    }

    /// Whether nothing is kept for an endpoint.
    pub fn is_empty(&self, endpoint: u8) -> bool {
        !self.endpoints.contains_key(&endpoint)
    }

    /// The place of what is next for an endpoint.
    pub fn next(&self, endpoint: u8) -> Option<Place> {
        self.endpoints.get(&endpoint)?.front().map(Kept::next)
    }

    /// Appends to the empty `out` what a transfer of `length` bytes gets.
    pub fn take(&mut self, endpoint: u8, length: usize, out: &mut Vec<u8>) -> Taken {
        debug_assert!(out.is_empty());
        let Some(queue) = self.endpoints.get_mut(&endpoint) else {
            return Taken::Nothing;
        };
        let mut taken = Taken::Beginning;
        while let Some(front) = queue.front_mut() {
            let left = &front.data[front.given..];
            let room = length - out.len();
            if left.len() <= room {
                out.extend_from_slice(left);
                let full = left.len() == room;
                // Ended by a packet of no bytes, for which there is no room any more.
                let packets = front.packet_len.map(usize::from).filter(|&p| p > 0);
                let whole_packets = packets.is_some_and(|p| left.len().is_multiple_of(p));
                if full && !left.is_empty() && front.ended && whole_packets {
                    front.given = front.data.len();
                    taken = Taken::Whole;
                    break;
                }
                let over = front.ended || full;
                queue.pop_front();
                self.counters.delivered += 1;
                if over {
                    taken = Taken::Whole;
                    break;
                }
                continue;
            }
            out.extend_from_slice(&left[..room]);
            // Packets are not divided. Where they are unknown, the data is a stream.
            let packet = usize::from(front.packet_len.unwrap_or(1)).max(1);
            front.given += room.next_multiple_of(packet).min(left.len());
            taken = match room.is_multiple_of(packet) {
                true => Taken::Whole,
                false => Taken::Babble,
            };
            if front.given == front.data.len() {
                queue.pop_front();
                self.counters.discarded += 1;
            }
            break;
        }
        if queue.is_empty() {
            self.endpoints.remove(&endpoint);
        }
        taken
    }

    /// Forgets what is kept for the endpoints that `which` names.
    pub fn forget(&mut self, which: impl Fn(u8) -> bool) {
        let discarded = &mut self.counters.discarded;
        self.endpoints.retain(|&endpoint, queue| {
            let forget = which(endpoint);
            if forget {
                *discarded += queue.len() as u64;
            }
            !forget
        });
    }

    /// What has become of the data so far.
    pub fn counters(&self) -> StashCounters {
        self.counters
    }
}

#[cfg(test)]
mod tests;

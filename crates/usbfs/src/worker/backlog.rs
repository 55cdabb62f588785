// SPDX-License-Identifier: GPL-3.0-or-later
//! Transfers that wait for memory, or for the pieces of the one before them.

use std::collections::VecDeque;

use crate::Urb;

/// Endpoint 0, and 15 of each direction.
const ENDPOINTS: usize = 32;

/// The transfers of each endpoint, in their order.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    queues: [VecDeque<Urb>; ENDPOINTS],
    waiting: usize,
    /// Bit = [`index`]: a piece of a transfer is under way, and nothing may come between its pieces.
    divided: u32,
    /// Where the next round begins, so that no endpoint is the first one every time.
    first: usize,
}

/// Of a bEndpointAddress. Control transfers of both directions are of one endpoint.
fn index(endpoint: u8) -> usize {
    match endpoint & 0x0f {
        0 => 0,
        number => usize::from(number | endpoint >> 3 & 0x10),
    }
}

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    pub(super) fn has(&self, endpoint: u8) -> bool {
        !self.queues[index(endpoint)].is_empty()
    }

    /// Whether a new transfer has to wait for those before it.
    pub(super) fn must_wait(&self, endpoint: u8) -> bool {
        self.has(endpoint) || self.is_divided(endpoint)
    }

    fn is_divided(&self, endpoint: u8) -> bool {
        self.divided & 1 << index(endpoint) != 0
    }

    pub(super) fn set_divided(&mut self, endpoint: u8, is_divided: bool) {
        let bit = 1 << index(endpoint);
        match is_divided {
            true => self.divided |= bit,
            false => self.divided &= !bit,
        }
    }

    pub(super) fn push(&mut self, urb: Urb) {
        self.queues[index(urb.endpoint())].push_back(urb);
        self.waiting += 1;
    }

    /// One that was taken out, or a piece of which is over.
    pub(super) fn put_back(&mut self, urb: Urb) {
        self.queues[index(urb.endpoint())].push_front(urb);
        self.waiting += 1;
    }

    /// Addresses of the endpoints for which something waits, each time beginning with another one.
    pub(super) fn endpoints(&mut self) -> impl Iterator<Item = u8> + use<> {
        let first = self.first;
        self.first = (first + 1) % ENDPOINTS;
        let mut waiting = 0_u32;
        for (at, queue) in self.queues.iter().enumerate() {
            waiting |= u32::from(!queue.is_empty()) << at;
        }
        (0..ENDPOINTS)
            .map(move |at| (first + at) % ENDPOINTS)
            .filter(move |at| waiting & 1 << at != 0)
            .map(|at| (at as u8 & 0x0f) | (at as u8 & 0x10) << 3)
    }

    /// The next one of an endpoint that may be submitted.
    pub(super) fn pop(&mut self, endpoint: u8) -> Option<Urb> {
        if self.is_divided(endpoint) {
            return None;
        }
        let urb = self.queues[index(endpoint)].pop_front()?;
        self.waiting -= 1;
        Some(urb)
    }

    pub(super) fn remove(&mut self, context: u64) -> Option<Urb> {
        for queue in &mut self.queues {
            if let Some(at) = queue.iter().position(|u| u.context() == context) {
                self.waiting -= 1;
                return queue.remove(at);
            }
        }
        None
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = Urb> {
        self.waiting = 0;
        self.divided = 0;
        self.queues.iter_mut().flat_map(|queue| queue.drain(..))
    }
}

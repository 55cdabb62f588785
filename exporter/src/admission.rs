// SPDX-License-Identifier: GPL-3.0-or-later
//! Which connections are let in before their peer has shown a certificate.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use transport::{Strangers, source};

use crate::pace::Pace;

/// Most connections of sources from which no host has come yet.
const MAX_UNKNOWN: usize = 256;
/// Most connections of sources from which a host has come. All devices of a host may come back at once.
const MAX_KNOWN: usize = 512;
/// Sources that are known, or whose pace is: more than a pool has.
const MAX_SOURCES: usize = 1024;
/// Handshakes that one source may begin at once, and the time for one more: each is work for the thread
/// that serves all guests.
const BURST: u32 = 512;
const REFILL: Duration = Duration::from_millis(20);

/// A connection that was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    source: IpAddr,
    known: bool,
    number: u64,
}

/// What is decided about a connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict<T> {
    /// Let in. The connection that is to be closed to make room.
    In(Option<T>),
    /// Its source begins too many.
    TooMany,
}

/// Connections that are in their handshake. A pure machine; `T` is what closes one.
#[derive(Debug)]
pub(crate) struct Admission<T> {
    unknown: Strangers<IpAddr, T>,
    known: Strangers<IpAddr, T>,
    /// Sources from which a host has come, and when the last one did.
    hosts: HashMap<IpAddr, Instant>,
    paces: HashMap<IpAddr, Pace>,
}

impl<T> Admission<T> {
    pub(crate) fn new() -> Self {
        Self {
            unknown: Strangers::new(MAX_UNKNOWN),
            known: Strangers::new(MAX_KNOWN),
            hosts: HashMap::new(),
            paces: HashMap::new(),
        }
    }

    /// A connection has come from `address`; `begin` begins its handshake.
    pub(crate) fn admit(
        &mut self,
        address: IpAddr,
        now: Instant,
        begin: impl FnOnce(Ticket) -> T,
    ) -> Verdict<T> {
        let source = source(address);
        if self.paces.len() >= MAX_SOURCES && !self.paces.contains_key(&source) {
            self.paces.retain(|_, pace| !pace.is_full(now));
            if self.paces.len() >= MAX_SOURCES {
                // More sources at once than a pool has: what they did so far is forgotten, not who they are.
                self.paces.clear();
            }
        }
        let full = || Pace::new(BURST, REFILL, now);
        if !self.paces.entry(source).or_insert_with(full).take(now) {
            return Verdict::TooMany;
        }
        let known = self.hosts.contains_key(&source);
        let ticket = |number| Ticket {
            source,
            known,
            number,
        };
        Verdict::In(
            self.table(known)
                .admit(source, |number| begin(ticket(number))),
        )
    }

    /// The handshake has ended, with a certificate of the pool or without.
    pub(crate) fn ended(&mut self, ticket: Ticket, is_host: bool, now: Instant) {
        self.table(ticket.known).leave(ticket.number);
        if !is_host {
            return;
        }
        if self.hosts.len() >= MAX_SOURCES && !self.hosts.contains_key(&ticket.source) {
            let oldest = self.hosts.iter().min_by_key(|(_, at)| **at);
            if let Some(oldest) = oldest.map(|(source, _)| *source) {
                self.hosts.remove(&oldest);
            }
        }
        self.hosts.insert(ticket.source, now);
    }

    fn table(&mut self, known: bool) -> &mut Strangers<IpAddr, T> {
        match known {
            true => &mut self.known,
            false => &mut self.unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn admit(
        admission: &mut Admission<Ticket>,
        from: u8,
        now: Instant,
    ) -> (Ticket, Verdict<Ticket>) {
        let got = Cell::new(None);
        let verdict = admission.admit(address(from), now, |ticket| {
            got.set(Some(ticket));
            ticket
        });
        (got.get().unwrap(), verdict)
    }

    #[test]
    fn strangers_never_displace_a_source_that_a_host_came_from() {
        let now = Instant::now();
        let mut admission = Admission::new();
        let (first, _) = admit(&mut admission, 1, now);
        admission.ended(first, true, now);
        let (waiting, _) = admit(&mut admission, 1, now);
        let mut closed = Vec::new();
        for from in 0..2 * MAX_UNKNOWN {
            let from = 2 + (from % 200) as u8;
            if let (_, Verdict::In(Some(ticket))) = admit(&mut admission, from, now) {
                closed.push(ticket);
            }
        }
        assert_eq!(closed.len(), MAX_UNKNOWN);
        assert!(!closed.contains(&waiting));
    }

    #[test]
    fn a_source_that_begins_without_end_is_slowed_down_and_no_other() {
        let now = Instant::now();
        let mut admission: Admission<()> = Admission::new();
        for _ in 0..BURST {
            let verdict = admission.admit(address(1), now, |_| ());
            assert!(matches!(verdict, Verdict::In(_)));
        }
        let flood = admission.admit(address(1), now, |_| ());
        assert_eq!(flood, Verdict::TooMany);
        let other = admission.admit(address(2), now, |_| ());
        assert!(matches!(other, Verdict::In(_)));
        let later = admission.admit(address(1), now + REFILL, |_| ());
        assert!(matches!(later, Verdict::In(_)));
    }

    #[test]
    fn sources_without_end_take_a_bounded_amount_of_memory() {
        let now = Instant::now();
        let mut admission: Admission<Ticket> = Admission::new();
        for high in 0..40 {
            for low in 0..=255 {
                let got = Cell::new(None);
                let address = IpAddr::from([10, 0, high, low]);
                admission.admit(address, now, |ticket| {
                    got.set(Some(ticket));
                    ticket
                });
                admission.ended(got.get().unwrap(), true, now);
            }
        }
        assert!(admission.paces.len() <= MAX_SOURCES);
        assert!(admission.hosts.len() <= MAX_SOURCES);
        assert!(admission.unknown.is_empty() && admission.known.is_empty());
    }
}

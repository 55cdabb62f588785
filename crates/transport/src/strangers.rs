// SPDX-License-Identifier: GPL-3.0-or-later
//! Connections whose peer has not shown yet who it is: how many there may be, and which one goes when
//! there are too many.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};

/// At most so many connections of strangers. A new one is always let in, since it may be somebody who
/// belongs here; where there is no room, the oldest one of the source with the most makes room for it.
/// So one source displaces itself, and many sources must be quicker than a handshake to displace
/// anybody else.
///
/// A pure machine. `T` is what closes a connection.
#[derive(Debug)]
pub struct Strangers<S, T> {
    limit: usize,
    next: u64,
    /// By age, the oldest first.
    connections: BTreeMap<u64, (S, T)>,
}

impl<S: Clone + Eq + Hash, T> Strangers<S, T> {
    /// Room for `limit` connections, at least one.
    pub fn new(limit: usize) -> Self {
        Self {
            limit: limit.max(1),
            next: 0,
            connections: BTreeMap::new(),
        }
    }

    /// Lets a connection of `source` in. `begin` gets its number. Answers the connection that has to be
    /// closed for it.
    pub fn admit(&mut self, source: S, begin: impl FnOnce(u64) -> T) -> Option<T> {
        let closed = match self.connections.len() >= self.limit {
            true => self.victim().and_then(|number| self.leave(number)),
            false => None,
        };
        let number = self.next;
        self.next += 1;
        self.connections.insert(number, (source, begin(number)));
        closed
    }

    /// A connection has ended, or its peer is no stranger any more.
    pub fn leave(&mut self, number: u64) -> Option<T> {
        self.connections.remove(&number).map(|(_, close)| close)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    fn victim(&self) -> Option<u64> {
        let mut counts: HashMap<&S, usize> = HashMap::new();
        for (source, _) in self.connections.values() {
            *counts.entry(source).or_default() += 1;
        }
        let most = counts.values().copied().max()?;
        let mut oldest_first = self.connections.iter();
        let of_most = |(source, _): &(S, T)| counts.get(source) == Some(&most);
        oldest_first
            .find(|(_, connection)| of_most(connection))
            .map(|(number, _)| *number)
    }
}

/// What counts as one source: an IPv4 address, or the /64 of an IPv6 address, which one machine usually
/// has to itself.
pub fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let prefix = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(prefix))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_displaces_itself_only() {
        let mut strangers = Strangers::new(4);
        assert_eq!(strangers.admit("quiet", |n| n), None);
        let mut closed = Vec::new();
        for _ in 0..100 {
            closed.extend(strangers.admit("noisy", |n| n));
        }
        assert_eq!(closed, (1..98).collect::<Vec<_>>());
        assert_eq!(strangers.len(), 4);
        assert_eq!(strangers.leave(0), Some(0), "the quiet one is still there");
    }

    #[test]
    fn the_newest_of_many_sources_is_let_in_and_the_oldest_goes() {
        let mut strangers = Strangers::new(4);
        for source in 0..4 {
            assert_eq!(strangers.admit(source, |n| n), None);
        }
        assert_eq!(strangers.admit(9, |n| n), Some(0));
        assert_eq!(strangers.admit(10, |n| n), Some(1));
        assert_eq!(strangers.leave(4), Some(4));
        assert_eq!(strangers.admit(11, |n| n), None);
    }

    #[test]
    fn a_connection_that_left_makes_room_once() {
        let mut strangers = Strangers::new(1);
        assert_eq!(strangers.admit((), |n| n), None);
        assert_eq!(strangers.leave(0), Some(0));
        assert_eq!(strangers.leave(0), None);
        assert!(strangers.is_empty());
        assert_eq!(strangers.admit((), |n| n), None);
        assert_eq!(strangers.admit((), |n| n), Some(1));
    }

    #[test]
    fn a_source_is_an_address_or_a_network_of_64_bits() {
        let of = |text: &str| source(text.parse().unwrap());
        assert_eq!(of("::ffff:192.0.2.7"), of("192.0.2.7"));
        assert_ne!(of("192.0.2.7"), of("192.0.2.8"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1:2:3"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8:0:2::1"));
    }
}

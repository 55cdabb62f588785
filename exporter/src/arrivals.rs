// SPDX-License-Identifier: GPL-3.0-or-later
//! Domains that are arriving at hosts, as the hosts announced them.

use session::VmUuid;
use session::control::Event;

/// A domain that is arriving at a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// The control connection that it was announced over.
    pub(crate) connection: u64,
    pub(crate) vm: VmUuid,
    pub(crate) host: String,
    pub(crate) domid: u16,
}

impl Arrival {
    /// What others hear of it.
    pub(crate) fn event(&self, arriving: bool) -> Event {
        Event::Arriving {
            vm: self.vm,
            host: self.host.clone(),
            domid: self.domid,
            arriving,
        }
    }
}

/// Those that hold now. Each that is in here was announced, and will be taken back.
#[derive(Debug, Default)]
pub(crate) struct Arrivals(Vec<Arrival>);

impl Arrivals {
    /// So many at a time, so that a new subscriber can be told of all.
    pub(crate) const MAX: usize = 128;

    /// It is arriving, or not any more. Whether that is news: not when there is no room for it, since
    /// nobody could take it back then.
    pub(crate) fn set(&mut self, arrival: &Arrival, arriving: bool) -> bool {
        let at = self.0.iter().position(|a| a == arrival);
        match (at, arriving) {
            (None, true) if self.0.len() < Self::MAX => {
                self.0.push(arrival.clone());
                true
            }
            (Some(at), false) => {
                self.0.remove(at);
                true
            }
            _ => false,
        }
    }

    /// A connection has ended: takes what was announced over it.
    pub(crate) fn end(&mut self, connection: u64) -> Vec<Arrival> {
        let all = std::mem::take(&mut self.0);
        let (ended, left) = all.into_iter().partition(|a| a.connection == connection);
        self.0 = left;
        ended
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arrival> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(connection: u64, domid: u16) -> Arrival {
        Arrival {
            connection,
            vm: VmUuid(uuid::Uuid::from_u128(1)),
            host: "host-a".into(),
            domid,
        }
    }

    #[test]
    fn only_changes_are_news() {
        let mut arrivals = Arrivals::default();
        assert!(!arrivals.set(&arrival(1, 1), false));
        assert!(arrivals.set(&arrival(1, 1), true));
        assert!(!arrivals.set(&arrival(1, 1), true));
        assert!(arrivals.set(&arrival(1, 1), false));
        assert_eq!(arrivals.iter().count(), 0);
    }

    #[test]
    fn what_does_not_fit_is_not_announced() {
        let mut arrivals = Arrivals::default();
        for domid in 0..Arrivals::MAX as u16 {
            assert!(arrivals.set(&arrival(1, domid), true));
        }
        let more = arrival(2, 500);
        assert!(!arrivals.set(&more, true));
        assert!(!arrivals.set(&more, false));
    }

    #[test]
    fn a_connection_takes_its_own_with_it() {
        let mut arrivals = Arrivals::default();
        arrivals.set(&arrival(1, 1), true);
        arrivals.set(&arrival(2, 2), true);
        assert_eq!(arrivals.end(1), [arrival(1, 1)]);
        assert_eq!(arrivals.iter().collect::<Vec<_>>(), [&arrival(2, 2)]);
    }
}

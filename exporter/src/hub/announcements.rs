// SPDX-License-Identifier: GPL-3.0-or-later
//! Domains that are arriving somewhere, as their hosts announce it.

use session::VmUuid;

use super::{Events, Hub};
use crate::arrivals::Arrival;

impl Hub {
    /// A number for a control connection.
    pub(crate) fn next_connection(&self) -> u64 {
        let number = self.connections.get() + 1;
        self.connections.set(number);
        number
    }

    /// A host announced, over this connection, that a domain is arriving there, or took it back.
    pub(crate) fn arriving(
        &self,
        connection: u64,
        host: &str,
        vm: VmUuid,
        domid: u16,
        arriving: bool,
    ) {
        if !self.table.borrow().policy().may_expect(vm, host) {
            return;
        }
        let arrival = Arrival {
            connection,
            vm,
            host: host.to_owned(),
            domid,
        };
        if self.arrivals.borrow_mut().set(&arrival, arriving) {
            self.announce(&arrival, arriving);
        }
    }

    /// A control connection has ended: what was announced over it does not hold any more, and what was
    /// acquired over it and not taken up is nobody's.
    pub(crate) fn control_ended(&self, connection: u64) {
        let unconfirmed = self.table.borrow_mut().unconfirmed(connection);
        for lease in &unconfirmed {
            self.ended(lease, "who acquired it is not connected any more");
        }
        self.running
            .borrow_mut()
            .retain(|r| r.connection != connection);
        let ended = self.arrivals.borrow_mut().end(connection);
        for arrival in ended {
            self.announce(&arrival, false);
        }
    }

    fn announce(&self, arrival: &Arrival, arriving: bool) {
        let event = arrival.event(arriving);
        self.subscribers.publish(&event, |to| {
            self.table.borrow().policy().may_expect(arrival.vm, to)
        });
    }

    /// Subscribes `host`, which is told at once of what is arriving.
    pub(crate) fn subscribe(&self, host: &str) -> Events {
        let arrivals = self.arrivals.borrow();
        let table = self.table.borrow();
        let may_know = |a: &&Arrival| table.policy().may_expect(a.vm, host);
        let first = arrivals.iter().filter(may_know);
        self.subscribers.add(host, first.map(|a| a.event(true)))
    }
}

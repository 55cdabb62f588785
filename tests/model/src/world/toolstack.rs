// SPDX-License-Identifier: GPL-3.0-or-later
//! The toolstack's script: start, `xl migrate`, and starting again after a crash.

use backend::xenbus::XenbusState;

use super::World;
use crate::guest::Mode;
use crate::host::{Nodes, Shutdown, Watch};
use crate::memory;

/// Where the toolstack is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// The domain is made; it boots when its backend is ready.
    Starting { dom: u16 },
    /// Nothing is under way.
    Calm,
    /// The VM is gone, and is to be started somewhere.
    Gone,
    /// A migration: the target domain is made, and memory is being copied.
    Built { to: u16, host: usize },
    /// The guest was asked to suspend.
    Asked { to: u16, host: usize },
    /// The target's controller is made, and waited for.
    Made { to: u16 },
    /// "Ready" was said.
    Ready { to: u16 },
    /// The guest runs on the target; the source is to be destroyed.
    Unpaused { from: u16 },
}

impl Nodes {
    /// As libxl makes them.
    pub(crate) fn new(host: usize) -> Self {
        Self {
            host,
            backend: Some(XenbusState::Initialising),
            frontend: XenbusState::Initialising,
            rings: None,
            shutdown: Shutdown::Empty,
            incoming: false,
            away: false,
        }
    }
}

impl World {
    /// A domain with a controller.
    pub(super) fn make_domain(&mut self, host: usize) -> u16 {
        let dom = self.next_dom;
        self.next_dom += 1;
        self.make_nodes(dom, host);
        dom
    }

    fn make_nodes(&mut self, dom: u16, host: usize) {
        self.nodes.insert(dom, Nodes::new(host));
        self.hosts[host].tell(Watch::Backend(dom));
    }

    pub(super) fn destroy(&mut self, dom: u16) {
        if let Some(nodes) = self.nodes.remove(&dom) {
            self.hosts[nodes.host].tell(Watch::Backend(dom));
        }
        memory::revoke(dom, u32::MAX);
    }

    fn backend_of(&self, dom: u16) -> Option<XenbusState> {
        self.nodes.get(&dom).and_then(|n| n.backend)
    }

    pub(super) fn toolstack_may_go_on(&self) -> bool {
        // libxl waits for exactly InitWait, or for the node to go.
        let answered = |dom| {
            matches!(
                self.backend_of(dom),
                None | Some(XenbusState::InitWait | XenbusState::Closed)
            )
        };
        match self.phase {
            Phase::Starting { dom } => answered(dom),
            Phase::Calm => {
                self.left.migrations > 0
                    && self.guest.mode == Mode::Running
                    && self.guest.is_connected()
            }
            Phase::Asked { .. } => self.guest.mode == Mode::Suspended,
            Phase::Made { to } => answered(to),
            Phase::Gone | Phase::Built { .. } | Phase::Ready { .. } | Phase::Unpaused { .. } => {
                true
            }
        }
    }

    pub(super) fn toolstack(&mut self) {
        match self.phase {
            Phase::Starting { dom } => {
                if self.backend_of(dom) == Some(XenbusState::InitWait) {
                    self.guest.boot(dom, &mut self.history);
                    self.phase = Phase::Calm;
                } else {
                    self.destroy(dom);
                    self.phase = Phase::Gone;
                }
            }
            Phase::Gone => {
                let dom = self.make_domain(usize::from(self.next_dom % 2));
                self.phase = Phase::Starting { dom };
            }
            Phase::Calm => {
                self.left.migrations -= 1;
                let here = self.nodes.get(&self.guest.dom).map_or(0, |n| n.host);
                let to = self.next_dom;
                self.next_dom += 1;
                self.phase = Phase::Built { to, host: 1 - here };
            }
            Phase::Built { to, host } => {
                let dom = self.guest.dom;
                if let Some(nodes) = self.nodes.get_mut(&dom) {
                    nodes.shutdown = Shutdown::Suspend;
                    let at = nodes.host;
                    self.hosts[at].tell(Watch::Shutdown(dom));
                }
                self.phase = Phase::Asked { to, host };
            }
            Phase::Asked { to, host } => {
                self.make_nodes(to, host);
                if let Some(nodes) = self.nodes.get_mut(&to) {
                    nodes.incoming = true;
                }
                self.phase = Phase::Made { to };
            }
            Phase::Made { to } => match self.backend_of(to) {
                Some(XenbusState::InitWait) => self.phase = Phase::Ready { to },
                _ => self.migration_fails(),
            },
            Phase::Ready { to } => {
                let from = self.guest.dom;
                // Before "go".
                if let Some(nodes) = self.nodes.get_mut(&from) {
                    nodes.away = true;
                }
                self.guest.moved(to);
                self.phase = Phase::Unpaused { from };
            }
            Phase::Unpaused { from } => {
                self.destroy(from);
                self.phase = Phase::Calm;
            }
        }
    }

    /// The migration fails before "go": the target is destroyed, and the guest goes on at the
    /// source, on its old rings.
    pub(super) fn migration_fails(&mut self) {
        if let Phase::Built { to, .. }
        | Phase::Asked { to, .. }
        | Phase::Made { to }
        | Phase::Ready { to } = self.phase
        {
            self.destroy(to);
        }
        if self.guest.mode == Mode::Suspended {
            self.guest.mode = Mode::Running;
            self.guest.go_on();
            self.suspends_heard.remove(&self.guest.dom);
        }
        self.phase = Phase::Calm;
    }
}

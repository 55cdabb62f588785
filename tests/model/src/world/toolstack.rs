// SPDX-License-Identifier: GPL-3.0-or-later
//! The toolstack's script: start, `xl migrate`, and starting again after a crash.

use backend::xenbus::XenbusState;

use super::World;
use crate::Dialect;
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
            target: false,
            away: false,
        }
    }

    /// Of a domain without a controller.
    pub(crate) fn bare(host: usize) -> Self {
        Self {
            backend: None,
            frontend: XenbusState::Unknown,
            ..Self::new(host)
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
        if self.left.dialect.has_own_controllers() {
            self.nodes.insert(dom, Nodes::bare(host));
            return self.hosts[host].tell(Watch::Domain(dom));
        }
        self.nodes.insert(dom, Nodes::new(host));
        self.hosts[host].tell(Watch::Backend(dom));
    }

    /// The domain that the guest moves to.
    fn make_target(&mut self, to: u16, host: usize) {
        self.make_nodes(to, host);
        let says_so = self.left.dialect != Dialect::Libvirt;
        if let Some(nodes) = self.nodes.get_mut(&to) {
            (nodes.target, nodes.incoming) = (true, says_so);
        }
    }

    /// `vusbd` makes the controller of a domain that has none.
    pub(super) fn make_own_controller(&mut self, host: usize, dom: u16) {
        let knows = self.hosts[host].controllers.contains_key(&dom);
        let Some(nodes) = self.nodes.get_mut(&dom) else {
            return;
        };
        if self.left.dialect.has_own_controllers() && nodes.backend.is_none() && !knows {
            nodes.backend = Some(XenbusState::Initialising);
            nodes.frontend = XenbusState::Initialising;
            self.hosts[host].tell(Watch::Backend(dom));
        }
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
        let own = self.left.dialect.has_own_controllers();
        match self.phase {
            Phase::Starting { .. } if own => true,
            Phase::Starting { dom } => answered(dom),
            Phase::Calm => {
                self.left.migrations > 0
                    && self.guest.mode == Mode::Running
                    && self.guest.is_connected()
            }
            Phase::Asked { .. } => self.guest.mode == Mode::Suspended,
            Phase::Unpaused { from } => !self.will_hear_of_suspend(from),
            Phase::Made { to } => answered(to),
            Phase::Gone | Phase::Built { .. } | Phase::Ready { .. } => true,
        }
    }

    pub(super) fn toolstack(&mut self) {
        match self.phase {
            Phase::Starting { dom } => {
                let own = self.left.dialect.has_own_controllers();
                if own || self.backend_of(dom) == Some(XenbusState::InitWait) {
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
                let host = 1 - here;
                if self.left.dialect.has_own_controllers() {
                    self.make_target(to, host);
                }
                self.phase = Phase::Built { to, host };
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
            Phase::Asked { to, host } if self.left.dialect == Dialect::Xl => {
                self.make_target(to, host);
                self.phase = Phase::Made { to };
            }
            // Nobody waits for a controller of ours.
            Phase::Asked { to, .. } if self.nodes.contains_key(&to) => {
                self.phase = Phase::Ready { to };
            }
            Phase::Asked { .. } => self.migration_fails(),
            Phase::Made { to } => match self.backend_of(to) {
                Some(XenbusState::InitWait) => self.phase = Phase::Ready { to },
                _ => self.migration_fails(),
            },
            Phase::Ready { to } => {
                let from = self.guest.dom;
                // Before "go". libvirt says nothing of it.
                let says_so = self.left.dialect != Dialect::Libvirt;
                if let Some(nodes) = self.nodes.get_mut(&from) {
                    nodes.away = says_so;
                }
                self.guest.moved(to);
                if self.backend_of(to).is_none() {
                    // It has no controller there: its driver gives up the device, and finds another.
                    self.guest.forget(&mut self.history);
                }
                self.phase = Phase::Unpaused { from };
            }
            Phase::Unpaused { from } => {
                // xenopsd renames it. A vusbd that has not seen it before does not know that it arrives.
                let nodes = self.nodes.get_mut(&self.guest.dom);
                if let Some(nodes) = nodes.filter(|n| n.backend.is_none()) {
                    nodes.incoming = false;
                }
                // Nothing says then that the guest was suspended before its domain ended.
                self.history.unsaid |=
                    self.left.dialect == Dialect::Libvirt && !self.suspends_heard.contains(&from);
                self.destroy(from);
                self.phase = Phase::Calm;
            }
        }
    }

    /// Under libvirt the target knows by it that the guest arrives. A `vusbd` that runs hears of it long before the
    /// guest's memory is copied, and the domain destroyed.
    fn will_hear_of_suspend(&self, from: u16) -> bool {
        let here = self.nodes.get(&from).map(|n| &self.hosts[n.host]);
        let will_hear = here.is_some_and(|h| h.watches.contains(&Watch::Shutdown(from)));
        self.left.dialect == Dialect::Libvirt && will_hear
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

// SPDX-License-Identifier: GPL-3.0-or-later
//! A second domain with the VM's uuid: a clone, or a file that was restored although the VM runs.

use backend::xenbus::XenbusState;
use session::lease::TAKEOVER_MS;
use session::{Lease, LeasePhase};

use super::World;
use crate::Limits;
use crate::exporter::host_name;
use crate::guest::{Guest, Mode};
use crate::host::{Stage, Watch};

impl World {
    pub(super) fn start_copy(&mut self, host: usize) {
        let dom = self.make_domain(host);
        let mut copy = Guest::new(&Limits {
            transfers: 0,
            ..self.left.clone()
        });
        (copy.dom, copy.mode) = (dom, Mode::Running);
        self.copy = Some(copy);
    }

    pub(super) fn copy_may_connect(&self) -> bool {
        self.copy.as_ref().is_some_and(|copy| {
            let nodes = self.nodes.get(&copy.dom);
            let waits = nodes.is_some_and(|n| {
                n.backend == Some(XenbusState::InitWait) && n.frontend == XenbusState::Initialising
            });
            waits && !copy.is_connected()
        })
    }

    pub(super) fn copy_connects(&mut self) {
        let Some(copy) = &mut self.copy else { return };
        let (dom, rings) = (copy.dom, copy.connect());
        if let Some(nodes) = self.nodes.get_mut(&dom) {
            (nodes.frontend, nodes.rings) = (XenbusState::Connected, Some(rings));
            let host = nodes.host;
            self.hosts[host].tell(Watch::Frontend(dom));
        }
    }

    pub(super) fn end_copy(&mut self) {
        if let Some(copy) = self.copy.take() {
            self.destroy(copy.dom);
        }
    }

    /// Whether the exporter would admit a claim of this domain that it has refused before.
    pub(super) fn would_admit(&self, host: usize, dom: u16) -> bool {
        let Some(lease) = self.exporter.lease() else {
            // It is told so.
            return true;
        };
        let is_holder = lease.holder.host == host_name(host) && lease.holder.domid == dom;
        let gone_here =
            lease.holder.host == host_name(host) && !self.nodes.contains_key(&lease.holder.domid);
        is_holder || gone_here || lease.phase.is_orphaned() || self.is_silent()
    }

    /// Whether it is known what has become of a VM that was suspended.
    pub(super) fn is_decided(&self) -> bool {
        let lease = self.exporter.lease();
        let waits = [LeasePhase::Frozen, LeasePhase::Disconnected];
        lease.is_none_or(|lease| !waits.contains(&lease.phase)) || self.is_silent()
    }

    /// The VM has come to this domain, nothing says so, and its source has not said yet that it is suspended,
    /// which takes it less time than anybody waits for it.
    pub(super) fn waits_for_freeze(&self, dom: u16) -> bool {
        let Some(lease) = self.exporter.lease() else {
            return false;
        };
        let from = lease.holder.domid;
        let arrives = self.nodes.get(&dom).is_some_and(|n| n.incoming);
        let says = |c: &crate::network::Connection| c.dom == from && c.exporter && !c.up.is_empty();
        let serves_it = |h: &crate::host::Host| h.controllers.contains_key(&from);
        let will_say = self.hosts.iter().any(serves_it)
            || self.nodes.contains_key(&from)
            || self.connections.values().any(says);
        let serves = lease.phase == LeasePhase::Serving && from != dom;
        serves && self.guest.dom == dom && !arrives && will_say
    }

    pub(super) fn is_silent(&self) -> bool {
        let device = &crate::exporter::device();
        let silent = self.exporter.table.silent_seconds(device, self.now_ms);
        silent.is_some_and(|s| s * 1000 >= TAKEOVER_MS)
    }

    /// Only a holder that is no more is silent for so long: all others are back sooner.
    pub(super) fn may_be_silent(&self) -> bool {
        let Some(lease) = self.exporter.lease().filter(|_| self.exporter.up) else {
            return false;
        };
        let domid = lease.holder.domid;
        let knows = |h: &crate::host::Host| {
            h.controllers.contains_key(&domid)
                || h.gone.contains_key(&domid)
                || h.had.contains(&domid)
        };
        let waits = |c: &crate::host::Controller| {
            c.task
                .as_ref()
                .is_some_and(|t| t.refused && t.stage == Stage::Down)
        };
        let mut controllers = self.hosts.iter().flat_map(|h| h.controllers.values());
        lease.phase == LeasePhase::Disconnected
            && !self.is_silent()
            && !self.nodes.contains_key(&domid)
            && !self.hosts.iter().any(knows)
            && controllers.any(waits)
    }

    /// The device of a domain that runs is never taken from it, unless its guest arrives elsewhere.
    pub(super) fn judge_claim(&mut self, before: Option<Lease>, was_silent: bool) {
        let (Some(before), Some(now)) = (before, self.exporter.lease()) else {
            return;
        };
        let taken = before.holder != now.holder && !before.phase.is_orphaned();
        let (from, to) = (before.holder.domid, now.holder.domid);
        let arrives = self.nodes.get(&to).is_some_and(|n| n.target);
        if taken && self.nodes.contains_key(&from) && !arrives && !was_silent {
            self.history.violate(format!(
                "domain {to} has taken the device of domain {from}, which runs"
            ));
        }
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! A host's `vusbd`: its controllers are the shipping ones ([`backend::controller::Serving`] with its
//! journal, [`handoff::step`], [`backend::controller::Tenure`], [`backend::watched`]). What moves them is
//! written after `daemon/`, `controller/actor.rs` and `controller/device.rs`, without their runtime.

mod controller;
mod gone;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use backend::watched::{BackendNode, suspend_asked};
use backend::xenbus::XenbusState;

pub(crate) use controller::{Controller, Stage};
pub(crate) use gone::Gone;

/// `control/shutdown`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Shutdown {
    /// As libxl makes it, and as the guest leaves it when it has read it.
    Empty,
    Suspend,
}

impl Shutdown {
    fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "",
            Self::Suspend => "suspend",
        }
    }
}

/// What a controller's directories in xenstore say.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Nodes {
    pub(crate) host: usize,
    /// The backend's `state`; `None` where it was removed.
    pub(crate) backend: Option<XenbusState>,
    pub(crate) frontend: XenbusState,
    pub(crate) rings: Option<(u32, u32)>,
    pub(crate) shutdown: Shutdown,
    /// The toolstack says that the VM arrives: by the domain's name, or by `final-uuid`.
    pub(crate) incoming: bool,
    /// The guest moves to this domain, whatever the toolstack says of it.
    pub(crate) target: bool,
    /// It ends in `--migratedaway`.
    pub(crate) away: bool,
}

impl Nodes {
    /// What the daemon reads of the backend's directory; `None` where that is gone.
    pub(crate) fn backend_node(nodes: Option<&Self>) -> BackendNode {
        BackendNode {
            state: nodes
                .and_then(|n| n.backend)
                .unwrap_or(XenbusState::Unknown),
            removed: nodes.is_none(),
        }
    }
}

/// What `vusbd` will hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Watch {
    /// The domain was made.
    Domain(u16),
    Backend(u16),
    Frontend(u16),
    Shutdown(u16),
}

/// A host.
#[derive(Clone, Hash)]
pub(crate) struct Host {
    /// `vusbd` runs.
    pub(crate) up: bool,
    /// It ends at the store after so many.
    pub(crate) dies_after: Option<u16>,
    /// It is connected to xenstored.
    pub(crate) has_store: bool,
    pub(crate) watches: VecDeque<Watch>,
    pub(crate) controllers: BTreeMap<u16, Controller>,
    /// Domains whose exporter is still to be told that they are gone.
    pub(crate) gone: BTreeMap<u16, Gone>,
    /// `control/shutdown` of each domain, as last seen.
    shutdown: BTreeMap<u16, Shutdown>,
    /// The domains that it has had: what is kept of them outlives `vusbd`.
    pub(crate) had: BTreeSet<u16>,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            up: true,
            dies_after: None,
            has_store: true,
            watches: VecDeque::new(),
            controllers: BTreeMap::new(),
            gone: BTreeMap::new(),
            shutdown: BTreeMap::new(),
            had: BTreeSet::new(),
        }
    }
}

impl Host {
    /// Something has changed. Like [`xen::xenstore::WatchEvents`], what is not taken yet is not queued
    /// twice.
    pub(crate) fn tell(&mut self, watch: Watch) {
        if self.up && self.has_store && !self.watches.contains(&watch) {
            self.watches.push_back(watch);
        }
    }

    /// Whether this look at `control/shutdown` says that the guest was asked to suspend.
    pub(crate) fn look_shutdown(&mut self, dom: u16, now: Shutdown) -> bool {
        let before = self.shutdown.insert(dom, now);
        suspend_asked(before.map(|b| Some(b.as_str())), Some(now.as_str()))
    }

    /// The process is gone, and what it knew.
    pub(crate) fn die(&mut self) {
        *self = Self {
            up: false,
            had: std::mem::take(&mut self.had),
            ..Self::default()
        };
    }

    /// The connection to xenstored broke.
    pub(crate) fn lose_store(&mut self) {
        self.has_store = false;
        self.watches.clear();
        self.shutdown.clear();
    }

    /// A domain is gone: what it said is of no interest any more.
    pub(crate) fn forget(&mut self, dom: u16) {
        self.shutdown.remove(&dom);
    }
}

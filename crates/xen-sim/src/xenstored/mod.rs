// SPDX-License-Identifier: GPL-3.0-or-later
//! Xenstore, as C xenstored serves it.
//!
//! Modelled on `docs/misc/xenstore.txt` and the behaviour of C xenstored: order of events and
//! answers, who may see what, which error wins, what is counted against a guest.

pub(crate) mod wire;

mod operation;
mod outbox;
mod path;
mod perms;
mod request;
mod server;
mod tree;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use xen::DomId;

use outbox::Outbox;
use path::is_within;
use perms::Rights;
use tree::{Change, Reach, Transaction, Tree};
use wire::{Message, kind};

pub(crate) use server::Server;

type ConnectionId = u64;

/// What a guest may use up (`quotas[]` of C xenstored). Domain 0 has no limits.
mod quota {
    pub(super) const NODES: usize = 1000;
    pub(super) const WATCHES: usize = 128;
    pub(super) const TRANSACTIONS: usize = 10;
    pub(super) const TRANSACTION_NODES: usize = 1024;
    pub(super) const PERMISSIONS: usize = 5;
    pub(super) const NODE_BYTES: usize = 2048;
}

#[derive(Debug)]
struct Watch {
    path: String,
    token: Vec<u8>,
    /// Bytes of an event's path that the client does not see: it registered a relative path.
    prefix_len: usize,
}

#[derive(Debug)]
struct Connection {
    domid: DomId,
    outbox: Arc<Outbox>,
    watches: Vec<Watch>,
    transactions: HashMap<u32, Transaction>,
    next_transaction: u32,
}

impl Connection {
    fn is_guest(&self) -> bool {
        self.domid != DomId(0)
    }
}

/// A domain that was introduced.
#[derive(Debug)]
struct Introduced {
    shut_down: bool,
}

/// What the store needs of the host around it.
trait Surroundings {
    /// Whether the hypervisor knows a domain: `None` for no, else whether it has shut down.
    fn domain_state(&self, domid: DomId) -> Option<bool>;
    /// Opens an introduced domain's socket.
    fn open(&self, domid: DomId);
    /// Closes it, and its connections.
    fn close(&self, domid: DomId);
}

/// All of xenstored's state.
#[derive(Debug)]
struct Store {
    tree: Tree,
    connections: BTreeMap<ConnectionId, Connection>,
    next_connection: ConnectionId,
    domains: BTreeMap<DomId, Introduced>,
}

impl Store {
    fn new() -> Store {
        Store {
            tree: Tree::new(),
            connections: BTreeMap::new(),
            next_connection: 1,
            domains: BTreeMap::new(),
        }
    }

    fn connect(&mut self, domid: DomId) -> (ConnectionId, Arc<Outbox>) {
        let id = self.next_connection;
        self.next_connection += 1;
        let outbox = Arc::new(Outbox::default());
        let connection = Connection {
            domid,
            outbox: outbox.clone(),
            watches: Vec::new(),
            transactions: HashMap::new(),
            next_transaction: 1,
        };
        self.connections.insert(id, connection);
        (id, outbox)
    }

    fn disconnect(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.remove(&id) {
            connection.outbox.close();
        }
    }

    /// Watches and transactions of a domain, over all of its connections.
    fn count(&self, domid: DomId, of: impl Fn(&Connection) -> usize) -> usize {
        let own = self.connections.values().filter(|c| c.domid == domid);
        own.map(of).sum()
    }

    /// Whether a connection may learn of a change: the node or its directory is readable to it.
    fn may_know(&self, domid: DomId, change: &Change) -> bool {
        let readable = |path: &str| {
            let node = self.tree.get(path);
            node.is_some_and(|node| node.perms.rights(domid).cover(Rights::READ))
        };
        let old = change.old_perms.as_ref();
        old.is_some_and(|perms| perms.rights(domid).cover(Rights::READ))
            || readable(&change.path)
            || (!change.path.starts_with('@') && readable(tree::parent(&change.path)))
    }

    fn fire(&self, changes: &[Change]) {
        for change in changes {
            for connection in self.connections.values() {
                if !self.may_know(connection.domid, change) {
                    continue;
                }
                for watch in &connection.watches {
                    let hit = match change.reach {
                        Reach::Exact => change.path == watch.path,
                        Reach::Ancestors => is_within(&change.path, &watch.path),
                    };
                    if hit {
                        send_event(connection, watch, &change.path);
                    }
                }
            }
        }
    }

    fn fire_special(&self, name: &str) {
        self.fire(&[Change {
            path: name.to_owned(),
            reach: Reach::Exact,
            old_perms: None,
        }]);
    }

    /// Some domain has shut down or is gone (`VIRQ_DOM_EXC`).
    fn check_domains(&mut self, around: &dyn Surroundings) {
        let mut notify = false;
        let domids: Vec<DomId> = self.domains.keys().copied().collect();
        for domid in domids {
            match around.domain_state(domid) {
                None => {
                    self.remove_domain(domid, around);
                    notify = true;
                }
                Some(true) => {
                    let domain = self.domains.get_mut(&domid).expect("listed above");
                    notify |= !domain.shut_down;
                    domain.shut_down = true;
                }
                Some(false) => {}
            }
        }
        if notify {
            self.fire_special("@releaseDomain");
        }
    }

    fn remove_domain(&mut self, domid: DomId, around: &dyn Surroundings) {
        self.domains.remove(&domid);
        self.connections.retain(|_, connection| {
            let gone = connection.domid == domid;
            if gone {
                connection.outbox.close();
            }
            !gone
        });
        self.tree.forget_domain(domid);
        around.close(domid);
    }
}

fn send_event(connection: &Connection, watch: &Watch, path: &str) {
    let mut payload = path.as_bytes()[watch.prefix_len.min(path.len())..].to_vec();
    payload.push(0);
    payload.extend_from_slice(&watch.token);
    payload.push(0);
    if payload.len() <= wire::PAYLOAD_MAX {
        connection.outbox.push(Message {
            kind: kind::WATCH_EVENT,
            req_id: 0,
            tx_id: 0,
            payload,
        });
    }
}

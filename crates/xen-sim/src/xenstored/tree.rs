// SPDX-License-Identifier: GPL-3.0-or-later
//! The nodes, and transactions over them.
//!
//! A transaction works on copies. It remembers the generation of every node it has looked at,
//! also of those that did not exist, and commits only when all of them are still the same.

use std::collections::HashMap;

use xen::DomId;

use super::perms::Permissions;
use super::wire::Errno;

/// Generation of a node that does not exist.
const ABSENT: u64 = 0;

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) value: Vec<u8>,
    pub(super) perms: Permissions,
    /// Names, in order of creation.
    pub(super) children: Vec<String>,
    pub(super) generation: u64,
}

impl Node {
    pub(super) fn new(perms: Permissions) -> Node {
        Node {
            value: Vec::new(),
            perms,
            children: Vec::new(),
            generation: ABSENT,
        }
    }
}

/// All nodes, by path.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: HashMap<String, Node>,
    generation: u64,
    owned: HashMap<DomId, usize>,
}

/// How far a watch event reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Watches of this very node.
    Exact,
    /// Watches of the node and of all above it.
    Ancestors,
}

/// A change to be announced.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) path: String,
    pub(super) reach: Reach,
    /// Also readers under these may know: they lost the right, or the node is gone.
    pub(super) old_perms: Option<Permissions>,
}

#[derive(Debug)]
struct Accessed {
    seen: u64,
    /// The transaction's copy; `None` once deleted, or where nothing was.
    copy: Option<Node>,
    modified: bool,
}

/// A transaction that has not ended.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    accessed: HashMap<String, Accessed>,
    pub(super) changes: Vec<Change>,
    failed: bool,
}

/// What an operation works on: the tree, or a transaction's view of it.
pub(super) struct Space<'a> {
    pub(super) tree: &'a mut Tree,
    pub(super) tx: Option<&'a mut Transaction>,
}

/// The path of the directory that holds `path`. The root holds itself.
pub(super) fn parent(path: &str) -> &str {
    match path.rfind('/') {
        Some(0) | None => "/",
        Some(slash) => &path[..slash],
    }
}

pub(super) fn basename(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn join(dir: &str, name: &str) -> String {
    if dir == "/" {
        format!("/{name}")
    } else {
        format!("{dir}/{name}")
    }
}

impl Tree {
    pub(super) fn new() -> Tree {
        let mut tree = Tree {
            nodes: HashMap::new(),
            generation: ABSENT,
            owned: HashMap::new(),
        };
        for special in ["/", "@introduceDomain", "@releaseDomain"] {
            tree.insert(special, Node::new(Permissions::owned_by(DomId(0))));
        }
        let mut space = Space {
            tree: &mut tree,
            tx: None,
        };
        space.create("/tool/xenstored", DomId(0));
        // As `xen-init-dom0` leaves it.
        let vm = "/vm/00000000-0000-0000-0000-000000000000";
        for (path, value) in [
            ("/local/domain/0/name", "Domain-0"),
            ("/local/domain/0/domid", "0"),
            ("/local/domain/0/vm", vm),
            (vm, ""),
        ] {
            space.create(path, DomId(0));
            space.modify(path, |node| node.value = value.into());
        }
        tree
    }

    fn next_generation(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    fn insert(&mut self, path: &str, mut node: Node) {
        node.generation = self.next_generation();
        *self.owned.entry(node.perms.owner()).or_default() += 1;
        if let Some(old) = self.nodes.insert(path.to_owned(), node) {
            self.disown(old.perms.owner());
        }
    }

    fn remove(&mut self, path: &str) {
        if let Some(old) = self.nodes.remove(path) {
            self.disown(old.perms.owner());
        }
    }

    fn disown(&mut self, owner: DomId) {
        if let Some(count) = self.owned.get_mut(&owner) {
            *count -= 1;
        }
    }

    pub(super) fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path)
    }

    /// Nodes that a domain owns.
    pub(super) fn owned_by(&self, domid: DomId) -> usize {
        self.owned.get(&domid).copied().unwrap_or_default()
    }

    /// Commits, or refuses with `EAGAIN` because others were faster.
    pub(super) fn commit(
        &mut self,
        tx: Transaction,
        quota: Option<(DomId, usize)>,
    ) -> Result<Vec<Change>, Errno> {
        if tx.failed {
            return Err(Errno::Nomem);
        }
        for (path, accessed) in &tx.accessed {
            let now = self.nodes.get(path).map_or(ABSENT, |node| node.generation);
            if now != accessed.seen {
                return Err(Errno::Again);
            }
        }
        if let Some((domid, most)) = quota {
            let owns = |node: &&Node| node.perms.owner() == domid;
            let before = |path: &String| self.nodes.get(path).as_ref().is_some_and(owns) as isize;
            let grown: isize = tx
                .accessed
                .iter()
                .filter(|(_, accessed)| accessed.modified)
                .map(|(path, accessed)| {
                    accessed.copy.as_ref().is_some_and(|node| owns(&node)) as isize - before(path)
                })
                .sum();
            if grown > 0 && self.owned_by(domid) as isize + grown > most as isize {
                return Err(Errno::Nospc);
            }
        }
        for (path, accessed) in tx.accessed {
            if accessed.modified {
                match accessed.copy {
                    Some(node) => self.insert(&path, node),
                    None => self.remove(&path),
                }
            }
        }
        Ok(tx.changes)
    }

    /// Removes what a dead domain owned, and its name from the permissions of the rest.
    pub(super) fn forget_domain(&mut self, domid: DomId) {
        let owned: Vec<String> = self
            .nodes
            .iter()
            .filter(|(_, node)| node.perms.owner() == domid)
            .map(|(path, _)| path.clone())
            .collect();
        for path in owned {
            // Its parent may have gone first.
            if self.nodes.contains_key(&path) {
                let mut space = Space {
                    tree: self,
                    tx: None,
                };
                space.remove(&path);
            }
        }
        for node in self.nodes.values_mut() {
            node.perms.forget(domid);
        }
    }
}

impl Space<'_> {
    /// The transaction's record of a node, made at the first access.
    fn accessed<'a>(tree: &Tree, tx: &'a mut Transaction, path: &str) -> &'a mut Accessed {
        if !tx.accessed.contains_key(path) {
            let copy = tree.nodes.get(path).cloned();
            let accessed = Accessed {
                seen: copy.as_ref().map_or(ABSENT, |node| node.generation),
                copy,
                modified: false,
            };
            tx.accessed.insert(path.to_owned(), accessed);
        }
        tx.accessed.get_mut(path).expect("inserted above")
    }

    /// Nodes that a transaction has accessed.
    pub(super) fn accessed_count(&self) -> usize {
        self.tx.as_ref().map_or(0, |tx| tx.accessed.len())
    }

    /// Makes a transaction that went over its quota fail at its end.
    pub(super) fn fail(&mut self) {
        if let Some(tx) = &mut self.tx {
            tx.failed = true;
        }
    }

    pub(super) fn get(&mut self, path: &str) -> Option<&Node> {
        match &mut self.tx {
            Some(tx) => Self::accessed(self.tree, tx, path).copy.as_ref(),
            None => self.tree.nodes.get(path),
        }
    }

    /// Changes a node, if it exists.
    pub(super) fn modify(&mut self, path: &str, change: impl FnOnce(&mut Node)) {
        let generation = self.tree.next_generation();
        let node = match &mut self.tx {
            Some(tx) => {
                let accessed = Self::accessed(self.tree, tx, path);
                accessed.modified = true;
                accessed.copy.as_mut()
            }
            None => self.tree.nodes.get_mut(path),
        };
        let Some(node) = node else { return };
        let owner = node.perms.owner();
        change(node);
        node.generation = generation;
        let new_owner = node.perms.owner();
        if owner != new_owner && self.tx.is_none() {
            self.tree.disown(owner);
            *self.tree.owned.entry(new_owner).or_default() += 1;
        }
    }

    fn put(&mut self, path: &str, node: Node) {
        match &mut self.tx {
            Some(tx) => {
                let accessed = Self::accessed(self.tree, tx, path);
                accessed.modified = true;
                accessed.copy = Some(node);
            }
            None => self.tree.insert(path, node),
        }
    }

    /// Names of the missing nodes on the way to `path`, itself last; and the perms of the
    /// nearest that exists.
    pub(super) fn missing(&mut self, path: &str) -> (Vec<String>, Permissions) {
        let mut missing = Vec::new();
        let mut at = path.to_owned();
        loop {
            if let Some(node) = self.get(&at) {
                missing.reverse();
                return (missing, node.perms.clone());
            }
            let up = parent(&at).to_owned();
            missing.push(at);
            at = up;
        }
    }

    /// Creates a node and what is missing above it.
    pub(super) fn create(&mut self, path: &str, creator: DomId) {
        let (missing, perms) = self.missing(path);
        let perms = perms.inherit(creator);
        for path in missing {
            let name = basename(&path).to_owned();
            self.modify(parent(&path), |dir| dir.children.push(name));
            self.put(&path, Node::new(perms.clone()));
        }
    }

    /// Removes a node and all below it. Gives the removed nodes, leaves first.
    pub(super) fn remove(&mut self, path: &str) -> Vec<(String, Permissions)> {
        let name = basename(path).to_owned();
        self.modify(parent(path), |dir| {
            dir.children.retain(|child| *child != name)
        });
        let mut removed = Vec::new();
        self.remove_below(path, &mut removed);
        removed
    }

    fn remove_below(&mut self, path: &str, removed: &mut Vec<(String, Permissions)>) {
        let Some(node) = self.get(path) else { return };
        let perms = node.perms.clone();
        for child in node.children.clone() {
            self.remove_below(&join(path, &child), removed);
        }
        match &mut self.tx {
            Some(tx) => {
                let accessed = Self::accessed(self.tree, tx, path);
                accessed.modified = true;
                accessed.copy = None;
            }
            None => self.tree.remove(path),
        }
        removed.push((path.to_owned(), perms));
    }
}

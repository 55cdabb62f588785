// SPDX-License-Identifier: GPL-3.0-or-later
//! The hosts that an exporter has seen: which are connected, when the others last were, and what
//! their `vusbd` can do. It is for forecasts only: nothing is lent or refused by it.
//!
//! Times are seconds since 1970.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::control::Refusal;
use crate::{DeviceId, text};

#[cfg(test)]
mod tests;

/// Most hosts that are remembered: more than a pool has. One of each goes into [`KnownHost`]s, which
/// have to fit into a message.
pub const MAX_HOSTS: usize = 512;
/// Longest version of a `vusbd`, in bytes.
pub const MAX_VERSION_LEN: usize = 64;

/// What a host's `vusbd` says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Software {
    /// Its version, at most [`MAX_VERSION_LEN`] bytes.
    #[serde(deserialize_with = "crate::text::required")]
    pub version: String,
    /// Whether it makes the PV USB controller of a VM that arrives and has none yet.
    pub makes_controllers: bool,
}

impl Software {
    /// Whether an exporter takes it.
    ///
    /// # Errors
    /// [`Refusal::Limit`] says what is wrong with it.
    pub fn check(&self) -> Result<(), Refusal> {
        let refuse = |what: String| Err(Refusal::Limit(format!("the version of vusbd {what}")));
        match text::check(&self.version) {
            Err(e) => refuse(e.to_string()),
            Ok(()) if self.version.len() > MAX_VERSION_LEN => {
                refuse(format!("has more than {MAX_VERSION_LEN} bytes"))
            }
            Ok(()) => Ok(()),
        }
    }
}

/// A host as an exporter tells others of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownHost {
    /// Its name in the pool, from its certificate.
    #[serde(deserialize_with = "crate::text::required")]
    pub name: String,
    /// Whether its `vusbd` is connected now.
    pub connected: bool,
    /// How long ago it was connected last, in seconds; 0 while it is.
    pub seen_seconds: u64,
    /// What its `vusbd` said of itself when it was connected last; `None` where it said nothing.
    pub software: Option<Software>,
    /// Of the devices of the VM that was asked about, those that the exporter's policy does not allow
    /// to the VM on this host.
    pub refused: Vec<DeviceId>,
}

/// What of a host survives a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedHost {
    /// Its name.
    pub name: String,
    /// When it was connected last.
    pub seen: u64,
    /// What its `vusbd` said of itself.
    pub software: Option<Software>,
}

#[derive(Clone, Debug)]
struct Entry {
    /// Its control connections now.
    connections: u32,
    seen: u64,
    software: Option<Software>,
}

/// The hosts of one exporter; see the module's documentation.
#[derive(Clone, Debug, Default)]
pub struct HostTable {
    hosts: BTreeMap<String, Entry>,
    changes: u64,
}

impl HostTable {
    /// The hosts that were saved. None is connected.
    pub fn restore(saved: Vec<SavedHost>) -> Self {
        let hosts = saved.into_iter().take(MAX_HOSTS).map(|host| {
            let entry = Entry {
                connections: 0,
                seen: host.seen,
                software: host.software,
            };
            (host.name, entry)
        });
        Self {
            hosts: hosts.collect(),
            changes: 0,
        }
    }

    /// What to save.
    pub fn saved(&self, now: u64) -> Vec<SavedHost> {
        let saved = self.hosts.iter().map(|(name, entry)| SavedHost {
            name: name.clone(),
            seen: entry.seen_at(now),
            software: entry.software.clone(),
        });
        saved.collect()
    }

    /// Counts what is worth saving.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Whether any host is connected, so that the time at which it was seen goes on.
    pub fn any_connected(&self) -> bool {
        self.hosts.values().any(|entry| entry.connections > 0)
    }

    /// A control connection of this host has begun. Where too many are known, the one that has not been
    /// seen for the longest time is forgotten; while all of those are connected, nothing is noted.
    pub fn connected(&mut self, name: &str, now: u64) {
        if !self.hosts.contains_key(name) && !self.make_room() {
            return;
        }
        let entry = self.hosts.entry(name.to_owned()).or_insert(Entry {
            connections: 0,
            seen: now,
            software: None,
        });
        entry.connections = entry.connections.saturating_add(1);
        // A vusbd that says nothing of itself is another one than the one that did.
        if entry.connections == 1 {
            entry.software = None;
        }
        entry.seen = now;
        self.changes += 1;
    }

    /// One of the connections of this host has ended.
    pub fn disconnected(&mut self, name: &str, now: u64) {
        if let Some(entry) = self.hosts.get_mut(name) {
            entry.connections = entry.connections.saturating_sub(1);
            entry.seen = now;
            self.changes += 1;
        }
    }

    /// The `vusbd` of this host has said what it is.
    pub fn introduced(&mut self, name: &str, software: Software) {
        if let Some(entry) = self.hosts.get_mut(name)
            && entry.software.as_ref() != Some(&software)
        {
            entry.software = Some(software);
            self.changes += 1;
        }
    }

    /// Forgets a host that is gone for good.
    ///
    /// # Errors
    /// [`Refusal::Limit`] where it is connected, or not known.
    pub fn forget(&mut self, name: &str) -> Result<(), Refusal> {
        match self.hosts.get(name) {
            None => Err(Refusal::Limit(format!(
                "no host {name} has ever been connected here"
            ))),
            Some(entry) if entry.connections > 0 => Err(Refusal::Limit(format!(
                "host {name} is connected; stop vusbd there first, else it is known again at once"
            ))),
            Some(_) => {
                self.hosts.remove(name);
                self.changes += 1;
                Ok(())
            }
        }
    }

    /// Every host, by name. `refused` says which devices the policy does not allow there.
    pub fn known(&self, now: u64, refused: impl Fn(&str) -> Vec<DeviceId>) -> Vec<KnownHost> {
        let known = self.hosts.iter().map(|(name, entry)| KnownHost {
            name: name.clone(),
            connected: entry.connections > 0,
            seen_seconds: now.saturating_sub(entry.seen_at(now)),
            software: entry.software.clone(),
            refused: refused(name),
        });
        known.collect()
    }

    fn make_room(&mut self) -> bool {
        if self.hosts.len() < MAX_HOSTS {
            return true;
        }
        let gone = self.hosts.iter().filter(|(_, e)| e.connections == 0);
        let oldest = gone.min_by_key(|(_, e)| e.seen).map(|(n, _)| n.clone());
        oldest.is_some_and(|name| self.hosts.remove(&name).is_some())
    }
}

impl Entry {
    fn seen_at(&self, now: u64) -> u64 {
        match self.connections {
            0 => self.seen,
            _ => now,
        }
    }
}

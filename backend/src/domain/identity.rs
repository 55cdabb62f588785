// SPDX-License-Identifier: GPL-3.0-or-later
//! Which VM a domain is, from what the toolstack writes into xenstore. No I/O: [`Domains`](super::Domains)
//! reads the nodes and remembers the answers.
//!
//! | toolstack | target, while the VM arrives | source, when it has left |
//! |---|---|---|
//! | xl | the VM's uuid, name `X--incoming` | the VM's uuid, name `X--migratedaway` |
//! | xenopsd | a temporary uuid, and `/vm/TEMPORARY/final-uuid` | another temporary uuid, and `/vm/TEMPORARY/origin-uuid` |
//! | libvirt | the VM's uuid and name | the VM's uuid and name |
//!
//! xenopsd makes its temporary uuids of the first 24 characters of the VM's, and 12 digits: 1 at the target,
//! 0 at the source (`migrate` in xen-api's `xenops_server.ml`). It removes `final-uuid` in one step, and
//! moves the nodes to the VM's uuid in the next (`rename` in `xenops_server_xen.ml`): between the two
//! nothing in xenstore names the VM.

use serde::{Deserialize, Serialize};
use session::VmUuid;

const INCOMING: &str = "--incoming";
const LEFT: &str = "--migratedaway";

/// The last 12 digits of a uuid.
const LAST_DIGITS: u128 = (1 << 48) - 1;

/// Which end of a migration a temporary uuid is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Source = 0,
    Target = 1,
}

/// What xenstore says of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nodes {
    /// `UUID` of `/local/domain/N/vm`, which is `/vm/UUID`.
    pub uuid: VmUuid,
    /// `/local/domain/N/name`.
    pub name: String,
    /// `/vm/UUID/final-uuid`.
    pub final_uuid: Option<String>,
    /// `/vm/UUID/origin-uuid`.
    pub origin_uuid: Option<String>,
    /// Whether libxl made the domain, and xenopsd did not: then the uuid is the VM's, whatever its form.
    pub by_libxl: bool,
}

impl Nodes {
    /// Whether the uuid has the form of xenopsd's temporary ones.
    pub fn has_temporary_form(uuid: VmUuid) -> bool {
        uuid.0.as_u128() & LAST_DIGITS <= 1
    }

    /// Whether xenopsd calls this VM so, at this end of its migration.
    fn is_temporary_of(&self, vm: VmUuid, end: End) -> bool {
        let temporary = vm.0.as_u128() & !LAST_DIGITS | end as u128;
        self.uuid.0.as_u128() == temporary && vm != self.uuid
    }

    /// The VM that `final-uuid` or `origin-uuid` names.
    fn named(
        &self,
        node: &'static str,
        value: &Option<String>,
        end: End,
    ) -> Result<Option<VmUuid>, Nonsense> {
        let Some(value) = value else { return Ok(None) };
        let nonsense = |why| Nonsense {
            node,
            value: value.clone(),
            why,
        };
        let Ok(vm) = value.trim().parse::<VmUuid>() else {
            return Err(nonsense("it is not a uuid"));
        };
        if vm.0.is_nil() {
            return Err(nonsense("it is the uuid of dom0"));
        }
        if !self.is_temporary_of(vm, end) {
            return Err(nonsense(
                "the domain's uuid is not the temporary one that xenopsd makes of it",
            ));
        }
        Ok(Some(vm))
    }
}

/// `final-uuid` or `origin-uuid` says what xenopsd never writes; it is ignored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{node} is ignored: {why}")]
pub struct Nonsense {
    /// The node's name.
    pub node: &'static str,
    /// Its value.
    pub value: String,
    /// Why that is nonsense.
    pub why: &'static str,
}

/// Whether a VM comes from another domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Arrival {
    /// Nothing has said so: it boots, or is restored from a file, or its toolstack gives no sign.
    NoSign,
    /// The toolstack has said so, and the VM has not run here yet.
    Arrives,
    /// It runs here.
    Runs,
}

/// Which VM a domain is, as long as the domain lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The VM.
    pub vm: VmUuid,
    /// Whether it comes from another domain.
    pub arrival: Arrival,
}

impl Identity {
    /// A VM of which nothing else is known.
    pub fn of(vm: VmUuid) -> Self {
        let arrival = Arrival::NoSign;
        Self { vm, arrival }
    }
}

/// What the nodes say now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which VM it is; `None` where only a temporary uuid is known.
    pub identity: Option<Identity>,
    /// Whether the toolstack says now that the VM arrives: it has not let it run yet.
    pub incoming: bool,
    /// Whether the toolstack says that the VM has gone to another domain.
    pub leaves: bool,
    /// What was ignored.
    pub nonsense: Vec<Nonsense>,
}

/// Reads a domain's nodes; `known` is what was known of the domain of this number.
///
/// What is known holds until the domain is destroyed, and through every step of xenopsd's rename. Only a uuid of
/// another VM that is no temporary one ends it: then the number is another domain's.
pub fn identify(known: Option<Identity>, nodes: &Nodes) -> Seen {
    let mut nonsense = Vec::new();
    let mut named = |node, value, end| match nodes.named(node, value, end) {
        Ok(vm) => vm,
        Err(e) => {
            nonsense.push(e);
            None
        }
    };
    let target = named("final-uuid", &nodes.final_uuid, End::Target);
    let source = named("origin-uuid", &nodes.origin_uuid, End::Source);
    let is_temporary = !nodes.by_libxl && Nodes::has_temporary_form(nodes.uuid);
    let own = (!is_temporary && !nodes.uuid.0.is_nil()).then_some(nodes.uuid);
    let still = known.filter(|known| {
        let is_temporary_of = |end| nodes.is_temporary_of(known.vm, end);
        is_temporary_of(End::Target) || is_temporary_of(End::Source)
    });
    let vm = target.or(source).or(still.map(|known| known.vm)).or(own);
    let incoming = target.is_some() || nodes.name.ends_with(INCOMING);
    let leaves = source.is_some() || nodes.name.ends_with(LEFT);
    let identity = vm.map(|vm| {
        let before = known.filter(|known| known.vm == vm);
        let arrival = match before.map_or(Arrival::NoSign, |known| known.arrival) {
            Arrival::NoSign if incoming => Arrival::Arrives,
            arrival => arrival,
        };
        Identity { vm, arrival }
    });
    Seen {
        identity,
        incoming: incoming && identity.is_some_and(|i| i.arrival == Arrival::Arrives),
        leaves,
        nonsense,
    }
}

/// A domain's name as people know it, also where `xl` has changed it for a migration.
pub fn plain_name(name: &str) -> &str {
    let incoming = name.strip_suffix(INCOMING);
    incoming.or(name.strip_suffix(LEFT)).unwrap_or(name)
}

#[cfg(test)]
mod tests;

// SPDX-License-Identifier: GPL-3.0-or-later
//! The domains of this host: which VM each one is, whether it arrives or leaves. Everybody in vusbd asks
//! [`Domains`], and nobody reads a uuid from xenstore himself.

mod identity;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use session::VmUuid;
use slog::{Logger, info, warn};
use xen::DomId;
use xen::xenstore::{Error, XenStore};

pub use self::identity::Identity;
use self::identity::{Arrival, Nodes, Seen, identify, plain_name};
use crate::state::KnownDomains;

/// Where domains are.
pub const DOMAINS: &str = "/local/domain";

/// A domain of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Its number here.
    pub domid: DomId,
    /// What stays the same when it moves.
    pub vm: VmUuid,
    /// Its name, also `NAME--incoming` while `xl` brings it here.
    pub name: String,
    /// Whether the VM comes from another domain, and has not run in this one yet, by a sign of its toolstack.
    pub arrives: bool,
    /// Whether the toolstack still says so: the VM is not let run before it says so no more.
    pub incoming: bool,
    /// Whether the toolstack says that the VM has gone to another domain: so before it runs there.
    pub leaves: bool,
}

impl Domain {
    /// The VM's name as exporters take it: empty where it is too long for them.
    pub fn name_for_exporters(&self) -> String {
        let name = self.vm_name();
        let is_good = name.len() <= session::lease::MAX_VM_NAME_LEN;
        match is_good && session::text::check(name).is_ok() {
            true => name.to_owned(),
            false => String::new(),
        }
    }

    /// The VM's name, without what `xl` adds to it for a migration.
    pub fn vm_name(&self) -> &str {
        plain_name(&self.name)
    }
}

/// The domains of this host. Clones share what is known; a controller's thread has one, too.
#[derive(Clone, Debug)]
pub struct Domains {
    store: XenStore,
    known: Arc<Mutex<Known>>,
    log: Logger,
}

#[derive(Debug)]
struct Known {
    domains: BTreeMap<DomId, Identity>,
    /// What a later process is to know.
    file: KnownDomains,
    /// Nonsense that was said already.
    said: BTreeMap<DomId, Vec<String>>,
}

impl Known {
    fn save(&self, log: &Logger) {
        if let Err(e) = self.file.save(&self.domains) {
            warn!(
                log,
                "a vusbd that starts again in the middle of a migration by XAPI may not \
                know the VM: cannot write {}: {}",
                self.file.path().display(),
                e
            );
        }
    }
}

impl Domains {
    /// With what an earlier process has kept.
    pub fn new(store: XenStore, file: KnownDomains, log: Logger) -> Self {
        let domains = file.read(&log);
        let known = Known {
            domains,
            file,
            said: BTreeMap::new(),
        };
        Self {
            store,
            known: Arc::new(Mutex::new(known)),
            log,
        }
    }

    /// Nobody panics while holding it, and what is in it is whole at any time.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a domain. `None` when it is gone, or is no VM (dom0, a stub domain), or has only one of xenopsd's
    /// temporary uuids and nobody has seen which VM's: then it is worth another look when `/vm` changes.
    ///
    /// # Errors
    /// Those of xenstore.
    pub async fn read(&self, domid: DomId) -> Result<Option<Domain>, Error> {
        let Some(nodes) = self.nodes(domid).await? else {
            return Ok(None);
        };
        let seen = self.identify(domid, &nodes);
        Ok(seen.identity.map(|identity| Domain {
            domid,
            vm: identity.vm,
            name: nodes.name,
            arrives: identity.arrival == Arrival::Arrives,
            incoming: seen.incoming,
            leaves: seen.leaves,
        }))
    }

    async fn nodes(&self, domid: DomId) -> Result<Option<Nodes>, Error> {
        let read = async |path: String| self.store.read_optional(&path).await;
        let Some(vm) = read(format!("{DOMAINS}/{domid}/vm")).await? else {
            return Ok(None);
        };
        let Some(Ok(uuid)) = vm.strip_prefix("/vm/").map(str::parse) else {
            return Ok(None);
        };
        let name = read(format!("{DOMAINS}/{domid}/name")).await?;
        let exists = async |path: String| self.store.exists(&path).await;
        Ok(Some(Nodes {
            uuid,
            name: name.unwrap_or_default(),
            final_uuid: read(format!("{vm}/final-uuid")).await?,
            origin_uuid: read(format!("{vm}/origin-uuid")).await?,
            // Both make /libxl/N; only libxl writes the type there.
            by_libxl: Nodes::has_temporary_form(uuid)
                && exists(format!("/libxl/{domid}/type")).await?
                && !exists(format!("/xenops/domain/{domid}")).await?,
        }))
    }

    fn identify(&self, domid: DomId, nodes: &Nodes) -> Seen {
        let mut known = self.known();
        let before = known.domains.get(&domid).copied();
        let seen = identify(before, nodes);
        let mut texts: Vec<_> = seen.nonsense.iter().map(ToString::to_string).collect();
        texts.extend(seen.nonsense.iter().map(|n| n.value.clone()));
        if known.said.get(&domid) != Some(&texts) {
            for nonsense in &seen.nonsense {
                warn!(self.log, "/vm/{}/{}", nodes.uuid, nonsense; "domid" => domid.0,
                    "value" => nonsense.value.escape_default().to_string());
            }
            known.said.insert(domid, texts);
        }
        if let Some(identity) = seen.identity.filter(|now| before != Some(*now)) {
            if nodes.uuid != identity.vm {
                info!(self.log, "domain is known by its VM"; "domid" => domid.0,
                    "vm" => %identity.vm, "temporary" => %nodes.uuid);
            }
            known.domains.insert(domid, identity);
            known.save(&self.log);
        }
        seen
    }

    /// Whether a domain is there, and may be this VM. One whose VM is not known may be any.
    ///
    /// # Errors
    /// Those of xenstore.
    pub async fn may_be(&self, domid: DomId, vm: VmUuid) -> Result<bool, Error> {
        match self.read(domid).await? {
            Some(domain) => Ok(domain.vm == vm),
            None => Ok(self.nodes(domid).await?.is_some()),
        }
    }

    /// An earlier process has served this domain as that VM.
    pub fn was(&self, domid: DomId, vm: VmUuid) {
        let mut known = self.known();
        known.domains.entry(domid).or_insert(Identity::of(vm));
    }

    /// The VM runs in this domain: it does not arrive any more. Answers whether it did until now.
    pub fn runs(&self, domid: DomId) -> bool {
        let mut known = self.known();
        let Some(identity) = known.domains.get_mut(&domid) else {
            return false;
        };
        let before = std::mem::replace(&mut identity.arrival, Arrival::Runs);
        if before != Arrival::Runs {
            known.save(&self.log);
        }
        before == Arrival::Arrives
    }

    /// Forgets the domains that are not among these.
    pub fn keep(&self, there: &[DomId]) {
        let mut known = self.known();
        let before = known.domains.len();
        known.domains.retain(|domid, _| there.contains(domid));
        known.said.retain(|domid, _| there.contains(domid));
        if known.domains.len() != before {
            known.save(&self.log);
        }
    }

    /// The domids of this host, dom0 left out.
    ///
    /// # Errors
    /// Those of xenstore.
    pub async fn all(&self) -> Result<Vec<DomId>, Error> {
        let names = self.store.directory(DOMAINS).await?;
        Ok(names
            .iter()
            .filter_map(|n| n.parse().ok())
            .filter(|&n| n != 0)
            .map(DomId)
            .collect())
    }

    /// The domains that an administrator may mean: by number, name or uuid. One that still arrives or has left
    /// is meant by its number, and else only where there is no other.
    ///
    /// # Errors
    /// Those of xenstore.
    pub async fn find(&self, wanted: &str) -> Result<Vec<Domain>, Error> {
        let mut found = Vec::new();
        for domid in self.all().await? {
            let Some(domain) = self.read(domid).await? else {
                continue;
            };
            if wanted == domid.to_string() {
                return Ok(vec![domain]);
            }
            if wanted == domain.name || wanted.eq_ignore_ascii_case(&domain.vm.to_string()) {
                found.push(domain);
            }
        }
        let is_moving = |domain: &Domain| domain.incoming || domain.leaves;
        if !found.iter().all(is_moving) {
            found.retain(|domain| !is_moving(domain));
        }
        Ok(found)
    }
}

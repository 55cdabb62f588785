// SPDX-License-Identifier: GPL-3.0-or-later
//! Domains as xenstore knows them.

use session::VmUuid;
use xen::DomId;
use xen::xenstore::{Error, XenStore};

/// Where domains are.
pub const DOMAINS: &str = "/local/domain";

const INCOMING: &str = "--incoming";

/// A domain of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Its number here.
    pub domid: DomId,
    /// What stays the same when it moves.
    pub vm: VmUuid,
    /// Its name, also `NAME--incoming` while it arrives.
    pub name: String,
}

impl Domain {
    /// Reads one; `None` when it is gone, or not a VM of the toolstack (dom0, a stub domain).
    pub async fn read(store: &XenStore, domid: DomId) -> Result<Option<Self>, Error> {
        let Some(vm) = store
            .read_optional(&format!("{DOMAINS}/{domid}/vm"))
            .await?
        else {
            return Ok(None);
        };
        let Some(Ok(vm)) = vm.strip_prefix("/vm/").map(str::parse) else {
            return Ok(None);
        };
        let name = store
            .read_optional(&format!("{DOMAINS}/{domid}/name"))
            .await?;
        Ok(Some(Self {
            domid,
            vm,
            name: name.unwrap_or_default(),
        }))
    }

    /// Whether `xl migrate` is still bringing it here (`migrate_receive` in `xl_migrate.c`).
    pub fn is_incoming(&self) -> bool {
        self.name.ends_with(INCOMING)
    }

    /// The guest runs here.
    pub fn has_arrived(&mut self) {
        if let Some(name) = self.name.strip_suffix(INCOMING) {
            self.name = name.to_owned();
        }
    }

    /// Whether `xl migrate` has sent it elsewhere: it renames the source before it says "go"
    /// (`migrate_domain` in `xl_migrate.c`), so before the guest runs there.
    pub fn has_left(&self) -> bool {
        self.name.ends_with("--migratedaway")
    }

    /// The domids of this host, dom0 left out.
    pub async fn all(store: &XenStore) -> Result<Vec<DomId>, Error> {
        let names = store.directory(DOMAINS).await?;
        Ok(names
            .iter()
            .filter_map(|n| n.parse().ok())
            .filter(|&n| n != 0)
            .map(DomId)
            .collect())
    }

    /// The domain that an administrator means: by number, name or uuid. A domain that is still
    /// arriving or already leaving is never meant by its name.
    pub async fn find(store: &XenStore, wanted: &str) -> Result<Option<Self>, Error> {
        for domid in Self::all(store).await? {
            let Some(domain) = Self::read(store, domid).await? else {
                continue;
            };
            if wanted == domid.to_string()
                || wanted == domain.name
                || wanted.eq_ignore_ascii_case(&domain.vm.to_string())
            {
                return Ok(Some(domain));
            }
        }
        Ok(None)
    }
}

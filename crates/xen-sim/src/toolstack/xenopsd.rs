// SPDX-License-Identifier: GPL-3.0-or-later
//! Domains as xenopsd makes, moves and ends them (xen-api: `xenops_server.ml`, `xenops_server_xen.ml`,
//! `xc/domain.ml`).

use std::io;

use uuid::Uuid;
use xen::DomId;

use super::dialect::Step;
use super::domain::{domain_path, make_node};
use super::{DomainConfig, Store, Toolstack, ToolstackError};
use crate::wire::Request;

/// The last 12 digits of a uuid.
const LAST_DIGITS: u128 = (1 << 48) - 1;

/// `tmp_uuid_of`: the uuid of a VM's domain at this end of its migration.
fn temporary(uuid: Uuid, end: u128) -> Uuid {
    Uuid::from_u128(uuid.as_u128() & !LAST_DIGITS | end)
}

/// What the source's domain is renamed to.
pub fn temporary_source(uuid: Uuid) -> Uuid {
    temporary(uuid, 0)
}

/// What the target's domain is made with.
pub fn temporary_target(uuid: Uuid) -> Uuid {
    temporary(uuid, 1)
}

impl Toolstack {
    /// `VM_create` of a migration's target.
    pub(super) fn make_xenopsd_target(
        &self,
        config: &DomainConfig,
    ) -> Result<DomId, ToolstackError> {
        let final_uuid = Some(config.uuid);
        let target = DomainConfig {
            uuid: temporary_target(config.uuid),
            ..config.clone()
        };
        self.make_domain_with(&target, |t, domid| {
            write_nodes(t, domid, &target, final_uuid)
        })
    }

    /// `VM_create` of a VM that starts.
    pub(super) fn make_xenopsd_domain(
        &self,
        config: &DomainConfig,
    ) -> Result<DomId, ToolstackError> {
        self.make_domain_with(config, |t, domid| write_nodes(t, domid, config, None))
    }

    /// `VM_rename` with `Pre_migration`.
    pub(super) fn rename_xenopsd_source(
        &self,
        domid: DomId,
        config: &DomainConfig,
    ) -> Result<(), ToolstackError> {
        let to = temporary_source(config.uuid);
        let mut store = self.store()?;
        store.write(&format!("/vm/{to}/origin-uuid"), &config.uuid.to_string())?;
        move_tree(&mut store, &domain_path(domid), config.uuid, to)?;
        move_tree(&mut store, &format!("/vm/{}", config.uuid), config.uuid, to)?;
        Ok(())
    }

    /// `VM_rename` with `Post_migration`.
    pub(super) fn rename_xenopsd_target(
        &self,
        domid: DomId,
        config: &DomainConfig,
        step: &mut dyn FnMut(Step, DomId),
    ) -> Result<(), ToolstackError> {
        let from = temporary_target(config.uuid);
        let mut store = self.store()?;
        store.rm(&format!("/vm/{from}/final-uuid"))?;
        step(Step::FinalUuidRemoved, domid);
        move_tree(&mut store, &domain_path(domid), from, config.uuid)?;
        step(Step::DomainMoved, domid);
        move_tree(&mut store, &format!("/vm/{from}"), from, config.uuid)?;
        Ok(())
    }

    /// `Domain.destroy` and `VM_remove`: the domain first, then its nodes, and its backends wholesale. Nobody
    /// is asked to close anything that xenopsd does not know.
    pub(super) fn destroy_xenopsd_domain(&self, domid: DomId) -> Result<(), ToolstackError> {
        let closed = false;
        self.call(
            &Request::DestroyDomain {
                domid: domid.0,
                closed,
            },
            &[],
        )?;
        let dom = domain_path(domid);
        let mut store = self.store()?;
        let vm = store.read(&format!("{dom}/vm"))?;
        if let Some(vm) = &vm {
            store.rm(&format!("{vm}/domains/{domid}"))?;
        }
        store.rm(&dom)?;
        store.rm(&format!("/xenops/domain/{domid}"))?;
        store.rm(&format!("/libxl/{domid}"))?;
        let backends = format!("{}/backend", domain_path(DomId(0)));
        for kind in store.directory(&backends)? {
            store.rm(&format!("{backends}/{kind}/{domid}"))?;
        }
        // Another domain may have its name already, where a VM moves within its host.
        if let Some(vm) = vm
            && store.directory(&format!("{vm}/domains"))?.is_empty()
        {
            store.rm(&vm)?;
        }
        Ok(())
    }
}

/// `Domain.make`.
fn write_nodes(
    t: &mut Store,
    domid: DomId,
    config: &DomainConfig,
    final_uuid: Option<Uuid>,
) -> io::Result<()> {
    let dom = domain_path(domid);
    let vm = format!("/vm/{}", config.uuid);
    let private = ["n0".to_owned()];
    let ro = ["n0".to_owned(), format!("r{domid}")];
    let rw = [format!("n{domid}")];
    let xenops = format!("/xenops/domain/{domid}");
    let libxl = format!("/libxl/{domid}");
    for (path, perms) in [
        (&dom, &ro[..]),
        (&xenops, &private[..]),
        (&libxl, &private[..]),
    ] {
        t.rm(path)?;
        make_node(t, path, perms)?;
    }
    if t.read(&vm)?.is_none() {
        make_node(t, &vm, &ro)?;
        t.write(&format!("{vm}/uuid"), &config.uuid.to_string())?;
        t.write(&format!("{vm}/name"), &config.name)?;
        if let Some(final_uuid) = final_uuid {
            t.write(&format!("{vm}/final-uuid"), &final_uuid.to_string())?;
        }
    }
    t.write(&format!("{vm}/domains/{domid}"), &dom)?;
    t.write(&format!("{vm}/domains/{domid}/create-time"), "1")?;
    t.write(&format!("{dom}/vm"), &vm)?;
    t.write(&format!("{dom}/name"), &config.name)?;
    for dir in ["cpu", "memory"] {
        make_node(t, &format!("{dom}/{dir}"), &ro)?;
    }
    for dir in [
        "device",
        "device/vbd",
        "device/9pfs",
        "device/vif",
        "feature",
        "error",
        "drivers",
        "control",
        "attr",
        "xenserver/attr",
        "data",
        "messages",
        "vm-data",
        "hvmloader",
        "rrd",
    ] {
        make_node(t, &format!("{dom}/{dir}"), &rw)?;
    }
    for dir in ["device", "device/vbd", "device/9pfs", "device/vif"] {
        make_node(t, &format!("{xenops}/{dir}"), &private)?;
    }
    t.write(&format!("{dom}/action-request"), "poweroff")?;
    for feature in ["multiprocessor-suspend", "xs_reset_watches"] {
        t.write(&format!("{dom}/control/platform-feature-{feature}"), "1")?;
    }
    let id = Uuid::new_v4().to_string();
    t.write(&format!("{dom}/unique-domain-id"), &id)
}

/// `Domain.move_xstree`: a tree's own name, the names in it and the values in it that have the uuid get the other
/// one, in one transaction. What is written again has the permissions of its directory.
fn move_tree(store: &mut Store, path: &str, from: Uuid, to: Uuid) -> io::Result<()> {
    let (from, to) = (from.to_string(), to.to_string());
    store.transaction(|t| match t.read(path)? {
        None => Ok(()),
        Some(_) => {
            let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
            let tree = read_tree(t, dir, name)?;
            fix_tree(t, dir, &tree, (&from, &to), false)
        }
    })
}

struct Tree {
    name: String,
    value: String,
    children: Vec<Tree>,
}

fn read_tree(t: &mut Store, dir: &str, name: &str) -> io::Result<Tree> {
    let path = format!("{dir}/{name}");
    let mut children = Vec::new();
    for child in t.directory(&path)? {
        children.push(read_tree(t, &path, &child)?);
    }
    Ok(Tree {
        name: name.to_owned(),
        value: t.read(&path)?.unwrap_or_default(),
        children,
    })
}

fn fix_tree(
    t: &mut Store,
    dir: &str,
    tree: &Tree,
    (from, to): (&str, &str),
    write: bool,
) -> io::Result<()> {
    let name = tree.name.replace(from, to);
    let value = tree.value.replace(from, to);
    let renamed = name != tree.name;
    if renamed {
        t.rm(&format!("{dir}/{}", tree.name))?;
    }
    let path = format!("{dir}/{name}");
    if write || renamed || value != tree.value {
        t.write(&path, &value)?;
    }
    for child in &tree.children {
        fix_tree(t, &path, child, (from, to), write || renamed)?;
    }
    Ok(())
}

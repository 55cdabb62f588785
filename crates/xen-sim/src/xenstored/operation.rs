// SPDX-License-Identifier: GPL-3.0-or-later
//! The operations on nodes, inside a transaction or not.

use xen::DomId;

use super::path::canonicalize;
use super::perms::{Permissions, Rights};
use super::quota;
use super::request::{Reply, number, ok, one_string, strings};
use super::tree::{Change, Reach, Space, parent};
use super::wire::{Errno, Message, PAYLOAD_MAX, kind};

/// Carries out one operation. What it changes is added to `changes`.
pub(super) fn node_operation(
    space: &mut Space<'_>,
    domid: DomId,
    request: &Message,
    changes: &mut Vec<Change>,
) -> Reply {
    let payload = &request.payload;
    match request.kind {
        kind::READ => {
            let path = readable(space, domid, one_string(payload)?, false)?;
            Ok(space.get(&path).ok_or(Errno::Noent)?.value.clone())
        }
        kind::DIRECTORY => {
            let path = readable(space, domid, one_string(payload)?, false)?;
            let mut list = Vec::new();
            for name in &space.get(&path).ok_or(Errno::Noent)?.children {
                list.extend_from_slice(name.as_bytes());
                list.push(0);
            }
            Ok(list)
        }
        kind::DIRECTORY_PART => directory_part(space, domid, payload),
        kind::GET_PERMS => {
            let path = readable(space, domid, one_string(payload)?, true)?;
            Ok(space.get(&path).ok_or(Errno::Noent)?.perms.encode())
        }
        kind::WRITE => {
            let end = payload
                .iter()
                .position(|byte| *byte == 0)
                .ok_or(Errno::Inval)?;
            let (path, value) = (&payload[..end], &payload[end + 1..]);
            let path = write(space, domid, path, Some(value))?;
            changes.extend(path.map(changed));
            Ok(ok())
        }
        kind::MKDIR => {
            let path = write(space, domid, one_string(payload)?, None)?;
            changes.extend(path.map(changed));
            Ok(ok())
        }
        kind::RM => remove(space, domid, one_string(payload)?, changes),
        kind::SET_PERMS => set_perms(space, domid, payload, changes),
        _ => Err(Errno::Nosys),
    }
}

fn changed(path: String) -> Change {
    Change {
        path,
        reach: Reach::Ancestors,
        old_perms: None,
    }
}

/// The error for a node that is missing or forbidden. Whoever has no rights on the nearest
/// directory that exists does not learn which.
fn check(space: &mut Space<'_>, domid: DomId, path: &str, wanted: Rights) -> Result<(), Errno> {
    let errno = match space.get(path) {
        Some(node) if node.perms.rights(domid).cover(wanted) => return Ok(()),
        Some(_) => Errno::Acces,
        None => Errno::Noent,
    };
    let mut dir = parent(path);
    loop {
        if let Some(node) = space.get(dir) {
            let known = node.perms.rights(domid).overlap(wanted);
            return Err(if known { errno } else { Errno::Acces });
        }
        dir = parent(dir);
    }
}

fn readable(
    space: &mut Space<'_>,
    domid: DomId,
    path: &[u8],
    allow_special: bool,
) -> Result<String, Errno> {
    let path = canonicalize(domid, path, allow_special)?;
    check(space, domid, &path, Rights::READ)?;
    Ok(path)
}

/// Writes a value, or only makes the node (`value` is `None`). Gives the path when it changed.
fn write(
    space: &mut Space<'_>,
    domid: DomId,
    path: &[u8],
    value: Option<&[u8]>,
) -> Result<Option<String>, Errno> {
    let path = canonicalize(domid, path, false)?;
    let guest = domid != DomId(0);
    match check(space, domid, &path, Rights::WRITE) {
        Ok(()) if value.is_none() => return Ok(None),
        Ok(()) => {}
        Err(Errno::Noent) => {
            let (missing, _) = space.missing(&path);
            let outside_tx = space.tx.is_none();
            if guest && outside_tx && space.tree.owned_by(domid) + missing.len() > quota::NODES {
                return Err(Errno::Nospc);
            }
            check_size(guest, value)?;
            space.create(&path, domid);
        }
        Err(errno) => return Err(errno),
    }
    check_size(guest, value)?;
    if let Some(value) = value {
        space.modify(&path, |node| node.value = value.to_vec());
    }
    Ok(Some(path))
}

fn check_size(guest: bool, value: Option<&[u8]>) -> Result<(), Errno> {
    let len_bytes = value.map_or(0, <[u8]>::len);
    if guest && len_bytes > quota::NODE_BYTES {
        return Err(Errno::Nospc);
    }
    Ok(())
}

fn remove(space: &mut Space<'_>, domid: DomId, path: &[u8], changes: &mut Vec<Change>) -> Reply {
    let path = canonicalize(domid, path, false)?;
    match check(space, domid, &path, Rights::WRITE) {
        Ok(()) => {}
        // Just as good, if its directory exists.
        Err(Errno::Noent) if space.get(parent(&path)).is_some() => return Ok(ok()),
        Err(errno) => return Err(errno),
    }
    if path == "/" {
        return Err(Errno::Inval);
    }
    for (removed, perms) in space.remove(&path) {
        changes.push(Change {
            reach: if removed == path {
                Reach::Ancestors
            } else {
                Reach::Exact
            },
            path: removed,
            old_perms: Some(perms),
        });
    }
    Ok(ok())
}

fn set_perms(
    space: &mut Space<'_>,
    domid: DomId,
    payload: &[u8],
    changes: &mut Vec<Change>,
) -> Reply {
    let fields = strings(payload)?;
    let (path, entries) = fields.split_first().ok_or(Errno::Inval)?;
    let perms = Permissions::parse(entries.iter().copied())?;
    if domid != DomId(0) && perms.len() > quota::PERMISSIONS {
        return Err(Errno::Nospc);
    }
    let path = canonicalize(domid, path, true)?;
    check(space, domid, &path, Rights::WRITE_AS_OWNER)?;
    let old = space.get(&path).ok_or(Errno::Noent)?.perms.clone();
    if domid != DomId(0) && perms.owner() != old.owner() {
        return Err(Errno::Perm);
    }
    space.modify(&path, |node| node.perms = perms);
    changes.push(Change {
        path,
        reach: Reach::Ancestors,
        old_perms: Some(old),
    });
    Ok(ok())
}

/// A piece of a long directory: `<generation>\0<name>\0<name>\0`, and an empty name at the end.
fn directory_part(space: &mut Space<'_>, domid: DomId, payload: &[u8]) -> Reply {
    let [path, offset] = strings(payload)?[..] else {
        return Err(Errno::Inval);
    };
    let path = readable(space, domid, path, false)?;
    let offset: usize = number(offset)?;
    let node = space.get(&path).ok_or(Errno::Noent)?;
    let mut reply = format!("{}\0", node.generation).into_bytes();
    let room = PAYLOAD_MAX - 1;
    let mut at = 0;
    for name in &node.children {
        let entry = name.len() + 1;
        if at >= offset {
            if reply.len() + entry > room {
                return Ok(reply);
            }
            reply.extend_from_slice(name.as_bytes());
            reply.push(0);
        }
        at += entry;
    }
    reply.push(0);
    Ok(reply)
}

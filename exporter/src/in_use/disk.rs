// SPDX-License-Identifier: GPL-3.0-or-later
//! Who uses the block devices of a USB device.

use std::path::Path;

use super::snapshot::{Block, Snapshot};

/// What uses a block device of the USB device in this directory, and what to do about it.
pub(super) fn user(snapshot: &Snapshot, device: &Path) -> Option<String> {
    let mut blocks = snapshot
        .blocks
        .iter()
        .filter(|b| b.path.starts_with(device));
    let mut first = blocks.clone();
    if let Some(by) = blocks.find_map(|block| user_of(snapshot, block, &mut Vec::new())) {
        return Some(by);
    }
    // Of a disk nothing is supposed.
    match (first.next(), snapshot.unknown.first()) {
        (Some(block), Some(unknown)) => {
            Some(format!("nobody knows who uses {}: {unknown}", block.name))
        }
        _ => None,
    }
}

/// What uses this block device, directly or through others that are stacked on it.
fn user_of<'a>(
    snapshot: &'a Snapshot,
    block: &'a Block,
    below: &mut Vec<&'a str>,
) -> Option<String> {
    let name = &*block.name;
    // Only a damaged sysfs has circles.
    if below.contains(&name) {
        return None;
    }
    below.push(name);
    let used = direct_user(snapshot, block).or_else(|| {
        let holders = snapshot.blocks.iter().filter(|b| holds(snapshot, b, block));
        let mut known = holders.map(|holder| {
            let (what, remedy) = describe(holder);
            match user_of(snapshot, holder, below) {
                Some(by) => format!("{what} is made of {name}; {by}; then {remedy}"),
                None => format!("{what} is made of {name}; {remedy} first"),
            }
        });
        let unknown = || {
            let holder = block.holders.first()?;
            Some(format!("{holder} is made of {name}; stop it first"))
        };
        known.next().or_else(unknown)
    });
    below.pop();
    used
}

/// What uses it as it is.
fn direct_user(snapshot: &Snapshot, block: &Block) -> Option<String> {
    let name = &block.name;
    if let Some(point) = mounted_at(snapshot, block) {
        return Some(format!("{name} is mounted at {point}; unmount it first"));
    }
    let is_this = |node: &&String| find(snapshot, node).is_some_and(|b| b.name == *name);
    if snapshot.swaps.iter().any(|node| is_this(&node)) {
        return Some(format!(
            "{name} is in use as swap; run `swapoff /dev/{name}` first"
        ));
    }
    let mut spread = snapshot.spread.iter();
    if let Some(of) = spread.find(|s| s.blocks.contains(name)) {
        let mut others = snapshot
            .blocks
            .iter()
            .filter(|b| of.blocks.contains(&b.name));
        return Some(match others.find_map(|b| mounted_at(snapshot, b)) {
            Some(point) => {
                format!(
                    "{name} is part of the {} file system at {point}; unmount it first",
                    of.kind
                )
            }
            None => format!(
                "{name} is part of the {} file system {}, which is mounted; unmount it first",
                of.kind, of.name
            ),
        });
    }
    if block.bcache && block.holders.is_empty() {
        return Some(format!(
            "{name} is registered with bcache; stop that first (/sys/block/…/bcache/stop)"
        ));
    }
    if block.zfs && !snapshot.pools.is_empty() {
        return Some(format!(
            "{name} is part of a ZFS pool, perhaps of one that is imported here ({}); run `zpool export` \
             first",
            snapshot.pools.join(", ")
        ));
    }
    None
}

fn mounted_at<'a>(snapshot: &'a Snapshot, block: &Block) -> Option<&'a str> {
    let is_this = |node: &String| find(snapshot, node).is_some_and(|b| b.name == block.name);
    let mut mounts = snapshot.mounts.iter();
    let mount = mounts.find(|m| m.number == block.number || m.sources.iter().any(is_this))?;
    Some(&mount.point)
}

/// Whether `upper` is stacked on `lower`.
fn holds(snapshot: &Snapshot, upper: &Block, lower: &Block) -> bool {
    let is_lower = |node: &String| find(snapshot, node).is_some_and(|b| b.name == lower.name);
    lower.holders.contains(&upper.name) || upper.backing_file.as_ref().is_some_and(is_lower)
}

/// The block device of a node in /dev.
fn find<'a>(snapshot: &'a Snapshot, node: &str) -> Option<&'a Block> {
    let name = node.strip_prefix("/dev/")?;
    let mapped = name.strip_prefix("mapper/");
    // sysfs writes a "/" in a name as "!".
    let name = name.replace('/', "!");
    snapshot.blocks.iter().find(|block| {
        let mapped_name = block.mapped.as_ref().map(|(name, _)| &**name);
        block.name == name || (mapped.is_some() && mapped == mapped_name)
    })
}

/// What a stacked block device is, and how it is taken down.
fn describe(block: &Block) -> (String, String) {
    let name = &block.name;
    if let Some((mapped, uuid)) = &block.mapped {
        let (what, remedy) = match uuid.split('-').next() {
            Some("CRYPT") => (
                "the encrypted device",
                format!("`cryptsetup close {mapped}`"),
            ),
            Some("LVM") => (
                "the LVM volume",
                "`vgchange --activate n` of its volume group".to_owned(),
            ),
            Some("mpath") => ("the multipath device", format!("`multipath -f {mapped}`")),
            _ => (
                "the device mapper's device",
                format!("`dmsetup remove {mapped}`"),
            ),
        };
        return (format!("{what} {mapped}"), format!("run {remedy}"));
    }
    if block.backing_file.is_some() {
        let remedy = format!("run `losetup --detach /dev/{name}`");
        return (format!("the loop device {name}"), remedy);
    }
    if name.starts_with("md") {
        let remedy = format!("run `mdadm --stop /dev/{name}`");
        return (format!("the RAID array {name}"), remedy);
    }
    if name.starts_with("bcache") {
        let remedy = format!("stop {name} (/sys/block/{name}/bcache/stop)");
        return (format!("the bcache device {name}"), remedy);
    }
    (format!("the block device {name}"), format!("stop {name}"))
}

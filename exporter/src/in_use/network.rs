// SPDX-License-Identifier: GPL-3.0-or-later
//! Network adapters that this machine is on the network with; our own hosts come over one of them.

use std::path::Path;

use super::snapshot::{Interface, Snapshot};

/// The adapter of the USB device in this directory that is in use, and what to do about it.
pub(super) fn user(snapshot: &Snapshot, device: &Path) -> Option<String> {
    let interfaces = &snapshot.interfaces;
    let mut own = interfaces.iter().filter(|i| i.path.starts_with(device));
    own.find_map(|interface| {
        let name = &interface.name;
        let carrier = carrier(snapshot, interface, &mut Vec::new())?;
        let how = match carrier == name {
            true => format!("the network adapter {name} has a route"),
            false => format!("the network adapter {name} belongs to {carrier}, which has a route"),
        };
        Some(format!(
            "{how}; take it down first (`ip link set {name} down`), and have nothing bring it up again"
        ))
    })
}

/// Which interface has the route: this one, or one that is stacked on it.
fn carrier<'a>(
    snapshot: &'a Snapshot,
    interface: &'a Interface,
    below: &mut Vec<&'a str>,
) -> Option<&'a str> {
    let name = &*interface.name;
    if interface.has_route {
        return Some(name);
    }
    if below.contains(&name) {
        return None;
    }
    below.push(name);
    let uppers = snapshot.interfaces.iter();
    let mut uppers = uppers.filter(|i| interface.uppers.contains(&i.name));
    let found = uppers.find_map(|upper| carrier(snapshot, upper, below));
    below.pop();
    found
}

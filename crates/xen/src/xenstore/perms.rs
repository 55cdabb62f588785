// SPDX-License-Identifier: GPL-3.0-or-later
//! Permissions of a node.

use crate::DomId;

/// What a domain may do with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NodeAccess {
    /// Nothing (`n`).
    None,
    /// Read (`r`).
    Read,
    /// Write (`w`).
    Write,
    /// Read and write (`b`).
    Both,
}

/// One entry of a node's permissions. The first entry of a node names its owner, who may do
/// everything, and what domains may do that are not listed; each further one grants to a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Permission {
    /// The domain.
    pub domain: DomId,
    /// What it may do; in the first entry, what all others may do.
    pub access: NodeAccess,
}

impl Permission {
    /// The entry as the protocol writes it, such as `r3`.
    pub fn to_wire(self) -> String {
        let letter = match self.access {
            NodeAccess::None => 'n',
            NodeAccess::Read => 'r',
            NodeAccess::Write => 'w',
            NodeAccess::Both => 'b',
        };
        format!("{letter}{}", self.domain)
    }

    /// Reads an entry such as `r3`; `None` when it is not one.
    pub fn from_wire(entry: &str) -> Option<Permission> {
        let mut letters = entry.chars();
        let access = match letters.next()? {
            'n' => NodeAccess::None,
            'r' => NodeAccess::Read,
            'w' => NodeAccess::Write,
            'b' => NodeAccess::Both,
            _ => return None,
        };
        let domain = DomId(letters.as_str().parse().ok()?);
        Some(Permission { domain, access })
    }
}

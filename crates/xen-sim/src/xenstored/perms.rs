// SPDX-License-Identifier: GPL-3.0-or-later
//! Who may read and write a node.

use xen::DomId;

use super::wire::Errno;

/// What is asked for, or allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rights {
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) owner: bool,
}

impl Rights {
    pub(super) const READ: Rights = Rights {
        read: true,
        write: false,
        owner: false,
    };
    pub(super) const WRITE: Rights = Rights {
        read: false,
        write: true,
        owner: false,
    };
    pub(super) const WRITE_AS_OWNER: Rights = Rights {
        read: false,
        write: true,
        owner: true,
    };
    const ALL: Rights = Rights {
        read: true,
        write: true,
        owner: true,
    };

    /// All of `wanted` are here.
    pub(super) fn cover(self, wanted: Rights) -> bool {
        self.intersect(wanted) == wanted
    }

    /// Any of `wanted` is here.
    pub(super) fn overlap(self, wanted: Rights) -> bool {
        let both = self.intersect(wanted);
        both.read || both.write || both.owner
    }

    fn intersect(self, other: Rights) -> Rights {
        Rights {
            read: self.read && other.read,
            write: self.write && other.write,
            owner: self.owner && other.owner,
        }
    }
}

/// One entry, as on the wire: `n5`, `r0`, `w3`, `b7`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Permission {
    pub(super) domid: DomId,
    read: bool,
    write: bool,
}

impl Permission {
    pub(super) fn none(domid: DomId) -> Permission {
        Permission {
            domid,
            read: false,
            write: false,
        }
    }

    fn parse(text: &[u8]) -> Result<Permission, Errno> {
        let (letter, number) = text.split_first().ok_or(Errno::Inval)?;
        let (read, write) = match letter {
            b'n' => (false, false),
            b'r' => (true, false),
            b'w' => (false, true),
            b'b' => (true, true),
            _ => return Err(Errno::Inval),
        };
        let number = std::str::from_utf8(number).map_err(|_| Errno::Inval)?;
        Ok(Permission {
            domid: DomId(number.parse().map_err(|_| Errno::Inval)?),
            read,
            write,
        })
    }

    fn encode(self, to: &mut Vec<u8>) {
        let letter = match (self.read, self.write) {
            (false, false) => 'n',
            (true, false) => 'r',
            (false, true) => 'w',
            (true, true) => 'b',
        };
        to.extend_from_slice(format!("{letter}{}\0", self.domid).as_bytes());
    }
}

/// The permissions of a node. The first entry names the owner, and what everybody may do who is
/// not listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Permissions(Vec<Permission>);

impl Permissions {
    pub(super) fn owned_by(domid: DomId) -> Permissions {
        Permissions(vec![Permission::none(domid)])
    }

    pub(super) fn parse<'a>(entries: impl Iterator<Item = &'a [u8]>) -> Result<Permissions, Errno> {
        let list = entries
            .map(Permission::parse)
            .collect::<Result<Vec<_>, _>>()?;
        if list.is_empty() {
            return Err(Errno::Inval);
        }
        Ok(Permissions(list))
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for entry in &self.0 {
            entry.encode(&mut bytes);
        }
        bytes
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn owner(&self) -> DomId {
        self.0[0].domid
    }

    /// For a new node below one with these permissions.
    pub(super) fn inherit(&self, creator: DomId) -> Permissions {
        let mut inherited = self.clone();
        if creator != DomId(0) {
            inherited.0[0].domid = creator;
        }
        inherited
    }

    pub(super) fn rights(&self, domid: DomId) -> Rights {
        if domid == DomId(0) || domid == self.owner() {
            return Rights::ALL;
        }
        let listed = self.0[1..].iter().find(|entry| entry.domid == domid);
        let entry = listed.unwrap_or(&self.0[0]);
        Rights {
            read: entry.read,
            write: entry.write,
            owner: false,
        }
    }

    /// Takes away what a domain that is gone had; its number may come again.
    pub(super) fn forget(&mut self, domid: DomId) {
        let mut first = true;
        self.0
            .retain(|entry| std::mem::take(&mut first) || entry.domid != domid);
    }
}

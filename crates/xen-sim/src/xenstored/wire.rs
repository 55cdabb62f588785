// SPDX-License-Identifier: GPL-3.0-or-later
//! The xenstore wire protocol (`xs_wire.h`).

use std::io::{self, Read};

/// Largest payload, bytes (`XENSTORE_PAYLOAD_MAX`).
pub(crate) const PAYLOAD_MAX: usize = 4096;
/// Longest path below a domain's directory (`XENSTORE_REL_PATH_MAX`).
pub(crate) const REL_PATH_MAX: usize = 2048;

/// Message types (`enum xsd_sockmsg_type`).
pub(crate) mod kind {
    pub(crate) const CONTROL: u32 = 0;
    pub(crate) const DIRECTORY: u32 = 1;
    pub(crate) const READ: u32 = 2;
    pub(crate) const GET_PERMS: u32 = 3;
    pub(crate) const WATCH: u32 = 4;
    pub(crate) const UNWATCH: u32 = 5;
    pub(crate) const TRANSACTION_START: u32 = 6;
    pub(crate) const TRANSACTION_END: u32 = 7;
    pub(crate) const INTRODUCE: u32 = 8;
    pub(crate) const RELEASE: u32 = 9;
    pub(crate) const GET_DOMAIN_PATH: u32 = 10;
    pub(crate) const WRITE: u32 = 11;
    pub(crate) const MKDIR: u32 = 12;
    pub(crate) const RM: u32 = 13;
    pub(crate) const SET_PERMS: u32 = 14;
    pub(crate) const WATCH_EVENT: u32 = 15;
    pub(crate) const ERROR: u32 = 16;
    pub(crate) const IS_DOMAIN_INTRODUCED: u32 = 17;
    pub(crate) const RESUME: u32 = 18;
    pub(crate) const RESET_WATCHES: u32 = 21;
    pub(crate) const DIRECTORY_PART: u32 = 22;
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) kind: u32,
    pub(crate) req_id: u32,
    pub(crate) tx_id: u32,
    pub(crate) payload: Vec<u8>,
}

impl Message {
    /// Appends header and payload.
    pub(crate) fn encode(&self, to: &mut Vec<u8>) {
        let len = self.payload.len() as u32;
        for word in [self.kind, self.req_id, self.tx_id, len] {
            to.extend_from_slice(&word.to_ne_bytes());
        }
        to.extend_from_slice(&self.payload);
    }

    /// Reads one message. `None` at the end of the stream.
    pub(crate) fn read(from: &mut impl Read) -> io::Result<Option<Message>> {
        let mut header = [0; 16];
        match from.read_exact(&mut header) {
            Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let word =
            |i: usize| u32::from_ne_bytes(header[i * 4..i * 4 + 4].try_into().expect("four bytes"));
        let len = word(3) as usize;
        if len > PAYLOAD_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a payload of {len} bytes"),
            ));
        }
        let mut payload = vec![0; len];
        from.read_exact(&mut payload)?;
        Ok(Some(Message {
            kind: word(0),
            req_id: word(1),
            tx_id: word(2),
            payload,
        }))
    }
}

/// The errors of the protocol: sent by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Errno {
    Inval,
    Acces,
    Exist,
    Isdir,
    Noent,
    Nomem,
    Nospc,
    Nosys,
    Busy,
    Again,
    Perm,
    TooBig,
}

impl Errno {
    const ALL: [(Errno, &'static str, i32); 12] = [
        (Errno::Inval, "EINVAL", libc::EINVAL),
        (Errno::Acces, "EACCES", libc::EACCES),
        (Errno::Exist, "EEXIST", libc::EEXIST),
        (Errno::Isdir, "EISDIR", libc::EISDIR),
        (Errno::Noent, "ENOENT", libc::ENOENT),
        (Errno::Nomem, "ENOMEM", libc::ENOMEM),
        (Errno::Nospc, "ENOSPC", libc::ENOSPC),
        (Errno::Nosys, "ENOSYS", libc::ENOSYS),
        (Errno::Busy, "EBUSY", libc::EBUSY),
        (Errno::Again, "EAGAIN", libc::EAGAIN),
        (Errno::Perm, "EPERM", libc::EPERM),
        (Errno::TooBig, "E2BIG", libc::E2BIG),
    ];

    pub(crate) fn name(self) -> &'static str {
        let entry = Self::ALL.iter().find(|entry| entry.0 == self);
        entry.expect("all are listed").1
    }

    /// The number for a name on the wire; `EINVAL` for an unknown one, as libxenstore does.
    pub(crate) fn number(name: &str) -> i32 {
        let entry = Self::ALL.iter().find(|entry| entry.1 == name);
        entry.map_or(libc::EINVAL, |entry| entry.2)
    }
}

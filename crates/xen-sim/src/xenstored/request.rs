// SPDX-License-Identifier: GPL-3.0-or-later
//! Requests: each gets one answer, and may cause events.

use xen::DomId;

use super::operation::node_operation;
use super::path::{canonicalize, domain_path};
use super::tree::{Change, Reach, Space, Transaction};
use super::wire::{Errno, Message, PAYLOAD_MAX, kind};
use super::{ConnectionId, Introduced, Store, Surroundings, Watch, quota, send_event};

/// An answer's payload.
pub(super) type Reply = Result<Vec<u8>, Errno>;

pub(super) fn ok() -> Vec<u8> {
    b"OK\0".to_vec()
}

/// The strings of a payload, each without its NUL. A payload that does not end in NUL has none.
pub(super) fn strings(payload: &[u8]) -> Result<Vec<&[u8]>, Errno> {
    let body = payload.strip_suffix(b"\0").ok_or(Errno::Inval)?;
    Ok(body.split(|byte| *byte == 0).collect())
}

pub(super) fn one_string(payload: &[u8]) -> Result<&[u8], Errno> {
    match strings(payload)?.as_slice() {
        [one] => Ok(one),
        _ => Err(Errno::Inval),
    }
}

pub(super) fn number<T: std::str::FromStr>(text: &[u8]) -> Result<T, Errno> {
    let text = std::str::from_utf8(text).map_err(|_| Errno::Inval)?;
    text.parse().map_err(|_| Errno::Inval)
}

impl Store {
    /// Carries out one request and queues answer and events.
    pub(super) fn handle(
        &mut self,
        id: ConnectionId,
        request: &Message,
        around: &dyn Surroundings,
    ) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let domid = connection.domid;
        let outbox = connection.outbox.clone();
        let payload = &request.payload;
        let mut changes = Vec::new();
        let mut initial_event = false;
        let privileged = matches!(
            request.kind,
            kind::CONTROL
                | kind::INTRODUCE
                | kind::RELEASE
                | kind::IS_DOMAIN_INTRODUCED
                | kind::RESUME
        );
        let reply = match request.kind {
            _ if privileged && connection.is_guest() => Err(Errno::Acces),
            kind::WATCH => {
                initial_event = true;
                self.watch(id, payload)
            }
            kind::UNWATCH => self.unwatch(id, payload),
            kind::RESET_WATCHES => {
                connection.watches.clear();
                connection.transactions.clear();
                Ok(ok())
            }
            kind::TRANSACTION_START if request.tx_id == 0 => self.transaction_start(id),
            kind::TRANSACTION_END => self.transaction_end(id, request.tx_id, payload, &mut changes),
            kind::INTRODUCE => self.introduce(payload, around),
            kind::RELEASE => self.release(payload, around),
            kind::RESUME => self.resume(payload),
            kind::IS_DOMAIN_INTRODUCED => one_string(payload).and_then(number).map(|domid| {
                let known = domid == 0 || self.domains.contains_key(&DomId(domid));
                if known {
                    b"T\0".to_vec()
                } else {
                    b"F\0".to_vec()
                }
            }),
            kind::GET_DOMAIN_PATH => one_string(payload)
                .and_then(number)
                .map(|domid| format!("{}\0", domain_path(DomId(domid))).into_bytes()),
            kind::CONTROL => Ok(b"OK\0".to_vec()),
            _ => {
                let mut tx = match request.tx_id {
                    0 => None,
                    tx_id => match connection.transactions.remove(&tx_id) {
                        Some(tx) => Some(tx),
                        None => return outbox.push(error(request, Errno::Noent)),
                    },
                };
                let mut space = Space {
                    tree: &mut self.tree,
                    tx: tx.as_mut(),
                };
                let mut own_changes = Vec::new();
                let reply = node_operation(&mut space, domid, request, &mut own_changes);
                if domid != DomId(0) && space.accessed_count() > quota::TRANSACTION_NODES {
                    space.fail();
                }
                match tx {
                    Some(mut tx) => {
                        for change in own_changes {
                            tx.queue(change);
                        }
                        if let Some(connection) = self.connections.get_mut(&id) {
                            connection.transactions.insert(request.tx_id, tx);
                        }
                    }
                    None => changes = own_changes,
                }
                reply
            }
        };
        // As C xenstored does: events of a change go out before its answer, the first event of a
        // watch after it.
        self.fire(&changes);
        let succeeded = reply.is_ok();
        outbox.push(match reply {
            Ok(payload) if payload.len() > PAYLOAD_MAX => error(request, Errno::TooBig),
            Ok(payload) => Message {
                payload,
                ..request.clone()
            },
            Err(errno) => error(request, errno),
        });
        if initial_event
            && succeeded
            && let Some(connection) = self.connections.get(&id)
            && let Some(watch) = connection.watches.last()
        {
            send_event(connection, watch, &watch.path);
        }
    }

    fn watch(&mut self, id: ConnectionId, payload: &[u8]) -> Reply {
        let [path, token] = strings(payload)?[..] else {
            return Err(Errno::Inval);
        };
        let domid = self.connections[&id].domid;
        let absolute = canonicalize(domid, path, true)?;
        let relative = !path.starts_with(b"/") && !path.starts_with(b"@");
        let watches = self.count(domid, |connection| connection.watches.len());
        let Some(connection) = self.connections.get_mut(&id) else {
            return Err(Errno::Inval);
        };
        let same = |watch: &Watch| watch.path == absolute && watch.token == token;
        if connection.watches.iter().any(same) {
            return Err(Errno::Exist);
        }
        if connection.is_guest() && watches >= quota::WATCHES {
            return Err(Errno::Nospc);
        }
        connection.watches.push(Watch {
            prefix_len: if relative {
                domain_path(domid).len() + 1
            } else {
                0
            },
            path: absolute,
            token: token.to_vec(),
        });
        Ok(ok())
    }

    fn unwatch(&mut self, id: ConnectionId, payload: &[u8]) -> Reply {
        let [path, token] = strings(payload)?[..] else {
            return Err(Errno::Inval);
        };
        let connection = self.connections.get_mut(&id).ok_or(Errno::Inval)?;
        let path = canonicalize(connection.domid, path, true)?;
        let same = |watch: &Watch| watch.path == path && watch.token == token;
        let index = connection
            .watches
            .iter()
            .position(same)
            .ok_or(Errno::Noent)?;
        connection.watches.remove(index);
        Ok(ok())
    }

    fn transaction_start(&mut self, id: ConnectionId) -> Reply {
        let domid = self.connections[&id].domid;
        let open = self.count(domid, |connection| connection.transactions.len());
        let connection = self.connections.get_mut(&id).ok_or(Errno::Inval)?;
        if connection.is_guest() && open >= quota::TRANSACTIONS {
            return Err(Errno::Nospc);
        }
        while connection.next_transaction == 0
            || connection
                .transactions
                .contains_key(&connection.next_transaction)
        {
            connection.next_transaction = connection.next_transaction.wrapping_add(1);
        }
        let tx_id = connection.next_transaction;
        connection.next_transaction = tx_id.wrapping_add(1);
        connection
            .transactions
            .insert(tx_id, Transaction::default());
        Ok(format!("{tx_id}\0").into_bytes())
    }

    fn transaction_end(
        &mut self,
        id: ConnectionId,
        tx_id: u32,
        payload: &[u8],
        changes: &mut Vec<Change>,
    ) -> Reply {
        let commit = match payload {
            b"T\0" => true,
            b"F\0" => false,
            _ => return Err(Errno::Inval),
        };
        let connection = self.connections.get_mut(&id).ok_or(Errno::Inval)?;
        let tx = connection.transactions.remove(&tx_id).ok_or(Errno::Noent)?;
        if commit {
            let limit = connection
                .is_guest()
                .then_some((connection.domid, quota::NODES));
            *changes = self.tree.commit(tx, limit)?;
        }
        Ok(ok())
    }

    fn introduce(&mut self, payload: &[u8], around: &dyn Surroundings) -> Reply {
        let [domid, _gfn, port] = strings(payload)?[..] else {
            return Err(Errno::Inval);
        };
        let domid = DomId(number(domid)?);
        if number::<u32>(port)? == 0 || domid == DomId(0) {
            return Err(Errno::Inval);
        }
        if around.domain_state(domid).is_none() {
            return Err(Errno::Noent);
        }
        let fresh = Introduced { shut_down: false };
        if self.domains.insert(domid, fresh).is_none() {
            around.open(domid);
            self.fire_special("@introduceDomain");
        }
        Ok(ok())
    }

    fn introduced(&self, payload: &[u8]) -> Result<DomId, Errno> {
        let domid = DomId(number(one_string(payload)?)?);
        let known = self.domains.contains_key(&domid);
        known.then_some(domid).ok_or(Errno::Noent)
    }

    fn release(&mut self, payload: &[u8], around: &dyn Surroundings) -> Reply {
        let domid = self.introduced(payload)?;
        self.remove_domain(domid, around);
        self.fire_special("@releaseDomain");
        Ok(ok())
    }

    fn resume(&mut self, payload: &[u8]) -> Reply {
        let domid = self.introduced(payload)?;
        if let Some(domain) = self.domains.get_mut(&domid) {
            domain.shut_down = false;
        }
        Ok(ok())
    }
}

impl Transaction {
    /// One event for each node, however often it changes: the wider one wins.
    fn queue(&mut self, change: Change) {
        match self
            .changes
            .iter_mut()
            .find(|queued| queued.path == change.path)
        {
            Some(queued) => {
                if change.reach == Reach::Ancestors {
                    queued.reach = Reach::Ancestors;
                }
                queued.old_perms = queued.old_perms.take().or(change.old_perms);
            }
            None => self.changes.push(change),
        }
    }
}

fn error(request: &Message, errno: Errno) -> Message {
    let mut payload = errno.name().as_bytes().to_vec();
    payload.push(0);
    Message {
        kind: kind::ERROR,
        payload,
        ..request.clone()
    }
}

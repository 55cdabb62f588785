// SPDX-License-Identifier: GPL-3.0-or-later
//! Transactions.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc::UnboundedSender;

use super::connection::{Answer, Command, Request};
use super::wire::MessageType;
use super::{Error, Nodes};

/// An open transaction: the operations of [`Nodes`] on a private copy of the store, which take
/// effect together when it is committed. Clones are the same transaction. Aborted when the last
/// clone is dropped without a commit.
#[derive(Clone, Debug)]
pub struct Transaction {
    nodes: Nodes,
}

impl Transaction {
    pub(super) fn new(nodes: Nodes) -> Transaction {
        Transaction { nodes }
    }

    /// Makes the changes of this transaction take effect.
    ///
    /// # Errors
    /// [`super::Errno::Again`] when another write was in the way: nothing took effect, and the
    /// whole transaction must be done again. See [`super::XenStore::transaction`].
    pub async fn commit(self) -> Result<(), Error> {
        self.nodes.end_transaction(b"T\0").await
    }

    /// Discards the changes, and waits until they are.
    ///
    /// # Errors
    /// As for any request.
    pub async fn abort(self) -> Result<(), Error> {
        self.nodes.end_transaction(b"F\0").await
    }
}

impl Deref for Transaction {
    type Target = Nodes;

    fn deref(&self) -> &Nodes {
        &self.nodes
    }
}

/// A transaction that xenstored knows of. Aborts it when dropped, unless it has ended. Made by
/// the connection's task, so that a caller who stops waiting leaves none behind.
#[derive(Debug)]
pub(super) struct OpenTransaction {
    pub(super) id: u32,
    /// The connection that it lives on; ids mean nothing on another one.
    pub(super) generation: u64,
    ended: AtomicBool,
    commands: UnboundedSender<Command>,
}

impl OpenTransaction {
    pub(super) fn new(
        id: u32,
        generation: u64,
        commands: UnboundedSender<Command>,
    ) -> Arc<OpenTransaction> {
        Arc::new(OpenTransaction {
            id,
            generation,
            ended: AtomicBool::new(false),
            commands,
        })
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Marks it ended; false when it was already.
    pub(super) fn end(&self) -> bool {
        !self.ended.swap(true, Ordering::AcqRel)
    }
}

impl Drop for OpenTransaction {
    fn drop(&mut self) {
        if self.end() {
            // If the task is gone, so is the connection, and with it the transaction.
            let _ = self.commands.send(Command {
                request: Request {
                    kind: MessageType::TransactionEnd,
                    payload: b"F\0".to_vec(),
                },
                transaction: Some((self.id, self.generation)),
                answer: Answer::Nobody,
            });
        }
    }
}

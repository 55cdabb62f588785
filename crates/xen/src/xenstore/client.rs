// SPDX-License-Identifier: GPL-3.0-or-later
//! The handle of a connection.

use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::connection::{Answer, Connection};
use super::nodes::text;
use super::path;
use super::watch::{Key, Queue};
use super::wire::{MessageType, strings};
use super::{Endpoint, Errno, Error, Nodes, Transaction, WatchEvents};
use crate::DomId;

/// Commits that [`XenStore::transaction`] tries before it gives up: a guest that keeps writing
/// to the nodes that the transaction reads could otherwise hold it for ever.
const COMMITS_MAX: u32 = 100;

/// A connection to xenstored. Clones share it; it is closed when the last one is dropped.
#[derive(Clone, Debug)]
pub struct XenStore {
    nodes: Nodes,
}

impl XenStore {
    /// Connects, and starts the connection's task on the current tokio runtime, which must have
    /// its I/O and time drivers enabled.
    ///
    /// # Errors
    /// [`Error::Unreachable`]. Once connected, a connection that breaks is made again and again
    /// until it succeeds.
    pub async fn connect(endpoint: &Endpoint) -> Result<(XenStore, WatchEvents), Error> {
        let link = endpoint.open().await?;
        let (commands, requests) = mpsc::unbounded_channel();
        let queue = Arc::new(Queue::default());
        let connection = Connection::new(endpoint.clone(), requests, Arc::clone(&queue));
        tokio::spawn(connection.run(link));
        let nodes = Nodes {
            commands,
            transaction: None,
            payload_max: endpoint.payload_max(),
        };
        Ok((XenStore { nodes }, WatchEvents { queue }))
    }

    /// Asks for an event with `token` whenever `path` or anything below it changes. One event
    /// comes at once. `path` may be one of the special `@introduceDomain` and `@releaseDomain`.
    /// The watch outlives a broken connection.
    ///
    /// # Errors
    /// [`Errno::Exists`] when there is this very watch already.
    pub async fn watch(&self, path: &str, token: &str) -> Result<(), Error> {
        self.set_watch(path, token, true).await
    }

    /// Ends a watch. Events that are queued already are still delivered.
    ///
    /// # Errors
    /// [`Errno::NotFound`] when there is no such watch.
    pub async fn unwatch(&self, path: &str, token: &str) -> Result<(), Error> {
        self.set_watch(path, token, false).await
    }

    async fn set_watch(&self, path: &str, token: &str, set: bool) -> Result<(), Error> {
        path::check(path)?;
        if token.as_bytes().contains(&0) {
            return Err(Error::BadToken);
        }
        let kind = if set {
            MessageType::Watch
        } else {
            MessageType::Unwatch
        };
        let mut rest = Vec::with_capacity(token.len() + 1);
        rest.extend_from_slice(token.as_bytes());
        rest.push(0);
        let request = self.nodes.request(kind, path.as_bytes(), &rest)?;
        let key = Key {
            path: path.to_owned(),
            token: token.to_owned(),
        };
        self.nodes
            .send_with(request, path, |reply| {
                if set {
                    Answer::Watch { key, reply }
                } else {
                    Answer::Unwatch { key, reply }
                }
            })
            .await
            .map(drop)
    }

    /// Opens a transaction.
    ///
    /// # Errors
    /// As for any request; [`Errno::NoSpace`] or [`Errno::Busy`] when too many are open.
    pub async fn begin(&self) -> Result<Transaction, Error> {
        let request = self
            .nodes
            .request(MessageType::TransactionStart, &[], &[])?;
        let commands = self.nodes.commands.clone();
        let open = self
            .nodes
            .send_with(request, "", |reply| Answer::Transaction { reply, commands })
            .await?;
        Ok(Transaction::new(Nodes {
            transaction: Some(open),
            ..self.nodes.clone()
        }))
    }

    /// Runs `body` in a transaction and commits it; from the start again when another write was
    /// in the way. When `body` fails, the transaction is aborted.
    ///
    /// ```no_run
    /// # async fn example(store: xen::xenstore::XenStore) -> Result<(), xen::xenstore::Error> {
    /// store
    ///     .transaction(|t| async move {
    ///         t.write("device/vusb/0/urb-ring-ref", "8").await?;
    ///         t.write("device/vusb/0/state", "4").await
    ///     })
    ///     .await
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of `body`, and those of the commit; [`Errno::Again`] after a hundred commits that
    /// failed with it.
    pub async fn transaction<T, E, F, R>(&self, mut body: F) -> Result<T, E>
    where
        F: FnMut(Transaction) -> R,
        R: Future<Output = Result<T, E>>,
        E: From<Error>,
    {
        let mut commits = 0;
        loop {
            let transaction = self.begin().await?;
            let value = match body(transaction.clone()).await {
                Ok(value) => value,
                Err(error) => {
                    // What counts is the body's own error.
                    let _ = transaction.abort().await;
                    return Err(error);
                }
            };
            match transaction.commit().await {
                Ok(()) => return Ok(value),
                Err(error) if error.errno() == Some(&Errno::Again) => {
                    commits += 1;
                    if commits == COMMITS_MAX {
                        return Err(error.into());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The directory of a domain, `/local/domain/<domid>`, whether the domain exists or not.
    ///
    /// # Errors
    /// As for any request.
    pub async fn get_domain_path(&self, domain: DomId) -> Result<String, Error> {
        let path = self
            .about_domain(MessageType::GetDomainPath, domain)
            .await?;
        let first = strings(&path).next().unwrap_or_default();
        text(first, "domain path")
    }

    /// Whether xenstored is connected to this domain.
    ///
    /// # Errors
    /// As for any request.
    pub async fn is_domain_introduced(&self, domain: DomId) -> Result<bool, Error> {
        let answer = self
            .about_domain(MessageType::IsDomainIntroduced, domain)
            .await?;
        Ok(answer.first() == Some(&b'T'))
    }

    async fn about_domain(&self, kind: MessageType, domain: DomId) -> Result<Vec<u8>, Error> {
        let number = domain.to_string();
        let request = self.nodes.request(kind, number.as_bytes(), &[])?;
        self.nodes
            .send(request, format_args!("domain {domain}"))
            .await
    }
}

impl Deref for XenStore {
    type Target = Nodes;

    fn deref(&self) -> &Nodes {
        &self.nodes
    }
}

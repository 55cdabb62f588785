// SPDX-License-Identifier: GPL-3.0-or-later
//! Operations on nodes, in a transaction or outside one.

use std::fmt;
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::connection::{Answer, Command, Failure, Request};
use super::path;
use super::transaction::OpenTransaction;
use super::wire::{MessageType, strings};
use super::{Errno, Error, Permission};

/// Operations on nodes. [`super::XenStore`] gives them directly, [`super::Transaction`] inside
/// the transaction; code that serves both takes `&Nodes`.
///
/// Every path may be absolute or, in a guest, relative to the guest's own directory. Every method
/// fails with [`Error::BadPath`] or [`Error::TooLong`] before anything is sent, with
/// [`Error::Refused`] when xenstored says no, and with [`Error::ConnectionLost`].
#[derive(Clone, Debug)]
pub struct Nodes {
    pub(super) commands: UnboundedSender<Command>,
    pub(super) transaction: Option<Arc<OpenTransaction>>,
    /// Bytes of payload that the endpoint takes.
    pub(super) payload_max: usize,
}

impl Nodes {
    /// The value of a node.
    pub async fn read(&self, path: &str) -> Result<Vec<u8>, Error> {
        self.about_path(MessageType::Read, path, &[]).await
    }

    /// The value of a node, as text.
    ///
    /// # Errors
    /// Also [`Error::NotText`].
    pub async fn read_string(&self, path: &str) -> Result<String, Error> {
        String::from_utf8(self.read(path).await?).map_err(|_| Error::NotText { path: path.into() })
    }

    /// The value of a node as text, `None` when there is no such node.
    ///
    /// # Errors
    /// As [`Nodes::read_string`], except `ENOENT`.
    pub async fn read_optional(&self, path: &str) -> Result<Option<String>, Error> {
        match self.read_string(path).await {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets the value of a node, and creates it and its parents where they are missing.
    pub async fn write(&self, path: &str, value: impl AsRef<[u8]>) -> Result<(), Error> {
        self.about_path(MessageType::Write, path, value.as_ref())
            .await
            .map(drop)
    }

    /// Creates a node with an empty value, and its parents, where they are missing.
    pub async fn mkdir(&self, path: &str) -> Result<(), Error> {
        self.about_path(MessageType::Mkdir, path, &[])
            .await
            .map(drop)
    }

    /// Removes a node and all below it. A missing node is fine where its parent exists.
    pub async fn rm(&self, path: &str) -> Result<(), Error> {
        self.about_path(MessageType::Rm, path, &[]).await.map(drop)
    }

    /// The names of a node's children, in xenstored's order. Also of more children than fit into
    /// one message.
    pub async fn directory(&self, path: &str) -> Result<Vec<String>, Error> {
        let names = match self.about_path(MessageType::Directory, path, &[]).await {
            Err(error) if error.errno() == Some(&Errno::TooBig) => {
                self.directory_in_parts(path).await?
            }
            names => names?,
        };
        strings(&names).map(|name| text(name, path)).collect()
    }

    /// Whether there is such a node.
    pub async fn exists(&self, path: &str) -> Result<bool, Error> {
        match self.read(path).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// A node's permissions, its owner's first.
    pub async fn get_perms(&self, path: &str) -> Result<Vec<Permission>, Error> {
        let entries = self.about_path(MessageType::GetPerms, path, &[]).await?;
        strings(&entries)
            .map(|entry| {
                std::str::from_utf8(entry)
                    .ok()
                    .and_then(Permission::from_wire)
                    .ok_or(Error::Protocol("a permission that is none"))
            })
            .collect()
    }

    /// Sets a node's permissions, its owner's first.
    pub async fn set_perms(&self, path: &str, permissions: &[Permission]) -> Result<(), Error> {
        let mut entries = Vec::with_capacity(permissions.len() * 7);
        for permission in permissions {
            entries.extend_from_slice(permission.to_wire().as_bytes());
            entries.push(0);
        }
        self.about_path(MessageType::SetPerms, path, &entries)
            .await
            .map(drop)
    }

    /// Reads a long directory piece by piece, from the start again when it changes meanwhile.
    async fn directory_in_parts(&self, path: &str) -> Result<Vec<u8>, Error> {
        let mut generation = Vec::new();
        let mut names = Vec::new();
        loop {
            let offset = format!("{}\0", names.len());
            let part = self
                .about_path(MessageType::DirectoryPart, path, offset.as_bytes())
                .await?;
            let Some(end) = part.iter().position(|byte| *byte == 0) else {
                return Err(Error::Protocol("a part of a directory without its count"));
            };
            let (count, more) = (&part[..end], &part[end + 1..]);
            if !names.is_empty() && count != generation.as_slice() {
                names.clear();
                continue;
            }
            generation = count.to_vec();
            names.extend_from_slice(more);
            // An empty name ends the list.
            if more == [0] || names.ends_with(&[0, 0]) {
                names.pop();
                return Ok(names);
            }
            if more.is_empty() {
                return Err(Error::Protocol("an empty part of a directory"));
            }
        }
    }

    pub(super) async fn end_transaction(&self, verdict: &'static [u8]) -> Result<(), Error> {
        match &self.transaction {
            Some(open) if open.end() => {}
            _ => return Err(Error::TransactionEnded),
        }
        let request = Request {
            kind: MessageType::TransactionEnd,
            payload: verdict.to_vec(),
        };
        self.send(request, "").await.map(drop)
    }

    /// A request whose payload is `path`, a nul, and `rest`.
    async fn about_path(
        &self,
        kind: MessageType,
        path: &str,
        rest: &[u8],
    ) -> Result<Vec<u8>, Error> {
        path::check(path)?;
        if self
            .transaction
            .as_ref()
            .is_some_and(|open| open.has_ended())
        {
            return Err(Error::TransactionEnded);
        }
        let request = self.request(kind, path.as_bytes(), rest)?;
        self.send(request, path).await
    }

    /// A request whose payload is `first`, a nul, and `rest`.
    pub(super) fn request(
        &self,
        kind: MessageType,
        first: &[u8],
        rest: &[u8],
    ) -> Result<Request, Error> {
        let len_bytes = first.len() + 1 + rest.len();
        if len_bytes > self.payload_max {
            return Err(Error::TooLong {
                len_bytes,
                max_bytes: self.payload_max,
            });
        }
        let mut payload = Vec::with_capacity(len_bytes);
        payload.extend_from_slice(first);
        payload.push(0);
        payload.extend_from_slice(rest);
        Ok(Request { kind, payload })
    }

    pub(super) async fn send(
        &self,
        request: Request,
        subject: impl fmt::Display,
    ) -> Result<Vec<u8>, Error> {
        self.send_with(request, subject, Answer::Payload).await
    }

    /// Sends a request; `answer` says what is to be done with its answer beyond waking us.
    pub(super) async fn send_with<T>(
        &self,
        request: Request,
        subject: impl fmt::Display,
        answer: impl FnOnce(oneshot::Sender<Result<T, Failure>>) -> Answer,
    ) -> Result<T, Error> {
        let (sender, receiver) = oneshot::channel();
        let kind = request.kind;
        let command = Command {
            request,
            transaction: self
                .transaction
                .as_ref()
                .map(|open| (open.id, open.generation)),
            answer: answer(sender),
        };
        if self.commands.send(command).is_err() {
            return Err(Error::ConnectionLost);
        }
        match receiver.await {
            Ok(Ok(payload)) => Ok(payload),
            Ok(Err(Failure::Refused(errno))) => Err(Error::Refused {
                request: kind,
                subject: subject.to_string().into(),
                errno,
            }),
            Ok(Err(Failure::Protocol(what))) => Err(Error::Protocol(what)),
            Ok(Err(Failure::ConnectionLost)) | Err(_) => Err(Error::ConnectionLost),
        }
    }
}

pub(super) fn text(bytes: &[u8], path: &str) -> Result<String, Error> {
    std::str::from_utf8(bytes)
        .map(str::to_owned)
        .map_err(|_| Error::NotText { path: path.into() })
}

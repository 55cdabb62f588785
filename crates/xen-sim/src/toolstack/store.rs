// SPDX-License-Identifier: GPL-3.0-or-later
//! A blocking xenstore client, as small as a toolstack needs it.
//!
//! It shares no code with the client that the daemons use: the two check each other against the
//! same server.

use std::collections::VecDeque;
use std::io::{self, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::xenstored::wire::{Errno, Message, kind};

/// A watch event: path and token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// The node that changed, or that the watch was registered on.
    pub path: String,
    /// The watch's token.
    pub token: String,
}

/// A connection to xenstore. Errors of the protocol are [`io::Error`]s with the errno's number.
#[derive(Debug)]
pub struct Store {
    stream: BufReader<UnixStream>,
    next_req: u32,
    tx_id: u32,
    events: VecDeque<WatchEvent>,
}

impl Store {
    /// Connects to a xenstored socket: `xenstored.sock` or `dom-<id>.sock` of a host.
    pub fn connect(path: &Path) -> io::Result<Store> {
        Ok(Store {
            stream: BufReader::new(UnixStream::connect(path)?),
            next_req: 1,
            tx_id: 0,
            events: VecDeque::new(),
        })
    }

    fn call(&mut self, kind: u32, payload: &[u8]) -> io::Result<Vec<u8>> {
        let request = Message {
            kind,
            req_id: self.next_req,
            tx_id: self.tx_id,
            payload: payload.to_vec(),
        };
        self.next_req = self.next_req.wrapping_add(1);
        let mut bytes = Vec::new();
        request.encode(&mut bytes);
        self.stream.get_mut().write_all(&bytes)?;
        loop {
            let reply = Message::read(&mut self.stream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            if reply.kind == kind::WATCH_EVENT {
                self.queue_event(&reply.payload);
            } else if reply.req_id != request.req_id {
                return Err(io::Error::other(format!(
                    "an answer to request {}",
                    reply.req_id
                )));
            } else if reply.kind == kind::ERROR {
                let name = String::from_utf8_lossy(&reply.payload);
                let errno = Errno::number(name.trim_end_matches('\0'));
                return Err(io::Error::from_raw_os_error(errno));
            } else {
                return Ok(reply.payload);
            }
        }
    }

    fn queue_event(&mut self, payload: &[u8]) {
        let mut fields = payload.split(|byte| *byte == 0);
        let mut next = || String::from_utf8_lossy(fields.next().unwrap_or_default()).into_owned();
        let event = WatchEvent {
            path: next(),
            token: next(),
        };
        self.events.push_back(event);
    }

    /// Reads a node's value, or `None` when there is none.
    pub fn read(&mut self, path: &str) -> io::Result<Option<String>> {
        match self.call(kind::READ, format!("{path}\0").as_bytes()) {
            Ok(value) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
            Err(err) if err.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// Writes a node, making it and those above it.
    pub fn write(&mut self, path: &str, value: &str) -> io::Result<()> {
        let payload = format!("{path}\0{value}");
        self.call(kind::WRITE, payload.as_bytes()).map(drop)
    }

    /// Makes an empty node, if it does not exist.
    pub fn mkdir(&mut self, path: &str) -> io::Result<()> {
        self.call(kind::MKDIR, format!("{path}\0").as_bytes())
            .map(drop)
    }

    /// Removes a node and all below it. One that does not exist is as good as removed.
    pub fn rm(&mut self, path: &str) -> io::Result<()> {
        match self.call(kind::RM, format!("{path}\0").as_bytes()) {
            Err(err) if err.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Names of a node's children; none when it does not exist.
    pub fn directory(&mut self, path: &str) -> io::Result<Vec<String>> {
        let list = match self.call(kind::DIRECTORY, format!("{path}\0").as_bytes()) {
            Err(err) if err.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
            Err(err) if err.raw_os_error() == Some(libc::E2BIG) => self.long_directory(path)?,
            other => other?,
        };
        let names = list
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty());
        Ok(names
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect())
    }

    /// A directory too long for one answer, piece by piece; from the start when it changes.
    fn long_directory(&mut self, path: &str) -> io::Result<Vec<u8>> {
        let mut list: Vec<u8> = Vec::new();
        let mut generation = None;
        loop {
            let payload = format!("{path}\0{}\0", list.len());
            let reply = self.call(kind::DIRECTORY_PART, payload.as_bytes())?;
            let end = reply.iter().position(|byte| *byte == 0).unwrap_or_default();
            let now = reply[..end].to_vec();
            if generation.as_ref().is_some_and(|before| *before != now) {
                list.clear();
                generation = None;
                continue;
            }
            generation = Some(now);
            let part = reply.get(end + 1..).unwrap_or_default();
            list.extend_from_slice(part);
            if part.is_empty() || part == b"\0" || part.ends_with(b"\0\0") {
                return Ok(list);
            }
        }
    }

    /// Reads a node's permissions, in xenstore's notation.
    pub fn perms(&mut self, path: &str) -> io::Result<Vec<String>> {
        let list = self.call(kind::GET_PERMS, format!("{path}\0").as_bytes())?;
        let entries = list
            .split(|byte| *byte == 0)
            .filter(|entry| !entry.is_empty());
        Ok(entries
            .map(|entry| String::from_utf8_lossy(entry).into_owned())
            .collect())
    }

    /// Sets a node's permissions, in xenstore's notation: `n5`, `r0`.
    pub fn set_perms(&mut self, path: &str, perms: &[String]) -> io::Result<()> {
        let payload = format!("{path}\0{}\0", perms.join("\0"));
        self.call(kind::SET_PERMS, payload.as_bytes()).map(drop)
    }

    /// Registers a watch. Its first event comes at once.
    pub fn watch(&mut self, path: &str, token: &str) -> io::Result<()> {
        let payload = format!("{path}\0{token}\0");
        self.call(kind::WATCH, payload.as_bytes()).map(drop)
    }

    /// Removes a watch.
    pub fn unwatch(&mut self, path: &str, token: &str) -> io::Result<()> {
        let payload = format!("{path}\0{token}\0");
        self.call(kind::UNWATCH, payload.as_bytes()).map(drop)
    }

    /// Runs `body` in a transaction, again while others interfere. An error aborts it.
    pub fn transaction<T, E: From<io::Error>>(
        &mut self,
        mut body: impl FnMut(&mut Store) -> Result<T, E>,
    ) -> Result<T, E> {
        loop {
            self.begin()?;
            match body(self) {
                Ok(done) => {
                    if self.end(true)? {
                        return Ok(done);
                    }
                }
                Err(err) => {
                    self.end(false)?;
                    return Err(err);
                }
            }
        }
    }

    /// Starts a transaction: what follows on this connection is part of it.
    pub fn begin(&mut self) -> io::Result<()> {
        let reply = self.call(kind::TRANSACTION_START, b"\0")?;
        let text = String::from_utf8_lossy(&reply);
        self.tx_id = text
            .trim_end_matches('\0')
            .parse()
            .map_err(io::Error::other)?;
        Ok(())
    }

    /// Ends the transaction. False when it conflicts with what others did and must be repeated.
    pub fn end(&mut self, commit: bool) -> io::Result<bool> {
        let answer = if commit { b"T\0" } else { b"F\0" };
        let ended = self.call(kind::TRANSACTION_END, answer);
        self.tx_id = 0;
        match ended {
            Ok(_) => Ok(true),
            Err(err) if err.raw_os_error() == Some(libc::EAGAIN) => Ok(false),
            Err(err) => Err(err),
        }
    }

    /// Tells xenstored that a domain is there.
    pub fn introduce(&mut self, domid: u16) -> io::Result<()> {
        let payload = format!("{domid}\0{}\0{}\0", 1, 1);
        self.call(kind::INTRODUCE, payload.as_bytes()).map(drop)
    }

    /// Whether a domain was introduced.
    pub fn is_introduced(&mut self, domid: u16) -> io::Result<bool> {
        let reply = self.call(kind::IS_DOMAIN_INTRODUCED, format!("{domid}\0").as_bytes())?;
        Ok(reply == b"T\0")
    }

    /// Tells xenstored that a domain that had shut down runs again.
    pub fn resume(&mut self, domid: u16) -> io::Result<()> {
        self.call(kind::RESUME, format!("{domid}\0").as_bytes())
            .map(drop)
    }

    /// The next watch event, or `None` at `deadline`.
    pub fn next_event(&mut self, deadline: Instant) -> io::Result<Option<WatchEvent>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            if self.stream.buffer().is_empty() {
                let left = deadline.saturating_duration_since(Instant::now());
                if !self.wait_readable(left)? {
                    return Ok(None);
                }
            }
            let message = Message::read(&mut self.stream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            if message.kind != kind::WATCH_EVENT {
                return Err(io::Error::other("an answer without a request"));
            }
            self.queue_event(&message.payload);
        }
    }

    fn wait_readable(&self, timeout: Duration) -> io::Result<bool> {
        let mut poll = libc::pollfd {
            fd: self.stream.get_ref().as_fd().as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let timeout_ms = timeout.as_millis().min(i32::MAX as u128) as i32;
        // Rounded up: waking early would end a wait before its deadline.
        let timeout_ms = timeout_ms.saturating_add(i32::from(!timeout.is_zero()));
        // SAFETY: one valid pollfd.
        match unsafe { libc::poll(&mut poll, 1, timeout_ms) } {
            -1 => {
                let err = io::Error::last_os_error();
                let interrupted = err.kind() == io::ErrorKind::Interrupted;
                if interrupted {
                    self.wait_readable(timeout)
                } else {
                    Err(err)
                }
            }
            ready => Ok(ready > 0),
        }
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! The task that owns the connection.
//!
//! It reads whenever there is something to read, whatever else is waiting: watch events go to a
//! queue that never blocks, so an answer behind ten thousand of them is reached, and xenstored
//! never finds a full socket while we wait for it.

mod reconnect;

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::sync::Arc;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;

use super::endpoint::Link;
use super::transaction::OpenTransaction;
use super::watch::{Key, Queue};
use super::wire::{Decoder, Message, MessageType, strings};
use super::{Endpoint, Errno, WatchEvent, path};

const READ_BYTES: usize = 64 * 1024;

/// A request before it has a number.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) kind: MessageType,
    pub(super) payload: Vec<u8>,
}

/// A request on its way to the task.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) request: Request,
    /// The transaction's id and the connection that it lives on.
    pub(super) transaction: Option<(u32, u64)>,
    pub(super) answer: Answer,
}

/// Why a request failed, before the caller adds what it was about.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    Refused(Errno),
    ConnectionLost,
    Protocol(&'static str),
}

type Reply<T> = oneshot::Sender<Result<T, Failure>>;

/// What is to be done with an answer. Nobody may be waiting for it any more; that is why every
/// failed send is ignored.
#[derive(Debug)]
pub(super) enum Answer {
    Nobody,
    Payload(Reply<Vec<u8>>),
    Transaction {
        reply: Reply<Arc<OpenTransaction>>,
        commands: UnboundedSender<Command>,
    },
    Watch {
        key: Key,
        reply: Reply<Vec<u8>>,
    },
    Unwatch {
        key: Key,
        reply: Reply<Vec<u8>>,
    },
    /// A watch set again after a reconnection.
    Again(Key),
}

/// A request whose answer is awaited.
#[derive(Debug)]
struct Waiting {
    kind: MessageType,
    answer: Answer,
}

enum End {
    /// Nobody holds a handle any more.
    Unused,
    /// The connection broke.
    Broken,
}

/// The state of the task.
pub(super) struct Connection {
    endpoint: Endpoint,
    requests: UnboundedReceiver<Command>,
    events: Arc<Queue>,
    /// Numbers the connections made so far.
    generation: u64,
    next_id: u32,
    waiting: HashMap<u32, Waiting>,
    /// Messages still to be written, by id; of the first, this many bytes have been.
    outbox: VecDeque<(u32, Vec<u8>)>,
    written_bytes: usize,
    /// The watches that are set or being set.
    watches: HashSet<Key>,
    /// Watches that have to be set again before the reconnection is complete.
    to_set_again: usize,
}

impl Connection {
    pub(super) fn new(
        endpoint: Endpoint,
        requests: UnboundedReceiver<Command>,
        events: Arc<Queue>,
    ) -> Connection {
        Connection {
            endpoint,
            requests,
            events,
            generation: 0,
            next_id: 1,
            waiting: HashMap::new(),
            outbox: VecDeque::new(),
            written_bytes: 0,
            watches: HashSet::new(),
            to_set_again: 0,
        }
    }

    /// Serves until nobody holds a handle any more.
    pub(super) async fn run(mut self, mut link: Link) {
        while let End::Broken = self.serve(&link).await {
            drop(link);
            self.fail_all();
            self.events.push_notice(WatchEvent::Disconnected);
            link = match self.reconnect().await {
                Some(link) => link,
                None => return,
            };
            self.set_watches_again();
        }
    }

    async fn serve(&mut self, link: &Link) -> End {
        let mut decoder = Decoder::new();
        let mut buffer = vec![0; READ_BYTES];
        loop {
            tokio::select! {
                command = self.requests.recv() => match command {
                    Some(command) => self.accept(command),
                    None => return End::Unused,
                },
                read = link.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => return End::Broken,
                    Ok(len) => {
                        decoder.feed(&buffer[..len]);
                        loop {
                            match decoder.next_message() {
                                Ok(Some(message)) => self.handle(message),
                                Ok(None) => break,
                                Err(_) => return End::Broken,
                            }
                        }
                    }
                },
                written = write_first(link, &self.outbox, self.written_bytes),
                    if !self.outbox.is_empty() =>
                {
                    if !self.account_for(link, written) {
                        return End::Broken;
                    }
                }
            }
        }
    }

    /// Takes note of what a write did; false when the connection is broken.
    fn account_for(&mut self, link: &Link, written: io::Result<usize>) -> bool {
        match written {
            Ok(0) => return false,
            Ok(len) => {
                self.written_bytes += len;
                if self
                    .outbox
                    .front()
                    .is_some_and(|(_, bytes)| self.written_bytes >= bytes.len())
                {
                    self.outbox.pop_front();
                    self.written_bytes = 0;
                }
            }
            Err(error) if link.refuses_by_write() => {
                if let Some((id, _)) = self.outbox.pop_front() {
                    self.written_bytes = 0;
                    self.finish(id, Err(Failure::Refused(Errno::from_io(&error))));
                }
            }
            Err(_) => return false,
        }
        true
    }

    fn accept(&mut self, command: Command) {
        let transaction_id = match command.transaction {
            // Its transaction went with its connection.
            Some((_, generation)) if generation != self.generation => {
                answer(
                    command.answer,
                    self.generation,
                    Err(Failure::ConnectionLost),
                );
                return;
            }
            Some((id, _)) => id,
            None => 0,
        };
        if let Answer::Watch { key, .. } = &command.answer
            && !self.watches.insert(key.clone())
        {
            // xenstored would say so itself, the kernel's device would set it twice.
            let exists = Failure::Refused(Errno::Exists);
            answer(command.answer, self.generation, Err(exists));
            return;
        }
        self.enqueue(command.request, transaction_id, command.answer);
    }

    fn enqueue(&mut self, request: Request, transaction_id: u32, answer: Answer) {
        let id = self.free_id();
        let message = Message::new(request.kind, id, transaction_id, request.payload);
        self.outbox.push_back((id, message.to_bytes()));
        self.waiting.insert(
            id,
            Waiting {
                kind: request.kind,
                answer,
            },
        );
    }

    /// A request id that no unanswered request has.
    fn free_id(&mut self) -> u32 {
        loop {
            let id = self.next_id;
            self.next_id = self.next_id.wrapping_add(1).max(1);
            if !self.waiting.contains_key(&id) {
                return id;
            }
        }
    }

    fn handle(&mut self, message: Message) {
        match message.kind() {
            Some(MessageType::WatchEvent) => self.queue_event(&message.payload),
            Some(MessageType::Error) => {
                let name = strings(&message.payload).next().unwrap_or_default();
                let errno = Errno::from_name(&String::from_utf8_lossy(name));
                self.finish(message.header.request_id, Err(Failure::Refused(errno)));
            }
            kind => {
                let id = message.header.request_id;
                let asked = self.waiting.get(&id).map(|waiting| waiting.kind);
                let result = if kind == asked {
                    Ok(message.payload)
                } else {
                    Err(Failure::Protocol(
                        "an answer of another type than the request",
                    ))
                };
                self.finish(id, result);
            }
        }
    }

    fn queue_event(&mut self, payload: &[u8]) {
        let mut parts = strings(payload);
        let (Some(path), Some(token)) = (parts.next(), parts.next()) else {
            return;
        };
        // Our own paths and tokens are text, and xenstored lets no other path in.
        let (Ok(path), Ok(token)) = (std::str::from_utf8(path), std::str::from_utf8(token)) else {
            return;
        };
        let key = Key {
            path: path.to_owned(),
            token: token.to_owned(),
        };
        if self.events.push(key) {
            return;
        }
        for watch in &self.watches {
            if watch.token == token && path::is_at_or_below(path, &watch.path) {
                self.events.push_overflow(watch.clone());
            }
        }
    }

    fn finish(&mut self, id: u32, result: Result<Vec<u8>, Failure>) {
        // An answer that nobody asked for is dropped.
        let Some(waiting) = self.waiting.remove(&id) else {
            return;
        };
        match &waiting.answer {
            Answer::Watch { key, .. } if result.is_err() => {
                self.watches.remove(key);
            }
            Answer::Unwatch { key, .. } if result.is_ok() => {
                self.watches.remove(key);
            }
            Answer::Again(key) => {
                self.note_set_again(key.clone(), result);
                return;
            }
            _ => {}
        }
        answer(waiting.answer, self.generation, result);
    }

    fn fail_all(&mut self) {
        self.outbox.clear();
        self.written_bytes = 0;
        self.to_set_again = 0;
        for (_, waiting) in std::mem::take(&mut self.waiting) {
            if let Answer::Watch { key, .. } = &waiting.answer {
                self.watches.remove(key);
            }
            self.fail_lost(waiting.answer);
        }
    }

    /// Answers a request for which there is no connection.
    fn fail_lost(&mut self, lost: Answer) {
        let result = match &lost {
            // The watch went with the connection. All it takes is not to set it again.
            Answer::Unwatch { key, .. } if self.watches.remove(key) => Ok(Vec::new()),
            Answer::Unwatch { .. } => Err(Failure::Refused(Errno::NotFound)),
            _ => Err(Failure::ConnectionLost),
        };
        answer(lost, self.generation, result);
    }
}

impl Drop for Connection {
    /// Also when the runtime is shut down under the task.
    fn drop(&mut self) {
        self.events.finish();
    }
}

async fn write_first(
    link: &Link,
    outbox: &VecDeque<(u32, Vec<u8>)>,
    written_bytes: usize,
) -> io::Result<usize> {
    match outbox.front() {
        Some((_, bytes)) => link.write(&bytes[written_bytes..]).await,
        None => std::future::pending().await,
    }
}

/// Tells whoever waits.
fn answer(answer: Answer, generation: u64, result: Result<Vec<u8>, Failure>) {
    match answer {
        Answer::Nobody | Answer::Again(_) => {}
        Answer::Payload(reply) | Answer::Watch { reply, .. } | Answer::Unwatch { reply, .. } => {
            let _ = reply.send(result);
        }
        Answer::Transaction { reply, commands } => {
            let open = result.and_then(|payload| {
                let id = strings(&payload)
                    .next()
                    .and_then(|text| std::str::from_utf8(text).ok())
                    .and_then(|text| text.parse().ok())
                    .ok_or(Failure::Protocol("a transaction without a number"))?;
                Ok(OpenTransaction::new(id, generation, commands))
            });
            let _ = reply.send(open);
        }
    }
}

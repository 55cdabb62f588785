// SPDX-License-Identifier: GPL-3.0-or-later
//! A xenstored that is just enough for these tests, and that can be made to misbehave.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::xenstore::Endpoint;
use crate::xenstore::path::is_at_or_below;
use crate::xenstore::wire::{Decoder, Message, MessageType, PAYLOAD_MAX, strings};

/// One request as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) kind: MessageType,
    pub(super) transaction_id: u32,
    pub(super) payload: Vec<u8>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) nodes: BTreeMap<String, Vec<u8>>,
    pub(super) seen: Vec<Seen>,
    /// What is answered to the next requests of each type, instead of the right answer:
    /// `Err` an error's name, `Ok` a payload.
    pub(super) scripted: Vec<(MessageType, Result<Vec<u8>, &'static str>)>,
    /// Requests are read but not answered.
    pub(super) mute: bool,
    /// Answers are held back until this many are there, and then sent last first.
    pub(super) reverse: usize,
    held: VecDeque<Message>,
    clients: Vec<Client>,
    transactions: u32,
}

struct Client {
    output: UnboundedSender<Vec<u8>>,
    watches: Vec<(String, String)>,
}

pub(super) struct Daemon {
    directory: PathBuf,
    state: Arc<Mutex<State>>,
    running: Option<(JoinHandle<()>, watch::Sender<()>)>,
}

impl Daemon {
    pub(super) fn start() -> Daemon {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("xenstore-test-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let mut daemon = Daemon {
            directory,
            state: Arc::default(),
            running: None,
        };
        daemon.restart();
        daemon
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        Endpoint::Socket(self.directory.join("socket"))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// What was asked so far, of this type.
    pub(super) fn seen(&self, kind: MessageType) -> Vec<Seen> {
        let seen = &self.state().seen;
        seen.iter().filter(|s| s.kind == kind).cloned().collect()
    }

    /// Listens again, with the nodes of before and no watches, as after a crash.
    pub(super) fn restart(&mut self) {
        let listener = UnixListener::bind(self.directory.join("socket")).unwrap();
        let state = Arc::clone(&self.state);
        let (alive, ended) = watch::channel(());
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&state), ended.clone()));
            }
        });
        self.running = Some((accepting, alive));
    }

    /// Closes all connections and the socket.
    pub(super) async fn stop(&mut self) {
        if let Some((accepting, alive)) = self.running.take() {
            accepting.abort();
            let _ = accepting.await;
            std::fs::remove_file(self.directory.join("socket")).unwrap();
            drop(alive);
        }
        self.state().clients.clear();
    }

    /// Sends this to every client, whatever it is.
    pub(super) fn send(&self, message: &Message) {
        for client in &self.state().clients {
            let _ = client.output.send(message.to_bytes());
        }
    }

    pub(super) fn send_event(&self, path: &str, token: &str) {
        self.send(&event(path, token));
    }

    pub(super) fn clients(&self) -> usize {
        let mut state = self.state();
        state.clients.retain(|client| !client.output.is_closed());
        state.clients.len()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn event(path: &str, token: &str) -> Message {
    let payload = format!("{path}\0{token}\0").into_bytes();
    Message::new(MessageType::WatchEvent, 0, 0, payload)
}

async fn serve(stream: UnixStream, state: Arc<Mutex<State>>, mut ended: watch::Receiver<()>) {
    let (mut reader, mut writer) = stream.into_split();
    let (output, mut messages) = unbounded_channel::<Vec<u8>>();
    let number = {
        let mut state = state.lock().unwrap();
        state.clients.push(Client {
            output,
            watches: Vec::new(),
        });
        state.clients.len() - 1
    };
    // Two tasks, so that requests are read however full the socket is, as xenstored does.
    let writing = tokio::spawn(async move {
        while let Some(bytes) = messages.recv().await {
            if writer.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    let mut decoder = Decoder::new();
    let mut buffer = vec![0; 4096];
    loop {
        let read = tokio::select! {
            read = reader.read(&mut buffer) => read,
            _ = ended.changed() => break,
        };
        match read {
            Ok(0) | Err(_) => break,
            Ok(len) => decoder.feed(&buffer[..len]),
        }
        while let Some(request) = decoder.next_message().unwrap() {
            state.lock().unwrap().handle(number, request);
        }
    }
    writing.abort();
    let _ = writing.await;
}

impl State {
    fn handle(&mut self, client: usize, request: Message) {
        let kind = request.kind().expect("only known requests are sent");
        self.seen.push(Seen {
            kind,
            transaction_id: request.header.transaction_id,
            payload: request.payload.clone(),
        });
        if self.mute {
            return;
        }
        let scripted = self.scripted.iter().position(|(of, _)| *of == kind);
        let result = match scripted {
            Some(at) => self.scripted.remove(at).1,
            None => self.answer(client, kind, &request),
        };
        let (kind, payload) = match result {
            Ok(payload) => (kind, payload),
            Err(name) => (MessageType::Error, format!("{name}\0").into_bytes()),
        };
        let header = request.header;
        let answer = Message::new(kind, header.request_id, header.transaction_id, payload);
        self.held.push_back(answer);
        if self.held.len() >= self.reverse {
            while let Some(answer) = self.held.pop_back() {
                self.send(client, &answer);
            }
        }
        // As xenstored: the answer first, then the first event.
        if request.kind() == Some(MessageType::Watch) && kind == MessageType::Watch {
            let (path, token) = self.clients[client].watches.last().unwrap().clone();
            self.send(client, &event(&path, &token));
        }
    }

    fn send(&self, client: usize, message: &Message) {
        let _ = self.clients[client].output.send(message.to_bytes());
    }

    fn answer(
        &mut self,
        client: usize,
        kind: MessageType,
        request: &Message,
    ) -> Result<Vec<u8>, &'static str> {
        let ok = Ok(b"OK\0".to_vec());
        let mut parts = strings(&request.payload).map(|part| String::from_utf8_lossy(part));
        let first = parts.next().unwrap_or_default().into_owned();
        let second = parts.next().unwrap_or_default().into_owned();
        match kind {
            MessageType::Read => self.nodes.get(&first).cloned().ok_or("ENOENT"),
            MessageType::Write => {
                let value = request.payload[first.len() + 1..].to_vec();
                self.nodes.insert(first.clone(), value);
                self.fire(&first);
                ok
            }
            MessageType::Mkdir => {
                self.nodes.entry(first).or_default();
                ok
            }
            MessageType::Rm => {
                self.nodes.retain(|path, _| !is_at_or_below(path, &first));
                self.fire(&first);
                ok
            }
            MessageType::Directory => {
                let names = self.names(&first);
                if names.len() > PAYLOAD_MAX {
                    return Err("E2BIG");
                }
                Ok(names)
            }
            MessageType::DirectoryPart => {
                let names = self.names(&first);
                let offset: usize = second.parse().unwrap();
                let mut part = b"77\0".to_vec();
                let mut end = offset;
                // Whole names only.
                for name in names[offset..].split_inclusive(|byte| *byte == 0) {
                    if part.len() + (end - offset) + name.len() >= PAYLOAD_MAX {
                        break;
                    }
                    end += name.len();
                }
                part.extend_from_slice(&names[offset..end]);
                if end == names.len() {
                    part.push(0);
                }
                Ok(part)
            }
            MessageType::GetPerms => Ok(b"n0\0r5\0".to_vec()),
            MessageType::Watch => {
                self.clients[client].watches.push((first, second));
                ok
            }
            MessageType::Unwatch => {
                let watches = &mut self.clients[client].watches;
                let before = watches.len();
                watches.retain(|(path, token)| (path, token) != (&first, &second));
                if watches.len() == before {
                    return Err("ENOENT");
                }
                ok
            }
            MessageType::TransactionStart => {
                self.transactions += 1;
                Ok(format!("{}\0", self.transactions).into_bytes())
            }
            MessageType::GetDomainPath => Ok(format!("/local/domain/{first}\0").into_bytes()),
            MessageType::IsDomainIntroduced => Ok(b"T\0".to_vec()),
            _ => ok,
        }
    }

    fn names(&self, path: &str) -> Vec<u8> {
        let mut names = Vec::new();
        let start = format!("{path}/");
        for name in self
            .nodes
            .keys()
            .filter_map(|node| node.strip_prefix(&start))
        {
            names.extend_from_slice(name.as_bytes());
            names.push(0);
        }
        names
    }

    fn fire(&self, path: &str) {
        for client in &self.clients {
            for (watched, token) in &client.watches {
                if is_at_or_below(path, watched) {
                    let _ = client.output.send(event(path, token).to_bytes());
                }
            }
        }
    }
}

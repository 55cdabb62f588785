// SPDX-License-Identifier: GPL-3.0-or-later
//! Device connections: what was sent arrives whole and in order, some time or never.

use std::collections::VecDeque;

use session::open::{Open, Opened};

/// What is on its way.
#[derive(Clone, Debug, Hash)]
pub(crate) enum Message {
    Open(Open),
    Opened(Box<Opened>),
    Frames(Vec<u8>),
}

/// A connection between the controller of a domain and the exporter.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Connection {
    pub(crate) host: usize,
    pub(crate) dom: u16,
    pub(crate) up: VecDeque<Message>,
    pub(crate) down: VecDeque<Message>,
    /// Nothing arrives any more; the ends notice that one after the other.
    pub(crate) cut: bool,
    pub(crate) backend: bool,
    pub(crate) exporter: bool,
}

impl Connection {
    pub(crate) fn new(host: usize, dom: u16) -> Self {
        Self {
            host,
            dom,
            up: VecDeque::new(),
            down: VecDeque::new(),
            cut: false,
            backend: true,
            exporter: true,
        }
    }

    pub(crate) fn cut(&mut self) {
        self.cut = true;
        self.up.clear();
        self.down.clear();
    }

    /// Sends frames; they join those that have not arrived yet.
    pub(crate) fn send(queue: &mut VecDeque<Message>, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if let Some(Message::Frames(last)) = queue.back_mut() {
            last.extend_from_slice(bytes);
        } else {
            queue.push_back(Message::Frames(bytes.to_vec()));
        }
    }
}

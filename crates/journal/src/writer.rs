// SPDX-License-Identifier: GPL-3.0-or-later
//! Keeping a journal.

use core::hash::{Hash, Hasher};

use arrayvec::ArrayVec;
use usbif::{PortNumber, UrbResponse};
use vusb_core::PortSnapshot;

use crate::layout::{
    CONSUMED_AT, LEN_BYTES, LIFE_AT, MAGIC, MAGIC_AT, PORT_WORDS, QUIESCING_AT, RECORDS, RING_AT,
    port_at,
};
use crate::port::{self, Session};
use crate::record::{RawRequest, Record};
use crate::{Identity, Words};

/// The memory holds no journal of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a journal of this version of vusbd")]
pub struct NotOurs;

/// A controller's journal.
///
/// For a ring: [`begin`](Self::begin); [`take`](Self::take) for each request, while it
/// [has room](Self::has_room); [`placed`](Self::placed) or [`submitted`](Self::submitted) where its
/// answer waits; [`answered`](Self::answered) after its response was pushed and
/// [`published`](Self::published) after those were published; [`end`](Self::end) with the ring.
#[derive(Debug)]
pub struct Journal<W> {
    pub(crate) words: W,
    /// Records not in use, a bit for each.
    pub(crate) free: u32,
    /// Requests consumed since the ring was set up.
    pub(crate) consumed: u64,
    /// Answered and not published.
    pub(crate) unpublished: ArrayVec<Record, RECORDS>,
    ports: [u64; PortNumber::MAX as usize],
}

const _: () = assert!(RECORDS == u32::BITS as usize);

impl<W: Words> Journal<W> {
    /// An empty journal in `words`, which are [`LEN_BYTES`] long. `life` is a number that no other
    /// journal has.
    pub fn create(words: W, life: u64) -> Self {
        words.store(MAGIC_AT, 0);
        for at in 1..LEN_BYTES / 8 {
            words.store(at, 0);
        }
        words.store(LIFE_AT, life);
        words.store(MAGIC_AT, MAGIC);
        Self::over(words)
    }

    /// The journal that an earlier process kept. Then [`Journal::recover`] with its ring.
    ///
    /// # Errors
    /// When there is none that this version can read.
    pub fn open(words: W) -> Result<Self, NotOurs> {
        match words.load(MAGIC_AT) {
            MAGIC => {
                let mut journal = Self::over(words);
                for port in PortNumber::first(PortNumber::MAX) {
                    let at = port_at(port) + port::STATE;
                    journal.ports[port.index()] = journal.words.load(at);
                    // As long as the record is there that tells a number which was not noted yet.
                    if let Some(session) = journal.session(port) {
                        let at = port_at(port) + port::LAST_REQUEST;
                        journal.words.store(at, session.last_request);
                    }
                }
                Ok(journal)
            }
            _ => Err(NotOurs),
        }
    }

    /// A journal in words that keep nothing.
    pub fn unkept(words: W) -> Self {
        Self::over(words)
    }

    /// The same journal, over words that hold the same.
    pub fn copy<V>(&self, words: V) -> Journal<V> {
        Journal {
            words,
            free: self.free,
            consumed: self.consumed,
            unpublished: self.unpublished.clone(),
            ports: self.ports,
        }
    }

    fn over(words: W) -> Self {
        Self {
            words,
            free: u32::MAX,
            consumed: 0,
            unpublished: ArrayVec::new(),
            ports: [0; PortNumber::MAX as usize],
        }
    }

    // ---- the ring

    /// A ring is served from request index `start` on; 0 for one that was just set up.
    pub fn begin(&mut self, identity: &Identity, start: u32) {
        self.end();
        identity.store(&self.words);
        self.consumed = start.into();
        self.words.store(CONSUMED_AT, self.consumed);
        self.words.store(RING_AT, 1);
    }

    /// The ring is gone, and every request with it.
    pub fn end(&mut self) {
        self.words.store(RING_AT, 0);
        self.words.store(QUIESCING_AT, 0);
        for n in 0..RECORDS as u8 {
            Record(n).free(&self.words);
        }
        self.free = u32::MAX;
        self.unpublished.clear();
    }

    /// Whether another request can be taken; if not, [`published`](Self::published) makes room.
    pub fn has_room(&self) -> bool {
        self.free != 0
    }

    /// A request was copied from its slot. `None` when there is no room.
    pub fn take(&mut self, raw: &RawRequest) -> Option<Record> {
        if self.free == 0 {
            return None;
        }
        // Below 32.
        let record = Record(self.free.trailing_zeros() as u8);
        self.free &= !(1 << record.0);
        record.take(&self.words, self.consumed, raw);
        self.consumed += 1;
        self.words.store(CONSUMED_AT, self.consumed);
        Some(record)
    }

    /// It is held for the device at this port.
    pub fn placed(&mut self, record: Record, port: PortNumber) {
        record.place(&self.words, port);
    }

    /// It was submitted to its session. Call this before the frame leaves.
    pub fn submitted(&mut self, record: Record, port: PortNumber, epoch: u64, number: u64) {
        record.submit(&self.words, port, epoch, number);
        self.words.store(port_at(port) + port::LAST_REQUEST, number);
    }

    /// Its response was pushed with this index, and is not published yet.
    pub fn answered(&mut self, record: Record, index: u32, response: &UrbResponse) {
        record.answer(&self.words, index, response);
        // Cannot be full: each record is in it once.
        let _ = self.unpublished.try_push(record);
    }

    /// Every response pushed is published.
    pub fn published(&mut self) {
        for record in self.unpublished.drain(..) {
            record.free(&self.words);
            self.free |= 1 << record.0;
        }
    }

    /// Whether the guest is being suspended.
    pub fn set_quiescing(&mut self, quiescing: bool) {
        self.words.store(QUIESCING_AT, quiescing.into());
    }

    /// Whether the guest was being suspended.
    pub fn is_quiescing(&self) -> bool {
        self.words.load(QUIESCING_AT) != 0
    }

    // ---- ports

    /// Keeps what changed at a port. Call it before an answer that depends on the change is pushed.
    pub fn save_port(&mut self, port: PortNumber, snapshot: &PortSnapshot) {
        let word = port::pack(snapshot);
        let saved = &mut self.ports[port.index()];
        if port::differ(*saved, word) {
            *saved = word;
            self.words.store(port_at(port) + port::STATE, word);
        }
    }

    /// The first event of a port is about to be pushed as response `index` of the connection ring.
    /// After it was published, alone, the port is to be [saved](Self::save_port).
    pub fn telling(&mut self, port: PortNumber, index: u32) {
        let word = port::telling(self.ports[port.index()], index);
        self.ports[port.index()] = word;
        self.words.store(port_at(port) + port::STATE, word);
    }

    /// What is kept of a port.
    pub fn port(&self, port: PortNumber) -> PortSnapshot {
        port::unpack(self.ports[port.index()]).unwrap_or_default()
    }

    /// Whether the first event of a port, which was [being told](Self::telling), has been: then it is
    /// to be forgotten. `conn_rsp_prod` is the response index shared on the connection ring.
    pub fn was_told(&self, port: PortNumber, conn_rsp_prod: u32) -> bool {
        port::was_told(self.ports[port.index()], conn_rsp_prod)
    }

    // ---- sessions

    /// A lease was claimed under this epoch: numbers start anew.
    pub fn open_session(&mut self, port: PortNumber, epoch: u64) {
        let at = port_at(port);
        self.close_session(port);
        self.words.store_all(at + port::LAST_REQUEST, &[0, 0, 0]);
        self.words.store(at + port::EPOCH, epoch);
    }

    /// The device is gone from this port.
    pub fn close_session(&mut self, port: PortNumber) {
        self.words.store(port_at(port) + port::EPOCH, 0);
    }

    /// A device reset was asked for as request `number`. Call this before the frame leaves.
    pub fn reset(&mut self, port: PortNumber, number: u64) {
        let at = port_at(port);
        self.words.store(at + port::RESET, number);
        self.words.store(at + port::LAST_REQUEST, number);
    }

    /// The device reset is over.
    pub fn reset_over(&mut self, port: PortNumber) {
        self.words.store(port_at(port) + port::RESET, 0);
    }

    /// The number that no other journal has; 0 where nothing is kept.
    pub fn life(&self) -> u64 {
        self.words.load(LIFE_AT)
    }

    /// A number for the next attempt to take up the lease of a port, greater than all before. Call this
    /// before it is sent.
    pub fn next_attempt(&mut self, port: PortNumber) -> u64 {
        let at = port_at(port) + port::ATTEMPT;
        let attempt = self.words.load(at).saturating_add(1);
        self.words.store(at, attempt);
        attempt
    }

    /// What came of the completions up to `number` is in the journal. Call this before they are
    /// acknowledged.
    pub fn completed(&mut self, port: PortNumber, number: u64) {
        self.words.store(port_at(port) + port::COMPLETIONS, number);
    }

    /// Where a port's session had come to; `None` without one.
    pub fn session(&self, port: PortNumber) -> Option<Session> {
        let word = |n| self.words.load(port_at(port) + n);
        let epoch = word(port::EPOCH);
        if epoch == 0 {
            return None;
        }
        // The record's number and the reset's are written first.
        let mut last_request = word(port::LAST_REQUEST);
        for n in 0..RECORDS as u8 {
            last_request = last_request.max(self.submitted_number(Record(n), port, epoch));
        }
        let reset = word(port::RESET);
        Some(Session {
            life: self.life(),
            epoch,
            last_request: last_request.max(reset),
            completions_received: word(port::COMPLETIONS),
            reset: Some(reset).filter(|&r| r != 0),
        })
    }

    fn submitted_number(&self, record: Record, at: PortNumber, of: u64) -> u64 {
        use crate::record::State::Submitted;
        match record.state(&self.words) {
            Some(Submitted {
                port,
                epoch,
                number,
            }) if port == at && epoch == of => number,
            _ => 0,
        }
    }
}

/// What is not in the words.
impl<W> Hash for Journal<W> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.free, self.consumed, &self.unpublished).hash(state);
    }
}

const _: () = assert!(port::ATTEMPT < PORT_WORDS);

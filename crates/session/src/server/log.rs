// SPDX-License-Identifier: GPL-3.0-or-later
//! The frames of a connection, encoded once, from the first completion that is not acknowledged to
//! the last byte to be sent. Like TCP's send buffer: acknowledging moves the front, sending moves a
//! cursor, and a resume puts the cursor back to the front.

use std::collections::VecDeque;

use crate::frame::{self, Completion, HEADER_LEN, Kind, Transfer};
use crate::stash::Place;

/// The front is given back in steps of at least this many bytes, unless the log becomes empty.
const COMPACT_LEN: usize = 256 * 1024;

#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Log {
    bytes: Vec<u8>,
    /// Where in `bytes` the log begins.
    front: usize,
    /// Where in `bytes` the unsent part begins.
    cursor: usize,
    /// Where in `bytes` frames end.
    ends: VecDeque<End>,
    acknowledged: u64,
    /// Completions among the frames.
    kept: usize,
    /// Where headers are encoded, since a completion is known only after its data.
    header: Vec<u8>,
}

/// Where a frame ends.
#[derive(Clone, Copy, Debug, Hash)]
struct End {
    at: usize,
    /// The number, if it is a completion.
    completion: Option<u64>,
    /// Which data it carries, if it is of a [`Transfer::is_stream`] that went well.
    data: Option<Data>,
}

/// Data of a frame.
#[derive(Clone, Copy, Debug, Hash)]
struct Data {
    request: u64,
    transfer: Transfer,
    place: Place,
    len: usize,
    /// The guest has not seen it, and it was put aside.
    kept: bool,
}

impl Log {
    /// Starts anew and keeps the memory.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
        (self.front, self.cursor, self.acknowledged, self.kept) = (0, 0, 0, 0);
    }

    /// Frames that are no completions, and were not sent yet or are behind a completion.
    pub(super) fn plain(&self) -> usize {
        self.ends.len() - self.kept
    }

    /// Completions not acknowledged.
    pub(super) fn kept(&self) -> usize {
        self.kept
    }

    /// The last completion acknowledged, 0 for none.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// The last completion that was sent as a whole, now or before.
    pub(super) fn last_sent(&self) -> u64 {
        let sent = self.ends.iter().rev().filter(|e| e.at <= self.cursor);
        sent.filter_map(|e| e.completion)
            .next()
            .unwrap_or(self.acknowledged)
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// `fill` appends the body and says what it belongs to; without that, nothing was pushed.
    pub(super) fn push_completion(
        &mut self,
        body_limit: usize,
        stream: Option<(Transfer, Place)>,
        fill: impl FnOnce(&mut Vec<u8>) -> Option<Completion>,
    ) -> bool {
        let start = self.bytes.len();
        let body = start + HEADER_LEN;
        self.bytes.resize(body, 0);
        let completion = fill(&mut self.bytes);
        debug_assert!(self.bytes.len() >= body);
        let Some(completion) = completion else {
            self.bytes.truncate(start);
            return false;
        };
        // A device that says more than it was asked for must not break the connection.
        self.bytes.truncate(body + body_limit);
        let body_len = self.bytes.len() - body;
        self.header.clear();
        frame::encode_complete(&mut self.header, &completion, body_len);
        self.bytes[start..body].copy_from_slice(&self.header);
        self.kept += 1;
        let data = stream
            .filter(|_| completion.status.is_success())
            .map(|(transfer, place)| Data {
                request: completion.request,
                transfer,
                place,
                len: body_len,
                kept: false,
            });
        self.end_frame(Some(completion.number), data);
        true
    }

    /// The transfer whose data a completion that is not acknowledged carries.
    pub(super) fn transfer_of(&self, request: u64) -> Option<Transfer> {
        let mut data = self.ends.iter().filter_map(|e| e.data);
        data.find(|d| d.request == request).map(|d| d.transfer)
    }

    /// Puts aside the data of a completion that is not acknowledged: its transfer, its place, the
    /// data, and whether the same endpoint has sent data since that was not put aside. `None` where there is
    /// none, or it was put aside before.
    pub(super) fn put_aside(&mut self, request: u64) -> Option<(Transfer, Place, &[u8], bool)> {
        let is_it = |d: &Data| d.request == request && !d.kept;
        let index = self
            .ends
            .iter()
            .position(|e| e.data.as_ref().is_some_and(is_it))?;
        let Data {
            transfer,
            place,
            len,
            ..
        } = self.ends[index].data?;
        let later = self.ends.iter().skip(index + 1).filter_map(|e| e.data);
        let outrun = later
            .into_iter()
            .any(|d| d.transfer.endpoint == transfer.endpoint && !d.kept);
        let end = &mut self.ends[index];
        if let Some(data) = &mut end.data {
            data.kept = true;
        }
        Some((transfer, place, &self.bytes[end.at - len..end.at], outrun))
    }

    pub(super) fn push_plain(&mut self, kind: Kind) {
        frame::encode_plain(&mut self.bytes, kind, 0, 0, &[]);
        self.end_frame(None, None);
    }

    fn end_frame(&mut self, completion: Option<u64>, data: Option<Data>) {
        self.ends.push_back(End {
            at: self.bytes.len(),
            completion,
            data,
        });
    }

    pub(super) fn unsent(&self) -> &[u8] {
        &self.bytes[self.cursor..]
    }

    pub(super) fn sent(&mut self, len: usize) {
        self.cursor = (self.cursor + len).min(self.bytes.len());
        self.trim();
    }

    /// The unsent part of a frame of which some was sent.
    pub(super) fn rest_of_frame(&self) -> &[u8] {
        let at_start = self.cursor == self.front || self.ends.iter().any(|e| e.at == self.cursor);
        match self.ends.iter().find(|e| e.at > self.cursor) {
            Some(end) if !at_start => &self.bytes[self.cursor..end.at],
            _ => &[],
        }
    }

    /// Sends everything again that is not acknowledged.
    pub(super) fn rewind(&mut self) {
        self.cursor = self.front;
    }

    /// Completions up to `number` have arrived.
    pub(super) fn acknowledge(&mut self, number: u64) {
        if number > self.acknowledged {
            self.acknowledged = number;
            self.trim();
        }
    }

    /// Gives back the frames at the front that were sent and need not be sent again.
    fn trim(&mut self) {
        while let Some(end) = self.ends.front() {
            let done = match end.completion {
                Some(number) => number <= self.acknowledged,
                None => end.at <= self.cursor,
            };
            if !done {
                break;
            }
            self.kept -= usize::from(end.completion.is_some());
            self.front = end.at;
            self.ends.pop_front();
        }
        self.cursor = self.cursor.max(self.front);
        if self.front == self.bytes.len() {
            self.bytes.clear();
            (self.front, self.cursor) = (0, 0);
        } else if self.front >= COMPACT_LEN && self.front >= self.bytes.len() / 2 {
            self.bytes.drain(..self.front);
            for end in &mut self.ends {
                end.at -= self.front;
            }
            self.cursor -= self.front;
            self.front = 0;
        }
    }
}

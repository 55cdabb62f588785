// SPDX-License-Identifier: GPL-3.0-or-later
//! The backend's end of a device connection.
//!
//! Calling contract: encode with [`Client::submit`], [`Client::cancel`] and the others, send what
//! [`Client::output`] holds; feed what arrives to [`Client::next_event`] until it answers `None`,
//! then, before long, [`Client::acknowledge`]. When the connection is lost, call [`Client::lost`], connect
//! again, send an `Open` with [`Client::resume`], hand the answer to [`Client::resumed`], and send
//! every request again that it names.
//!
//! Why nothing is executed twice and nothing is forgotten: requests and completions have numbers
//! that grow by one, the exporter keeps a completion until it is acknowledged, and at a resume each
//! end tells the other the last number it has. A request's OUT data is not kept here: its URB is
//! unanswered, so the guest's pages still hold it.

mod error;
mod outstanding;
mod resume;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::convert::Infallible;

use crate::Epoch;
use crate::frame::{self, Completion, HEADER_LEN, Header, Kind, Transfer, TransferStatus};
use outstanding::{End, Outstanding};

pub use error::ClientError;

/// Most requests without a completion. A ring has 16 slots; the rest is for resets.
pub const MAX_OUTSTANDING: usize = 32;

/// Most completions whose acknowledgement waits: the slots of a ring. With [`MAX_OUTSTANDING`]
/// they are fewer than [`crate::server::MAX_OPEN`].
pub const MAX_HELD: u64 = 16;

/// What arrived.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A transfer is over; IN data (and isochronous packet descriptors) in `body`.
    Completed {
        /// How it ended.
        completion: Completion,
        /// The body.
        body: &'a [u8],
    },
    /// The device is gone; everything outstanding was completed before.
    Gone,
    /// Somebody else holds the lease now. Nothing of ours will be executed any more.
    Fenced,
    /// The exporter asks whether we are there; the answer is in the output already.
    Ping,
    /// The exporter is there.
    Pong,
}

/// The machine; see the module's documentation.
#[derive(Clone, Debug, Hash)]
pub struct Client {
    epoch: Epoch,
    connected: bool,
    last_request: u64,
    completions_received: u64,
    acknowledged: u64,
    outstanding: VecDeque<Outstanding>,
    /// Of a restored client: requests that may complete without anybody having asked any more.
    unaccounted: u64,
    output: Vec<u8>,
    /// How many of the last completions are not acknowledged yet, though they were received.
    lag: u64,
}

impl Client {
    /// A client of a lease just claimed, connected, with nothing sent yet.
    pub fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            connected: true,
            last_request: 0,
            completions_received: 0,
            acknowledged: 0,
            outstanding: VecDeque::with_capacity(MAX_OUTSTANDING),
            unaccounted: 0,
            output: Vec::with_capacity(256 * 1024),
            lag: 0,
        }
    }

    /// The epoch that it was made for.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether requests go out now, or wait for [`Client::resumed`].
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// Requests without a completion.
    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// Whether another request may be submitted.
    pub fn has_room(&self) -> bool {
        self.outstanding.len() < MAX_OUTSTANDING
    }

    /// What is to be sent. The caller takes the bytes and leaves the buffer empty.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Submits a transfer and returns its request number. `fill` appends exactly
    /// [`Transfer::submit_body_len`] bytes of body; it is not called while the connection is lost
    /// (then [`Client::resend`] will ask for them). Where `fill` fails, nothing was submitted.
    ///
    /// Needs [`Client::has_room`].
    pub fn submit<E>(
        &mut self,
        transfer: &Transfer,
        fill: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<u64, E> {
        let request = self.last_request + 1;
        self.encode_submit(request, transfer, fill)?;
        self.last_request = request;
        self.outstanding
            .push_back(Outstanding::transfer(request, transfer));
        Ok(request)
    }

    /// Asks for a device reset, which completes like a transfer. Needs [`Client::has_room`].
    pub fn reset(&mut self) -> u64 {
        self.last_request += 1;
        let request = self.last_request;
        self.outstanding.push_back(Outstanding::nothing(request));
        self.resend_reset(request);
        request
    }

    /// Asks for the cancellation of `request`. It will still complete, once. Nothing happens when
    /// it has completed already.
    pub fn cancel(&mut self, request: u64) {
        if let Some(entry) = self.outstanding.iter_mut().find(|o| o.request == request) {
            if entry.end == End::Awaited {
                entry.end = End::Cancelled;
            }
            self.plain(Kind::Cancel, request, &[]);
        }
    }

    /// Cancels `request`, whose submitter is being suspended. It will complete as cancelled and
    /// without data, whatever the device does: its data is kept by the exporter for the endpoint's
    /// next requests.
    pub fn keep(&mut self, request: u64) {
        if let Some(entry) = self.outstanding.iter_mut().find(|o| o.request == request) {
            entry.end = End::Kept;
            self.plain(Kind::Keep, request, &[]);
        }
    }

    /// As [`Client::keep`], for a request that completed a moment ago, with data that the guest has
    /// thrown away: it had cancelled the request before it saw the completion. Needs
    /// [`Client::hold_acknowledgements`].
    pub fn keep_completed(&mut self, request: u64) {
        self.plain(Kind::Keep, request, &[]);
    }

    /// Cancels `request`, of an interrupt IN endpoint, whose submitter is being suspended and uses what
    /// comes of it. What the device sends then is kept for the endpoint's next requests.
    pub fn recall(&mut self, request: u64) {
        if let Some(entry) = self.outstanding.iter_mut().find(|o| o.request == request) {
            entry.end = End::Recalled;
        }
        self.plain(Kind::Recall, request, &[]);
    }

    /// Whether the acknowledgement of the last [`MAX_HELD`] completions waits, so that the exporter
    /// still has their data for [`Client::keep_completed`].
    pub fn hold_acknowledgements(&mut self, hold: bool) {
        self.lag = if hold { MAX_HELD } else { 0 };
    }

    /// Saves the lease's cookie, at most [`frame::MAX_COOKIE_LEN`] bytes. A cookie that is saved
    /// while the connection is lost is not kept: save it again after [`Client::resumed`].
    pub fn save_cookie(&mut self, cookie: &[u8]) {
        debug_assert!(cookie.len() <= frame::MAX_COOKIE_LEN);
        self.plain(Kind::Cookie, 0, cookie);
    }

    /// Asks for a receipt, which completes like a transfer: what was said before is on the exporter's disk
    /// then. Needs [`Client::has_room`].
    pub fn ask_for_receipt(&mut self) -> u64 {
        let nothing = |_: &mut Vec<u8>| Ok::<_, Infallible>(());
        let Ok(request) = self.submit(&Transfer::SET_ADDRESS, nothing);
        request
    }

    /// Sends one of the kinds without fields: Freeze, Thaw, Orphan, Ping.
    pub fn say(&mut self, kind: Kind) {
        self.plain(kind, 0, &[]);
    }

    /// Takes the first frame off `input`: what it says, and its length in bytes. `None` when it is
    /// not all there yet.
    pub fn next_event<'a>(
        &mut self,
        input: &'a [u8],
    ) -> Result<Option<(Event<'a>, usize)>, ClientError> {
        let Some((header, body)) = frame::decode(input)? else {
            return Ok(None);
        };
        let event = match header {
            Header::Complete(completion) => match self.complete(&completion, body)? {
                End::Kept => Event::Completed {
                    completion: Completion {
                        status: TransferStatus::Cancelled,
                        actual_length: 0,
                        ..completion
                    },
                    body: &[],
                },
                _ => Event::Completed { completion, body },
            },
            Header::Plain(Kind::Gone) => Event::Gone,
            Header::Plain(Kind::Fenced) => {
                self.connected = false;
                Event::Fenced
            }
            Header::Plain(Kind::Ping) => {
                self.plain(Kind::Pong, 0, &[]);
                Event::Ping
            }
            Header::Plain(Kind::Pong) => Event::Pong,
            _ => return Err(ClientError::Direction),
        };
        Ok(Some((event, HEADER_LEN + body.len())))
    }

    /// Completions received that are not acknowledged yet. Every request acknowledges all in
    /// passing; [`Client::acknowledge`] is for when none comes, or too many have gathered.
    pub fn unacknowledged(&self) -> u64 {
        self.acknowledgement() - self.acknowledged
    }

    /// The last completion to acknowledge now.
    fn acknowledgement(&self) -> u64 {
        let held_back = self.completions_received.saturating_sub(self.lag);
        held_back.max(self.acknowledged)
    }

    /// Acknowledges completions that no request has acknowledged in passing.
    pub fn acknowledge(&mut self) {
        if self.unacknowledged() > 0 {
            self.plain(Kind::Ack, 0, &[]);
        }
    }

    /// The last completion that arrived, 0 for none.
    pub fn completions_received(&self) -> u64 {
        self.completions_received
    }

    fn encode_submit<E>(
        &mut self,
        request: u64,
        transfer: &Transfer,
        fill: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.connected {
            return Ok(());
        }
        let start = self.output.len();
        let acknowledgement = self.acknowledgement();
        frame::encode_submit(&mut self.output, request, acknowledgement, transfer);
        let body = self.output.len();
        if let Err(e) = fill(&mut self.output) {
            self.output.truncate(start);
            return Err(e);
        }
        debug_assert_eq!(self.output.len() - body, transfer.submit_body_len());
        self.acknowledged = acknowledgement;
        Ok(())
    }

    fn plain(&mut self, kind: Kind, request: u64, body: &[u8]) {
        if self.connected {
            let acknowledgement = self.acknowledgement();
            frame::encode_plain(&mut self.output, kind, request, acknowledgement, body);
            let acknowledges = matches!(
                kind,
                Kind::Ack | Kind::Cancel | Kind::Keep | Kind::Recall | Kind::Reset
            );
            if acknowledges {
                self.acknowledged = acknowledgement;
            }
        }
    }

    fn complete(&mut self, completion: &Completion, body: &[u8]) -> Result<End, ClientError> {
        let expected = self.completions_received + 1;
        if completion.number != expected {
            return Err(ClientError::CompletionNumber {
                got: completion.number,
                expected,
            });
        }
        let request = completion.request;
        let at = self.outstanding.iter().position(|o| o.request == request);
        let Some(at) = at else {
            if self.unaccounted == 0 || request > self.last_request {
                return Err(ClientError::UnknownRequest(request));
            }
            self.unaccounted -= 1;
            self.completions_received = expected;
            return Ok(End::Awaited);
        };
        let Outstanding {
            body_limit,
            length,
            end,
            ..
        } = self.outstanding[at];
        if body.len() > body_limit {
            return Err(ClientError::TooMuchData {
                request,
                len: body.len(),
                limit: body_limit,
            });
        }
        if completion.actual_length > length {
            let len = completion.actual_length as usize;
            return Err(ClientError::TooMuchData {
                request,
                len,
                limit: length as usize,
            });
        }
        self.outstanding.remove(at);
        self.completions_received = expected;
        Ok(end)
    }
}

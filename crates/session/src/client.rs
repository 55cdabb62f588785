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

use std::collections::VecDeque;

use crate::Epoch;
use crate::frame::{
    self, Completion, FrameError, HEADER_LEN, Header, Kind, Transfer, TransferStatus,
};
use crate::open::How;

/// Most requests without a completion. A ring has 16 slots; the rest is for resets.
pub const MAX_OUTSTANDING: usize = 32;

/// Most completions whose acknowledgement waits: the slots of a ring. With [`MAX_OUTSTANDING`]
/// they are fewer than [`crate::server::MAX_OPEN`].
pub const MAX_HELD: u64 = 16;

/// Why a connection is of no more use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// Not a frame.
    #[error("the exporter sent no valid frame: {0}")]
    Frame(#[from] FrameError),
    /// A frame that only a backend sends.
    #[error("the exporter sent a backend's frame")]
    Direction,
    /// A completion is missing or repeated.
    #[error("completion {got} where {expected} was due")]
    CompletionNumber {
        /// The number that came.
        got: u64,
        /// The number that was due.
        expected: u64,
    },
    /// A completion of no outstanding request.
    #[error("completion of request {0}, which is not outstanding")]
    UnknownRequest(u64),
    /// More data than was asked for, or data with an OUT transfer.
    #[error(
        "completion of request {request} carries {len} bytes where at most {limit} were asked for"
    )]
    TooMuchData {
        /// The request.
        request: u64,
        /// Bytes of the body, or the actual length.
        len: usize,
        /// Bytes that were asked for.
        limit: usize,
    },
    /// The exporter claims to have requests that were never sent.
    #[error("the exporter says it has request {got}, the last one sent is {last}")]
    Received {
        /// What it claims.
        got: u64,
        /// The last one.
        last: u64,
    },
}

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

#[derive(Clone, Copy, Debug, Hash)]
struct Outstanding {
    request: u64,
    /// Largest body of its completion.
    body_limit: usize,
    length: u32,
    end: End,
}

/// Whether the guest has given up a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum End {
    /// No.
    Awaited,
    /// Yes.
    Cancelled,
    /// Yes, because it is being suspended: its data is the exporter's to keep.
    Kept,
    /// Yes, because it is being suspended: its data is the submitter's.
    Recalled,
}

impl Outstanding {
    fn transfer(request: u64, transfer: &Transfer) -> Self {
        let iso = transfer.iso_packets() * frame::ISO_PACKET_LEN;
        let data = if transfer.is_in() {
            transfer.length as usize
        } else {
            0
        };
        Self {
            request,
            body_limit: iso + data,
            length: transfer.length,
            end: End::Awaited,
        }
    }

    fn nothing(request: u64) -> Self {
        Self {
            request,
            body_limit: 0,
            length: 0,
            end: End::Awaited,
        }
    }
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

    /// The client of an earlier process, not connected. `known` are the requests without a
    /// completion that somebody waits for, in any order, a reset as `None`. `last_request` is the
    /// last one that may have been sent, `completions_received` the last completion whose outcome
    /// was kept.
    ///
    /// Numbers that are neither known nor completed belong to requests that nobody waits for any more:
    /// their completions are taken, and what of them did not arrive is sent with no effect.
    ///
    /// `None` when these numbers contradict each other; then the lease is to be claimed.
    pub fn restore(
        epoch: Epoch,
        last_request: u64,
        completions_received: u64,
        known: impl IntoIterator<Item = (u64, Option<Transfer>)>,
    ) -> Option<Self> {
        let mut client = Self::new(epoch);
        client.connected = false;
        client.last_request = last_request;
        client.completions_received = completions_received;
        client.acknowledged = completions_received;
        for (request, transfer) in known {
            if request == 0 || request > last_request || !client.has_room() {
                return None;
            }
            client.outstanding.push_back(match transfer {
                Some(transfer) => Outstanding::transfer(request, &transfer),
                None => Outstanding::nothing(request),
            });
        }
        let open = last_request.checked_sub(completions_received)?;
        client.unaccounted = open.checked_sub(client.outstanding.len() as u64)?;
        // More than an exporter would ever have taken.
        if open > crate::server::MAX_OPEN as u64 {
            return None;
        }
        client.sort_outstanding();
        Some(client)
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

    /// The connection is lost. What was not sent is dropped: it will be sent again.
    pub fn lost(&mut self) {
        self.connected = false;
        self.output.clear();
    }

    /// How to open a new connection.
    pub fn resume(&self) -> How {
        How::Resume {
            epoch: self.epoch,
            completions_received: self.completions_received,
        }
    }

    /// The exporter answered a resume: it has all requests up to `requests_received`. The caller
    /// sends those of [`Client::unsent`] again, in order, then calls [`Client::resend_cancels`].
    pub fn resumed(&mut self, requests_received: u64) -> Result<(), ClientError> {
        if requests_received > self.last_request {
            return Err(ClientError::Received {
                got: requests_received,
                last: self.last_request,
            });
        }
        self.connected = true;
        self.acknowledged = self.completions_received;
        // Numbers have no gaps: what nobody waits for is sent, too, with no effect.
        let fillers = requests_received + 1..=self.last_request;
        for request in fillers.take(crate::server::MAX_OPEN) {
            if self.unaccounted > 0 && !self.is_outstanding(request) {
                self.unaccounted -= 1;
                self.outstanding.push_back(Outstanding::nothing(request));
            }
        }
        self.sort_outstanding();
        Ok(())
    }

    fn is_outstanding(&self, request: u64) -> bool {
        self.outstanding.iter().any(|o| o.request == request)
    }

    fn sort_outstanding(&mut self) {
        let outstanding = self.outstanding.make_contiguous();
        outstanding.sort_unstable_by_key(|o| o.request);
    }

    /// The last completion that arrived, 0 for none.
    pub fn completions_received(&self) -> u64 {
        self.completions_received
    }

    /// The outstanding requests after `requests_received`, oldest first.
    pub fn unsent(&self, requests_received: u64) -> impl Iterator<Item = u64> + '_ {
        self.outstanding
            .iter()
            .map(|o| o.request)
            .filter(move |&r| r > requests_received)
    }

    /// Sends a request of [`Client::unsent`] again.
    pub fn resend<E>(
        &mut self,
        request: u64,
        transfer: &Transfer,
        fill: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.encode_submit(request, transfer, fill)
    }

    /// Sends a reset of [`Client::unsent`] again.
    pub fn resend_reset(&mut self, request: u64) {
        self.plain(Kind::Reset, request, &[]);
    }

    /// Cancels again what was cancelled, after the requests were sent again: the newest first, as
    /// the USB core does. Else it would look as if the guest had seen what came after a request
    /// whose data is to be kept.
    pub fn resend_cancels(&mut self) {
        for at in (0..self.outstanding.len()).rev() {
            let Outstanding { request, end, .. } = self.outstanding[at];
            match end {
                End::Awaited => (),
                End::Cancelled => self.plain(Kind::Cancel, request, &[]),
                End::Kept => self.plain(Kind::Keep, request, &[]),
                End::Recalled => self.plain(Kind::Recall, request, &[]),
            }
        }
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

#[cfg(test)]
mod tests;

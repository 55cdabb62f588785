// SPDX-License-Identifier: GPL-3.0-or-later
//! The exporter's end of one device's session, over all its connections.
//!
//! Calling contract: at a claim call [`Server::claim`], at a resume [`Server::resume`]. Then feed
//! what arrives to [`Server::next_event`] until it answers `None`, carry out what the events ask
//! for, call [`Server::complete`] once for each, and send what [`Server::output`] holds, saying how
//! much of it went with [`Server::sent`]. After [`Server::disconnected`], or an error, nothing is
//! lost: transfers go on, and their completions wait for a resume. After every event and every
//! completion, carry out what [`Server::next_order`] says: mostly nothing; see [`crate::stash`].
//!
//! The rules: requests arrive with the numbers 1, 2, 3 … of an epoch, and each is handed out once.
//! Completions leave with the numbers 1, 2, 3 …, and each is kept until it is acknowledged. Both
//! together are at most [`MAX_OPEN`], so a peer that floods or never acknowledges costs its
//! connection, not memory.

mod away;
mod log;
#[cfg(test)]
mod tests;

use crate::frame::{
    self, Completion, FrameError, HEADER_LEN, Header, Kind, Transfer, TransferStatus, TransferType,
};
use crate::stash::{self, Stash};
use crate::{Configured, Epoch};
use away::Away;
use log::Log;

pub use away::{Order, is_poll, set_interface};

/// Most requests that are executing or whose completion is not acknowledged yet.
pub const MAX_OPEN: usize = 64;

/// What the peer did wrong. Its connection is to be closed; it may resume.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServerError {
    /// Not a frame.
    #[error("no valid frame: {0}")]
    Frame(#[from] FrameError),
    /// A frame that only an exporter sends.
    #[error("an exporter's frame from a backend")]
    Direction,
    /// A request is missing or repeated.
    #[error("request {got} where {expected} was due")]
    RequestNumber {
        /// The number that came.
        got: u64,
        /// The number that was due.
        expected: u64,
    },
    /// More requests than fit.
    #[error("more than {MAX_OPEN} requests that execute or are not acknowledged")]
    TooManyRequests,
    /// It asks without listening.
    #[error("it sends without receiving")]
    Flood,
    /// It acknowledges what was not sent.
    #[error("acknowledges completion {got}, the last one sent is {last}")]
    Acknowledged {
        /// What it acknowledges.
        got: u64,
        /// The last one.
        last: u64,
    },
    /// It wants completions that it acknowledged before.
    #[error("wants to resume after completion {got}, but acknowledged {acknowledged} before")]
    Forgotten {
        /// The last one that it says to have.
        got: u64,
        /// The last one acknowledged.
        acknowledged: u64,
    },
}

/// What the backend wants.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Carry out a transfer and call [`Server::complete`].
    Submit {
        /// Its number.
        request: u64,
        /// What to do.
        transfer: Transfer,
        /// Isochronous packet descriptors, and OUT data: [`Transfer::submit_body_len`] bytes.
        body: &'a [u8],
    },
    /// Cancel a transfer that is executing; [`Server::complete`] is still due.
    Cancel {
        /// Its number.
        request: u64,
    },
    /// The submitter of this request is suspended: call [`Server::keep`].
    Keep {
        /// Its number.
        request: u64,
    },
    /// The submitter of this request is suspended, and uses what comes of it: call
    /// [`Server::recall`].
    Recall {
        /// Its number.
        request: u64,
    },
    /// Reset the device and call [`Server::complete`].
    Reset {
        /// Its number.
        request: u64,
    },
    /// Save this as the lease's cookie.
    Cookie(&'a [u8]),
    /// The guest is suspended.
    Freeze,
    /// It is not, after all.
    Thaw,
    /// Its domain is gone.
    Orphan,
    /// Whether the frontend resumes.
    FrontendResumes(bool),
    /// Nothing to do.
    Handled,
}

/// How a transfer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How.
    pub status: TransferStatus,
    /// Bytes transferred, at most the requested length.
    pub actual_length: u32,
    /// Isochronous: packets that failed.
    pub error_count: u32,
    /// Isochronous: the frame it started in.
    pub start_frame: u16,
}

impl Outcome {
    /// The outcome of anything but an isochronous transfer.
    pub fn new(status: TransferStatus, actual_length: u32) -> Self {
        Self {
            status,
            actual_length,
            error_count: 0,
            start_frame: 0,
        }
    }
}

#[derive(Clone, Copy, Debug, Hash)]
struct Executing {
    request: u64,
    length: u32,
    /// Largest body of the completion.
    body_limit: usize,
    /// Itself, if it is one whose data can be kept.
    stream: Option<Transfer>,
    place: Place,
    /// What it changes at the device, if it succeeds.
    changes: Changes,
}

/// What a request changes of what the guest has set at the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Changes {
    Nothing,
    /// As this SETUP packet says.
    Configured([u8; 8]),
    /// Nothing is left of it.
    Reset,
}

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    /// At the device.
    Device,
    /// Here, until the device is done with what was asked of the endpoint before.
    Parked,
    /// At the device, and its data is to be kept.
    Kept,
    /// At the device, being cancelled; what comes after it is to be kept.
    Recalled,
}

/// The machine; see the module's documentation.
#[derive(Clone, Debug, Default, Hash)]
pub struct Server {
    epoch: Epoch,
    connected: bool,
    requests_received: u64,
    last_completion: u64,
    executing: Vec<Executing>,
    log: Log,
    stash: Stash,
    away: Away,
    configured: Configured,
    /// Whether it changed since it was last asked.
    reconfigured: bool,
}

impl Server {
    /// A session of the epoch of a lease just acquired; nobody is connected.
    pub fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            executing: Vec::with_capacity(MAX_OPEN),
            ..Self::default()
        }
    }

    /// The epoch that it executes for.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// What the guest has set at the device, as its holders of before left it.
    pub fn set_configured(&mut self, configured: Configured) {
        self.configured = configured;
    }

    /// What the guest has set at the device.
    pub fn configured(&self) -> &Configured {
        &self.configured
    }

    /// Whether [`Server::configured`] has changed since the last call.
    pub fn take_reconfigured(&mut self) -> bool {
        std::mem::take(&mut self.reconfigured)
    }

    /// Whether a connection is up.
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// Requests that are executing.
    pub fn executing(&self) -> usize {
        self.executing.len()
    }

    /// Starts anew under a newer epoch, connected. Everything of the old epoch is forgotten: the
    /// caller cancels what executes, and its completions will be dropped.
    ///
    /// Returns what the old connection, if it is still up, has to send before it is closed: the
    /// rest of a frame that was sent in part, and the word that it is fenced.
    pub fn claim(&mut self, epoch: Epoch) -> Vec<u8> {
        debug_assert!(epoch > self.epoch);
        let mut farewell = self.log.rest_of_frame().to_vec();
        frame::encode_plain(&mut farewell, Kind::Fenced, 0, 0, &[]);
        *self = Self {
            connected: true,
            log: std::mem::take(&mut self.log),
            executing: std::mem::take(&mut self.executing),
            // It is the same VM's, wherever it runs now.
            stash: std::mem::take(&mut self.stash),
            away: std::mem::take(&mut self.away),
            configured: std::mem::take(&mut self.configured),
            ..Self::new(epoch)
        };
        self.log.clear();
        self.executing.clear();
        self.claimed();
        farewell
    }

    /// A new connection of the same epoch. The peer has the completions up to
    /// `completions_received`; later ones are sent again. Returns the last request received.
    ///
    /// After an error there is no connection.
    pub fn resume(&mut self, completions_received: u64) -> Result<u64, ServerError> {
        self.connected = false;
        if completions_received > self.last_completion {
            return Err(ServerError::Acknowledged {
                got: completions_received,
                last: self.last_completion,
            });
        }
        if completions_received < self.log.acknowledged() {
            return Err(ServerError::Forgotten {
                got: completions_received,
                acknowledged: self.log.acknowledged(),
            });
        }
        self.log.acknowledge(completions_received);
        self.log.rewind();
        self.connected = true;
        Ok(self.requests_received)
    }

    /// The connection is lost or closed.
    pub fn disconnected(&mut self) {
        self.connected = false;
    }

    /// Takes the first frame off `input`: what it asks for, and its length in bytes. `None` when
    /// it is not all there yet.
    pub fn next_event<'a>(
        &mut self,
        input: &'a [u8],
    ) -> Result<Option<(Event<'a>, usize)>, ServerError> {
        let Some((header, body)) = frame::decode(input)? else {
            return Ok(None);
        };
        let event = match header {
            Header::Submit {
                request,
                ack,
                transfer,
            } => {
                self.acknowledge(ack)?;
                self.accept(request, &transfer)?;
                match self.is_away() && self.take_charge(request, &transfer) {
                    true => Event::Handled,
                    false => Event::Submit {
                        request,
                        transfer,
                        body,
                    },
                }
            }
            Header::Reset { request, ack } => {
                self.acknowledge(ack)?;
                self.accept_with(request, 0, 0, None, Changes::Reset)?;
                self.forget(|_| true);
                Event::Reset { request }
            }
            Header::Cancel { request, ack } => {
                self.acknowledge(ack)?;
                match self.executing.iter().find(|e| e.request == request) {
                    Some(e) if e.place == Place::Parked => {
                        self.cancel_parked(request);
                        Event::Handled
                    }
                    Some(_) => Event::Cancel { request },
                    None => Event::Handled,
                }
            }
            Header::Keep { request, ack } => {
                self.acknowledge(ack)?;
                Event::Keep { request }
            }
            Header::Recall { request, ack } => {
                self.acknowledge(ack)?;
                Event::Recall { request }
            }
            Header::Ack { ack } => {
                self.acknowledge(ack)?;
                Event::Handled
            }
            Header::Plain(kind) => self.plain(kind, body)?,
            Header::Complete(_) => return Err(ServerError::Direction),
        };
        Ok(Some((event, HEADER_LEN + body.len())))
    }

    /// A request of `epoch` is over. `fill` appends the body: IN data of `outcome.actual_length`
    /// bytes (for isochronous transfers, the packet descriptors and the whole buffer). Returns
    /// whether anybody still waits for it: not after a claim.
    pub fn complete(
        &mut self,
        epoch: Epoch,
        request: u64,
        outcome: Outcome,
        fill: impl FnOnce(&mut Vec<u8>),
    ) -> bool {
        self.try_complete(epoch, request, |out| {
            fill(out);
            Some(outcome)
        })
    }

    /// Like [`Server::complete`], for who learns the outcome with the data. Where `fill` answers
    /// `None`, the request goes on, and what was appended is dropped. `fill` is not called when
    /// nobody waits.
    pub fn try_complete(
        &mut self,
        epoch: Epoch,
        request: u64,
        fill: impl FnOnce(&mut Vec<u8>) -> Option<Outcome>,
    ) -> bool {
        if away::is_poll(request) {
            return self.polled(request, fill);
        }
        if epoch != self.epoch {
            return false;
        }
        let Some(at) = self.executing.iter().position(|e| e.request == request) else {
            return false;
        };
        match self.is_away() && self.executing[at].stream.is_some() {
            true => self.complete_stream(at, fill),
            false => {
                let place = self.stash.arrived();
                self.complete_at(at, place, fill)
            }
        }
    }

    /// Completes an entry of `executing` with data that has this place in the order of its endpoint.
    fn complete_at(
        &mut self,
        at: usize,
        place: stash::Place,
        fill: impl FnOnce(&mut Vec<u8>) -> Option<Outcome>,
    ) -> bool {
        let Executing {
            request,
            length,
            body_limit,
            stream,
            changes,
            ..
        } = self.executing[at];
        let mut succeeded = false;
        let number = self.last_completion + 1;
        let stream = stream.map(|transfer| (transfer, place));
        let completed = self.log.push_completion(body_limit, stream, |out| {
            fill(out).map(|outcome| {
                succeeded = outcome.status == TransferStatus::Completed;
                Completion {
                    request,
                    number,
                    status: outcome.status,
                    actual_length: outcome.actual_length.min(length),
                    error_count: outcome.error_count,
                    start_frame: outcome.start_frame,
                }
            })
        });
        if completed {
            self.last_completion = number;
            self.executing.swap_remove(at);
            if succeeded {
                self.note(changes);
            }
        }
        completed
    }

    fn note(&mut self, changes: Changes) {
        self.reconfigured |= match changes {
            Changes::Nothing => false,
            Changes::Configured(setup) => self.configured.apply(setup),
            Changes::Reset => std::mem::take(&mut self.configured) != Configured::default(),
        };
    }

    /// Completes everything that executes with `status`; what comes of it later is dropped.
    pub fn abort(&mut self, status: TransferStatus) {
        self.give_up();
        let mut requests: Vec<u64> = self.executing.iter().map(|e| e.request).collect();
        requests.sort_unstable();
        for request in requests {
            self.complete(self.epoch, request, Outcome::new(status, 0), |_| ());
        }
    }

    /// The device is gone; everything was completed before.
    pub fn gone(&mut self) {
        debug_assert!(self.executing.is_empty());
        self.log.push_plain(Kind::Gone);
    }

    /// What is to be sent now; empty while nobody is connected.
    pub fn output(&self) -> &[u8] {
        match self.connected {
            true => self.log.unsent(),
            false => &[],
        }
    }

    /// The first `len` bytes of [`Server::output`] were sent.
    pub fn sent(&mut self, len: usize) {
        self.log.sent(len);
    }

    fn acknowledge(&mut self, completion: u64) -> Result<(), ServerError> {
        let last = self.log.last_sent();
        if completion > last {
            return Err(ServerError::Acknowledged {
                got: completion,
                last,
            });
        }
        self.log.acknowledge(completion);
        Ok(())
    }

    fn accept(&mut self, request: u64, transfer: &Transfer) -> Result<(), ServerError> {
        let data = match transfer.is_in() {
            true => transfer.length as usize,
            false => 0,
        };
        let body_limit = transfer.iso_packets() * frame::ISO_PACKET_LEN + data;
        let stream = transfer.is_stream().then_some(*transfer);
        let is_control = transfer.transfer_type == TransferType::Control;
        let changes = match is_control && Configured::is_changed_by(transfer.setup) {
            true => Changes::Configured(transfer.setup),
            false => Changes::Nothing,
        };
        self.accept_with(request, transfer.length, body_limit, stream, changes)
    }

    fn accept_with(
        &mut self,
        request: u64,
        length: u32,
        body_limit: usize,
        stream: Option<Transfer>,
        changes: Changes,
    ) -> Result<(), ServerError> {
        let expected = self.requests_received + 1;
        if request != expected {
            return Err(ServerError::RequestNumber {
                got: request,
                expected,
            });
        }
        if self.executing.len() + self.log.kept() >= MAX_OPEN {
            return Err(ServerError::TooManyRequests);
        }
        self.requests_received = request;
        self.executing.push(Executing {
            request,
            length,
            body_limit,
            stream,
            place: Place::Device,
            changes,
        });
        Ok(())
    }

    fn plain<'a>(&mut self, kind: Kind, body: &'a [u8]) -> Result<Event<'a>, ServerError> {
        Ok(match kind {
            Kind::Cookie => Event::Cookie(body),
            Kind::Freeze => Event::Freeze,
            Kind::Thaw => Event::Thaw,
            Kind::Orphan => Event::Orphan,
            Kind::ResumeYes => Event::FrontendResumes(true),
            Kind::ResumeNo => Event::FrontendResumes(false),
            Kind::Pong => Event::Handled,
            Kind::Ping => {
                if self.log.plain() >= MAX_OPEN {
                    return Err(ServerError::Flood);
                }
                self.log.push_plain(Kind::Pong);
                Event::Handled
            }
            _ => return Err(ServerError::Direction),
        })
    }
}

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
mod error;
mod event;
mod executing;
mod log;
#[cfg(test)]
mod tests;

use crate::frame::{self, HEADER_LEN, Header, Kind};
use crate::stash::Stash;
use crate::{Configured, Epoch};
use away::Away;
use executing::{Executing, Place};
use log::Log;

pub use away::{Order, is_poll, set_interface};
pub use error::ServerError;
pub use event::Event;
pub use executing::Outcome;

/// Most requests that are executing or whose completion is not acknowledged yet.
pub const MAX_OPEN: usize = 64;

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
                self.accept(Executing::transfer(request, &transfer))?;
                match transfer.is_set_address() {
                    true => Event::Save { request },
                    false if self.is_away() && self.take_charge(request, &transfer) => {
                        Event::Handled
                    }
                    false => Event::Submit {
                        request,
                        transfer,
                        body,
                    },
                }
            }
            Header::Reset { request, ack } => {
                self.acknowledge(ack)?;
                self.accept(Executing::reset(request))?;
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

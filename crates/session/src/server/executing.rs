// SPDX-License-Identifier: GPL-3.0-or-later
//! Requests that are executing: taken, and completed.

use super::{MAX_OPEN, Server, ServerError, away};
use crate::frame::{Completion, Transfer, TransferStatus, TransferType};
use crate::stash;
use crate::{Configured, Epoch};

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

/// A request that was taken and is not completed.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) struct Executing {
    pub(super) request: u64,
    pub(super) length: u32,
    /// Largest body of the completion.
    body_limit: usize,
    /// Itself, if it is one whose data can be kept.
    pub(super) stream: Option<Transfer>,
    pub(super) place: Place,
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
pub(super) enum Place {
    /// At the device.
    Device,
    /// Here, until the device is done with what was asked of the endpoint before.
    Parked,
    /// At the device, and its data is to be kept.
    Kept,
    /// At the device, being cancelled; what comes after it is to be kept.
    Recalled,
}

impl Executing {
    /// A transfer.
    pub(super) fn transfer(request: u64, transfer: &Transfer) -> Self {
        let is_control = transfer.transfer_type == TransferType::Control;
        Self {
            request,
            length: transfer.length,
            body_limit: transfer.complete_body_limit(),
            stream: transfer.is_stream().then_some(*transfer),
            place: Place::Device,
            changes: match is_control && Configured::is_changed_by(transfer.setup) {
                true => Changes::Configured(transfer.setup),
                false => Changes::Nothing,
            },
        }
    }

    /// A device reset.
    pub(super) fn reset(request: u64) -> Self {
        Self {
            request,
            length: 0,
            body_limit: 0,
            stream: None,
            place: Place::Device,
            changes: Changes::Reset,
        }
    }
}

impl Server {
    /// Takes a request, if it is the next one and there is room for it.
    pub(super) fn accept(&mut self, request: Executing) -> Result<(), ServerError> {
        let expected = self.requests_received + 1;
        if request.request != expected {
            return Err(ServerError::RequestNumber {
                got: request.request,
                expected,
            });
        }
        if self.executing.len() + self.log.kept() >= MAX_OPEN {
            return Err(ServerError::TooManyRequests);
        }
        self.requests_received = expected;
        self.executing.push(request);
        Ok(())
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
    pub(super) fn complete_at(
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
}

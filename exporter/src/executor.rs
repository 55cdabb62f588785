// SPDX-License-Identifier: GPL-3.0-or-later
//! What carries out a device's transfers.

use session::DeviceInfo;
use session::frame::{Transfer, TransferStatus};
use session::server::{Outcome, Server};

use crate::sim::SimulatedDisk;

/// A device that can be lent.
pub(crate) enum Executor {
    Simulated(Box<SimulatedDisk>),
}

impl Executor {
    /// The device as it is listed.
    pub(crate) fn info(&self) -> &DeviceInfo {
        match self {
            Self::Simulated(disk) => disk.info(),
        }
    }

    /// Carries out a transfer that `server` handed out.
    pub(crate) fn submit(
        &mut self,
        server: &mut Server,
        request: u64,
        transfer: &Transfer,
        body: &[u8],
    ) {
        match self {
            Self::Simulated(disk) => disk.submit(server, request, transfer, body),
        }
    }

    /// Cancels a transfer; it still completes.
    pub(crate) fn cancel(&mut self, server: &mut Server, request: u64) {
        match self {
            Self::Simulated(disk) => disk.cancel(server, request),
        }
    }

    /// Resets the device for `request`.
    pub(crate) fn reset(&mut self, server: &mut Server, request: u64) {
        match self {
            Self::Simulated(disk) => {
                disk.reset(server);
                let outcome = Outcome::new(TransferStatus::Completed, 0);
                server.complete(server.epoch(), request, outcome, |_| ());
            }
        }
    }

    /// Cancels everything; nobody waits for it any more.
    pub(crate) fn abandon(&mut self) {
        match self {
            Self::Simulated(disk) => disk.abandon(),
        }
    }

    /// The lease ended: cancels everything and resets the device.
    pub(crate) fn release(&mut self) {
        match self {
            Self::Simulated(disk) => disk.release(),
        }
    }
}

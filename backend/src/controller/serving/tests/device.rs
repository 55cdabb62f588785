// SPDX-License-Identifier: GPL-3.0-or-later
//! A device that remembers what it was asked to do.

use std::collections::BTreeMap;

use session::Epoch;
use session::frame::{Transfer, TransferStatus, TransferType};
use session::server::{Event, Outcome, Server};

use super::host::Random;

#[derive(Default)]
pub(super) struct Device {
    pub(super) server: Server,
    executing: Vec<(u64, Option<Transfer>)>,
    /// How often each tag was executed.
    seen: BTreeMap<u64, u32>,
    cookie: Vec<u8>,
    /// The cookie that was there when a SET_ADDRESS was answered.
    pub(super) saved: Vec<u8>,
    saving: Vec<u64>,
}

/// What the guest puts into a transfer to know it again: OUT data, a setup packet's index, or the
/// interval.
fn tag(transfer: &Transfer, body: &[u8]) -> u64 {
    match transfer.transfer_type {
        TransferType::Control => u16::from_le_bytes([transfer.setup[4], transfer.setup[5]]).into(),
        TransferType::Interrupt => transfer.interval.into(),
        _ => u64::from_le_bytes(body.try_into().unwrap()),
    }
}

impl Device {
    pub(super) fn claim(&mut self, epoch: Epoch) {
        self.server.claim(epoch);
        self.executing.clear();
        self.saving.clear();
    }

    /// Takes whole frames off the input.
    pub(super) fn receive(&mut self, input: &[u8], what: &str) -> usize {
        let mut taken = 0;
        let mut cancelled = Vec::new();
        while let Some((event, len)) = self
            .server
            .next_event(&input[taken..])
            .unwrap_or_else(|e| panic!("{what}: {e}"))
        {
            taken += len;
            match event {
                Event::Submit {
                    request,
                    transfer,
                    body,
                } => {
                    // The filler for requests that nobody waits for.
                    if transfer.length != 0 {
                        let times = self.seen.entry(tag(&transfer, body)).or_default();
                        *times += 1;
                        assert_eq!(*times, 1, "{what}: {transfer:?} executed twice");
                    }
                    self.executing.push((request, Some(transfer)));
                }
                Event::Reset { request } => self.executing.push((request, None)),
                Event::Cancel { request } => cancelled.push(request),
                Event::Cookie(cookie) => cookie.clone_into(&mut self.cookie),
                Event::Save { request } => self.saving.push(request),
                _ => {}
            }
        }
        for request in cancelled {
            if self.saving.contains(&request) {
                continue;
            }
            self.executing.retain(|(r, _)| *r != request);
            let outcome = Outcome::new(TransferStatus::Cancelled, 0);
            self.server
                .complete(self.server.epoch(), request, outcome, |_| ());
        }
        taken
    }

    pub(super) fn work(&mut self, random: &mut Random) {
        if random.below(2) == 0 {
            self.save();
        }
        for _ in 0..random.below(4) {
            if self.executing.is_empty() {
                return;
            }
            let at = random.below(self.executing.len() as u64) as usize;
            self.complete(at);
        }
    }

    /// The leases reach the disk.
    fn save(&mut self) {
        self.saved.clone_from(&self.cookie);
        for request in std::mem::take(&mut self.saving) {
            let done = Outcome::new(TransferStatus::Completed, 0);
            self.server
                .complete(self.server.epoch(), request, done, |_| ());
        }
    }

    pub(super) fn work_all(&mut self) {
        self.save();
        while !self.executing.is_empty() {
            self.complete(0);
        }
    }

    fn complete(&mut self, at: usize) {
        let (request, transfer) = self.executing.remove(at);
        let length = transfer.map_or(0, |t| t.length);
        let outcome = Outcome::new(TransferStatus::Completed, length);
        self.server
            .complete(self.server.epoch(), request, outcome, |out| {
                if let Some(transfer) = transfer.filter(Transfer::is_in) {
                    out.extend_from_slice(&tag(&transfer, &[]).to_le_bytes());
                }
            });
    }

    pub(super) fn check_end(&self, what: &str) {
        assert!(
            self.executing.is_empty() && self.saving.is_empty(),
            "{what}"
        );
        assert!(!self.seen.is_empty(), "{what}");
    }
}

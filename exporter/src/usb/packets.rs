// SPDX-License-Identifier: GPL-3.0-or-later
//! Bulk endpoints of a SuperSpeed device, whose packets are of 1024 bytes, for a guest that believes
//! they are of 512 (docs/decisions/0007-superspeed.md).
//!
//! What a transfer of the guest's asks for goes to the device as it is, unless it ends in the middle
//! of a packet of 1024 bytes:
//!
//! - IN: the device's packet would be longer than what is left of the buffer (babble). One half of a
//!   packet more is read; what comes in it is the beginning of the next transfer.
//! - OUT: what is sent ends with a short packet, so the transfer ends for the device. In the data
//!   phase of a mass-storage command, whose length is known, the last half waits for the next
//!   transfer's data. A zero-length transfer that ends what has ended already is not sent.
//!
//! Pure: no I/O.

use std::collections::VecDeque;

use session::frame::{Transfer, TransferStatus};

use super::shared::Tag;

/// wMaxPacketSize of a bulk endpoint, as the guest believes and as it is.
pub(super) const PRESENTED: usize = 512;
const TRUE: usize = 1024;

const CBW_LEN: usize = 31;
const CBW_SIGNATURE: &[u8] = b"USBC";

/// What becomes of a transfer of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Nothing is to be asked of the device: it ends with this status and so many bytes, of an IN
    /// transfer the first ones of [`In::surplus`].
    Answer(TransferStatus, usize),
    /// Ask the device for `ask` bytes (IN, behind the surplus), or send it the first `ask` bytes of
    /// tail and data (OUT).
    Ask {
        ask: usize,
        /// IN: others must wait for it, since it may read what is theirs. OUT: the last bytes of
        /// the data are not sent yet.
        halves: bool,
    },
}

/// An IN endpoint.
#[derive(Debug, Default)]
pub(super) struct In {
    /// What came and was not asked for yet: at most the half of a packet.
    surplus: Vec<u8>,
    /// The transfer that may leave a surplus.
    halving: Option<Tag>,
    /// Those behind it.
    waiting: VecDeque<(Tag, Transfer)>,
}

impl In {
    /// Whether a transfer has to wait for its turn, see [`In::wait`].
    pub(super) fn is_busy(&self) -> bool {
        self.halving.is_some() || !self.waiting.is_empty()
    }

    pub(super) fn wait(&mut self, tag: Tag, transfer: Transfer) {
        self.waiting.push_back((tag, transfer));
    }

    /// The next transfer whose turn it is.
    pub(super) fn next(&mut self) -> Option<(Tag, Transfer)> {
        match self.halving {
            Some(_) => None,
            None => self.waiting.pop_front(),
        }
    }

    /// Takes a waiting transfer back. Whether it was there.
    pub(super) fn take_back(&mut self, tag: Tag) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|(waiting, _)| *waiting != tag);
        self.waiting.len() < before
    }

    /// Takes back all that wait.
    pub(super) fn take_back_all(&mut self) -> impl Iterator<Item = Tag> {
        self.waiting.drain(..).map(|(tag, _)| tag)
    }

    /// What a transfer of `length` bytes begins with.
    pub(super) fn surplus(&self) -> &[u8] {
        &self.surplus
    }

    /// What to do for a transfer of `length` bytes whose turn it is.
    pub(super) fn plan(&self, length: usize) -> Plan {
        let there = self.surplus.len();
        if there > 0 && (there < PRESENTED || length <= there) {
            return match length < there {
                true => Plan::Answer(TransferStatus::Overflow, length),
                // A short packet, or all that was asked for.
                false => Plan::Answer(TransferStatus::Completed, there),
            };
        }
        let needed = length - there;
        let halves = needed % TRUE == PRESENTED;
        let ask = match halves {
            true => needed + PRESENTED,
            false => needed,
        };
        Plan::Ask { ask, halves }
    }

    /// The transfer went to the device, or was answered, with the surplus.
    pub(super) fn started(&mut self, halving: Option<Tag>) {
        self.surplus.clear();
        self.halving = halving;
    }

    /// A transfer is over, and this came that it did not ask for.
    pub(super) fn ended(&mut self, tag: Tag, surplus: &[u8]) {
        if self.halving == Some(tag) {
            self.halving = None;
            self.surplus.extend_from_slice(surplus);
        }
    }

    /// The endpoint starts anew (USB 2.0 §9.4.5, §9.1.1.5).
    pub(super) fn restart(&mut self) {
        self.surplus.clear();
    }
}

/// An OUT endpoint.
#[derive(Debug, Default)]
pub(super) struct Out {
    /// Whether it is one of bulk-only mass storage.
    is_bulk_only: bool,
    /// Data that the guest was told is sent: nothing, or the half of a packet.
    tail: Vec<u8>,
    /// Bytes of the data phase that the guest has not handed over yet.
    remaining: usize,
    /// The last transfer ended with a half packet: short for the device, not for the guest.
    ended_half: bool,
}

impl Out {
    pub(super) fn new(is_bulk_only: bool) -> Self {
        Self {
            is_bulk_only,
            ..Self::default()
        }
    }

    /// What the next transfer is sent behind.
    pub(super) fn tail(&self) -> &[u8] {
        &self.tail
    }

    /// What to do with a transfer of this data.
    pub(super) fn plan(&mut self, data: &[u8]) -> Plan {
        let ended_half = std::mem::take(&mut self.ended_half);
        if self.is_command(data) {
            // What the guest gave up in the middle is nothing to the device.
            self.tail.clear();
            self.remaining = data_out(data);
            return Plan::Ask {
                ask: data.len(),
                halves: false,
            };
        }
        if data.is_empty() && ended_half && self.tail.is_empty() {
            return Plan::Answer(TransferStatus::Completed, 0);
        }
        self.remaining = self.remaining.saturating_sub(data.len());
        let total = self.tail.len() + data.len();
        let is_half = total % TRUE == PRESENTED;
        let halves = is_half && self.remaining > 0 && data.len() >= PRESENTED;
        self.ended_half = is_half && !halves;
        match (halves, total) {
            (true, PRESENTED) => {
                self.keep(data);
                Plan::Answer(TransferStatus::Completed, data.len())
            }
            (true, _) => Plan::Ask {
                ask: total - PRESENTED,
                halves,
            },
            (false, _) => Plan::Ask { ask: total, halves },
        }
    }

    /// The transfer went to the device, behind the tail.
    pub(super) fn started(&mut self, data: &[u8], halves: bool) {
        self.tail.clear();
        if halves {
            self.keep(data);
        }
    }

    fn keep(&mut self, data: &[u8]) {
        let from = data.len().saturating_sub(PRESENTED);
        self.tail.extend_from_slice(&data[from..]);
    }

    /// The endpoint starts anew, or a transfer failed: whatever follows is a new command.
    pub(super) fn restart(&mut self) {
        self.tail.clear();
        self.remaining = 0;
        self.ended_half = false;
    }

    fn is_command(&self, data: &[u8]) -> bool {
        self.is_bulk_only
            && data.len() == CBW_LEN
            && data.starts_with(CBW_SIGNATURE)
            && self.remaining != CBW_LEN
    }
}

/// dCBWDataTransferLength of a command with an OUT data phase, else 0 (Bulk-Only Transport §5.1).
fn data_out(command: &[u8]) -> usize {
    let Some(&[_, _, _, _, _, _, _, _, a, b, c, d, flags]) = command.first_chunk::<13>() else {
        return 0;
    };
    match flags & 0x80 {
        0 => u32::from_le_bytes([a, b, c, d]) as usize,
        _ => 0,
    }
}

/// The endpoints that were used. There are at most 15 of each direction.
#[derive(Debug, Default)]
pub(super) struct BulkEndpoints {
    /// Bit = number: OUT endpoints of bulk-only mass storage.
    bulk_only: u16,
    ins: Vec<(u8, In)>,
    outs: Vec<(u8, Out)>,
}

impl BulkEndpoints {
    pub(super) fn new(bulk_only: u16) -> Self {
        Self {
            bulk_only,
            ..Self::default()
        }
    }

    /// The IN endpoint of this address.
    pub(super) fn input(&mut self, address: u8) -> &mut In {
        entry(&mut self.ins, address, In::default)
    }

    /// The OUT endpoint of this address.
    pub(super) fn output(&mut self, address: u8) -> &mut Out {
        let is_bulk_only = self.bulk_only & 1 << (address & 0x0f) != 0;
        entry(&mut self.outs, address, || Out::new(is_bulk_only))
    }

    /// Takes a waiting transfer back. Whether it was there.
    pub(super) fn take_back(&mut self, tag: Tag) -> bool {
        self.ins.iter_mut().any(|(_, input)| input.take_back(tag))
    }

    /// Takes back all that wait.
    pub(super) fn take_back_all(&mut self) -> impl Iterator<Item = Tag> {
        self.ins
            .iter_mut()
            .flat_map(|(_, input)| input.take_back_all())
    }

    /// These endpoints start anew.
    pub(super) fn restart(&mut self, which: impl Fn(u8) -> bool) {
        for (_, input) in self.ins.iter_mut().filter(|(address, _)| which(*address)) {
            input.restart();
        }
        for (_, output) in self.outs.iter_mut().filter(|(address, _)| which(*address)) {
            output.restart();
        }
    }
}

fn entry<T>(entries: &mut Vec<(u8, T)>, address: u8, new: impl FnOnce() -> T) -> &mut T {
    let at = match entries.iter().position(|(a, _)| *a == address) {
        Some(at) => at,
        None => {
            entries.push((address, new()));
            entries.len() - 1
        }
    };
    &mut entries[at].1
}

#[cfg(test)]
mod tests;

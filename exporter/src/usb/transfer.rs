// SPDX-License-Identifier: GPL-3.0-or-later
//! Transfers: made of what the guest asked for, and what comes of them made into an answer.
//!
//! Each has a [`Slot`], which keeps the memory of its [`Urb`]: nothing is allocated when it is used again. The number of
//! the slot is the transfer's name at the device's thread.

use session::frame::{FLAG_SHORT_NOT_OK, ISO_PACKET_LEN, Transfer, TransferStatus, TransferType};
use session::server::Outcome;
use usbfs::{Kind, Status, Urb};

use super::iso::{self, PacketResult, Packets};
use super::packets::PRESENTED;
use super::shared::Tag;
use super::status;

/// Bytes of a SETUP packet, which is at the front of a control transfer's buffer.
const SETUP_LEN: usize = 8;
/// Longest data of a transfer.
const MAX_DATA: usize = 65_536;
/// Bytes of every buffer: the longest data, what a SuperSpeed endpoint may have besides, and a SETUP
/// packet.
const BUFFER_LEN: usize = SETUP_LEN + PRESENTED + MAX_DATA;

/// What is to be done.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) tag: Tag,
    pub(super) transfer: &'a Transfer,
    /// The body of its frame.
    pub(super) body: &'a [u8],
    /// This SETUP packet goes to the device, and its answer is made into one to the guest's.
    pub(super) instead: Option<[u8; 8]>,
    /// Bulk: data before that of the body (OUT), or that came already (IN).
    pub(super) lead: &'a [u8],
    /// Bulk: bytes to be moved to or from the device.
    pub(super) ask: usize,
}

impl<'a> Job<'a> {
    /// A transfer that goes to the device as it is.
    pub(super) fn new(tag: Tag, transfer: &'a Transfer, body: &'a [u8]) -> Self {
        Self {
            tag,
            transfer,
            body,
            instead: None,
            lead: &[],
            ask: transfer.length as usize,
        }
    }
}

/// A transfer with its buffer.
pub(super) struct Slot {
    /// While the device's thread does not have it.
    urb: Option<Urb>,
    /// Whether a transfer is under way, or was not looked at yet.
    is_used: bool,
    tag: Tag,
    transfer_type: TransferType,
    endpoint: u8,
    is_in: bool,
    /// Bytes of data that the guest asked for.
    length: usize,
    /// Bytes of data that the device was asked for.
    asked: usize,
    /// Bytes of data that were there before.
    lead: usize,
    short_is_error: bool,
    /// The guest's SETUP packet, where another one was sent.
    guest_setup: Option<[u8; 8]>,
    packets: Packets,
}

/// All transfers of a device.
#[derive(Default)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<usize>,
}

impl Slots {
    /// Makes a transfer, to be submitted; `None` where it makes no sense.
    pub(super) fn prepare(&mut self, job: &Job<'_>) -> Option<Urb> {
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::new());
            self.slots.len() - 1
        });
        let slot = &mut self.slots[at];
        let mut urb = slot.urb.take().unwrap_or_else(|| Urb::new(BUFFER_LEN));
        if slot.prepare(job, &mut urb).is_none() {
            slot.urb = Some(urb);
            self.free.push(at);
            return None;
        }
        slot.is_used = true;
        urb.set_context(at as u64);
        Some(urb)
    }

    /// The transfers that are under way: their names at the device's thread, tags, and endpoints.
    pub(super) fn used(&self) -> impl Iterator<Item = (u64, Tag, u8)> + '_ {
        let used = self.slots.iter().enumerate().filter(|(_, s)| s.is_used);
        used.map(|(at, slot)| (at as u64, slot.tag, slot.endpoint))
    }

    /// A transfer is over, and is looked at before [`Slots::free`]. `None` for one that was not under way.
    pub(super) fn take_back(&mut self, urb: Urb) -> Option<(usize, &mut Slot)> {
        let at = usize::try_from(urb.context()).ok()?;
        let slot = self.slots.get_mut(at).filter(|slot| slot.is_used)?;
        slot.urb = Some(urb);
        Some((at, slot))
    }

    /// It was looked at.
    pub(super) fn free(&mut self, at: usize) {
        self.slots[at].is_used = false;
        self.free.push(at);
    }
}

/// What came of a transfer.
pub(super) struct Ended<'a> {
    pub(super) outcome: Outcome,
    body: Body<'a>,
    /// Data beyond what was asked for.
    pub(super) surplus: &'a [u8],
}

enum Body<'a> {
    Data(&'a [u8]),
    Packets(&'a Slot, &'a Urb),
}

impl Ended<'_> {
    /// Appends the completion's body.
    pub(super) fn write_body(&self, out: &mut Vec<u8>) {
        match self.body {
            Body::Data(data) => out.extend_from_slice(data),
            Body::Packets(slot, urb) => slot.write_packets(urb, out),
        }
    }
}

impl Slot {
    fn new() -> Self {
        Self {
            urb: None,
            is_used: false,
            tag: Tag::default(),
            transfer_type: TransferType::Control,
            endpoint: 0,
            is_in: false,
            length: 0,
            asked: 0,
            lead: 0,
            short_is_error: false,
            guest_setup: None,
            packets: Packets::new(),
        }
    }

    pub(super) fn tag(&self) -> Tag {
        self.tag
    }

    /// bEndpointAddress, if it is a bulk endpoint.
    pub(super) fn bulk_endpoint(&self) -> Option<u8> {
        (self.transfer_type == TransferType::Bulk).then_some(self.endpoint)
    }

    /// What came of it, to be asked once: an answer that is presented changes.
    pub(super) fn ended(&mut self, status: Status) -> Ended<'_> {
        let status = status::of_transfer(status, self.transfer_type);
        if self.urb.is_none() || self.transfer_type == TransferType::Isochronous {
            return self.isochronous_ended(status);
        }
        let moved = self.urb.as_ref().map_or(0, Urb::actual_length);
        let moved = moved.min(self.asked);
        match self.is_in {
            true => self.in_ended(status, moved),
            false => {
                // Of what was held back only the guest's word counts: it went out of its hands.
                let actual = match moved == self.asked && status == TransferStatus::Completed {
                    true => self.length,
                    false => moved.saturating_sub(self.lead).min(self.length),
                };
                Ended {
                    outcome: Outcome::new(status, actual as u32),
                    body: Body::Data(&[]),
                    surplus: &[],
                }
            }
        }
    }

    fn in_ended(&mut self, status: TransferStatus, moved: usize) -> Ended<'_> {
        let start = match self.transfer_type {
            TransferType::Control => SETUP_LEN,
            _ => 0,
        };
        let mut there = self.lead + moved;
        let buffer = match &mut self.urb {
            Some(urb) => &mut urb.buffer_mut()[start..start + there],
            None => &mut [],
        };
        if let Some(setup) = self.guest_setup {
            there = usb_present::present(setup, buffer);
        }
        let actual = there.min(self.length);
        let (data, surplus) = buffer[..there].split_at(actual);
        let status = match status {
            TransferStatus::Completed if self.short_is_error && actual < self.length => {
                TransferStatus::ShortPacket
            }
            status => status,
        };
        Ended {
            outcome: Outcome::new(status, actual as u32),
            body: Body::Data(data),
            surplus,
        }
    }

    fn isochronous_ended(&self, status: TransferStatus) -> Ended<'_> {
        let Some(urb) = &self.urb else {
            return Ended {
                outcome: Outcome::new(status, 0),
                body: Body::Data(&[]),
                surplus: &[],
            };
        };
        let (actual_length, error_count) = iso::totals(packet_results(urb));
        Ended {
            outcome: Outcome {
                status,
                actual_length,
                error_count,
                // The kernel does not write it back.
                start_frame: 0,
            },
            body: Body::Packets(self, urb),
            surplus: &[],
        }
    }

    fn write_packets(&self, urb: &Urb, out: &mut Vec<u8>) {
        let length = self.is_in.then_some(self.length as u32);
        let data = &urb.buffer()[..self.asked];
        self.packets
            .write_body(packet_results(urb), data, length, out);
    }

    /// Makes `urb` into `job`, with the data of an OUT transfer; `None` where it makes no sense.
    fn prepare(&mut self, job: &Job<'_>, urb: &mut Urb) -> Option<()> {
        let Job { transfer, .. } = *job;
        self.tag = job.tag;
        self.transfer_type = transfer.transfer_type;
        self.endpoint = transfer.endpoint;
        self.is_in = transfer.is_in();
        self.short_is_error = transfer.is_in() && transfer.flags & FLAG_SHORT_NOT_OK != 0;
        self.length = (transfer.length as usize).min(MAX_DATA);
        self.guest_setup = None;
        self.lead = 0;
        let endpoint = transfer.endpoint;
        match transfer.transfer_type {
            TransferType::Control => {
                self.prepare_control(job, urb.buffer_mut());
                urb.prepare(Kind::Control, endpoint, 0..SETUP_LEN + self.asked);
            }
            TransferType::Isochronous => self.prepare_isochronous(job, urb)?,
            TransferType::Bulk | TransferType::Interrupt => {
                let kind = match transfer.transfer_type {
                    TransferType::Bulk => Kind::Bulk,
                    _ => Kind::Interrupt,
                };
                match self.is_in {
                    true => {
                        self.prepare_in(job, urb.buffer_mut());
                        urb.prepare(kind, endpoint, self.lead..self.lead + self.asked);
                    }
                    false => {
                        self.prepare_out(job, urb.buffer_mut());
                        urb.prepare(kind, endpoint, 0..self.asked);
                    }
                }
            }
        }
        Some(())
    }

    fn prepare_control(&mut self, job: &Job<'_>, buffer: &mut [u8]) {
        // The data stage is as long as the SETUP packet says; it must not be longer than what the
        // guest has room for, and the packet must tell the device the same.
        let guest = job.transfer.setup;
        let announced = u16::from_le_bytes([guest[6], guest[7]]);
        let mut length = u16::try_from(self.length)
            .unwrap_or(u16::MAX)
            .min(announced);
        self.length = length.into();
        if length > 0 {
            self.is_in = guest[0] & 0x80 != 0;
        }
        let mut setup = guest;
        if let Some(instead) = job.instead {
            self.guest_setup = Some(guest);
            setup = instead;
            length = u16::from_le_bytes([instead[6], instead[7]]);
            self.is_in = true;
        }
        self.asked = length.into();
        setup[6..].copy_from_slice(&length.to_le_bytes());
        buffer[..SETUP_LEN].copy_from_slice(&setup);
        if !self.is_in {
            copy_padded(&mut buffer[SETUP_LEN..][..self.asked], job.body);
        }
    }

    fn prepare_in(&mut self, job: &Job<'_>, buffer: &mut [u8]) {
        self.lead = job.lead.len().min(PRESENTED);
        self.asked = job.ask.min(MAX_DATA + PRESENTED - self.lead);
        buffer[..self.lead].copy_from_slice(&job.lead[..self.lead]);
    }

    fn prepare_out(&mut self, job: &Job<'_>, buffer: &mut [u8]) {
        self.lead = job.lead.len().min(PRESENTED);
        self.asked = job.ask.min(MAX_DATA + PRESENTED);
        buffer[..self.lead].copy_from_slice(&job.lead[..self.lead]);
        if let Some(data) = buffer.get_mut(self.lead..self.asked) {
            copy_padded(data, job.body);
        }
    }

    fn prepare_isochronous(&mut self, job: &Job<'_>, urb: &mut Urb) -> Option<()> {
        let descriptors = job.transfer.iso_packets() * ISO_PACKET_LEN;
        let (descriptors, data) = job.body.split_at_checked(descriptors)?;
        let length = self.length as u32;
        self.asked = self.packets.parse(descriptors, length, MAX_DATA)?;
        let buffer = &mut urb.buffer_mut()[..self.asked];
        if !self.is_in {
            self.packets.gather(data, buffer);
        }
        urb.prepare(Kind::Isochronous, self.endpoint, 0..self.asked);
        urb.set_packets(self.packets.lengths());
        Some(())
    }
}

fn packet_results(urb: &Urb) -> impl Iterator<Item = PacketResult> + Clone {
    urb.packets().map(|packet| PacketResult {
        status: status::of_transfer(packet.status, TransferType::Isochronous),
        actual_length: packet.actual_length,
    })
}

/// Copies what fits; what `from` lacks is zeros.
fn copy_padded(into: &mut [u8], from: &[u8]) {
    let len = into.len().min(from.len());
    into[..len].copy_from_slice(&from[..len]);
    into[len..].fill(0);
}

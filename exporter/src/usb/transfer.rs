// SPDX-License-Identifier: GPL-3.0-or-later
//! Asynchronous transfers of libusb.
//!
//! Why unsafe: rusb has no asynchronous interface. Why sound: libusb's transfer and its buffer
//! belong to one [`UsbTransfer`]. While libusb has it, its box is libusb's `user_data` and nobody
//! else touches it; the callback makes the box again and hands it over through [`Shared`]. Only the
//! thread of the sessions frees one, in the pool or in `Open::drain`, after it removed the
//! `InFlight` with the pointer that `cancel` uses.

use std::os::raw::{c_int, c_uint};
use std::ptr::NonNull;
use std::sync::Arc;

use rusb::Context;
use rusb::ffi::{
    libusb_alloc_transfer, libusb_free_transfer, libusb_iso_packet_descriptor, libusb_transfer,
};
use session::frame::{
    FLAG_SHORT_NOT_OK, ISO_PACKET_LEN, MAX_ISO_PACKETS, Transfer, TransferStatus, TransferType,
};
use session::server::Outcome;

use super::iso::{self, PacketResult, Packets};
use super::packets::PRESENTED;
use super::shared::{Shared, Tag};
use super::status;

/// Bytes of a SETUP packet, which is at the front of a control transfer's buffer.
const SETUP_LEN: usize = 8;
/// Longest data of a transfer.
const MAX_DATA: usize = 65_536;
/// Bytes of every buffer: the longest data, what a SuperSpeed endpoint may have besides, and a SETUP
/// packet.
const BUFFER_LEN: usize = SETUP_LEN + PRESENTED + MAX_DATA;
/// Longest data stage that libusb takes. No descriptor is longer in practice; a longer one is cut.
const MAX_CONTROL_IN: u16 = 4096;

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

/// A transfer of libusb with its buffer.
pub(super) struct UsbTransfer {
    pub(super) raw: NonNull<libusb_transfer>,
    pub(super) buffer: Box<[u8]>,
    tag: Tag,
    transfer_type: TransferType,
    endpoint: u8,
    is_in: bool,
    /// Bytes of data that the guest asked for.
    length: usize,
    /// Bytes of data that libusb was asked for.
    asked: usize,
    /// Bytes of data that were there before.
    lead: usize,
    short_is_error: bool,
    /// The guest's SETUP packet, where another one was sent.
    guest_setup: Option<[u8; 8]>,
    pub(super) packets: Packets,
    /// While libusb has it.
    pub(super) shared: Option<Arc<Shared>>,
    /// libusb looks into it when the transfer is freed, whatever was closed before.
    _context: Context,
}

// SAFETY: libusb's transfers may be used from any thread, one at a time, and nothing in here is
// tied to a thread.
unsafe impl Send for UsbTransfer {}

/// What came of a transfer.
pub(super) struct Ended<'a> {
    pub(super) outcome: Outcome,
    body: Body<'a>,
    /// Data beyond what was asked for.
    pub(super) surplus: &'a [u8],
}

enum Body<'a> {
    Data(&'a [u8]),
    Packets(&'a UsbTransfer),
}

impl Ended<'_> {
    /// Appends the completion's body.
    pub(super) fn write_body(&self, out: &mut Vec<u8>) {
        match self.body {
            Body::Data(data) => out.extend_from_slice(data),
            Body::Packets(transfer) => transfer.write_packets(out),
        }
    }
}

impl UsbTransfer {
    pub(super) fn new(context: Context) -> Option<Self> {
        // SAFETY: no arguments to get wrong; a null is looked for.
        let raw = NonNull::new(unsafe { libusb_alloc_transfer(MAX_ISO_PACKETS as c_int) })?;
        Some(Self {
            raw,
            buffer: vec![0; BUFFER_LEN].into_boxed_slice(),
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
            shared: None,
            _context: context,
        })
    }

    pub(super) fn tag(&self) -> Tag {
        self.tag
    }

    /// bEndpointAddress, if it is a bulk endpoint.
    pub(super) fn bulk_endpoint(&self) -> Option<u8> {
        (self.transfer_type == TransferType::Bulk).then_some(self.endpoint)
    }

    /// What came of it, to be asked once: an answer that is presented changes. libusb must have given
    /// it back, which it has when one has it.
    pub(super) fn ended(&mut self) -> Ended<'_> {
        // SAFETY: libusb does not have it (we do), and `raw` lives as long as we do.
        let (raw_status, actual) = unsafe {
            let fields = self.raw.as_ref();
            (fields.status, fields.actual_length)
        };
        let status = status::of_transfer(raw_status);
        if self.transfer_type == TransferType::Isochronous {
            return self.isochronous_ended(status);
        }
        let moved = usize::try_from(actual).unwrap_or(0).min(self.asked);
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
        let answer = &mut self.buffer[start..start + there];
        if let Some(setup) = self.guest_setup {
            there = usb_present::present(setup, answer);
        }
        let actual = there.min(self.length);
        let (data, surplus) = self.buffer[start..start + there].split_at(actual);
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
        let (actual_length, error_count) = iso::totals(self.packet_results());
        let gone = |r: PacketResult| r.status == TransferStatus::NoDevice;
        // libusb has one word for all that can befall the whole of it.
        let status = match status {
            TransferStatus::Protocol if self.packet_results().any(gone) => TransferStatus::NoDevice,
            status => status,
        };
        Ended {
            outcome: Outcome {
                status,
                actual_length,
                error_count,
                // libusb does not tell.
                start_frame: 0,
            },
            body: Body::Packets(self),
            surplus: &[],
        }
    }

    fn write_packets(&self, out: &mut Vec<u8>) {
        let length = self.is_in.then_some(self.length as u32);
        let data = &self.buffer[..self.asked];
        self.packets
            .write_body(self.packet_results(), data, length, out);
    }

    fn packet_results(&self) -> impl Iterator<Item = PacketResult> + Clone {
        let first = self.packet_descriptors();
        (0..self.packets.len()).map(move |at| {
            // SAFETY: libusb does not have the transfer. It was allocated for MAX_ISO_PACKETS
            // packets, of which there are no more, and `prepare` has initialised these.
            let packet = unsafe { &*first.as_ptr().add(at) };
            PacketResult {
                status: status::of_transfer(packet.status),
                actual_length: packet.actual_length,
            }
        })
    }

    fn packet_descriptors(&self) -> NonNull<libusb_iso_packet_descriptor> {
        // SAFETY: `raw` points to a transfer; only the address of its last field is taken. It is an
        // array of as many packets as it was allocated for, whatever its type here says.
        let first = unsafe { &raw mut (*self.raw.as_ptr()).iso_packet_desc };
        // SAFETY: a field of something is not at null.
        unsafe { NonNull::new_unchecked(first.cast()) }
    }

    /// Makes it `job`, with the data of an OUT transfer. Returns where the bytes begin that libusb may
    /// touch, and how many they are; `None` where it makes no sense.
    pub(super) fn prepare(&mut self, job: &Job<'_>) -> Option<(usize, usize)> {
        let Job { transfer, .. } = *job;
        self.tag = job.tag;
        self.transfer_type = transfer.transfer_type;
        self.endpoint = transfer.endpoint;
        self.is_in = transfer.is_in();
        self.short_is_error = transfer.is_in() && transfer.flags & FLAG_SHORT_NOT_OK != 0;
        self.length = (transfer.length as usize).min(MAX_DATA);
        self.guest_setup = None;
        self.lead = 0;
        match transfer.transfer_type {
            TransferType::Control => Some(self.prepare_control(job)),
            TransferType::Isochronous => self.prepare_isochronous(job),
            TransferType::Bulk | TransferType::Interrupt => Some(match self.is_in {
                true => self.prepare_in(job),
                false => self.prepare_out(job),
            }),
        }
    }

    fn prepare_control(&mut self, job: &Job<'_>) -> (usize, usize) {
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
        if self.is_in {
            length = length.min(MAX_CONTROL_IN);
        }
        if let Some(instead) = job.instead {
            self.guest_setup = Some(guest);
            setup = instead;
            length = u16::from_le_bytes([instead[6], instead[7]]);
            self.is_in = true;
        }
        self.asked = length.into();
        setup[6..].copy_from_slice(&length.to_le_bytes());
        self.buffer[..SETUP_LEN].copy_from_slice(&setup);
        if !self.is_in {
            copy_padded(&mut self.buffer[SETUP_LEN..][..self.asked], job.body);
        }
        (0, SETUP_LEN + self.asked)
    }

    fn prepare_in(&mut self, job: &Job<'_>) -> (usize, usize) {
        self.lead = job.lead.len().min(PRESENTED);
        self.asked = job.ask.min(MAX_DATA + PRESENTED - self.lead);
        self.buffer[..self.lead].copy_from_slice(&job.lead[..self.lead]);
        (self.lead, self.asked)
    }

    fn prepare_out(&mut self, job: &Job<'_>) -> (usize, usize) {
        self.lead = job.lead.len().min(PRESENTED);
        self.asked = job.ask.min(MAX_DATA + PRESENTED);
        self.buffer[..self.lead].copy_from_slice(&job.lead[..self.lead]);
        if let Some(data) = self.buffer.get_mut(self.lead..self.asked) {
            copy_padded(data, job.body);
        }
        (0, self.asked)
    }

    fn prepare_isochronous(&mut self, job: &Job<'_>) -> Option<(usize, usize)> {
        let descriptors = job.transfer.iso_packets() * ISO_PACKET_LEN;
        let (descriptors, data) = job.body.split_at_checked(descriptors)?;
        let length = self.length as u32;
        self.asked = self.packets.parse(descriptors, length, MAX_DATA)?;
        if !self.is_in {
            self.packets.gather(data, &mut self.buffer[..self.asked]);
        }
        let first = self.packet_descriptors();
        for (at, length) in self.packets.lengths().enumerate() {
            // SAFETY: libusb does not have the transfer. It was allocated for MAX_ISO_PACKETS
            // packets, and `parse` takes no more. Written without reading: it may be uninitialised.
            unsafe {
                first.as_ptr().add(at).write(libusb_iso_packet_descriptor {
                    length: length as c_uint,
                    actual_length: 0,
                    status: 0,
                });
            }
        }
        Some((0, self.asked))
    }
}

/// Copies what fits; what `from` lacks is zeros.
fn copy_padded(into: &mut [u8], from: &[u8]) {
    let len = into.len().min(from.len());
    into[..len].copy_from_slice(&from[..len]);
    into[len..].fill(0);
}

impl Drop for UsbTransfer {
    fn drop(&mut self) {
        debug_assert!(self.shared.is_none(), "freed while libusb has it");
        // SAFETY: libusb does not have it: while it has, the box is leaked and nobody drops it. Its
        // context is there, we have a reference.
        unsafe { libusb_free_transfer(self.raw.as_ptr()) };
    }
}

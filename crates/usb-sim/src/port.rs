// SPDX-License-Identifier: GPL-3.0-or-later
//! A device that is plugged in, as the host controller sees it.

mod endpoints;
mod schedule;
#[cfg(test)]
mod tests;

use std::time::Duration;

use session::frame::{ISO_PACKET_LEN, Transfer, TransferStatus, TransferType};
use session::server::Outcome;
use session::{DeviceId, DeviceInfo, DeviceState};

use crate::function::{Answer, Function, IsoPacket, Setup};
use crate::standard::{
    self, CLEAR_FEATURE, ENDPOINT_HALT, GET_CONFIGURATION, GET_DESCRIPTOR, GET_INTERFACE,
    GET_STATUS, SET_ADDRESS, SET_CONFIGURATION, SET_FEATURE, SET_INTERFACE,
};
pub use endpoints::Endpoint;
use endpoints::Settings;
use schedule::{Schedule, Slot};

/// Where completed transfers go.
pub trait Host {
    /// Transfer `request` may be over: `fill` appends the body and says how it ended, or answers
    /// `None` when it has to wait; then what it appended is to be dropped. Returns whether it is
    /// over. To be called at most once by this.
    fn complete(
        &mut self,
        request: u64,
        fill: &mut dyn FnMut(&mut Vec<u8>) -> Option<Outcome>,
    ) -> bool;
}

#[derive(Debug)]
struct Waiting {
    request: u64,
    transfer: Transfer,
    body: Vec<u8>,
    /// Isochronous, with a clock: when its packets are on the bus.
    slot: Option<Slot>,
}

/// See the module's documentation. It carries out transfers at once, in order for each endpoint.
///
/// Isochronous transfers, too, are over at once, unless the port has a clock
/// ([`Port::start_clock`]): then each takes the time of its packets.
#[derive(Debug)]
pub struct Port<F> {
    function: F,
    configuration: u8,
    settings: Settings,
    schedule: Option<Schedule>,
    /// Halted endpoints: bit = number, plus 16 for IN.
    halted: u32,
    waiting: Vec<Waiting>,
}

impl<F: Function> Port<F> {
    /// Plugged in, not configured.
    pub fn new(function: F) -> Self {
        Self {
            function,
            configuration: 0,
            settings: Settings::default(),
            schedule: None,
            halted: 0,
            waiting: Vec::new(),
        }
    }

    /// The device.
    pub fn function(&self) -> &F {
        &self.function
    }

    /// Changes the device from outside (a key is pressed), and carries out the transfers that waited
    /// for it.
    pub fn update<R>(&mut self, host: &mut impl Host, change: impl FnOnce(&mut F) -> R) -> R {
        let result = change(&mut self.function);
        self.retry(host);
        result
    }

    /// bConfigurationValue of the active configuration, 0 for none.
    pub fn configuration(&self) -> u8 {
        self.configuration
    }

    /// The endpoint of this bEndpointAddress, if the active configuration and alternate settings
    /// have it. Endpoint 0 is not described.
    pub fn endpoint(&self, address: u8) -> Option<Endpoint> {
        let active = self.active_configuration()?;
        endpoints::active(active, &self.settings).find(|e| e.address == address)
    }

    /// From now on there is time on the bus: isochronous transfers take as long as their packets,
    /// one after the other, and are over when [`Port::advance`] says so. `now` counts from any
    /// fixed moment.
    pub fn start_clock(&mut self, now: Duration) {
        self.function.advance(now);
        self.schedule = Some(Schedule::new(now));
    }

    /// It is `now`; earlier times are ignored. Without a clock only the device learns it.
    pub fn advance(&mut self, now: Duration, host: &mut impl Host) {
        self.function.advance(now);
        if let Some(schedule) = &mut self.schedule {
            schedule.advance(now);
        }
        self.retry(host);
    }

    /// When [`Port::advance`] is due at the latest, if ever.
    pub fn next_event(&self) -> Option<Duration> {
        let slots = self.waiting.iter().filter_map(|w| w.slot.as_ref());
        slots.map(|s| s.end).chain(self.function.next_event()).min()
    }

    /// The device, as an exporter lists it at the place `id`.
    pub fn info(&self, id: DeviceId) -> DeviceInfo {
        let descriptors = self.function.descriptors();
        let device = &descriptors.device;
        let word = |at: usize| match device.get(at..at + 2) {
            Some(bytes) => u16::from_le_bytes([bytes[0], bytes[1]]),
            None => 0,
        };
        let string = |at: usize| {
            let index = usize::from(*device.get(at)?).checked_sub(1)?;
            descriptors.strings.get(index).cloned()
        };
        let names: Vec<_> = [14, 15].into_iter().filter_map(string).collect();
        let mut classes: Vec<u8> = device
            .get(4)
            .copied()
            .into_iter()
            .filter(|c| *c != 0)
            .collect();
        if let Some(first) = descriptors.configurations.first() {
            for (kind, part) in standard::parts(first) {
                if let (standard::INTERFACE, Some(&class)) = (kind, part.get(5))
                    && !classes.contains(&class)
                {
                    classes.push(class);
                }
            }
        }
        DeviceInfo {
            id,
            vendor: word(8),
            product: word(10),
            serial: string(16),
            name: names.join(" "),
            speed: self.function.speed(),
            classes,
            state: DeviceState::Free,
        }
    }

    /// Submits a transfer. It may complete at once, and so may others that waited for it.
    pub fn submit(&mut self, request: u64, transfer: &Transfer, body: &[u8], host: &mut impl Host) {
        let same_endpoint = |w: &Waiting| w.transfer.endpoint == transfer.endpoint;
        let slot = self.slot(transfer);
        let blocked = slot.is_some() || self.waiting.iter().any(same_endpoint);
        let done = !blocked && host.complete(request, &mut |out| self.execute(transfer, body, out));
        if !done {
            self.waiting.push(Waiting {
                request,
                transfer: *transfer,
                body: body.to_vec(),
                slot,
            });
        } else if !self.waiting.is_empty() {
            self.retry(host);
        }
    }

    /// Takes bus time for an isochronous transfer, where there is a clock.
    fn slot(&mut self, transfer: &Transfer) -> Option<Slot> {
        if transfer.transfer_type != TransferType::Isochronous {
            return None;
        }
        let endpoint = self.endpoint(transfer.endpoint)?;
        if endpoint.transfer_type() != TransferType::Isochronous {
            return None;
        }
        let interval = endpoint.interval(self.function.speed())?;
        let (slot, missed) =
            self.schedule
                .as_mut()?
                .take(transfer.endpoint, transfer.iso_packets(), interval);
        if missed > 0 {
            self.function.isochronous_missed(transfer.endpoint, missed);
        }
        Some(slot)
    }

    /// Gives back the bus time of a cancelled transfer.
    fn vacate(&mut self, cancelled: &Waiting) {
        let endpoint = cancelled.transfer.endpoint;
        let (Some(slot), Some(schedule)) = (&cancelled.slot, &mut self.schedule) else {
            return;
        };
        let remaining = self
            .waiting
            .iter()
            .filter(|w| w.transfer.endpoint == endpoint);
        let last = remaining
            .filter_map(|w| w.slot.as_ref())
            .map(|s| s.end)
            .max();
        let missed = schedule.vacate(endpoint, slot, last);
        if missed > 0 {
            self.function.isochronous_missed(endpoint, missed);
        }
    }

    /// Cancels a transfer that waits.
    pub fn cancel(&mut self, request: u64, host: &mut impl Host) {
        if let Some(at) = self.waiting.iter().position(|w| w.request == request) {
            let cancelled = self.waiting.remove(at);
            self.vacate(&cancelled);
            host.complete(request, &mut |_| {
                Some(Outcome::new(TransferStatus::Cancelled, 0))
            });
            self.retry(host);
        }
    }

    /// Cancels all transfers that wait, and tells nobody.
    pub fn forget_all(&mut self) {
        for waiting in std::mem::take(&mut self.waiting) {
            self.vacate(&waiting);
        }
    }

    /// A bus reset (USB 2.0 §7.1.7.5): all waiting transfers are cancelled.
    pub fn reset(&mut self, host: &mut impl Host) {
        for waiting in std::mem::take(&mut self.waiting) {
            host.complete(waiting.request, &mut |_| {
                Some(Outcome::new(TransferStatus::Cancelled, 0))
            });
        }
        self.configure(0);
    }

    /// Offers waiting transfers again, until none of them gets on.
    fn retry(&mut self, host: &mut impl Host) {
        let mut progress = true;
        while progress {
            progress = false;
            let mut blocked = 0_u32;
            let mut at = 0;
            while let Some(Waiting { transfer, slot, .. }) = self.waiting.get(at) {
                let bit = endpoint_bit(transfer.endpoint);
                let now = self.schedule.as_ref().map(Schedule::now);
                let early = slot.as_ref().is_some_and(|s| Some(s.end) > now);
                if early || blocked & bit != 0 {
                    blocked |= bit;
                    at += 1;
                    continue;
                }
                let waiting = self.waiting.remove(at);
                let Waiting {
                    request,
                    transfer,
                    body,
                    slot,
                } = &waiting;
                let start = slot.as_ref().map_or(Duration::ZERO, |s| s.start);
                if host.complete(*request, &mut |out| {
                    let outcome = self.execute(transfer, body, out)?;
                    // A frame is a millisecond, its number has 11 bits (USB 2.0 §8.4.3).
                    let start_frame = (start.as_millis() & 0x7ff) as u16;
                    Some(Outcome {
                        start_frame,
                        ..outcome
                    })
                }) {
                    progress = true;
                } else {
                    blocked |= bit;
                    self.waiting.insert(at, waiting);
                    at += 1;
                }
            }
        }
    }

    fn execute(&mut self, transfer: &Transfer, body: &[u8], out: &mut Vec<u8>) -> Option<Outcome> {
        let outcome = match transfer.transfer_type {
            TransferType::Control => self.control(transfer, body, out),
            TransferType::Isochronous => self.isochronous(transfer, body, out),
            TransferType::Bulk | TransferType::Interrupt => self.stream(transfer, body, out),
        };
        while let Some(endpoint) = self.function.take_halt() {
            self.halted |= endpoint_bit(endpoint);
        }
        outcome
    }

    fn control(&mut self, transfer: &Transfer, body: &[u8], out: &mut Vec<u8>) -> Option<Outcome> {
        let mut setup = Setup::new(transfer.setup);
        if transfer.endpoint & 0x0f != 0 || (setup.length > 0 && setup.is_in() != transfer.is_in())
        {
            return Some(Outcome::new(TransferStatus::Invalid, 0));
        }
        // The buffer may be shorter than the data stage that the SETUP packet announces.
        setup.length = setup
            .length
            .min(transfer.length.try_into().unwrap_or(u16::MAX));
        let start = out.len();
        let answer = match setup.request_type & 0x60 {
            0 => self.standard(&setup, out),
            _ => self.function.control(&setup, body, out),
        };
        let outcome = match answer {
            // A control endpoint's STALL ends with the transfer (§8.5.3.4).
            Answer::Stall(_) => Outcome::new(TransferStatus::Stall, 0),
            Answer::Done(_) if !setup.is_in() => {
                Outcome::new(TransferStatus::Completed, setup.length.into())
            }
            Answer::Done(len) => short(transfer, len),
            Answer::Babble => Outcome::new(TransferStatus::Overflow, 0),
            Answer::Nak => return None,
        };
        if outcome.status == TransferStatus::Stall {
            out.truncate(start);
        }
        Some(outcome)
    }

    fn standard(&mut self, setup: &Setup, out: &mut Vec<u8>) -> Answer {
        let index = setup.index as u8;
        match (setup.request_type, setup.request) {
            (0x80, GET_DESCRIPTOR) => {
                standard::get_descriptor(self.function.descriptors(), setup, out)
            }
            (0x81, GET_DESCRIPTOR) => {
                let [at, kind] = setup.value.to_le_bytes();
                match self.function.class_descriptor(index, kind, at) {
                    Some(descriptor) => standard::give(out, setup, descriptor),
                    None => Answer::Stall(0),
                }
            }
            // The address is the business of whoever routes transfers.
            (0x00, SET_ADDRESS) => Answer::Done(0),
            (0x80, GET_CONFIGURATION) => standard::give(out, setup, &[self.configuration]),
            (0x00, SET_CONFIGURATION) => self.set_configuration(setup.value as u8),
            (0x80 | 0x81, GET_STATUS) => standard::give(out, setup, &[0, 0]),
            (0x82, GET_STATUS) if self.can_halt(index) || index & 0x7f == 0 => {
                let halted = self.halted & endpoint_bit(index) != 0;
                standard::give(out, setup, &[halted.into(), 0])
            }
            // Endpoint 0 never is halted.
            (0x02, CLEAR_FEATURE) if setup.value == ENDPOINT_HALT && index & 0x7f == 0 => {
                Answer::Done(0)
            }
            (0x02, CLEAR_FEATURE) if setup.value == ENDPOINT_HALT && self.can_halt(index) => {
                if self.function.clear_halt(index) {
                    self.halted &= !endpoint_bit(index);
                }
                Answer::Done(0)
            }
            (0x02, SET_FEATURE) if setup.value == ENDPOINT_HALT && self.can_halt(index) => {
                self.halted |= endpoint_bit(index);
                Answer::Done(0)
            }
            (0x81, GET_INTERFACE) => match self.active_configuration() {
                Some(active) if endpoints::has_interface(active, index) => {
                    standard::give(out, setup, &[self.settings.of(index)])
                }
                _ => Answer::Stall(0),
            },
            (0x01, SET_INTERFACE) => self.set_interface(index, setup.value),
            _ => Answer::Stall(0),
        }
    }

    fn set_configuration(&mut self, value: u8) -> Answer {
        let configurations = &self.function.descriptors().configurations;
        let known = |c: &Vec<u8>| standard::configuration_value(c) == Some(value);
        if value != 0 && !configurations.iter().any(known) {
            return Answer::Stall(0);
        }
        self.configure(value);
        Answer::Done(0)
    }

    fn configure(&mut self, value: u8) {
        self.configuration = value;
        self.settings = Settings::default();
        self.halted = 0;
        self.end_streams(|_| true);
        self.function.configured(value);
    }

    /// Transfers of these endpoints that wait for their time wait no more.
    fn end_streams(&mut self, of: impl Fn(u8) -> bool) {
        if let Some(schedule) = &mut self.schedule {
            schedule.forget(&of);
        }
        for waiting in &mut self.waiting {
            if of(waiting.transfer.endpoint) {
                waiting.slot = None;
            }
        }
    }

    /// SET_INTERFACE (§9.4.10), which also clears the halts of the interface's endpoints (§9.1.1.5)
    /// and ends its streams.
    fn set_interface(&mut self, interface: u8, setting: u16) -> Answer {
        let Ok(setting) = u8::try_from(setting) else {
            return Answer::Stall(0);
        };
        let Some(active) = self.active_configuration() else {
            return Answer::Stall(0);
        };
        if !endpoints::has_setting(active, interface, setting) {
            return Answer::Stall(0);
        }
        let of_interface: Vec<u8> = endpoints::of_interface(active, interface).collect();
        for endpoint in of_interface {
            self.halted &= !endpoint_bit(endpoint);
            self.end_streams(|e| e == endpoint);
        }
        self.settings.set(interface, setting);
        self.function.interface_set(interface, setting);
        Answer::Done(0)
    }

    fn active_configuration(&self) -> Option<&[u8]> {
        let value = Some(self.configuration).filter(|c| *c != 0)?;
        let configurations = &self.function.descriptors().configurations;
        let active = |c: &&Vec<u8>| standard::configuration_value(c) == Some(value);
        configurations.iter().find(active).map(Vec::as_slice)
    }

    /// Whether there is such an endpoint, and it may be halted: isochronous ones may not
    /// (§5.6.5).
    fn can_halt(&self, endpoint: u8) -> bool {
        let found = self.endpoint(endpoint);
        found.is_some_and(|e| e.transfer_type() != TransferType::Isochronous)
    }

    /// Whether the active configuration has this endpoint with this type.
    fn has_endpoint(&self, endpoint: u8, transfer_type: TransferType) -> bool {
        let found = self.endpoint(endpoint);
        found.is_some_and(|e| e.transfer_type() == transfer_type)
    }

    fn stream(&mut self, transfer: &Transfer, body: &[u8], out: &mut Vec<u8>) -> Option<Outcome> {
        let endpoint = transfer.endpoint;
        if !self.has_endpoint(endpoint, transfer.transfer_type) {
            return Some(Outcome::new(TransferStatus::Invalid, 0));
        }
        if self.halted & endpoint_bit(endpoint) != 0 {
            return Some(Outcome::new(TransferStatus::Stall, 0));
        }
        let answer = match transfer.is_in() {
            true => self
                .function
                .transfer_in(endpoint, transfer.length as usize, out),
            false => self.function.transfer_out(endpoint, body),
        };
        Some(match answer {
            Answer::Done(len) => short(transfer, len),
            Answer::Stall(len) => {
                self.halted |= endpoint_bit(endpoint);
                Outcome::new(TransferStatus::Stall, len as u32)
            }
            Answer::Babble => Outcome::new(TransferStatus::Overflow, transfer.length),
            Answer::Nak => return None,
        })
    }

    fn isochronous(
        &mut self,
        transfer: &Transfer,
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> Option<Outcome> {
        let invalid = Outcome::new(TransferStatus::Invalid, 0);
        let table_len = transfer.iso_packets() * ISO_PACKET_LEN;
        let Some((table, data)) = body.split_at_checked(table_len) else {
            return Some(invalid);
        };
        let buffer_len = transfer.length as usize;
        let packets = table.chunks_exact(ISO_PACKET_LEN).map(|p| {
            let offset = u32::from_le_bytes([p[0], p[1], p[2], p[3]]) as usize;
            let len = u32::from_le_bytes([p[4], p[5], p[6], p[7]]) as usize;
            let fits = offset.checked_add(len).is_some_and(|end| end <= buffer_len);
            fits.then_some(IsoPacket {
                offset,
                len,
                actual_len: 0,
            })
        });
        let Some(mut packets) = packets.collect::<Option<Vec<_>>>() else {
            return Some(invalid);
        };
        if !self.has_endpoint(transfer.endpoint, TransferType::Isochronous) {
            return Some(invalid);
        }
        let mut buffer = data.to_vec();
        buffer.resize(buffer_len, 0);
        match self
            .function
            .isochronous(transfer.endpoint, &mut packets, &mut buffer)
        {
            Answer::Nak => return None,
            Answer::Stall(_) | Answer::Babble => return Some(invalid),
            Answer::Done(_) => (),
        }
        let mut actual = 0;
        for packet in &packets {
            actual += packet.actual_len.min(packet.len);
            for field in [
                packet.offset,
                packet.len,
                packet.actual_len.min(packet.len),
                0,
            ] {
                out.extend_from_slice(&(field as u32).to_le_bytes());
            }
        }
        if transfer.is_in() {
            out.extend_from_slice(&buffer);
        }
        Some(Outcome::new(TransferStatus::Completed, actual as u32))
    }
}

/// An IN transfer may end with a short packet, which its submitter may have called an error.
fn short(transfer: &Transfer, len: usize) -> Outcome {
    let is_error = transfer.flags & session::frame::FLAG_SHORT_NOT_OK != 0;
    let status = match transfer.is_in() && len < transfer.length as usize && is_error {
        true => TransferStatus::ShortPacket,
        false => TransferStatus::Completed,
    };
    Outcome::new(status, len as u32)
}

fn endpoint_bit(endpoint: u8) -> u32 {
    let number = u32::from(endpoint & 0x0f);
    1 << (number + if endpoint & 0x80 != 0 { 16 } else { 0 })
}

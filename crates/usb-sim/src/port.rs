// SPDX-License-Identifier: GPL-3.0-or-later
//! A device that is plugged in, as the host controller sees it.

mod endpoints;
mod faults;
mod info;
mod isochronous;
mod requests;
mod schedule;
#[cfg(test)]
mod tests;

use std::time::Duration;

use session::frame::{Transfer, TransferStatus, TransferType};
use session::server::Outcome;

use crate::function::{Answer, Function};
pub use endpoints::Endpoint;
use endpoints::Settings;
use faults::Faults;
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
    faults: Faults,
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
            faults: Faults::default(),
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

    /// Lets the next `count` bulk or interrupt transfers, or isochronous packets, of an endpoint
    /// fail on the bus. The device does not see them.
    pub fn fail_next(&mut self, endpoint: u8, count: u32) {
        self.faults.add(endpoint, count);
    }

    /// Transfers of an endpoint that wait: for the device, or for their time.
    pub fn waiting(&self, endpoint: u8) -> usize {
        let of_endpoint = |w: &&Waiting| w.transfer.endpoint == endpoint;
        self.waiting.iter().filter(of_endpoint).count()
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

    /// bEndpointAddress of every endpoint of an interface, of all its settings; `None` while the
    /// device is not configured.
    pub fn endpoints_of(&self, interface: u8) -> Option<Vec<u8>> {
        let active = self.active_configuration()?;
        Some(endpoints::of_interface(active, interface).collect())
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
        if self.faults.strike(endpoint) {
            return Some(Outcome::new(TransferStatus::Protocol, 0));
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

// SPDX-License-Identifier: GPL-3.0-or-later
//! A host for the tests.

use std::collections::HashMap;
use std::time::Duration;

use session::frame::{FLAG_SHORT_NOT_OK, Transfer, TransferStatus, TransferType};
use session::server::Outcome;

use crate::function::{Function, Setup};
use crate::port::{Host, Port};

/// What completed, by request.
#[derive(Default)]
pub(crate) struct Completions {
    pub(crate) done: HashMap<u64, (Outcome, Vec<u8>)>,
    pub(crate) order: Vec<u64>,
}

impl Host for Completions {
    fn complete(
        &mut self,
        request: u64,
        fill: &mut dyn FnMut(&mut Vec<u8>) -> Option<Outcome>,
    ) -> bool {
        let mut body = Vec::new();
        let Some(outcome) = fill(&mut body) else {
            return false;
        };
        let again = self.done.insert(request, (outcome, body));
        assert!(again.is_none(), "request {request} completed twice");
        self.order.push(request);
        true
    }
}

pub(crate) struct Bus<F> {
    pub(crate) port: Port<F>,
    pub(crate) completions: Completions,
    next: u64,
}

impl<F: Function> Bus<F> {
    pub(crate) fn new(function: F) -> Self {
        Self {
            port: Port::new(function),
            completions: Completions::default(),
            next: 1,
        }
    }

    /// A device in this configuration.
    pub(crate) fn configured(function: F, value: u8) -> Self {
        let mut bus = Self::new(function);
        assert_eq!(bus.control_out(0, 9, value.into(), 0, &[]), Ok(()));
        bus
    }

    pub(crate) fn submit(&mut self, transfer: Transfer, body: &[u8]) -> u64 {
        let request = self.next;
        self.next += 1;
        self.port
            .submit(request, &transfer, body, &mut self.completions);
        request
    }

    pub(crate) fn cancel(&mut self, request: u64) {
        self.port.cancel(request, &mut self.completions);
    }

    pub(crate) fn advance(&mut self, now: Duration) {
        self.port.advance(now, &mut self.completions);
    }

    pub(crate) fn reset(&mut self) {
        self.port.reset(&mut self.completions);
    }

    pub(crate) fn update<R>(&mut self, change: impl FnOnce(&mut F) -> R) -> R {
        self.port.update(&mut self.completions, change)
    }

    pub(crate) fn take(&mut self, request: u64) -> Option<(Outcome, Vec<u8>)> {
        self.completions.done.remove(&request)
    }

    fn finish(&mut self, request: u64) -> Result<Vec<u8>, TransferStatus> {
        let (outcome, mut body) = self.take(request).expect("it completes at once");
        match outcome.status {
            TransferStatus::Completed => {
                body.truncate(outcome.actual_length as usize);
                Ok(body)
            }
            status => Err(status),
        }
    }

    pub(crate) fn control_in(
        &mut self,
        request_type: u8,
        request: u8,
        value: u16,
        index: u16,
        length: u16,
    ) -> Result<Vec<u8>, TransferStatus> {
        let setup = Setup {
            request_type,
            request,
            value,
            index,
            length,
        };
        let id = self.submit(control(setup, 0x80), &[]);
        self.finish(id)
    }

    pub(crate) fn control_out(
        &mut self,
        request_type: u8,
        request: u8,
        value: u16,
        index: u16,
        data: &[u8],
    ) -> Result<(), TransferStatus> {
        let setup = Setup {
            request_type,
            request,
            value,
            index,
            length: data.len() as u16,
        };
        let id = self.submit(control(setup, 0), data);
        self.finish(id).map(|_| ())
    }

    /// A bulk or interrupt IN transfer that is to be over at once.
    pub(crate) fn read(&mut self, endpoint: u8, length: u32) -> Result<Vec<u8>, TransferStatus> {
        let id = self.submit(self.stream(endpoint, length), &[]);
        self.finish(id)
    }

    /// A bulk or interrupt OUT transfer that is to be over at once.
    pub(crate) fn write(&mut self, endpoint: u8, data: &[u8]) -> Result<(), TransferStatus> {
        let id = self.submit(self.stream(endpoint, data.len() as u32), data);
        self.finish(id).map(|_| ())
    }

    /// A transfer of the endpoint's type; bulk where there is no such endpoint.
    pub(crate) fn stream(&self, endpoint: u8, length: u32) -> Transfer {
        let found = self.port.endpoint(endpoint);
        let transfer_type = found.map_or(TransferType::Bulk, |e| e.transfer_type());
        Transfer {
            transfer_type,
            endpoint,
            flags: 0,
            length,
            interval: 0,
            setup: [0; 8],
        }
    }

    /// An isochronous transfer of equal packets, one after the other.
    pub(crate) fn isochronous(&mut self, endpoint: u8, packets: usize, data: &[u8]) -> u64 {
        let len = data.len() / packets.max(1);
        let mut body = Vec::new();
        for at in 0..packets {
            for field in [at * len, len, 0, 0] {
                body.extend_from_slice(&(field as u32).to_le_bytes());
            }
        }
        if endpoint & 0x80 == 0 {
            body.extend_from_slice(data);
        }
        let transfer = iso(endpoint, packets as u16, data.len() as u32);
        self.submit(transfer, &body)
    }
}

pub(crate) fn iso(endpoint: u8, packets: u16, length: u32) -> Transfer {
    let [low, high] = packets.to_le_bytes();
    Transfer {
        transfer_type: TransferType::Isochronous,
        endpoint,
        flags: 0,
        length,
        interval: 8,
        setup: [low, high, 0, 0, 0, 0, 0, 0],
    }
}

fn control(setup: Setup, endpoint: u8) -> Transfer {
    Transfer {
        transfer_type: TransferType::Control,
        endpoint,
        flags: 0,
        length: setup.length.into(),
        interval: 0,
        setup: setup.to_bytes(),
    }
}

/// The same, where a short packet is an error.
pub(crate) fn not_short(transfer: Transfer) -> Transfer {
    Transfer {
        flags: FLAG_SHORT_NOT_OK,
        ..transfer
    }
}

pub(crate) fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

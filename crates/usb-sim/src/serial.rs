// SPDX-License-Identifier: GPL-3.0-or-later
//! A serial adapter with its lines looped back: an abstract control model device (Communications
//! Device Class 1.2 and its PSTN subclass 1.2; "CDC" and "PSTN" below), at full speed.

mod descriptors;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use session::Speed;

use crate::function::{Answer, Descriptors, Function, Setup};
use crate::standard::give;
use descriptors::{CONTROL_INTERFACE, DATA_IN, DATA_OUT, NOTIFICATIONS};

/// Bytes that the loop holds. While it is full the OUT endpoint NAKs; a transfer longer than
/// this is taken when the loop is empty.
pub const LOOP_LEN: usize = 65_536;
/// Most notifications that wait to be fetched; of more, the oldest are dropped.
const MAX_NOTIFICATIONS: usize = 16;

const SET_LINE_CODING: (u8, u8) = (0x21, 0x20);
const GET_LINE_CODING: (u8, u8) = (0xa1, 0x21);
const SET_CONTROL_LINE_STATE: (u8, u8) = (0x21, 0x22);
const SEND_BREAK: (u8, u8) = (0x21, 0x23);

/// Bits of SET_CONTROL_LINE_STATE (PSTN table 18).
const DTR: u16 = 1;
/// Bits of SERIAL_STATE (PSTN table 31).
const CARRIER: u16 = 1;
const DATA_SET_READY: u16 = 2;
const BREAK: u16 = 4;

/// Rate and format of a serial line (PSTN table 17).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineCoding {
    /// dwDTERate: bits per second.
    pub rate: u32,
    /// bCharFormat: 0 one stop bit, 1 one and a half, 2 two.
    pub stop_bits: u8,
    /// bParityType: 0 none, 1 odd, 2 even, 3 mark, 4 space.
    pub parity: u8,
    /// bDataBits: 5, 6, 7, 8 or 16.
    pub data_bits: u8,
}

impl LineCoding {
    const DEFAULT: Self = Self {
        rate: 9600,
        stop_bits: 0,
        parity: 0,
        data_bits: 8,
    };

    fn parse(bytes: &[u8]) -> Option<Self> {
        let &[r0, r1, r2, r3, stop_bits, parity, data_bits] = bytes else {
            return None;
        };
        let known = stop_bits <= 2 && parity <= 4 && matches!(data_bits, 5..=8 | 16);
        known.then_some(Self {
            rate: u32::from_le_bytes([r0, r1, r2, r3]),
            stop_bits,
            parity,
            data_bits,
        })
    }

    fn encode(self) -> [u8; 7] {
        let [r0, r1, r2, r3] = self.rate.to_le_bytes();
        [r0, r1, r2, r3, self.stop_bits, self.parity, self.data_bits]
    }
}

/// The adapter: what is sent comes back, in order, and DTR comes back as carrier detect and data
/// set ready. A break comes back as a break.
#[derive(Debug)]
pub struct SerialLoop {
    descriptors: Descriptors,
    coding: LineCoding,
    lines: u16,
    held: VecDeque<u8>,
    notifications: VecDeque<u16>,
    received: u64,
    sent: u64,
}

impl SerialLoop {
    /// An adapter with this serial number string.
    pub fn new(serial: &str) -> Self {
        Self {
            descriptors: descriptors::of_serial(serial),
            coding: LineCoding::DEFAULT,
            lines: 0,
            held: VecDeque::new(),
            notifications: VecDeque::new(),
            received: 0,
            sent: 0,
        }
    }

    /// What the host set.
    pub fn line_coding(&self) -> LineCoding {
        self.coding
    }

    /// Whether the host raised DTR.
    pub fn is_ready(&self) -> bool {
        self.lines & DTR != 0
    }

    /// Bytes that came from the host.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Bytes that went back.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    fn serial_state(&self) -> u16 {
        match self.is_ready() {
            true => CARRIER | DATA_SET_READY,
            false => 0,
        }
    }

    fn notify(&mut self, state: u16) {
        if self.notifications.len() == MAX_NOTIFICATIONS {
            self.notifications.pop_front();
        }
        self.notifications.push_back(state);
    }
}

impl Function for SerialLoop {
    fn speed(&self) -> Speed {
        Speed::Full
    }

    fn descriptors(&self) -> &Descriptors {
        &self.descriptors
    }

    fn control(&mut self, setup: &Setup, data: &[u8], out: &mut Vec<u8>) -> Answer {
        if setup.index != CONTROL_INTERFACE.into() {
            return Answer::Stall(0);
        }
        match (setup.request_type, setup.request) {
            SET_LINE_CODING => match LineCoding::parse(data) {
                Some(coding) => {
                    self.coding = coding;
                    Answer::Done(data.len())
                }
                None => Answer::Stall(0),
            },
            GET_LINE_CODING => give(out, setup, &self.coding.encode()),
            SET_CONTROL_LINE_STATE => {
                let before = self.serial_state();
                self.lines = setup.value;
                if self.serial_state() != before {
                    self.notify(self.serial_state());
                }
                Answer::Done(0)
            }
            SEND_BREAK => {
                if setup.value != 0 {
                    self.notify(self.serial_state() | BREAK);
                }
                Answer::Done(0)
            }
            _ => Answer::Stall(0),
        }
    }

    fn transfer_out(&mut self, endpoint: u8, data: &[u8]) -> Answer {
        debug_assert_eq!(endpoint, DATA_OUT);
        if !self.held.is_empty() && self.held.len() + data.len() > LOOP_LEN {
            return Answer::Nak;
        }
        self.held.extend(data);
        self.received += data.len() as u64;
        Answer::Done(data.len())
    }

    fn transfer_in(&mut self, endpoint: u8, length: usize, out: &mut Vec<u8>) -> Answer {
        if endpoint == NOTIFICATIONS {
            let Some(state) = self.notifications.pop_front() else {
                return Answer::Nak;
            };
            let notification = descriptors::serial_state(state);
            if length < notification.len() {
                return Answer::Babble;
            }
            out.extend_from_slice(&notification);
            return Answer::Done(notification.len());
        }
        debug_assert_eq!(endpoint, DATA_IN);
        if self.held.is_empty() {
            return Answer::Nak;
        }
        let len = length.min(self.held.len());
        out.extend(self.held.drain(..len));
        self.sent += len as u64;
        Answer::Done(len)
    }

    fn configured(&mut self, _configuration: u8) {
        self.coding = LineCoding::DEFAULT;
        self.lines = 0;
        self.held.clear();
        self.notifications.clear();
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! A low-speed boot keyboard (Device Class Definition for HID 1.11; "HID" below).

mod descriptors;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use session::Speed;

use crate::function::{Answer, Descriptors, Function, Setup};
use crate::standard::give;
use descriptors::{HID, HID_DESCRIPTOR, REPORT, REPORT_DESCRIPTOR, REPORTS_IN};

/// Bytes of an input report of the boot protocol (HID appendix B.1).
pub const REPORT_LEN: usize = 8;
/// Most reports that wait to be fetched.
pub const MAX_REPORTS: usize = 1024;

/// Usage of the left control key, the first of the eight modifiers (HID Usage Tables, page 07h).
const FIRST_MODIFIER: u8 = 0xe0;
const LAST_MODIFIER: u8 = 0xe7;
/// What all six places hold when more keys are down than fit (HID appendix C).
const ERROR_ROLL_OVER: u8 = 1;

const GET_REPORT: (u8, u8) = (0xa1, 0x01);
const GET_IDLE: (u8, u8) = (0xa1, 0x02);
const GET_PROTOCOL: (u8, u8) = (0xa1, 0x03);
const SET_REPORT: (u8, u8) = (0x21, 0x09);
const SET_IDLE: (u8, u8) = (0x21, 0x0a);
const SET_PROTOCOL: (u8, u8) = (0x21, 0x0b);

const INPUT: u8 = 1;
const OUTPUT: u8 = 2;

/// The idle rate's unit (HID §7.2.4).
const IDLE_UNIT: Duration = Duration::from_millis(4);
/// 500 ms, as HID §7.2.4 recommends for keyboards.
const DEFAULT_IDLE: u8 = 125;

/// Too many reports wait: the host does not fetch them. The key was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_REPORTS} reports wait to be fetched")]
pub struct KeysFull;

/// The keyboard. Each change of its keys is one report, in order; the interrupt endpoint NAKs while
/// there is none.
#[derive(Debug)]
pub struct Keyboard {
    descriptors: Descriptors,
    modifiers: u8,
    /// Keys that are down, in the order of their pressing.
    down: Vec<u8>,
    reports: VecDeque<[u8; REPORT_LEN]>,
    reports_fetched: u64,
    leds: u8,
    is_boot_protocol: bool,
    /// In [`IDLE_UNIT`]; 0 is for ever.
    idle: u8,
    now: Duration,
    last_report: Option<Duration>,
}

impl Keyboard {
    /// A keyboard with this serial number string.
    pub fn new(serial: &str) -> Self {
        Self {
            descriptors: descriptors::of_keyboard(serial),
            modifiers: 0,
            down: Vec::new(),
            reports: VecDeque::new(),
            reports_fetched: 0,
            leds: 0,
            is_boot_protocol: false,
            idle: DEFAULT_IDLE,
            now: Duration::ZERO,
            last_report: None,
        }
    }

    /// A key goes down; `usage` is of page 07h, for example 04h for A, E1h for the left shift.
    pub fn press(&mut self, usage: u8) -> Result<(), KeysFull> {
        self.change(|keys| match modifier(usage) {
            Some(bit) => keys.modifiers |= bit,
            None if keys.down.contains(&usage) => (),
            None => keys.down.push(usage),
        })
    }

    /// A key goes up.
    pub fn release(&mut self, usage: u8) -> Result<(), KeysFull> {
        self.change(|keys| match modifier(usage) {
            Some(bit) => keys.modifiers &= !bit,
            None => keys.down.retain(|down| *down != usage),
        })
    }

    /// A key goes down and up: two reports, or none.
    pub fn stroke(&mut self, usage: u8) -> Result<(), KeysFull> {
        if self.reports.len() + 2 > MAX_REPORTS {
            return Err(KeysFull);
        }
        self.press(usage)?;
        self.release(usage)
    }

    /// LEDs that are on: bit 0 Num Lock, 1 Caps Lock, 2 Scroll Lock, 3 Compose, 4 Kana.
    pub fn leds(&self) -> u8 {
        self.leds
    }

    /// Reports that wait to be fetched.
    pub fn waiting(&self) -> usize {
        self.reports.len()
    }

    /// Reports that the host fetched from the interrupt endpoint.
    pub fn fetched(&self) -> u64 {
        self.reports_fetched
    }

    fn change(&mut self, change: impl FnOnce(&mut Self)) -> Result<(), KeysFull> {
        if self.reports.len() >= MAX_REPORTS {
            return Err(KeysFull);
        }
        let before = (self.modifiers, self.down.len());
        change(self);
        if before != (self.modifiers, self.down.len()) {
            self.reports.push_back(self.report());
        }
        Ok(())
    }

    /// The input report of the keys as they are.
    fn report(&self) -> [u8; REPORT_LEN] {
        let mut report = [0; REPORT_LEN];
        report[0] = self.modifiers;
        let keys = &mut report[2..];
        match self.down.len() <= keys.len() {
            true => keys[..self.down.len()].copy_from_slice(&self.down),
            false => keys.fill(ERROR_ROLL_OVER),
        }
        report
    }

    fn repeat_due(&self) -> Option<Duration> {
        match self.idle {
            0 => None,
            rate => Some(self.last_report? + IDLE_UNIT * rate.into()),
        }
    }
}

fn modifier(usage: u8) -> Option<u8> {
    (FIRST_MODIFIER..=LAST_MODIFIER)
        .contains(&usage)
        .then(|| 1 << (usage - FIRST_MODIFIER))
}

impl Function for Keyboard {
    fn speed(&self) -> Speed {
        Speed::Low
    }

    fn descriptors(&self) -> &Descriptors {
        &self.descriptors
    }

    fn class_descriptor(&self, interface: u8, kind: u8, index: u8) -> Option<&[u8]> {
        match (interface, kind, index) {
            (0, HID, 0) => Some(HID_DESCRIPTOR),
            (0, REPORT, 0) => Some(REPORT_DESCRIPTOR),
            _ => None,
        }
    }

    fn control(&mut self, setup: &Setup, data: &[u8], out: &mut Vec<u8>) -> Answer {
        let [low, high] = setup.value.to_le_bytes();
        match (setup.request_type, setup.request) {
            (0xa1 | 0x21, _) if setup.index != 0 => Answer::Stall(0),
            GET_REPORT => match (high, low) {
                (INPUT, 0) => give(out, setup, &self.report()),
                (OUTPUT, 0) => give(out, setup, &[self.leds]),
                _ => Answer::Stall(0),
            },
            SET_REPORT => match ((high, low), data) {
                ((OUTPUT, 0), &[leds]) => {
                    self.leds = leds & 0x1f;
                    Answer::Done(1)
                }
                _ => Answer::Stall(0),
            },
            GET_IDLE => give(out, setup, &[self.idle]),
            SET_IDLE => {
                self.idle = high;
                Answer::Done(0)
            }
            GET_PROTOCOL => give(out, setup, &[(!self.is_boot_protocol).into()]),
            SET_PROTOCOL if setup.value <= 1 => {
                // Both protocols have the same reports here.
                self.is_boot_protocol = setup.value == 0;
                Answer::Done(0)
            }
            _ => Answer::Stall(0),
        }
    }

    fn transfer_out(&mut self, _endpoint: u8, _data: &[u8]) -> Answer {
        Answer::Stall(0)
    }

    fn transfer_in(&mut self, endpoint: u8, length: usize, out: &mut Vec<u8>) -> Answer {
        debug_assert_eq!(endpoint, REPORTS_IN);
        let due = self.repeat_due().is_some_and(|due| due <= self.now);
        let report = match self.reports.front() {
            Some(report) => *report,
            None if due => self.report(),
            None => return Answer::Nak,
        };
        // Longer reports than were asked for are babble, and the device believes them sent.
        self.reports.pop_front();
        self.last_report = Some(self.now);
        if length < REPORT_LEN {
            return Answer::Babble;
        }
        self.reports_fetched += 1;
        out.extend_from_slice(&report);
        Answer::Done(REPORT_LEN)
    }

    fn configured(&mut self, _configuration: u8) {
        self.modifiers = 0;
        self.down.clear();
        self.reports.clear();
        self.leds = 0;
        self.is_boot_protocol = false;
        self.idle = DEFAULT_IDLE;
        self.last_report = None;
    }

    fn advance(&mut self, now: Duration) {
        self.now = self.now.max(now);
    }

    fn next_event(&self) -> Option<Duration> {
        // Once it is due it waits for the host.
        self.repeat_due().filter(|due| *due > self.now)
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! A test device in the manner of Linux's gadget zero, as its driver `usbtest` expects it.
//!
//! Configuration 3 is source and sink: IN endpoints always have data, OUT endpoints take all. Setting
//! 0 of its interface has bulk endpoints; setting 1 also isochronous ones, setting 2 interrupt ones,
//! and setting 3 both. (`usbtest` takes the first setting, unless told by `alt=3`.)
//! Configuration 2 is a loop: what comes is given back.

mod descriptors;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use session::Speed;

use crate::function::{Answer, Descriptors, Function, IsoPacket, Setup};
use crate::standard::give;
use descriptors::{BULK_IN, BULK_OUT, INTERRUPT_IN, ISO_IN, LOOP, SOURCE_SINK, packet_sizes};

/// Bytes that the loop holds; while it is full, OUT transfers wait.
pub const LOOPBACK_LEN: usize = 65_536;

/// Vendor requests of Intel's compliance test device: fill a buffer, read it back.
const WRITE_BUFFER: (u8, u8) = (0x40, 0x5b);
const READ_BUFFER: (u8, u8) = (0xc0, 0x5c);

/// What the source gives and the sink checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pattern {
    /// All zero (`pattern=0`).
    #[default]
    Zero,
    /// Each byte is its place in its packet, modulo 63 (`pattern=1`). A transfer begins a packet.
    Mod63,
    /// The source gives zeroes, the sink does not look.
    None,
}

impl Pattern {
    fn byte(self, at: usize, max_packet: usize) -> u8 {
        match self {
            Self::Zero | Self::None => 0,
            Self::Mod63 => ((at % max_packet) % 63) as u8,
        }
    }

    fn matches(self, data: &[u8], max_packet: usize) -> bool {
        let expected = |(at, byte): (usize, &u8)| *byte == self.byte(at, max_packet);
        self == Self::None || data.iter().enumerate().all(expected)
    }
}

/// What went through the source and the sink since the device was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes given.
    pub given: u64,
    /// Bytes taken.
    pub taken: u64,
    /// Bulk and interrupt transfers with data that was not the pattern. Each halted its endpoint.
    pub wrong_transfers: u64,
    /// Isochronous packets with data that was not the pattern.
    pub wrong_packets: u64,
    /// Intervals of running isochronous streams without a packet.
    pub missed_packets: u64,
}

/// The device.
#[derive(Debug)]
pub struct SourceSink {
    speed: Speed,
    pattern: Pattern,
    descriptors: Descriptors,
    configuration: u8,
    traffic: Traffic,
    buffer: Vec<u8>,
    /// Transfers in the loop, and their bytes.
    held: VecDeque<Vec<u8>>,
    held_len: usize,
    halt: Option<u8>,
}

impl SourceSink {
    /// A device of this speed, full or high.
    ///
    /// # Panics
    /// At any other speed.
    pub fn new(pattern: Pattern, speed: Speed, serial: &str) -> Self {
        assert!(matches!(speed, Speed::Full | Speed::High), "{speed:?}");
        Self {
            speed,
            pattern,
            descriptors: descriptors::of_source_sink(speed, serial),
            configuration: 0,
            traffic: Traffic::default(),
            buffer: Vec::new(),
            held: VecDeque::new(),
            held_len: 0,
            halt: None,
        }
    }

    /// What went through it.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    fn max_packet(&self, endpoint: u8) -> usize {
        let sizes = packet_sizes(self.speed);
        let size = match endpoint | 0x80 {
            BULK_IN => sizes.bulk,
            INTERRUPT_IN => sizes.interrupt,
            _ => sizes.isochronous,
        };
        size.into()
    }

    fn source(&mut self, endpoint: u8, length: usize, out: &mut Vec<u8>) -> Answer {
        let max_packet = self.max_packet(endpoint);
        match self.pattern {
            Pattern::Mod63 => out.extend((0..length).map(|at| self.pattern.byte(at, max_packet))),
            Pattern::Zero | Pattern::None => out.resize(out.len() + length, 0),
        }
        self.traffic.given += length as u64;
        Answer::Done(length)
    }

    fn sink(&mut self, endpoint: u8, data: &[u8]) -> Answer {
        self.traffic.taken += data.len() as u64;
        if !self.pattern.matches(data, self.max_packet(endpoint)) {
            // The transfer is taken; the next one learns that the endpoint is halted.
            self.traffic.wrong_transfers += 1;
            self.halt = Some(endpoint);
        }
        Answer::Done(data.len())
    }

    fn hold(&mut self, data: &[u8]) -> Answer {
        if self.held_len > 0 && self.held_len + data.len() > LOOPBACK_LEN {
            return Answer::Nak;
        }
        if self.held.len() >= LOOPBACK_LEN / 64 {
            return Answer::Nak;
        }
        self.held_len += data.len();
        self.held.push_back(data.to_vec());
        Answer::Done(data.len())
    }

    /// An IN transfer ends with the OUT transfer that it gives back.
    fn give_back(&mut self, length: usize, out: &mut Vec<u8>) -> Answer {
        let Some(mut front) = self.held.pop_front() else {
            return Answer::Nak;
        };
        let rest = front.split_off(length.min(front.len()));
        self.held_len -= front.len();
        if !rest.is_empty() {
            self.held.push_front(rest);
        }
        out.extend_from_slice(&front);
        Answer::Done(front.len())
    }

    fn forget(&mut self) {
        self.held.clear();
        self.held_len = 0;
        self.halt = None;
    }
}

impl Function for SourceSink {
    fn speed(&self) -> Speed {
        self.speed
    }

    fn descriptors(&self) -> &Descriptors {
        &self.descriptors
    }

    fn control(&mut self, setup: &Setup, data: &[u8], out: &mut Vec<u8>) -> Answer {
        if self.configuration != SOURCE_SINK || setup.value != 0 || setup.index != 0 {
            return Answer::Stall(0);
        }
        match (setup.request_type, setup.request) {
            WRITE_BUFFER => {
                self.buffer.clear();
                self.buffer.extend_from_slice(data);
                Answer::Done(data.len())
            }
            READ_BUFFER => {
                let mut bytes = self.buffer.clone();
                bytes.resize(setup.length.into(), 0);
                give(out, setup, &bytes)
            }
            _ => Answer::Stall(0),
        }
    }

    fn transfer_out(&mut self, endpoint: u8, data: &[u8]) -> Answer {
        match self.configuration {
            LOOP => {
                debug_assert_eq!(endpoint, BULK_OUT);
                self.hold(data)
            }
            _ => self.sink(endpoint, data),
        }
    }

    fn transfer_in(&mut self, endpoint: u8, length: usize, out: &mut Vec<u8>) -> Answer {
        match self.configuration {
            LOOP => self.give_back(length, out),
            _ => self.source(endpoint, length, out),
        }
    }

    fn isochronous(&mut self, endpoint: u8, packets: &mut [IsoPacket], data: &mut [u8]) -> Answer {
        let max_packet = self.max_packet(endpoint);
        for packet in packets.iter_mut() {
            // The port has checked that packets are within the data.
            packet.actual_len = packet.len.min(max_packet);
            let bytes = &mut data[packet.offset..packet.offset + packet.actual_len];
            if endpoint == ISO_IN {
                for (at, byte) in bytes.iter_mut().enumerate() {
                    *byte = self.pattern.byte(at, max_packet);
                }
                self.traffic.given += packet.actual_len as u64;
            } else {
                self.traffic.taken += packet.actual_len as u64;
                if !self.pattern.matches(bytes, max_packet) {
                    self.traffic.wrong_packets += 1;
                }
            }
        }
        Answer::Done(0)
    }

    fn isochronous_missed(&mut self, _endpoint: u8, intervals: u64) {
        self.traffic.missed_packets += intervals;
    }

    fn take_halt(&mut self) -> Option<u8> {
        self.halt.take()
    }

    fn configured(&mut self, configuration: u8) {
        self.configuration = configuration;
        self.forget();
    }

    fn interface_set(&mut self, _interface: u8, _setting: u8) {
        self.forget();
    }
}

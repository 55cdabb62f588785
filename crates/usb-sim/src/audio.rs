// SPDX-License-Identifier: GPL-3.0-or-later
//! A high-speed headset without sound: USB Audio Device Class 2.0 ("UAC2" below), 48 kHz, two
//! channels, 16 bits, in both directions. Its samples are numbered ([`Samples`]), so that what is
//! lost or doubled on the way can be counted.

mod descriptors;
mod samples;
#[cfg(test)]
mod tests;

use session::Speed;

use crate::function::{Answer, Descriptors, Function, IsoPacket, Setup};
use crate::standard::give;
use descriptors::{
    CLOCK_SOURCE, CONTROL_INTERFACE, PLAYBACK_INTERFACE, RECORD_IN, RECORD_INTERFACE,
};
pub use samples::{FRAME_LEN, Samples, StreamCheck, StreamCounts};

/// Audio frames per second.
pub const RATE: u32 = 48_000;
/// Audio frames in each packet of a millisecond.
const FRAMES_PER_PACKET: usize = (RATE / 1000) as usize;

/// Requests of UAC2 table A-14, to an entity of the control interface.
const GET_CUR: (u8, u8) = (0xa1, 0x01);
const SET_CUR: (u8, u8) = (0x21, 0x01);
const GET_RANGE: (u8, u8) = (0xa1, 0x02);
/// Control selectors of a clock source (UAC2 table A-17).
const SAMPLING_FREQUENCY: u8 = 1;
const CLOCK_VALID: u8 = 2;

/// The headset. Its microphone records [`Samples`], from the moment that the host chooses the
/// interface's setting 1; its ears check that they hear them.
#[derive(Debug)]
pub struct Audio {
    descriptors: Descriptors,
    samples: Samples,
    record_missed: u64,
    heard: StreamCheck,
    playback_missed: u64,
}

impl Audio {
    /// A headset with this serial number string.
    pub fn new(serial: &str) -> Self {
        Self {
            descriptors: descriptors::of_audio(serial),
            samples: Samples::default(),
            record_missed: 0,
            heard: StreamCheck::default(),
            playback_missed: 0,
        }
    }

    /// What was played to it.
    pub fn heard(&self) -> StreamCounts {
        self.heard.counts()
    }

    /// Audio frames recorded so far since recording began, fetched or not.
    pub fn recorded(&self) -> u32 {
        self.samples.given()
    }

    /// Packets that nobody fetched or played while the stream ran: of recording, of playback.
    pub fn missed_packets(&self) -> (u64, u64) {
        (self.record_missed, self.playback_missed)
    }

    /// A request to the clock source (UAC2 §5.2.5.1): the rate is fixed.
    fn clock(&mut self, setup: &Setup, data: &[u8], out: &mut Vec<u8>) -> Answer {
        let [_, selector] = setup.value.to_le_bytes();
        let rate = RATE.to_le_bytes();
        match (selector, (setup.request_type, setup.request)) {
            (SAMPLING_FREQUENCY, GET_CUR) => give(out, setup, &rate),
            (SAMPLING_FREQUENCY, SET_CUR) if data == rate => Answer::Done(data.len()),
            (SAMPLING_FREQUENCY, GET_RANGE) => {
                // One subrange: minimum, maximum, resolution.
                let mut range = vec![1, 0];
                range.extend_from_slice(&rate);
                range.extend_from_slice(&rate);
                range.extend_from_slice(&[0; 4]);
                give(out, setup, &range)
            }
            (CLOCK_VALID, GET_CUR) => give(out, setup, &[1]),
            _ => Answer::Stall(0),
        }
    }
}

impl Function for Audio {
    fn speed(&self) -> Speed {
        Speed::High
    }

    fn descriptors(&self) -> &Descriptors {
        &self.descriptors
    }

    fn control(&mut self, setup: &Setup, data: &[u8], out: &mut Vec<u8>) -> Answer {
        let [interface, entity] = setup.index.to_le_bytes();
        match (interface, entity) {
            (CONTROL_INTERFACE, CLOCK_SOURCE) => self.clock(setup, data, out),
            _ => Answer::Stall(0),
        }
    }

    fn transfer_out(&mut self, _endpoint: u8, _data: &[u8]) -> Answer {
        Answer::Stall(0)
    }

    fn transfer_in(&mut self, _endpoint: u8, _length: usize, _out: &mut Vec<u8>) -> Answer {
        Answer::Stall(0)
    }

    fn isochronous(&mut self, endpoint: u8, packets: &mut [IsoPacket], data: &mut [u8]) -> Answer {
        for packet in packets.iter_mut() {
            // The port has checked that packets are within the data.
            let bytes = &mut data[packet.offset..packet.offset + packet.len];
            if endpoint == RECORD_IN {
                let frames = FRAMES_PER_PACKET.min(packet.len / FRAME_LEN);
                packet.actual_len = frames * FRAME_LEN;
                for frame in bytes[..packet.actual_len].chunks_exact_mut(FRAME_LEN) {
                    frame.copy_from_slice(&self.samples.next_frame());
                }
                // What the host has no room for is lost.
                self.samples.skip((FRAMES_PER_PACKET - frames) as u64);
            } else {
                packet.actual_len = packet.len;
                self.heard.feed_packet(bytes);
            }
        }
        Answer::Done(0)
    }

    fn isochronous_missed(&mut self, endpoint: u8, intervals: u64) {
        if endpoint == RECORD_IN {
            self.samples.skip(intervals * FRAMES_PER_PACKET as u64);
            self.record_missed += intervals;
        } else {
            self.playback_missed += intervals;
        }
    }

    fn configured(&mut self, _configuration: u8) {
        self.samples = Samples::default();
        self.heard.new_stream();
    }

    fn interface_set(&mut self, interface: u8, setting: u8) {
        match (interface, setting) {
            (RECORD_INTERFACE, 1) => self.samples = Samples::default(),
            (PLAYBACK_INTERFACE, 1) => self.heard.new_stream(),
            _ => (),
        }
    }
}

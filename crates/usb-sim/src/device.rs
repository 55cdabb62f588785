// SPDX-License-Identifier: GPL-3.0-or-later
//! Any of the devices, for who has several of them.

use std::time::Duration;

use session::Speed;

use crate::function::{Answer, Descriptors, Function, IsoPacket, Setup};
use crate::{Audio, Disk, Hub, Keyboard, MemoryStorage, SerialLoop, SourceSink, Storage};

/// One of the simulated devices.
#[derive(Debug)]
pub enum Device<S = MemoryStorage> {
    /// A disk.
    Disk(Disk<S>),
    /// A keyboard.
    Keyboard(Keyboard),
    /// A serial adapter, looped.
    Serial(SerialLoop),
    /// The device for `usbtest`.
    SourceSink(SourceSink),
    /// A headset.
    Audio(Audio),
    /// A hub.
    Hub(Hub),
}

impl<S: Storage> Device<S> {
    fn get(&self) -> &dyn Function {
        match self {
            Self::Disk(disk) => disk,
            Self::Keyboard(keyboard) => keyboard,
            Self::Serial(serial) => serial,
            Self::SourceSink(device) => device,
            Self::Audio(audio) => audio,
            Self::Hub(hub) => hub,
        }
    }

    fn get_mut(&mut self) -> &mut dyn Function {
        match self {
            Self::Disk(disk) => disk,
            Self::Keyboard(keyboard) => keyboard,
            Self::Serial(serial) => serial,
            Self::SourceSink(device) => device,
            Self::Audio(audio) => audio,
            Self::Hub(hub) => hub,
        }
    }
}

impl<S> Device<S> {
    /// What it has counted, by name, for whoever checks a run.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        match self {
            Self::Disk(_) | Self::Hub(_) => Vec::new(),
            Self::Keyboard(keyboard) => vec![
                ("fetched", keyboard.fetched()),
                ("waiting", keyboard.waiting() as u64),
                ("leds", keyboard.leds().into()),
            ],
            Self::Serial(serial) => vec![
                ("received", serial.received()),
                ("sent", serial.sent()),
                ("ready", serial.is_ready().into()),
                ("rate", serial.line_coding().rate.into()),
            ],
            Self::SourceSink(device) => {
                let traffic = device.traffic();
                vec![
                    ("given", traffic.given),
                    ("taken", traffic.taken),
                    ("wrong-transfers", traffic.wrong_transfers),
                    ("wrong-packets", traffic.wrong_packets),
                    ("missed-packets", traffic.missed_packets),
                ]
            }
            Self::Audio(audio) => {
                let heard = audio.heard();
                let (record_missed, playback_missed) = audio.missed_packets();
                vec![
                    ("good", heard.good),
                    ("silent", heard.silent),
                    ("dropped", heard.dropped),
                    ("gaps", heard.gaps),
                    ("doubled", heard.doubled),
                    ("started", heard.started),
                    ("malformed", heard.malformed),
                    ("recorded", audio.recorded().into()),
                    ("record-missed-packets", record_missed),
                    ("playback-missed-packets", playback_missed),
                ]
            }
        }
    }
}

impl<S: Storage> Function for Device<S> {
    fn speed(&self) -> Speed {
        self.get().speed()
    }
    fn descriptors(&self) -> &Descriptors {
        self.get().descriptors()
    }
    fn control(&mut self, setup: &Setup, data: &[u8], out: &mut Vec<u8>) -> Answer {
        self.get_mut().control(setup, data, out)
    }
    fn transfer_out(&mut self, endpoint: u8, data: &[u8]) -> Answer {
        self.get_mut().transfer_out(endpoint, data)
    }
    fn transfer_in(&mut self, endpoint: u8, length: usize, out: &mut Vec<u8>) -> Answer {
        self.get_mut().transfer_in(endpoint, length, out)
    }
    fn class_descriptor(&self, interface: u8, kind: u8, index: u8) -> Option<&[u8]> {
        self.get().class_descriptor(interface, kind, index)
    }
    fn isochronous(&mut self, endpoint: u8, packets: &mut [IsoPacket], data: &mut [u8]) -> Answer {
        self.get_mut().isochronous(endpoint, packets, data)
    }
    fn isochronous_missed(&mut self, endpoint: u8, intervals: u64) {
        self.get_mut().isochronous_missed(endpoint, intervals);
    }
    fn take_halt(&mut self) -> Option<u8> {
        self.get_mut().take_halt()
    }
    fn clear_halt(&mut self, endpoint: u8) -> bool {
        self.get_mut().clear_halt(endpoint)
    }
    fn configured(&mut self, configuration: u8) {
        self.get_mut().configured(configuration);
    }
    fn interface_set(&mut self, interface: u8, setting: u8) {
        self.get_mut().interface_set(interface, setting);
    }
    fn advance(&mut self, now: Duration) {
        self.get_mut().advance(now);
    }
    fn next_event(&self) -> Option<Duration> {
        self.get().next_event()
    }
}

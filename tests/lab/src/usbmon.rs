// SPDX-License-Identifier: GPL-3.0-or-later
//! What Linux's USB monitor (`/dev/usbmonN`) shows of a bus: the numbered keys, clicks, records and
//! commands of the bench's devices, counted where they pass. The same is counted on the exporter machine's
//! bus and on the guest's: what is missing on the first its device did not hand over, what is missing only on
//! the second was lost on the way.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::traffic::{Records, Tally};

/// Bytes of the header of an event that is read with read(2): `struct mon_bin_hdr` without its last fields.
pub const HEADER_BYTES: usize = 48;
/// The most that comes after it: a fifth of the largest buffer.
pub const DATA_BYTES: usize = 256 << 10;

/// How far apart a tablet's numbered positions are, of 32768.
pub const TABLET_STEP: u64 = 64;
/// How many there are.
pub const TABLET_POSITIONS: u64 = 32768 / TABLET_STEP;

/// What a device's transfers carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carries {
    /// Reports of a boot keyboard.
    Keys,
    /// Reports of QEMU's tablet: buttons, place, wheel.
    Clicks,
    /// Records both ways, in bulk transfers.
    Records,
    /// The same in packets of an FTDI adapter, each of which begins with two bytes of its status.
    FtdiRecords,
    /// Commands to a card and its answers, in CCID messages.
    Commands,
}

const NAMES: [(&str, Carries); 5] = [
    ("keys", Carries::Keys),
    ("clicks", Carries::Clicks),
    ("records", Carries::Records),
    ("ftdi-records", Carries::FtdiRecords),
    ("commands", Carries::Commands),
];

impl Carries {
    /// Its name on a command line.
    pub fn name(self) -> &'static str {
        NAMES
            .iter()
            .find(|(_, one)| *one == self)
            .map_or("", |(name, _)| name)
    }
}

impl FromStr for Carries {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = NAMES.iter().find(|(name, _)| *name == text);
        found
            .map(|(_, one)| *one)
            .ok_or_else(|| format!("{text} is nothing that a device carries"))
    }
}

/// What passed of one device.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Passed {
    /// From the device.
    pub from_device: Tally,
    /// To the device.
    pub to_device: Tally,
    /// Transfers from the device that were cancelled or failed, and have data all the same: the device has
    /// handed it over.
    pub failed_with_data: u64,
    /// Transfers that failed or were cancelled, by their status.
    pub failed: BTreeMap<i32, u64>,
}

/// What passed on a bus so far.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// By the number that the bus has given the device.
    pub devices: BTreeMap<u8, Passed>,
    /// Events that the monitor had no room for: then the counts say nothing.
    pub dropped_events: u64,
    /// The program has ended by itself.
    pub finished: bool,
}

/// One event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    /// Says which transfer it is, while that is on its way.
    pub id: u64,
    /// `S`: submitted, `C`: given back, `E`: not taken.
    pub kind: u8,
    /// Endpoint, with 0x80 for one to the host.
    pub endpoint: u8,
    /// The device's number on its bus.
    pub device: u8,
    /// Of a transfer that was given back: 0 or an errno.
    pub status: i32,
    /// Bytes wanted, or transferred.
    pub length: u32,
    /// Its data, where it has some at this time.
    pub data: &'a [u8],
}

impl<'a> Event<'a> {
    /// Out of what one read(2) gave.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let word = |at: usize| -> Option<[u8; 4]> { bytes.get(at..at + 4)?.try_into().ok() };
        let captured = u32::from_ne_bytes(word(36)?) as usize;
        let data = bytes.get(HEADER_BYTES..)?;
        Some(Self {
            id: u64::from_ne_bytes(bytes.get(..8)?.try_into().ok()?),
            kind: bytes[8],
            endpoint: bytes[10],
            device: bytes[11],
            status: i32::from_ne_bytes(word(28)?),
            length: u32::from_ne_bytes(word(32)?),
            data: &data[..captured.min(data.len())],
        })
    }

    fn is_in(&self) -> bool {
        self.endpoint & 0x80 != 0
    }
}

/// A device that is watched.
struct Watched {
    carries: Carries,
    passed: Passed,
    /// The key or button that was down in the last report.
    down: u8,
    records: [Records; 2],
    /// Data of transfers to the device that are on their way.
    on_the_way: BTreeMap<u64, Vec<u8>>,
}

/// Watches devices of one bus.
pub struct Watch {
    devices: BTreeMap<u8, Watched>,
}

impl Watch {
    /// Of devices by their numbers.
    pub fn new(devices: impl IntoIterator<Item = (u8, Carries)>) -> Self {
        let watched = |carries| Watched {
            carries,
            passed: Passed::default(),
            down: 0,
            records: Default::default(),
            on_the_way: BTreeMap::new(),
        };
        Self {
            devices: devices
                .into_iter()
                .map(|(number, carries)| (number, watched(carries)))
                .collect(),
        }
    }

    /// Counts an event that came after so many seconds of the machine's uptime.
    pub fn take(&mut self, event: &Event<'_>, now: f64) {
        if let Some(device) = self.devices.get_mut(&event.device) {
            device.take(event, now);
        }
    }

    /// What has passed.
    pub fn report(&self) -> Report {
        Report {
            devices: self
                .devices
                .iter()
                .map(|(number, device)| (*number, device.passed.clone()))
                .collect(),
            ..Report::default()
        }
    }
}

impl Watched {
    fn take(&mut self, event: &Event<'_>, now: f64) {
        // Control transfers carry nothing that is numbered.
        if event.endpoint & 0x7f == 0 {
            return;
        }
        self.passed.from_device.now = now;
        self.passed.to_device.now = now;
        match (event.kind, event.is_in()) {
            (b'S', false) => {
                self.on_the_way.insert(event.id, event.data.to_vec());
            }
            (b'C', false) => {
                self.failed(event);
                if let Some(mut data) = self.on_the_way.remove(&event.id) {
                    data.truncate(event.length as usize);
                    self.count_out(&data);
                }
            }
            (b'C', true) => {
                self.failed(event);
                self.passed.failed_with_data +=
                    u64::from(event.status != 0 && !event.data.is_empty());
                self.count_in(event.data);
            }
            _ => (),
        }
    }

    fn failed(&mut self, event: &Event<'_>) {
        if event.status != 0 {
            *self.passed.failed.entry(event.status).or_default() += 1;
        }
    }

    fn count_out(&mut self, data: &[u8]) {
        let Passed { to_device, .. } = &mut self.passed;
        match self.carries {
            Carries::Keys | Carries::Clicks => (),
            Carries::Records | Carries::FtdiRecords => self.records[0].feed(data, to_device),
            Carries::Commands => {
                if let Some(number) = command(data) {
                    numbered(to_device, number);
                }
            }
        }
    }

    fn count_in(&mut self, data: &[u8]) {
        let Passed { from_device, .. } = &mut self.passed;
        match self.carries {
            Carries::Keys => {
                let key = data.get(2).copied().unwrap_or_default();
                // The letters are usages 4 to 29.
                if key != self.down && (4..30).contains(&key) {
                    let first = from_device.received == 0;
                    from_device.arrived(u64::from(key - 4), 26, first);
                }
                if data.len() >= 3 {
                    self.down = key;
                }
            }
            Carries::Clicks => {
                let [buttons, low, high, ..] = *data else {
                    return;
                };
                if buttons & 1 != 0 && self.down & 1 == 0 {
                    let place = u64::from(u16::from_le_bytes([low, high]));
                    let number = (place + TABLET_STEP / 2) / TABLET_STEP % TABLET_POSITIONS;
                    let first = from_device.received == 0;
                    from_device.arrived(number, TABLET_POSITIONS, first);
                }
                self.down = buttons;
            }
            Carries::Records => self.records[1].feed(data, from_device),
            Carries::FtdiRecords => {
                for packet in data.chunks(64) {
                    self.records[1].feed(packet.get(2..).unwrap_or_default(), from_device);
                }
            }
            Carries::Commands => {
                if let Some(number) = answer(data) {
                    numbered(from_device, number);
                }
            }
        }
    }
}

fn numbered(tally: &mut Tally, number: u32) {
    let first = tally.received == 0;
    tally.arrived(number.into(), 0, first);
}

/// Bytes of a CCID message before what it carries.
const CCID_HEADER_BYTES: usize = 10;
/// `PC_to_RDR_XfrBlock` and `RDR_to_PC_DataBlock`.
const XFR_BLOCK: u8 = 0x6f;
const DATA_BLOCK: u8 = 0x80;

/// The number in the card's one command, 80 10 00 00 04 N N N N.
fn command(message: &[u8]) -> Option<u32> {
    let rest = message.get(CCID_HEADER_BYTES..)?;
    let number = rest.strip_prefix(&[0x80, 0x10, 0, 0, 4])?;
    (message[0] == XFR_BLOCK).then_some(u32::from_be_bytes(number.try_into().ok()?))
}

/// The number in its answer, N N N N 90 00.
fn answer(message: &[u8]) -> Option<u32> {
    let rest = message.get(CCID_HEADER_BYTES..)?;
    let number = rest.strip_suffix(&[0x90, 0x00])?;
    (message[0] == DATA_BLOCK).then_some(u32::from_be_bytes(number.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::record;

    fn event(kind: u8, endpoint: u8, data: &[u8]) -> Event<'_> {
        Event {
            id: 1,
            kind,
            endpoint,
            device: 5,
            status: 0,
            length: data.len() as u32,
            data,
        }
    }

    fn given_back(carries: Carries, transfers: &[&[u8]]) -> Passed {
        let mut watch = Watch::new([(5, carries)]);
        for data in transfers {
            watch.take(&event(b'C', 0x81, data), 1.0);
        }
        watch.report().devices.remove(&5).unwrap()
    }

    #[test]
    fn an_event_is_read_as_the_kernel_lays_it_out() {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&7_u64.to_ne_bytes());
        bytes[8..12].copy_from_slice(&[b'C', 1, 0x81, 5]);
        bytes[28..32].copy_from_slice(&(-2_i32).to_ne_bytes());
        bytes[32..36].copy_from_slice(&8_u32.to_ne_bytes());
        bytes[36..40].copy_from_slice(&3_u32.to_ne_bytes());
        bytes.extend_from_slice(b"abc");
        let event = Event::parse(&bytes).unwrap();
        assert_eq!((event.id, event.kind, event.endpoint), (7, b'C', 0x81));
        assert_eq!((event.device, event.status, event.length), (5, -2, 8));
        assert_eq!(event.data, b"abc");
        assert_eq!(Event::parse(&bytes[..40]), None);
    }

    #[test]
    fn a_key_is_counted_when_it_goes_down() {
        let report = |key| [0, 0, key, 0, 0, 0, 0, 0];
        let reports = [4, 4, 0, 5, 0, 7, 0].map(report);
        let reports: Vec<&[u8]> = reports.iter().map(|report| &report[..]).collect();
        let passed = given_back(Carries::Keys, &reports);
        let tally = passed.from_device;
        assert_eq!((tally.received, tally.lost, tally.doubled), (3, 1, 0));
    }

    #[test]
    fn a_click_is_counted_by_its_place() {
        let report = |button, number: u16| {
            let [low, high] = (number * TABLET_STEP as u16).to_le_bytes();
            [button, low, high, 0, 0x40, 0]
        };
        let reports = [
            report(1, 0),
            report(0, 0),
            report(1, 1),
            report(1, 1),
            report(0, 1),
            report(1, 3),
        ];
        let reports: Vec<&[u8]> = reports.iter().map(|report| &report[..]).collect();
        let tally = given_back(Carries::Clicks, &reports).from_device;
        assert_eq!((tally.received, tally.lost), (3, 1));
    }

    #[test]
    fn records_are_counted_both_ways_and_without_an_adapter_s_status() {
        let mut packet = vec![1, 0x60];
        packet.extend(record(1));
        let tally = given_back(Carries::FtdiRecords, &[&[1, 0x60], &packet]).from_device;
        assert_eq!((tally.received, tally.malformed), (1, 0));

        let mut watch = Watch::new([(5, Carries::Records)]);
        let (first, second) = (record(1), record(2));
        watch.take(&event(b'S', 0x02, &first), 1.0);
        assert_eq!(watch.report().devices[&5].to_device.received, 0);
        // What is given back has no data of its own.
        let back = Event {
            length: first.len() as u32,
            ..event(b'C', 0x02, &[])
        };
        watch.take(&back, 1.0);
        assert_eq!(watch.report().devices[&5].to_device.received, 1);
        // Cancelled before a byte went out.
        watch.take(&event(b'S', 0x02, &second), 1.0);
        let cancelled = Event {
            status: -2,
            length: 0,
            ..back
        };
        watch.take(&cancelled, 1.0);
        let passed = &watch.report().devices[&5];
        assert_eq!(passed.to_device.received, 1);
        assert_eq!(passed.failed[&-2], 1);
    }

    #[test]
    fn commands_and_answers_are_told_by_their_numbers() {
        let header = |kind| vec![kind, 9, 0, 0, 0, 0, 1, 0, 0, 0];
        let mut to = header(XFR_BLOCK);
        to.extend([0x80, 0x10, 0, 0, 4, 0, 0, 1, 2]);
        assert_eq!(command(&to), Some(258));
        let mut from = header(DATA_BLOCK);
        from.extend([0, 0, 1, 2, 0x90, 0]);
        assert_eq!(answer(&from), Some(258));
        // An answer to reset.
        let mut reset = header(DATA_BLOCK);
        reset.extend([0x3b, 4, b'V', b'U', b'S', b'B']);
        assert_eq!(answer(&reset), None);
        assert_eq!(command(&header(0x62)), None);
    }

    #[test]
    fn data_of_a_cancelled_transfer_was_handed_over() {
        let mut watch = Watch::new([(5, Carries::Keys)]);
        let cancelled = Event {
            status: -2,
            ..event(b'C', 0x81, &[0, 0, 4, 0, 0, 0, 0, 0])
        };
        watch.take(&cancelled, 1.0);
        let passed = &watch.report().devices[&5];
        assert_eq!(
            (passed.from_device.received, passed.failed_with_data),
            (1, 1)
        );
    }

    #[test]
    fn other_devices_are_left_alone() {
        let mut watch = Watch::new([(6, Carries::Keys)]);
        watch.take(&event(b'C', 0x81, &[0, 0, 4, 0, 0, 0, 0, 0]), 1.0);
        assert_eq!(watch.report().devices[&6].from_device.received, 0);
    }

    #[test]
    fn every_name_is_its_own() {
        for (name, carries) in NAMES {
            assert_eq!(name.parse(), Ok(carries));
            assert_eq!(carries.name(), name);
        }
    }
}

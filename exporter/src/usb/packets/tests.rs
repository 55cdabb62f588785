// SPDX-License-Identifier: GPL-3.0-or-later
//! What the guest sees is compared with a device whose packets are of 512 bytes.

use session::Epoch;
use session::frame::TransferType;

use super::*;

fn tag(request: u64) -> Tag {
    Tag {
        epoch: Epoch(1),
        request,
    }
}

fn transfer(length: u32) -> Transfer {
    Transfer {
        transfer_type: TransferType::Bulk,
        endpoint: 0x81,
        flags: 0,
        length,
        interval: 0,
        setup: [0; 8],
    }
}

fn command(is_in: bool, len: u32) -> Vec<u8> {
    let mut cbw = b"USBC\x01\0\0\0".to_vec();
    cbw.extend(len.to_le_bytes());
    cbw.push(if is_in { 0x80 } else { 0 });
    cbw.resize(CBW_LEN, 0);
    cbw
}

/// A device that sends these messages, in packets of `packet` bytes.
struct Source {
    messages: VecDeque<Vec<u8>>,
    packet: usize,
}

impl Source {
    fn new(lens: &[usize], packet: usize) -> Self {
        let mut byte = 0_u8;
        let message = |len: &usize| {
            let fill = |_| {
                byte = byte.wrapping_mul(5).wrapping_add(7);
                byte
            };
            (0..*len).map(fill).collect()
        };
        Self {
            messages: lens.iter().map(message).collect(),
            packet,
        }
    }

    /// A transfer of `len` bytes, as a host controller carries it out; `None` where the device has
    /// nothing to send.
    fn read(&mut self, len: usize) -> Option<(TransferStatus, Vec<u8>)> {
        let mut data = Vec::new();
        while data.len() < len {
            let Some(message) = self.messages.front_mut() else {
                // An end that no short packet tells is no end.
                return (!data.is_empty()).then_some((TransferStatus::Cancelled, data));
            };
            let size = message.len().min(self.packet);
            let packet: Vec<u8> = message.drain(..size).collect();
            if message.is_empty() {
                self.messages.pop_front();
            }
            let room = len - data.len();
            data.extend(&packet[..size.min(room)]);
            if size > room {
                return Some((TransferStatus::Overflow, data));
            }
            if size < self.packet {
                break;
            }
        }
        Some((TransferStatus::Completed, data))
    }
}

/// Reads with these lengths through an [`In`], with all of them queued.
fn read(source: &mut Source, lens: &[u32]) -> Vec<(TransferStatus, Vec<u8>)> {
    let mut input = In::default();
    let mut results = Vec::new();
    for (len, number) in lens.iter().zip(1..) {
        input.wait(tag(number), transfer(*len));
    }
    while let Some((tag, transfer)) = input.next() {
        let wanted = transfer.length as usize;
        match input.plan(wanted) {
            Plan::Answer(status, len) => {
                results.push((status, input.surplus()[..len].to_vec()));
                input.started(None);
            }
            Plan::Ask { ask, halves } => {
                let mut data = input.surplus().to_vec();
                input.started(halves.then_some(tag));
                assert!(!halves || input.next().is_none(), "overtaken");
                let Some((status, came)) = source.read(ask) else {
                    break;
                };
                assert!(halves || data.len() + came.len() <= wanted);
                data.extend(came);
                let surplus = data.split_off(data.len().min(wanted));
                assert!(surplus.len() <= PRESENTED);
                input.ended(tag, &surplus);
                results.push((status, data));
            }
        }
    }
    results
}

#[test]
fn aligned_reads_go_as_they_are() {
    let input = In::default();
    for len in [1, 13, 511, 1024, 1025, 4096, 65_536, 100_001] {
        let plan = Plan::Ask {
            ask: len,
            halves: false,
        };
        assert_eq!(input.plan(len), plan);
    }
    for len in [512, 1536, 65_024] {
        let plan = Plan::Ask {
            ask: len + 512,
            halves: true,
        };
        assert_eq!(input.plan(len), plan);
    }
}

/// Whatever the buffers, the guest gets what a high-speed device would have sent it. (Messages whose
/// last packet is half are left out: nobody can know whether a high-speed device would end those with
/// a zero-length packet, and mass storage does not.)
#[test]
fn reads_are_those_of_a_high_speed_device() {
    let cases: [(&[usize], &[u32]); 9] = [
        (&[512, 13], &[512, 13]),
        (&[1024, 13], &[512, 512, 13]),
        (&[8192, 13], &[3584, 4096, 512, 13]),
        (&[8192, 13], &[512; 17]),
        (&[1300, 13], &[512, 512, 512, 13]),
        (&[700, 700], &[512, 512, 512, 512]),
        (&[3000, 2048, 13], &[1536, 1024, 1024, 2048, 512]),
        // Too small for the packet
        (&[1024, 13], &[512, 500, 512]),
        (&[600, 13], &[512, 50, 512]),
    ];
    for (messages, lens) in cases {
        let mut high = Source::new(messages, PRESENTED);
        let expected: Vec<_> = lens
            .iter()
            .map_while(|len| high.read(*len as usize))
            .collect();
        let mut real = Source::new(messages, TRUE);
        assert_eq!(read(&mut real, lens), expected, "{messages:?} {lens:?}");
    }
}

#[test]
fn a_waiting_read_can_be_taken_back() {
    let mut input = In::default();
    assert!(!input.is_busy());
    input.started(Some(tag(1)));
    assert!(input.is_busy());
    for number in 2..5 {
        input.wait(tag(number), transfer(4));
    }
    assert!(input.take_back(tag(3)) && !input.take_back(tag(3)));
    assert!(input.next().is_none());
    // Another one's end changes nothing.
    input.ended(tag(9), &[1]);
    assert!(input.next().is_none());
    input.ended(tag(1), &[1, 2]);
    assert_eq!(input.surplus(), [1, 2]);
    assert_eq!(input.next().map(|(tag, _)| tag), Some(tag(2)));
    assert_eq!(input.take_back_all().collect::<Vec<_>>(), [tag(4)]);
    input.restart();
    assert!(input.surplus().is_empty());
}

/// Writes through an [`Out`]; what the device gets, transfer by transfer.
fn write(out: &mut Out, data: &[u8], to: &mut Vec<Vec<u8>>) -> Plan {
    let plan = out.plan(data);
    match plan {
        Plan::Answer(status, len) => {
            assert_eq!((status, len), (TransferStatus::Completed, data.len()))
        }
        Plan::Ask { ask, halves } => {
            let mut sent = [out.tail(), data].concat();
            sent.truncate(ask);
            out.started(data, halves);
            to.push(sent);
        }
    }
    plan
}

/// The lengths of the transfers that reach the device, and that the data is the same.
fn written(is_bulk_only: bool, writes: &[Vec<u8>]) -> Vec<usize> {
    let mut out = Out::new(is_bulk_only);
    let mut to = Vec::new();
    for data in writes {
        write(&mut out, data, &mut to);
    }
    assert_eq!(to.concat(), writes.concat());
    to.iter().map(Vec::len).collect()
}

fn some(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 256) as u8).collect()
}

#[test]
fn the_data_phase_of_a_command_has_no_short_packet_but_the_last() {
    let cases: [(&[usize], &[usize]); 7] = [
        (&[512], &[512]),
        (&[4096], &[4096]),
        (&[512, 512], &[1024]),
        (&[512, 4096, 512], &[4096, 1024]),
        (&[512, 4096], &[4608]),
        (&[3584, 3584, 1024], &[3072, 4096, 1024]),
        (&[512, 512, 512, 512, 100], &[1024, 1024, 100]),
    ];
    for (writes, expected) in cases {
        let total: usize = writes.iter().sum();
        let mut all = vec![command(false, total as u32)];
        all.extend(writes.iter().map(|len| some(*len)));
        // The next command comes as it is.
        all.push(command(true, 512));
        let lens = written(true, &all);
        assert_eq!(lens[1..lens.len() - 1], *expected, "{writes:?}");
        // Who knows nothing of the protocol cannot know that there is more to come.
        let as_they_are: Vec<_> = all.iter().map(Vec::len).collect();
        assert_eq!(written(false, &all), as_they_are);
    }
}

#[test]
fn data_that_looks_like_a_command_is_data() {
    let data = command(false, 99_999);
    let lens = written(true, &[command(false, 31), data, command(false, 0)]);
    assert_eq!(lens, [31, 31, 31]);
}

#[test]
fn a_zero_length_packet_after_a_short_one_is_not_sent() {
    let mut out = Out::default();
    let mut to = Vec::new();
    let answered = Plan::Answer(TransferStatus::Completed, 0);
    write(&mut out, &some(1536), &mut to);
    assert_eq!(write(&mut out, &[], &mut to), answered);
    // Only the one that ends it.
    assert_ne!(write(&mut out, &[], &mut to), answered);
    for len in [1024, 100, 2048] {
        write(&mut out, &some(len), &mut to);
        assert_ne!(write(&mut out, &[], &mut to), answered, "{len}");
    }
    let lens: Vec<_> = to.iter().map(Vec::len).collect();
    assert_eq!(lens, [1536, 0, 1024, 0, 100, 0, 2048, 0]);
}

#[test]
fn what_a_guest_gives_up_is_not_sent_later() {
    let mut out = Out::new(true);
    let mut to = Vec::new();
    write(&mut out, &command(false, 4096), &mut to);
    write(&mut out, &some(1536), &mut to);
    assert_eq!(out.tail().len(), PRESENTED);
    // The next command without a word, and after a halt was cleared.
    write(&mut out, &command(false, 4096), &mut to);
    assert!(out.tail().is_empty());
    write(&mut out, &some(512), &mut to);
    assert_eq!(out.tail().len(), PRESENTED);
    out.restart();
    write(&mut out, &command(true, 512), &mut to);
    let lens: Vec<_> = to.iter().map(Vec::len).collect();
    assert_eq!(lens, [31, 1024, 31, 31]);
}

#[test]
fn endpoints_are_told_apart() {
    let mut bulk = BulkEndpoints::new(1 << 2);
    assert!(bulk.output(0x02).is_bulk_only && !bulk.output(0x03).is_bulk_only);
    bulk.input(0x81).started(Some(tag(1)));
    bulk.input(0x81).wait(tag(2), transfer(1));
    assert!(!bulk.input(0x82).is_busy() && bulk.input(0x81).is_busy());
    assert!(bulk.take_back(tag(2)) && !bulk.take_back(tag(2)));
    bulk.input(0x81).ended(tag(1), &[7]);
    bulk.restart(|address| address == 0x82);
    assert_eq!(bulk.input(0x81).surplus(), [7]);
    bulk.restart(|_| true);
    assert!(bulk.input(0x81).surplus().is_empty());
}

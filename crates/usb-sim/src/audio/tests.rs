// SPDX-License-Identifier: GPL-3.0-or-later
use proptest::prelude::*;
use session::frame::TransferStatus;

use super::descriptors::PLAYBACK_OUT;
use super::*;
use crate::testing::{Bus, ms};

const CLOCK: u16 = (CLOCK_SOURCE as u16) << 8;

fn headset() -> Bus<Audio> {
    let mut bus = Bus::configured(Audio::new("1"), 1);
    for interface in [1, 2] {
        assert_eq!(bus.control_out(1, 11, 1, interface, &[]), Ok(()));
    }
    bus
}

/// Takes a completed recording, as (frames' numbers, start frame).
fn recorded(bus: &mut Bus<Audio>, id: u64, packets: usize) -> (Vec<u32>, u16) {
    let (outcome, body) = bus.take(id).unwrap();
    assert_eq!(outcome.status, TransferStatus::Completed);
    let (table, data) = body.split_at(packets * 16);
    let mut numbers = Vec::new();
    for packet in table.chunks_exact(16) {
        let field = |at: usize| u32::from_le_bytes(packet[at..at + 4].try_into().unwrap());
        let (offset, actual) = (field(0) as usize, field(8) as usize);
        let frames = data[offset..offset + actual].chunks_exact(FRAME_LEN);
        numbers.extend(frames.map(|f| u32::from_le_bytes(f.try_into().unwrap())));
    }
    assert_eq!(numbers.len() * FRAME_LEN, outcome.actual_length as usize);
    (numbers, outcome.start_frame)
}

#[test]
fn the_clock_says_48_khz() {
    let mut bus = headset();
    let rate = RATE.to_le_bytes();
    assert_eq!(bus.control_in(0xa1, 1, 0x0100, CLOCK, 4).unwrap(), rate);
    let range = bus.control_in(0xa1, 2, 0x0100, CLOCK, 14).unwrap();
    assert_eq!(range[..2], [1, 0]);
    assert_eq!(range[2..6], rate);
    assert_eq!(range[6..10], rate);
    assert_eq!(range.len(), 14);
    // The number of subranges is asked for first.
    let count = bus.control_in(0xa1, 2, 0x0100, CLOCK, 2).unwrap();
    assert_eq!(count, [1, 0]);
    assert_eq!(bus.control_in(0xa1, 1, 0x0200, CLOCK, 1), Ok(vec![1]));
    assert_eq!(bus.control_out(0x21, 1, 0x0100, CLOCK, &rate), Ok(()));
    let other = 44_100_u32.to_le_bytes();
    let stall = Err(TransferStatus::Stall);
    assert_eq!(bus.control_out(0x21, 1, 0x0100, CLOCK, &other), stall);
}

#[test]
fn entities_refer_to_each_other() {
    let mut bus = headset();
    let config = bus.control_in(0x80, 6, 0x0200, 0, 1024).unwrap();
    let parts: Vec<_> = crate::standard::parts(&config).map(|(_, p)| p).collect();
    let header = parts.iter().find(|p| p[1..3] == [0x24, 1]).unwrap();
    let control = parts.iter().take_while(|p| p[..3] != [9, 4, 1]);
    let entities: Vec<_> = control.filter(|p| p[1] == 0x24).collect();
    let total: usize = entities.iter().map(|p| p.len()).sum();
    assert_eq!(
        usize::from(u16::from_le_bytes([header[6], header[7]])),
        total
    );
    let mut ids: Vec<u8> = entities[1..].iter().map(|p| p[3]).collect();
    ids.sort_unstable();
    assert_eq!(ids, [1, 2, 3, 4, 5]);
    for entity in &entities[1..] {
        match entity[2] {
            0x02 => assert_eq!(entity[7], CLOCK_SOURCE),
            0x03 => {
                assert!(ids.contains(&entity[7]));
                assert_eq!(entity[8], CLOCK_SOURCE);
            }
            other => assert_eq!(other, 0x0a),
        }
    }
}

#[test]
fn a_recording_has_every_number() {
    let mut bus = headset();
    let mut numbers = Vec::new();
    for _ in 0..10 {
        let id = bus.isochronous(RECORD_IN, 8, &[0; 8 * 196]);
        numbers.extend(recorded(&mut bus, id, 8).0);
    }
    assert_eq!(numbers, (1..=10 * 8 * 48).collect::<Vec<u32>>());
    // Recording anew begins at 1.
    assert_eq!(bus.control_out(1, 11, 0, 2, &[]), Ok(()));
    assert_eq!(bus.control_out(1, 11, 1, 2, &[]), Ok(()));
    let id = bus.isochronous(RECORD_IN, 1, &[0; 196]);
    assert_eq!(recorded(&mut bus, id, 1).0[0], 1);
}

#[test]
fn what_is_recorded_can_be_played() {
    let mut bus = headset();
    let id = bus.isochronous(RECORD_IN, 10, &[0; 1920]);
    let (_, body) = bus.take(id).unwrap();
    let id = bus.isochronous(PLAYBACK_OUT, 10, &body[160..]);
    bus.take(id).unwrap();
    let heard = bus.port.function().heard();
    assert_eq!((heard.good, heard.dropped, heard.doubled), (480, 0, 0));
}

#[test]
fn late_transfers_lose_samples() {
    let mut bus = headset();
    bus.port.start_clock(ms(5000));
    let first = bus.isochronous(RECORD_IN, 10, &[0; 1960]);
    let second = bus.isochronous(RECORD_IN, 10, &[0; 1960]);
    bus.advance(ms(5009));
    assert_eq!(bus.take(first), None);
    assert_eq!(bus.port.next_event(), Some(ms(5010)));
    bus.advance(ms(5010));
    let (numbers, start) = recorded(&mut bus, first, 10);
    assert_eq!((numbers[0], start), (1, 5000 & 0x7ff));
    // The second follows at once, and then nobody asks for 5 ms.
    bus.advance(ms(5025));
    let (numbers, start) = recorded(&mut bus, second, 10);
    assert_eq!((numbers[0], start), (481, 5010 & 0x7ff));
    let third = bus.isochronous(RECORD_IN, 10, &[0; 1960]);
    bus.advance(ms(5035));
    let (numbers, _) = recorded(&mut bus, third, 10);
    assert_eq!(numbers[0], 961 + 5 * 48);
    assert_eq!(bus.port.function().missed_packets(), (5, 0));
}

#[test]
fn broken_packets_are_counted() {
    let mut check = StreamCheck::default();
    check.feed_packet(&[1, 0, 0, 0, 2, 0]);
    check.feed_packet(&[2, 0, 0, 0]);
    let counts = check.counts();
    assert_eq!((counts.good, counts.malformed), (2, 1));
}

#[test]
fn numbers_go_round_without_zero() {
    let mut samples = Samples::default();
    samples.skip(u64::from(u32::MAX) - 1);
    let mut check = StreamCheck::default();
    for _ in 0..3 {
        check.feed_packet(&samples.next_frame());
        samples.skip(2);
    }
    assert_eq!(samples.given(), 8);
    let counts = check.counts();
    // The second frame is number 3: from the last number on, 1 and 2 were left out.
    assert_eq!((counts.good, counts.dropped, counts.silent), (3, 4, 0));
}

#[derive(Clone, Debug)]
enum Fault {
    None,
    Drop(u32),
    Double(usize),
    Silence(usize),
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        4 => Just(Fault::None),
        1 => (1_u32..1000).prop_map(Fault::Drop),
        1 => (1_usize..20).prop_map(Fault::Double),
        1 => (1_usize..20).prop_map(Fault::Silence),
    ]
}

proptest! {
    /// Faults that are put in are found, each frame once.
    #[test]
    fn faults_are_counted(faults in prop::collection::vec(fault(), 1..100)) {
        let mut samples = Samples::default();
        let mut check = StreamCheck::default();
        let mut expected = StreamCounts { started: 1, ..StreamCounts::default() };
        // Frames to double; never number 1, which would be a new start.
        let mut sent: Vec<[u8; 4]> = (0..20).map(|_| samples.next_frame()).collect();
        sent.iter().for_each(|f| check.feed_packet(f));
        expected.good = 20;
        for fault in faults {
            match fault {
                Fault::None => {}
                Fault::Drop(frames) => {
                    samples.skip(frames.into());
                    expected.dropped += u64::from(frames);
                    expected.gaps += 1;
                }
                Fault::Double(frames) => {
                    check.feed_packet(&sent[sent.len() - frames..].concat());
                    expected.doubled += frames as u64;
                }
                Fault::Silence(frames) => {
                    check.feed_packet(&vec![0; frames * FRAME_LEN]);
                    expected.silent += frames as u64;
                }
            }
            let frame = samples.next_frame();
            check.feed_packet(&frame);
            sent.push(frame);
            expected.good += 1;
        }
        prop_assert_eq!(check.counts(), expected);
    }
}

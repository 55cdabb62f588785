// SPDX-License-Identifier: GPL-3.0-or-later
use proptest::prelude::*;
use session::Speed;
use session::frame::ISO_PACKET_LEN;

use super::*;
use crate::standard;
use crate::testing::{Bus, iso, ms};
use crate::{
    Audio, Descriptors, Device, Disk, Hub, Keyboard, MemoryStorage, Pattern, SerialLoop, SourceSink,
};

fn devices() -> Vec<Device> {
    vec![
        Device::Disk(Disk::new(MemoryStorage::new(1 << 20), "1")),
        Device::Disk(Disk::super_speed(MemoryStorage::new(1 << 20), "1", true)),
        Device::Keyboard(Keyboard::new("1")),
        Device::Serial(SerialLoop::new("1")),
        Device::SourceSink(SourceSink::new(Pattern::Mod63, Speed::High, "1")),
        Device::SourceSink(SourceSink::new(Pattern::Zero, Speed::Full, "1")),
        Device::Audio(Audio::new("1")),
        Device::Hub(Hub::new("1")),
    ]
}

const ISO_IN: u8 = 0x82;

fn isochronous() -> Bus<SourceSink> {
    let function = SourceSink::new(Pattern::Zero, Speed::High, "1");
    let mut bus = Bus::configured(function, 3);
    assert_eq!(bus.control_out(1, 11, 1, 0, &[]), Ok(()));
    bus.port.start_clock(ms(100));
    bus
}

/// What every configuration has to be (USB 2.0 §9.6.3 to 9.6.6).
fn check_configuration(configuration: &[u8], kind: u8, speed: Speed) {
    assert_eq!(configuration[..2], [9, kind]);
    let total = u16::from_le_bytes([configuration[2], configuration[3]]);
    assert_eq!(usize::from(total), configuration.len());
    let parts: Vec<_> = standard::parts(configuration).collect();
    let parts_len: usize = parts.iter().map(|(_, part)| part.len()).sum();
    assert_eq!(parts_len, configuration.len());
    let mut interfaces = std::collections::BTreeSet::new();
    let mut endpoints_left = 0;
    for (kind, part) in &parts[1..] {
        match *kind {
            standard::INTERFACE => {
                assert_eq!(endpoints_left, 0);
                assert_eq!(part.len(), 9);
                interfaces.insert(part[2]);
                endpoints_left = part[4];
            }
            standard::ENDPOINT => {
                assert!(endpoints_left > 0);
                endpoints_left -= 1;
                let size = u16::from_le_bytes([part[4], part[5]]);
                match (part[3] & 3, speed) {
                    (2, Speed::Super) => assert_eq!(size, 1024),
                    (2, Speed::High) => assert_eq!(size, 512),
                    (2, _) => assert_eq!(size, 64),
                    (3, Speed::Low) => assert!(size <= 8 && part[6] >= 10),
                    (3, Speed::Full) => assert!(size <= 64 && part[6] >= 1),
                    _ => assert!(size <= 1024 && (1..=16).contains(&part[6])),
                }
            }
            _ => (),
        }
    }
    assert_eq!(endpoints_left, 0);
    assert_eq!(interfaces.len(), usize::from(configuration[4]));
}

#[test]
fn descriptors_are_well_formed() {
    for function in devices() {
        let Descriptors {
            device,
            qualifier,
            configurations,
            other_speed,
            bos,
            strings,
        } = function.descriptors();
        let speed = function.speed();
        assert_eq!(device[..2], [18, 1]);
        assert_eq!(device.len(), 18);
        assert_eq!(usize::from(device[17]), configurations.len());
        assert!(usize::from(device[16]) <= strings.len());
        assert_eq!(qualifier.is_empty(), !matches!(qualifier[..], [10, 6, ..]));
        if speed == Speed::High {
            assert_eq!(device[7], 64);
            assert_eq!(qualifier.len(), 10);
        }
        if speed == Speed::Super {
            assert_eq!(device[7], 9);
            assert_eq!(usize::from(bos[2]), bos.len());
        } else {
            assert!(bos.is_empty());
        }
        for configuration in configurations {
            check_configuration(configuration, 2, speed);
        }
        let other = match speed {
            Speed::High => Speed::Full,
            _ => Speed::High,
        };
        for configuration in other_speed {
            check_configuration(configuration, 7, other);
        }
    }
}

#[test]
fn isochronous_transfers_take_their_time() {
    let mut bus = isochronous();
    let ids: Vec<_> = (0..3)
        .map(|_| bus.isochronous(ISO_IN, 8, &[0; 8 * 1024]))
        .collect();
    for (at, id) in ids.into_iter().enumerate() {
        let end = ms(108 + 8 * at as u64);
        assert_eq!(bus.port.next_event(), Some(end));
        bus.advance(end - Duration::from_nanos(1));
        assert_eq!(bus.take(id), None);
        bus.advance(end);
        let (outcome, _) = bus.take(id).unwrap();
        assert_eq!(outcome.start_frame, 100 + 8 * at as u16);
    }
    assert_eq!(bus.port.next_event(), None);
    assert_eq!(bus.port.function().traffic().missed_packets, 0);
}

#[test]
fn a_stream_that_pauses_misses_packets() {
    let mut bus = isochronous();
    bus.isochronous(ISO_IN, 1, &[0; 1024]);
    // On the last moment of the interval nothing is missed.
    bus.advance(ms(101));
    bus.isochronous(ISO_IN, 1, &[0; 1024]);
    assert_eq!(bus.port.function().traffic().missed_packets, 0);
    bus.advance(ms(103) + Duration::from_micros(1));
    let id = bus.isochronous(ISO_IN, 1, &[0; 1024]);
    assert_eq!(bus.port.function().traffic().missed_packets, 2);
    bus.advance(ms(105));
    assert_eq!(bus.take(id).unwrap().0.start_frame, 104);
    // A new stream misses nothing.
    assert_eq!(bus.control_out(1, 11, 1, 0, &[]), Ok(()));
    bus.advance(ms(500));
    bus.isochronous(ISO_IN, 1, &[0; 1024]);
    assert_eq!(bus.port.function().traffic().missed_packets, 2);
}

#[test]
fn a_cancelled_transfer_gives_its_time_back() {
    let mut bus = isochronous();
    let ids: Vec<_> = (0..4)
        .map(|_| bus.isochronous(ISO_IN, 10, &[0; 10_240]))
        .collect();
    bus.advance(ms(113));
    bus.take(ids[0]).unwrap();
    for id in &ids[1..] {
        bus.cancel(*id);
        assert_eq!(bus.take(*id).unwrap().0.status, TransferStatus::Cancelled);
    }
    // The three that were on the bus are nobody's.
    assert_eq!(bus.port.function().traffic().missed_packets, 3);
    let next = bus.isochronous(ISO_IN, 1, &[0; 1024]);
    assert_eq!(bus.port.next_event(), Some(ms(114)));
    bus.advance(ms(114));
    assert_eq!(bus.take(next).unwrap().0.start_frame, 113);
}

#[test]
fn another_setting_ends_the_streams() {
    let mut bus = isochronous();
    let id = bus.isochronous(ISO_IN, 100, &[0; 102_400]);
    assert_eq!(bus.control_out(1, 11, 0, 0, &[]), Ok(()));
    assert_eq!(bus.take(id).unwrap().0.status, TransferStatus::Invalid);
    assert_eq!(bus.port.next_event(), None);
}

#[test]
fn a_transfer_without_its_packet_table() {
    let mut bus = isochronous();
    let id = bus.submit(iso(ISO_IN, 4, 100), &[0; 10]);
    bus.advance(ms(1000));
    assert_eq!(bus.take(id).unwrap().0.status, TransferStatus::Invalid);
}

#[derive(Clone, Debug)]
enum Step {
    Submit(Transfer, Vec<u8>),
    Cancel(usize),
    Advance(u64),
    Reset,
}

fn setups() -> impl Strategy<Value = [u8; 8]> {
    prop_oneof![
        any::<[u8; 8]>(),
        // Likely ones: configurations, settings, halts, descriptors, class requests
        (0_u8..4).prop_map(|c| [0, 9, c, 0, 0, 0, 0, 0]),
        (0_u8..4, 0_u8..3).prop_map(|(s, i)| [1, 11, s, 0, i, 0, 0, 0]),
        (any::<bool>(), any::<u8>()).prop_map(|(set, e)| [
            2,
            1 + 2 * u8::from(set),
            0,
            0,
            e,
            0,
            0,
            0
        ]),
        (0x80_u8..0x82, any::<u8>(), 0_u8..0x30, any::<u16>()).prop_map(|(t, i, k, l)| [
            t,
            6,
            i,
            k,
            0,
            0,
            l as u8,
            (l >> 8) as u8
        ]),
        (
            prop_oneof![Just(0x21_u8), Just(0xa1)],
            0_u8..0x24,
            any::<u16>(),
            0_u8..16
        )
            .prop_map(|(t, r, v, l)| [t, r, v as u8, (v >> 8) as u8, 0, 5, l, 0]),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        3 => Just(TransferType::Control),
        1 => Just(TransferType::Isochronous),
        2 => Just(TransferType::Bulk),
        1 => Just(TransferType::Interrupt),
    ];
    let endpoint = (0_u8..4, any::<bool>()).prop_map(|(n, is_in)| n | u8::from(is_in) << 7);
    let lengths = prop_oneof![0_u32..40, 0_u32..66_000];
    let submit = (kind, endpoint, 0_u8..4, lengths, setups(), any::<u64>()).prop_map(
        |(transfer_type, endpoint, flags, length, mut setup, seed)| {
            if transfer_type == TransferType::Isochronous {
                setup = [(seed % 16) as u8, 0, 0, 0, 0, 0, 0, 0];
            }
            let transfer = Transfer {
                transfer_type,
                endpoint,
                flags,
                length,
                interval: 1,
                setup,
            };
            // Small packet offsets and lengths: some fit, some do not.
            let mut body = vec![0; transfer.submit_body_len()];
            let mut x = seed;
            for packet in body.chunks_exact_mut(4).take(transfer.iso_packets() * 4) {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                packet[0] = (x >> 60) as u8;
            }
            Step::Submit(transfer, body)
        },
    );
    prop_oneof![
        20 => submit,
        2 => (0_usize..50).prop_map(Step::Cancel),
        2 => (0_u64..20).prop_map(Step::Advance),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    /// Whatever a host does, each transfer is answered once, within its length, and a reset leaves
    /// none.
    #[test]
    fn every_transfer_is_answered_once(
        which in 0_usize..7,
        clock in any::<bool>(),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut bus = Bus::new(devices().swap_remove(which));
        if clock {
            bus.port.start_clock(Duration::ZERO);
        }
        let mut now = 0;
        let mut lengths = Vec::new();
        for step in steps {
            match step {
                Step::Submit(transfer, body) => {
                    bus.submit(transfer, &body);
                    lengths.push(transfer);
                }
                Step::Cancel(request) => bus.cancel(request as u64),
                Step::Advance(more) => {
                    now += more;
                    bus.advance(ms(now));
                }
                Step::Reset => bus.reset(),
            }
        }
        bus.reset();
        prop_assert_eq!(bus.completions.done.len(), lengths.len());
        for (request, (outcome, body)) in &bus.completions.done {
            let transfer = &lengths[*request as usize - 1];
            prop_assert!(outcome.actual_length <= transfer.length);
            let limit = transfer.iso_packets() * ISO_PACKET_LEN + transfer.length as usize;
            prop_assert!(body.len() <= limit);
            if transfer.is_in() && transfer.transfer_type != TransferType::Isochronous
                && outcome.status == TransferStatus::Completed
            {
                prop_assert_eq!(body.len(), outcome.actual_length as usize);
            }
        }
    }
}

#[test]
fn what_a_super_speed_host_says_about_the_link() {
    let disk = |super_speed| match super_speed {
        true => Disk::super_speed(MemoryStorage::new(4096), "1", true),
        false => Disk::new(MemoryStorage::new(4096), "1"),
    };
    for super_speed in [true, false] {
        let mut bus = Bus::configured(disk(super_speed), 1);
        let expected = match super_speed {
            true => Ok(()),
            false => Err(TransferStatus::Stall),
        };
        assert_eq!(bus.control_out(0, 48, 0, 0, &[1, 2, 3, 0, 4, 0]), expected);
        assert_eq!(bus.control_out(0, 49, 40, 0, &[]), expected);
        assert_eq!(bus.control_out(0, 3, 48, 0, &[]), expected);
        assert_eq!(bus.control_out(0, 1, 49, 0, &[]), expected);
        let bos = bus.control_in(0x80, 6, 0x0f00, 0, 255).map(|b| b.len());
        assert_eq!(bos, expected.map(|()| 22));
    }
}

#[test]
fn the_setting_for_uas_only_stalls() {
    let disk = Disk::super_speed(MemoryStorage::new(4096), "1", true);
    let mut bus = Bus::configured(disk, 1);
    let mut test_unit_ready = [0; 31];
    test_unit_ready[..4].copy_from_slice(b"USBC");
    test_unit_ready[14] = 6;
    assert_eq!(bus.control_out(1, 11, 1, 0, &[]), Ok(()));
    for endpoint in [0x02, 0x04] {
        let answer = bus.write(endpoint, &test_unit_ready);
        assert_eq!(answer, Err(TransferStatus::Stall));
    }
    assert_eq!(bus.read(0x83, 13), Err(TransferStatus::Stall));
    // Back to bulk-only
    assert_eq!(bus.control_out(1, 11, 0, 0, &[]), Ok(()));
    assert_eq!(bus.write(0x02, &test_unit_ready), Ok(()));
    assert_eq!(bus.read(0x81, 13).unwrap()[..4], *b"USBS");
}

#[test]
fn transfers_and_packets_that_fail_on_the_bus() {
    let mut bus = isochronous();
    bus.port.fail_next(0x81, 2);
    for expected in [Err(TransferStatus::Protocol), Err(TransferStatus::Protocol)] {
        assert_eq!(bus.read(0x81, 512), expected);
    }
    assert_eq!(bus.read(0x81, 512).unwrap().len(), 512);
    bus.port.fail_next(ISO_IN, 3);
    let id = bus.isochronous(ISO_IN, 8, &[0; 8 * 100]);
    assert_eq!(bus.port.waiting(ISO_IN), 1);
    bus.advance(ms(108));
    let (outcome, body) = bus.take(id).unwrap();
    assert_eq!(outcome.status, TransferStatus::Completed);
    assert_eq!((outcome.error_count, outcome.actual_length), (3, 500));
    for (at, packet) in body[..8 * ISO_PACKET_LEN]
        .chunks_exact(ISO_PACKET_LEN)
        .enumerate()
    {
        let expected = match at {
            0..3 => [0, 0, 0, 0, TransferStatus::Protocol as u8, 0, 0, 0],
            _ => [100, 0, 0, 0, 0, 0, 0, 0],
        };
        assert_eq!(packet[8..], expected, "packet {at}");
    }
    assert_eq!(bus.port.function().traffic().missed_packets, 3);
}

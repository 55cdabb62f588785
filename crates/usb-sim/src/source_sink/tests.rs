// SPDX-License-Identifier: GPL-3.0-or-later
use proptest::prelude::*;
use session::frame::TransferStatus;

use super::descriptors::{INTERRUPT_OUT, ISO_OUT};
use super::*;
use crate::testing::{Bus, not_short};

const STALL: TransferStatus = TransferStatus::Stall;

fn device(pattern: Pattern) -> Bus<SourceSink> {
    Bus::configured(SourceSink::new(pattern, Speed::High, "1"), SOURCE_SINK)
}

fn mod63(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 512 % 63) as u8).collect()
}

#[test]
fn patterns() {
    let mut bus = device(Pattern::Zero);
    assert_eq!(bus.read(BULK_IN, 1000).unwrap(), vec![0; 1000]);
    let mut bus = device(Pattern::Mod63);
    assert_eq!(bus.read(BULK_IN, 2000).unwrap(), mod63(2000));
    assert_eq!(bus.write(BULK_OUT, &mod63(2000)), Ok(()));
    assert_eq!(bus.port.function().traffic().wrong_transfers, 0);
    let mut bus = device(Pattern::None);
    assert_eq!(bus.write(BULK_OUT, &[1, 2, 3]), Ok(()));
    assert_eq!(bus.port.function().traffic().wrong_transfers, 0);
}

#[test]
fn wrong_data_halts_the_sink() {
    let mut bus = device(Pattern::Mod63);
    assert_eq!(bus.write(BULK_OUT, &[1]), Ok(()));
    assert_eq!(bus.write(BULK_OUT, &mod63(10)), Err(STALL));
    assert_eq!(bus.read(BULK_IN, 10).unwrap(), mod63(10));
    assert_eq!(bus.port.function().traffic().wrong_transfers, 1);
    assert_eq!(bus.control_out(2, 1, 0, BULK_OUT.into(), &[]), Ok(()));
    assert_eq!(bus.write(BULK_OUT, &mod63(10)), Ok(()));
}

/// usbtest's cases 14 and 21.
#[test]
fn buffer_requests() {
    let mut bus = device(Pattern::Zero);
    for len in [1, 64, 65, 512, 1024, 4096, 65_535] {
        let data: Vec<u8> = (0..len).map(|i| (i % 256) as u8).collect();
        assert_eq!(bus.control_out(0x40, 0x5b, 0, 0, &data), Ok(()));
        assert_eq!(bus.control_in(0xc0, 0x5c, 0, 0, len as u16), Ok(data));
    }
    assert_eq!(bus.control_in(0xc0, 0x5c, 1, 0, 1), Err(STALL));
    assert_eq!(bus.control_in(0xc0, 0x5b, 0, 0, 1), Err(STALL));
}

/// usbtest's case 9.
#[test]
fn chapter_9() {
    let mut bus = device(Pattern::Zero);
    for setting in 0..4 {
        assert_eq!(bus.control_out(1, 11, setting, 0, &[]), Ok(()));
        assert_eq!(bus.control_in(0x81, 10, 0, 0, 1), Ok(vec![setting as u8]));
    }
    assert_eq!(bus.control_out(1, 11, 4, 0, &[]), Err(STALL));
    assert_eq!(bus.control_out(1, 11, 0x100, 0, &[]), Err(STALL));
    assert_eq!(bus.control_out(1, 11, 0, 1, &[]), Err(STALL));
    assert_eq!(bus.control_in(0x81, 10, 0, 1, 1), Err(STALL));
    assert_eq!(bus.control_in(0x80, 8, 0, 0, 1), Ok(vec![SOURCE_SINK]));
    assert_eq!(bus.control_in(0x80, 6, 0x0100, 0, 18).unwrap().len(), 18);
    let is_good = |config: Vec<u8>, kind: u8| {
        assert_eq!(config[..2], [9, kind]);
        assert_eq!(config[7] & 0x9f, 0x80);
        let total = u16::from_le_bytes([config[2], config[3]]);
        assert_eq!(usize::from(total), config.len());
    };
    let qualifier = bus.control_in(0x80, 6, 0x0600, 0, 10).unwrap();
    assert_eq!(qualifier[8], 2);
    for index in 0..2 {
        is_good(bus.control_in(0x80, 6, 0x0200 + index, 0, 256).unwrap(), 2);
        is_good(bus.control_in(0x80, 6, 0x0700 + index, 0, 256).unwrap(), 7);
    }
    assert_eq!(bus.control_in(0x80, 6, 0x0702, 0, 256), Err(STALL));
    assert_eq!(bus.control_in(0x80, 0, 0, 0, 2), Ok(vec![0, 0]));
    assert_eq!(bus.control_in(0x81, 0, 0, 0, 2), Ok(vec![0, 0]));
}

/// What usbtest's case 10 asks for besides.
#[test]
fn queued_control_requests() {
    let mut bus = device(Pattern::Zero);
    assert_eq!(bus.control_in(0x80, 6, 0x0400, 0, 9), Err(STALL));
    assert_eq!(bus.control_in(0x80, 6, 0x0500, 0, 9), Err(STALL));
    assert_eq!(bus.control_in(0x80, 6, 0x0f00, 0, 5), Err(STALL));
    assert_eq!(bus.control_out(2, 1, 0, 0, &[]), Ok(()));
    assert_eq!(bus.control_in(0x82, 0, 0, 0, 2), Ok(vec![0, 0]));
    let setup = crate::Setup::new([0x80, 6, 0, 2, 0, 0, 0, 4]);
    let transfer = session::frame::Transfer {
        transfer_type: session::frame::TransferType::Control,
        endpoint: 0x80,
        flags: 0,
        length: 1024,
        interval: 0,
        setup: setup.to_bytes(),
    };
    let short = bus.submit(not_short(transfer), &[]);
    let (outcome, body) = bus.take(short).unwrap();
    assert_eq!(outcome.status, TransferStatus::ShortPacket);
    assert_eq!(outcome.actual_length as usize, body.len());
}

/// usbtest's case 13.
#[test]
fn halts() {
    let mut bus = device(Pattern::Zero);
    for endpoint in [BULK_IN, BULK_OUT] {
        let status = |bus: &mut Bus<_>| bus.control_in(0x82, 0, 0, endpoint.into(), 2);
        let io = |bus: &mut Bus<_>| match endpoint {
            BULK_IN => bus.read(endpoint, 512).map(|_| ()),
            _ => bus.write(endpoint, &[0; 512]),
        };
        assert_eq!(status(&mut bus), Ok(vec![0, 0]));
        assert_eq!(io(&mut bus), Ok(()));
        assert_eq!(bus.control_out(2, 3, 0, endpoint.into(), &[]), Ok(()));
        assert_eq!(status(&mut bus), Ok(vec![1, 0]));
        assert_eq!(io(&mut bus), Err(STALL));
        assert_eq!(io(&mut bus), Err(STALL));
        assert_eq!(bus.control_out(2, 1, 0, endpoint.into(), &[]), Ok(()));
        assert_eq!(status(&mut bus), Ok(vec![0, 0]));
        assert_eq!(io(&mut bus), Ok(()));
    }
    // SET_INTERFACE clears halts, too.
    assert_eq!(bus.control_out(2, 3, 0, BULK_IN.into(), &[]), Ok(()));
    assert_eq!(bus.control_out(1, 11, 0, 0, &[]), Ok(()));
    assert!(bus.read(BULK_IN, 1).is_ok());
    // Isochronous endpoints and such that do not exist cannot be halted.
    for endpoint in [ISO_IN, INTERRUPT_IN, 0x8f] {
        assert_eq!(bus.control_out(2, 3, 0, endpoint.into(), &[]), Err(STALL));
    }
}

#[test]
fn endpoints_belong_to_settings() {
    let mut bus = device(Pattern::Zero);
    let invalid = Err(TransferStatus::Invalid);
    for (setting, interrupt, isochronous) in [
        (0, false, false),
        (1, false, true),
        (2, true, false),
        (3, true, true),
    ] {
        assert_eq!(bus.control_out(1, 11, setting, 0, &[]), Ok(()));
        assert!(bus.read(BULK_IN, 10).is_ok());
        assert_eq!(bus.port.endpoint(INTERRUPT_IN).is_some(), interrupt);
        let written = bus.write(INTERRUPT_OUT, &[0; 64]);
        assert_eq!(written, if interrupt { Ok(()) } else { invalid });
        let id = bus.isochronous(ISO_OUT, 8, &[0; 8 * 1024]);
        let (outcome, _) = bus.take(id).unwrap();
        let expected = match isochronous {
            true => (TransferStatus::Completed, 8 * 1024),
            false => (TransferStatus::Invalid, 0),
        };
        assert_eq!((outcome.status, outcome.actual_length), expected);
    }
}

#[test]
fn isochronous_packets_begin_the_pattern() {
    let mut bus = device(Pattern::Mod63);
    assert_eq!(bus.control_out(1, 11, 1, 0, &[]), Ok(()));
    let id = bus.isochronous(ISO_IN, 3, &[0; 300]);
    let (outcome, body) = bus.take(id).unwrap();
    assert_eq!(outcome.actual_length, 300);
    let (table, data) = body.split_at(48);
    assert_eq!(
        table[16..32],
        [100, 0, 0, 0, 100, 0, 0, 0, 100, 0, 0, 0, 0, 0, 0, 0]
    );
    for packet in data.chunks_exact(100) {
        assert_eq!(packet, mod63(100));
    }
    let id = bus.isochronous(ISO_OUT, 3, data);
    bus.take(id).unwrap();
    assert_eq!(bus.port.function().traffic().wrong_packets, 0);
    let id = bus.isochronous(ISO_OUT, 1, data);
    bus.take(id).unwrap();
    assert_eq!(bus.port.function().traffic().wrong_packets, 1);
}

#[test]
fn full_speed() {
    let function = SourceSink::new(Pattern::Mod63, Speed::Full, "1");
    let mut bus = Bus::configured(function, SOURCE_SINK);
    let data = bus.read(BULK_IN, 130).unwrap();
    assert_eq!(data[62..66], [62, 0, 0, 1]);
    assert_eq!(bus.port.endpoint(BULK_IN).unwrap().max_packet_size, 64);
}

proptest! {
    /// The loop gives back each transfer, in order, with its end.
    #[test]
    fn loopback(
        transfers in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 1..20),
        length in 1_u32..4000,
    ) {
        let function = SourceSink::new(Pattern::Zero, Speed::High, "1");
        let mut bus = Bus::configured(function, LOOP);
        for data in &transfers {
            bus.submit(bus.stream(BULK_OUT, data.len() as u32), data);
        }
        for data in &transfers {
            let mut back = Vec::new();
            loop {
                let piece = bus.read(BULK_IN, length).unwrap();
                back.extend_from_slice(&piece);
                if back.len() >= data.len() {
                    break;
                }
            }
            prop_assert_eq!(&back, data);
        }
        let last = bus.submit(bus.stream(BULK_IN, length), &[]);
        prop_assert!(bus.take(last).is_none());
    }
}

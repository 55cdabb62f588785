// SPDX-License-Identifier: GPL-3.0-or-later
use proptest::prelude::*;
use std::vec::Vec;

use super::memory::Page;
use crate::*;

fn address(n: u8) -> DeviceAddress {
    DeviceAddress::new(n).unwrap()
}

fn bulk(direction: Direction) -> Pipe {
    Pipe::new(3, address(5), 2, direction, TransferType::Bulk)
}

fn page_segments(count: usize) -> Vec<Segment> {
    (0..count as u32)
        .map(|gref| Segment {
            gref,
            offset: 0,
            length: 4096,
        })
        .collect()
}

#[test]
fn ring_sizes_are_those_of_ring_h() {
    assert_eq!(<Urb as RingKind>::SLOTS, 16);
    assert_eq!(<Conn as RingKind>::SLOTS, 512);
    assert_eq!(ring_slots(4032), 1);
}

#[test]
fn numbers_have_their_ranges() {
    assert_eq!(PortNumber::new(0), None);
    assert_eq!(PortNumber::new(32), None);
    assert_eq!(PortNumber::new(31).unwrap().index(), 30);
    assert_eq!(PortNumber::first(40).count(), 31);
    assert_eq!(DeviceAddress::new(128), None);
    assert_eq!(DeviceAddress::new(200), None);
    assert_eq!(Speed::from_wire(4), None);
}

#[test]
fn a_full_buffer_reads_zero_in_its_16_bits() {
    let request =
        UrbRequest::new(7, bulk(Direction::In), 0, UrbKind::Bulk, &page_segments(16)).unwrap();
    let bytes = request.encode();
    assert_eq!(&bytes[10..12], &[0, 0]);
    let decoded = UrbRequest::decode(&bytes).unwrap();
    assert_eq!(decoded.buffer_len(), 65_536);
    assert_eq!(decoded, request);
}

#[test]
fn a_length_that_is_not_the_sum_of_the_segments_is_refused() {
    let request =
        UrbRequest::new(9, bulk(Direction::Out), 0, UrbKind::Bulk, &page_segments(2)).unwrap();
    let mut bytes = request.encode();
    bytes[10] = 1;
    let error = UrbRequest::decode(&bytes).unwrap_err();
    assert_eq!(error.id, 9);
    let reason = BadRequestReason::LengthMismatch {
        claimed: 0x2001,
        segments: 8192,
    };
    assert_eq!(error.reason, reason);
}

#[test]
fn a_segment_beyond_its_page_is_refused() {
    let segments = [
        Segment {
            gref: 1,
            offset: 0,
            length: 4096,
        },
        Segment {
            gref: 2,
            offset: 4000,
            length: 97,
        },
    ];
    let error = UrbRequest::new(3, bulk(Direction::Out), 0, UrbKind::Bulk, &segments).unwrap_err();
    assert_eq!(error.reason, BadRequestReason::SegmentBeyondPage(1));
}

#[test]
fn seventeen_segments_are_refused_also_when_some_are_descriptors() {
    let mut bytes = [0; 148];
    bytes[2] = 17;
    bytes[4..8].copy_from_slice(&bulk(Direction::In).0.to_le_bytes());
    let error = UrbRequest::decode(&bytes).unwrap_err();
    assert_eq!(error.reason, BadRequestReason::TooManySegments(17));

    let pipe = Pipe::new(1, address(1), 1, Direction::In, TransferType::Isochronous);
    bytes[2] = 16;
    bytes[4..8].copy_from_slice(&pipe.0.to_le_bytes());
    bytes[18..20].copy_from_slice(&0xffffu16.to_le_bytes());
    let error = UrbRequest::decode(&bytes).unwrap_err();
    assert_eq!(error.reason, BadRequestReason::TooManySegments(16 + 0xffff));
}

#[test]
fn isochronous_descriptors_come_after_the_buffer() {
    let pipe = Pipe::new(1, address(1), 1, Direction::In, TransferType::Isochronous);
    let kind = UrbKind::Isochronous {
        interval: 8,
        start_frame: 9,
        packets: 4,
    };
    let buffer = page_segments(3);
    let descriptors = [Segment {
        gref: 77,
        offset: 100,
        length: 64,
    }];
    let request = UrbRequest::with_descriptors(2, pipe, 0, kind, &buffer, &descriptors).unwrap();
    let decoded = UrbRequest::decode(&request.encode()).unwrap();
    assert_eq!(decoded.segments(), &buffer[..]);
    assert_eq!(decoded.descriptor_segments(), &descriptors[..]);
    assert_eq!(decoded.kind, kind);

    let kind = UrbKind::Isochronous {
        interval: 8,
        start_frame: 9,
        packets: 5,
    };
    let error = UrbRequest::with_descriptors(2, pipe, 0, kind, &buffer, &descriptors).unwrap_err();
    assert_eq!(
        error.reason,
        BadRequestReason::DescriptorsTooSmall {
            packets: 5,
            bytes: 64
        }
    );
}

#[test]
fn an_unlink_is_read_whatever_else_its_slot_holds() {
    // As Linux sends it: the length of the URB that used the shadow slot before.
    let mut bytes = [0; 148];
    bytes[0] = 4;
    bytes[4..8].copy_from_slice(&bulk(Direction::In).with_unlink().0.to_le_bytes());
    bytes[10] = 13;
    bytes[12] = 6;
    bytes[20..].fill(0xff);
    let request = UrbRequest::decode(&bytes).unwrap();
    assert_eq!(request.kind, UrbKind::Unlink { id: 6 });
    assert!(request.segments().is_empty());
}

/// As Linux before 5.14 sends them, for example for drivers that ask for more than they have room for.
#[test]
fn a_setup_packet_may_ask_for_more_or_less_than_the_buffer_holds() {
    let buffer = [Segment {
        gref: 5,
        offset: 8,
        length: 64,
    }];
    for (request_type, w_length, segments, expected) in [
        (0x80, 255, &buffer[..], 64),
        (0x80, 18, &buffer[..], 18),
        (0x80, 18, &[], 0),
        (0x80, 0, &buffer[..], 0),
        (0x21, 7, &buffer[..], 7),
        (0x21, 0, &buffer[..], 0),
    ] {
        let setup = Setup::new(request_type, 9, 0, 0, w_length);
        let pipe = Pipe::new(1, address(1), 0, setup.direction(), TransferType::Control);
        let kind = UrbKind::Control { setup };
        let request = UrbRequest::new(0, pipe, 0, kind, segments)
            .unwrap_or_else(|e| panic!("wLength {w_length}, {} segments: {e}", segments.len()));
        assert_eq!(UrbRequest::decode(&request.encode()), Ok(request));
        assert_eq!(request.transfer_len(), expected, "wLength {w_length}");
    }
}

#[test]
fn a_setup_packet_must_not_announce_more_than_the_buffer_holds() {
    let pipe = Pipe::new(1, address(0), 0, Direction::Out, TransferType::Control);
    let setup = Setup::new(0x21, 9, 0x0200, 0, 18);
    let kind = UrbKind::Control { setup };
    let fits = [Segment {
        gref: 5,
        offset: 8,
        length: 18,
    }];
    let request = UrbRequest::new(0, pipe, 0, kind, &fits).unwrap();
    assert_eq!(UrbRequest::decode(&request.encode()), Ok(request));
    let error = UrbRequest::new(0, pipe, 0, kind, &[]).unwrap_err();
    assert_eq!(
        error.reason,
        BadRequestReason::SetupLengthMismatch {
            setup: 18,
            segments: 0
        }
    );
}

#[test]
fn the_setup_packet_decides_the_direction_of_its_data() {
    let pipe = Pipe::new(1, address(1), 0, Direction::Out, TransferType::Control);
    let segments = [Segment {
        gref: 5,
        offset: 0,
        length: 2,
    }];
    let kind = UrbKind::Control {
        setup: Setup::new(0x80, 0, 0, 0, 2),
    };
    let request = UrbRequest::new(0, pipe, 0, kind, &segments).unwrap();
    assert_eq!(request.direction(), Direction::In);
    let kind = UrbKind::Control {
        setup: Setup::new(0x80, 0, 0, 0, 0),
    };
    let request = UrbRequest::new(0, pipe, 0, kind, &[]).unwrap();
    assert_eq!(request.direction(), Direction::Out);
}

#[test]
fn set_address_is_told_from_other_requests_of_its_number() {
    assert!(Setup::new(0, 5, 12, 0, 0).is_set_address());
    assert!(!Setup::new(0x21, 5, 12, 0, 0).is_set_address());
}

#[test]
fn every_pipe_field_is_where_usbif_h_says() {
    let pipe = Pipe(0b11 << 30 | 9 << 15 | 100 << 8 | 0x80 | 0x20 | 17);
    assert_eq!(pipe.transfer_type(), TransferType::Bulk);
    assert_eq!(pipe.endpoint(), 9);
    assert_eq!(pipe.endpoint_address(), 0x89);
    assert_eq!(pipe.device(), address(100));
    assert_eq!(pipe.direction(), Direction::In);
    assert!(pipe.is_unlink());
    assert_eq!(pipe.port_bits(), 17);
}

#[test]
fn a_bad_connection_event_is_told_as_such() {
    let page = Page::zeroed();
    page.poke(64, &[1, 0, 32, 1]);
    let bad = <Conn as RingKind>::read_response(&page, 64).unwrap_err();
    assert_eq!(
        bad,
        BadConnResponse {
            id: 1,
            portnum: 32,
            speed: 1
        }
    );
}

#[test]
fn status_values_are_those_that_linux_knows() {
    assert!(UrbStatus(-75).is_defined());
    assert!(!UrbStatus(-121).is_defined());
    assert!(UrbStatus::OK.is_ok() && !UrbStatus::STALL.is_ok());
}

proptest! {
    #[test]
    fn any_slot_is_decoded_or_refused_with_its_id(bytes in proptest::collection::vec(any::<u8>(), 148),
                                                  buffers in 0u16..20, descriptors in 0u16..20) {
        let mut slot: [u8; 148] = bytes.try_into().unwrap();
        // Random counts are nearly always too large, so that nothing else would be reached.
        slot[2..4].copy_from_slice(&buffers.to_le_bytes());
        slot[18..20].copy_from_slice(&descriptors.to_le_bytes());
        let id = u16::from_le_bytes([slot[0], slot[1]]);
        match UrbRequest::decode(&slot) {
            Err(error) => prop_assert_eq!(error.id, id),
            Ok(request) => {
                prop_assert_eq!(request.id, id);
                prop_assert!(request.buffer_len() <= MAX_BUFFER_BYTES);
                prop_assert!(request.segments().iter().all(|s| s.is_within_page()));
                prop_assert_eq!(UrbRequest::decode(&request.encode()), Ok(request));
            }
        }
    }

    #[test]
    fn a_sound_request_survives_the_wire(id: u16, pipe: u32, flags: u16, interval: u16,
            segments in proptest::collection::vec((any::<u32>(), 0u16..4096, 0u16..4096), 0..16)) {
        let segments: Vec<_> = segments
            .into_iter()
            .map(|(gref, offset, length)| Segment { gref, offset, length: length.min(4096 - offset) })
            .collect();
        let pipe = Pipe(pipe & !0x20 & !(0b11 << 30) | 0b01 << 30);
        let request = UrbRequest::new(id, pipe, flags, UrbKind::Interrupt { interval }, &segments).unwrap();
        prop_assert_eq!(request.segments(), &segments[..]);
        prop_assert_eq!(UrbRequest::decode(&request.encode()), Ok(request));
    }

    #[test]
    fn a_response_survives_the_wire(id: u16, start_frame: u16, status: i32, actual_length: u32, error_count: u32) {
        let response = UrbResponse { id, start_frame, status: UrbStatus(status), actual_length, error_count };
        prop_assert_eq!(UrbResponse::decode(&response.encode()), response);
    }

    #[test]
    fn a_frame_descriptor_survives_the_wire(offset: u32, length: u32, actual_length: u32, status: i32) {
        let packet = IsocPacket { offset, length, actual_length, status };
        prop_assert_eq!(IsocPacket::decode(&packet.encode()), packet);
    }
}

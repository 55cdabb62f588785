// SPDX-License-Identifier: GPL-3.0-or-later
use std::vec::Vec;

use super::*;
use usbif::{
    BadRequest, BadRequestReason, DeviceAddress, Direction, Pipe, PortNumber, Segment, Setup,
    Speed, TransferType, UrbKind, UrbRequest, UrbResponse, UrbStatus,
};

fn port(n: u8) -> PortNumber {
    PortNumber::new(n).unwrap()
}

fn address(n: u8) -> DeviceAddress {
    DeviceAddress::new(n).unwrap()
}

fn control(id: u16, port_bits: u8, device: u8, setup: Setup) -> UrbRequest {
    let pipe = Pipe::new(
        port_bits,
        address(device),
        0,
        setup.direction(),
        TransferType::Control,
    );
    let length = setup.length();
    let segment = Segment {
        gref: 1,
        offset: 0,
        length,
    };
    let segments = [segment];
    let segments = if length == 0 { &[][..] } else { &segments[..] };
    UrbRequest::new(id, pipe, 0, UrbKind::Control { setup }, segments).unwrap()
}

fn get_descriptor(id: u16, port_bits: u8, device: u8) -> UrbRequest {
    control(id, port_bits, device, Setup::new(0x80, 6, 0x0100, 0, 18))
}

fn set_address(id: u16, port_bits: u8, value: u16) -> UrbRequest {
    control(id, port_bits, 0, Setup::new(0, 5, value, 0, 0))
}

fn bulk(id: u16, device: u8) -> UrbRequest {
    let pipe = Pipe::new(9, address(device), 1, Direction::In, TransferType::Bulk);
    let segment = Segment {
        gref: 1,
        offset: 0,
        length: 512,
    };
    UrbRequest::new(id, pipe, 0, UrbKind::Bulk, &[segment]).unwrap()
}

fn unlink(id: u16, of: u16) -> UrbRequest {
    let pipe = Pipe::new(0, address(5), 1, Direction::In, TransferType::Bulk).with_unlink();
    UrbRequest::new(id, pipe, 0, UrbKind::Unlink { id: of }, &[]).unwrap()
}

fn answered(id: u16, status: UrbStatus) -> Verdict {
    Verdict::Answer(UrbResponse::with_status(id, status))
}

/// Four ports, a high-speed device with address 5 at port 2.
fn with_device() -> Controller {
    let mut c = Controller::new(4);
    c.plug(port(2), Speed::High, None).unwrap();
    c.release(port(2));
    give_address(&mut c, 2, 5);
    c
}

fn give_address(c: &mut Controller, port_bits: u8, value: u16) {
    let slot = slot_of(c.take(Ok(set_address(0, port_bits, value))));
    c.submitted(slot, 1);
    let done = c.complete(slot, UrbResult::new(UrbStatus::OK, 0)).unwrap();
    assert_eq!(done.urb, UrbResponse::with_status(0, UrbStatus::OK));
}

fn slot_of(verdict: Verdict) -> Slot {
    match verdict {
        Verdict::Submit(slot) => slot,
        other => panic!("{other:?}"),
    }
}

#[test]
fn address_zero_goes_by_port_and_others_by_address() {
    let mut c = with_device();
    assert!(matches!(c.take(Ok(bulk(1, 5))), Verdict::Submit(_)));
    assert_eq!(c.take(Ok(bulk(2, 6))), answered(2, UrbStatus::NODEV));
    assert_eq!(
        c.take(Ok(get_descriptor(3, 1, 0))),
        answered(3, UrbStatus::NODEV)
    );
}

#[test]
fn port_zero_and_ports_beyond_the_last_have_no_device() {
    let mut c = with_device();
    for port_bits in [0, 5, 31] {
        let verdict = c.take(Ok(get_descriptor(1, port_bits, 0)));
        assert_eq!(verdict, answered(1, UrbStatus::NODEV), "port {port_bits}");
    }
}

#[test]
fn an_address_above_127_is_stalled_and_changes_nothing() {
    let mut c = with_device();
    for value in [128, 200, 255, 256, 0x8005, 0xffff] {
        assert_eq!(
            c.take(Ok(set_address(1, 2, value))),
            answered(1, UrbStatus::STALL)
        );
    }
    assert_eq!(c.port_state(port(2)).address, Some(address(5)));
    assert!(matches!(c.take(Ok(bulk(1, 5))), Verdict::Submit(_)));
}

/// A host gives each address once. The last word counts, as with QEMU's backend.
#[test]
fn two_devices_never_share_an_address() {
    let mut c = with_device();
    c.plug(port(3), Speed::Full, None).unwrap();
    c.release(port(3));
    give_address(&mut c, 3, 5);
    assert_eq!(c.port_state(port(3)).address, Some(address(5)));
    assert_eq!(c.port_state(port(2)).address, None);
    let slot = slot_of(c.take(Ok(bulk(1, 5))));
    assert_eq!(c.urb(slot).unwrap().port, port(3));
    // It is given up once, by the port that has it.
    give_address(&mut c, 2, 6);
    assert!(matches!(c.take(Ok(bulk(2, 5))), Verdict::Submit(_)));
}

/// Two leases with one address, for example because a host died before it could save one of them.
#[test]
fn two_devices_that_are_handed_over_never_share_an_address() {
    let mut c = Controller::new(4);
    let carried = PortState {
        speed: Speed::High,
        address: Some(address(5)),
    };
    c.plug(port(1), Speed::High, Some(carried)).unwrap();
    c.plug(port(2), Speed::High, Some(carried)).unwrap();
    c.unplug(port(1));
    c.release(port(2));
    assert!(matches!(c.take(Ok(bulk(1, 5))), Verdict::Submit(_)));
}

/// A driver that is loaded again, or the kernel that takes over after a crash: it gives addresses in
/// the order in which it finds the devices.
#[test]
fn addresses_of_an_earlier_frontend_do_not_stand_in_the_way() {
    let mut c = Controller::new(4);
    for at in [1, 2] {
        c.plug(port(at), Speed::High, None).unwrap();
        c.release(port(at));
    }
    give_address(&mut c, 1, 3);
    give_address(&mut c, 2, 2);
    c.forget_requests();
    c.tell_all();
    for (at, new) in [(1, 2), (2, 3)] {
        let verdict = c.take(Ok(get_descriptor(1, at, 0)));
        let Verdict::Reset(slot) = verdict else {
            panic!("port {at} is not reset: {verdict:?}");
        };
        c.reset_done(port(at));
        assert!(
            c.complete(slot, UrbResult::new(UrbStatus::OK, 18))
                .is_some()
        );
        give_address(&mut c, at, new);
    }
}

#[test]
fn address_zero_takes_the_address_away() {
    let mut c = with_device();
    give_address(&mut c, 2, 0);
    assert_eq!(c.take(Ok(bulk(2, 5))), answered(2, UrbStatus::NODEV));
}

/// Its answer is the exporter's to give, when the address is known to whoever serves the guest next. What
/// is asked of the port meanwhile is no reset.
#[test]
fn an_address_is_answered_by_the_exporter() {
    let mut c = Controller::new(4);
    c.plug(port(2), Speed::High, None).unwrap();
    let Verdict::Hold(held) = c.take(Ok(set_address(1, 2, 5))) else {
        panic!("the lease is not claimed");
    };
    assert!(c.urb(held).unwrap().sets_address());
    assert_eq!(c.port_state(port(2)).address, Some(address(5)));
    // Taken back, and asked for again, as it is where a guest is suspended.
    let taken_back = c.take(Ok(unlink(2, 1)));
    assert!(
        matches!(taken_back, Verdict::AnswerBoth(_, a) if a.urb.status == UrbStatus::SHUTDOWN),
        "{taken_back:?}"
    );
    c.release(port(2));
    let again = slot_of(c.take(Ok(set_address(3, 2, 5))));
    c.submitted(again, 1);
    // Before it is answered the guest does not know whether it is 5 or 0; the one is a transfer, the
    // other is a reset.
    assert!(matches!(c.take(Ok(bulk(4, 5))), Verdict::Submit(_)));
    assert!(matches!(
        c.take(Ok(get_descriptor(5, 2, 0))),
        Verdict::Reset(_)
    ));
}

#[test]
fn a_bad_request_is_answered_with_its_id() {
    let mut c = with_device();
    let bad = BadRequest {
        id: 77,
        reason: BadRequestReason::TooManySegments(17),
    };
    assert_eq!(c.take(Err(bad)), answered(77, UrbStatus::INVAL));
}

#[test]
fn an_id_in_flight_is_not_taken_twice() {
    let mut c = with_device();
    let slot = slot_of(c.take(Ok(bulk(1, 5))));
    assert_eq!(c.take(Ok(bulk(1, 5))), answered(1, UrbStatus::INVAL));
    assert!(
        c.complete(slot, UrbResult::new(UrbStatus::OK, 512))
            .is_some()
    );
    assert!(matches!(c.take(Ok(bulk(1, 5))), Verdict::Submit(_)));
}

#[test]
fn a_completion_is_answered_once() {
    let mut c = with_device();
    let slot = slot_of(c.take(Ok(bulk(1, 5))));
    c.submitted(slot, 40);
    assert_eq!(c.by_number(port(2), 40), Some(slot));
    let answers = c.complete(slot, UrbResult::new(UrbStatus::OK, 13)).unwrap();
    assert_eq!(answers.unlink, None);
    assert_eq!(answers.urb.actual_length, 13);
    assert_eq!(c.complete(slot, UrbResult::new(UrbStatus::OK, 13)), None);
    assert!(c.is_idle());
}

#[test]
fn an_unlink_is_answered_before_the_request_it_unlinks() {
    let mut c = with_device();
    let slot = slot_of(c.take(Ok(bulk(1, 5))));
    c.submitted(slot, 1);
    assert_eq!(c.take(Ok(unlink(2, 1))), Verdict::Cancel(slot));
    assert_eq!(c.take(Ok(unlink(3, 1))), answered(3, UrbStatus::INVAL));
    let answers = c
        .complete(slot, UrbResult::new(UrbStatus::IOERROR, 0))
        .unwrap();
    assert_eq!(
        answers.unlink,
        Some(UrbResponse::with_status(2, UrbStatus::OK))
    );
    assert_eq!(answers.urb, UrbResponse::with_status(1, UrbStatus::IOERROR));
}

#[test]
fn an_unlink_of_an_unknown_id_is_answered_and_harms_nobody() {
    let mut c = with_device();
    assert_eq!(c.take(Ok(unlink(2, 9))), answered(2, UrbStatus::OK));
    let slot = slot_of(c.take(Ok(bulk(4, 5))));
    assert_eq!(c.take(Ok(unlink(4, 4))), answered(4, UrbStatus::INVAL));
    assert!(c.urb(slot).is_some());
}

#[test]
fn requests_wait_while_the_port_is_held_and_can_be_unlinked() {
    let mut c = with_device();
    c.hold(port(2));
    assert!(matches!(c.take(Ok(bulk(1, 5))), Verdict::Hold(_)));
    assert!(matches!(c.take(Ok(bulk(2, 5))), Verdict::Hold(_)));
    match c.take(Ok(unlink(3, 1))) {
        Verdict::AnswerBoth(_, answers) => {
            assert_eq!(answers.unlink.unwrap().id, 3);
            assert_eq!(answers.urb.id, 1);
        }
        other => panic!("{other:?}"),
    }
    c.release(port(2));
    let held: Vec<_> = c.held_requests(port(2)).collect();
    assert_eq!(held.len(), 1);
    assert_eq!(c.urb(held[0]).unwrap().request.id, 2);
}

#[test]
fn held_requests_are_released_in_the_order_of_the_ring() {
    let mut c = with_device();
    let early = slot_of(c.take(Ok(bulk(1, 5))));
    c.submitted(early, 1);
    c.hold(port(2));
    assert!(matches!(c.take(Ok(bulk(2, 5))), Verdict::Hold(_)));
    // The next one takes the first slot, which is free again.
    assert!(
        c.complete(early, UrbResult::new(UrbStatus::OK, 0))
            .is_some()
    );
    assert!(matches!(c.take(Ok(bulk(3, 5))), Verdict::Hold(_)));
    let ids: Vec<_> = c
        .held_requests(port(2))
        .map(|s| c.urb(s).unwrap().request.id)
        .collect();
    assert_eq!(ids, [2, 3]);
}

#[test]
fn address_zero_after_an_address_means_that_the_guest_reset_the_port() {
    let mut c = with_device();
    let Verdict::Reset(slot) = c.take(Ok(get_descriptor(1, 2, 0))) else {
        panic!("no reset");
    };
    assert_eq!(c.urb(slot).unwrap().port, port(2));
    assert!(matches!(
        c.take(Ok(get_descriptor(2, 2, 0))),
        Verdict::Hold(_)
    ));
    c.reset_done(port(2));
    assert_eq!(c.held_requests(port(2)).count(), 2);
    for slot in c.held_requests(port(2)).collect::<Vec<_>>() {
        assert!(
            c.complete(slot, UrbResult::new(UrbStatus::OK, 18))
                .is_some()
        );
    }
    assert!(matches!(
        c.take(Ok(get_descriptor(3, 2, 0))),
        Verdict::Submit(_)
    ));
}

/// `hub_port_init` of Linux resets the port before each of its attempts.
#[test]
fn a_guest_that_tries_again_resets_a_device_that_has_no_address() {
    let mut c = Controller::new(1);
    c.plug(port(1), Speed::High, None).unwrap();
    c.release(port(1));
    let first = slot_of(c.take(Ok(get_descriptor(1, 1, 0))));
    c.submitted(first, 1);
    let failed = UrbResult::failed(UrbStatus::IOERROR);
    assert!(c.complete(first, failed).is_some());
    for number in [2, 3] {
        let verdict = c.take(Ok(get_descriptor(1, 1, 0)));
        let Verdict::Reset(slot) = verdict else {
            panic!("not reset: {verdict:?}");
        };
        assert!(c.is_reset_due(port(1)));
        c.reset_done(port(1));
        c.submitted(slot, number);
        assert!(c.complete(slot, failed).is_some());
    }
    let Verdict::Reset(slot) = c.take(Ok(get_descriptor(1, 1, 0))) else {
        panic!("not reset");
    };
    c.reset_done(port(1));
    c.submitted(slot, 4);
    assert!(
        c.complete(slot, UrbResult::new(UrbStatus::OK, 18))
            .is_some()
    );
    assert!(matches!(
        c.take(Ok(get_descriptor(2, 1, 0))),
        Verdict::Submit(_)
    ));
}

/// A reset is not lost because the port is held for something else at that moment.
#[test]
fn a_reset_of_a_port_that_is_held_is_due_when_it_is_released() {
    let mut c = with_device();
    c.hold(port(2));
    assert!(matches!(
        c.take(Ok(get_descriptor(1, 2, 0))),
        Verdict::Hold(_)
    ));
    assert!(c.is_reset_due(port(2)));
    let mut later = Controller::new(4);
    later.restore_port(port(2), &c.snapshot(port(2)));
    assert!(later.is_reset_due(port(2)), "for the next process, too");
    c.reset_done(port(2));
    assert!(!c.is_reset_due(port(2)) && !c.is_held(port(2)));
}

/// The guest was in the middle of an enumeration when it moved, or sees its device as a new one.
#[test]
fn a_device_in_use_that_is_enumerated_anew_is_reset() {
    let unaddressed = PortState {
        speed: Speed::High,
        address: None,
    };
    let mut c = Controller::new(2);
    c.plug(port(1), Speed::High, Some(unaddressed)).unwrap();
    c.plug(port(2), Speed::High, None).unwrap();
    c.replug(port(2));
    for at in [1, 2] {
        c.release(port(at));
        assert!(matches!(
            c.take(Ok(get_descriptor(at.into(), at, 0))),
            Verdict::Reset(_)
        ));
    }
}

#[test]
fn the_first_enumeration_resets_nothing() {
    let mut c = Controller::new(1);
    c.plug(port(1), Speed::High, None).unwrap();
    c.release(port(1));
    assert!(matches!(
        c.take(Ok(get_descriptor(1, 1, 0))),
        Verdict::Submit(_)
    ));
}

#[test]
fn a_handed_over_device_keeps_its_address_and_its_speed() {
    let mut source = with_device();
    source.told(source.next_event().unwrap());
    let state = source.port_state(port(2));
    let mut target = Controller::new(4);
    target.plug(port(2), state.speed, Some(state)).unwrap();
    assert_eq!(
        target.next_event(),
        Some(ConnEvent {
            port: port(2),
            speed: Speed::High
        })
    );
    assert!(matches!(target.take(Ok(bulk(1, 5))), Verdict::Hold(_)));
    target.release(port(2));
    assert_eq!(target.held_requests(port(2)).count(), 1);
}

/// A guest that was restored where its device does not follow must see it go.
#[test]
fn a_frontend_that_connects_is_told_of_empty_ports_too() {
    let mut c = with_device();
    while let Some(event) = c.next_event() {
        c.told(event);
    }
    c.tell_all();
    let mut told = Vec::new();
    while let Some(event) = c.next_event() {
        told.push((event.port, event.speed));
        c.told(event);
    }
    let expected = c.ports().map(|at| match at == port(2) {
        true => (at, Speed::High),
        false => (at, Speed::None),
    });
    assert_eq!(told, expected.collect::<Vec<_>>());
}

#[test]
fn a_replug_tells_of_a_disconnect_first_and_forgets_the_address() {
    let mut c = with_device();
    c.replug(port(2));
    let mut told = Vec::new();
    while let Some(event) = c.next_event() {
        told.push(event.speed);
        c.told(event);
    }
    assert_eq!(told, [Speed::None, Speed::High]);
    assert_eq!(c.take(Ok(bulk(1, 5))), answered(1, UrbStatus::NODEV));
}

#[test]
fn what_is_told_last_is_true() {
    let mut c = Controller::new(1);
    c.plug(port(1), Speed::Low, None).unwrap();
    c.unplug(port(1));
    c.plug(port(1), Speed::High, None).unwrap();
    c.unplug(port(1));
    let mut last = None;
    while let Some(event) = c.next_event() {
        c.told(event);
        last = Some(event.speed);
    }
    assert_eq!(last, Some(Speed::None));
}

#[test]
fn ports_that_are_taken_or_missing_are_refused() {
    let mut c = with_device();
    assert_eq!(
        c.plug(port(2), Speed::Low, None),
        Err(PortError::Taken(port(2)))
    );
    let missing = PortError::NoSuchPort {
        port: port(5),
        count: 4,
    };
    assert_eq!(c.plug(port(5), Speed::Low, None), Err(missing));
}

#[test]
fn unplugging_leaves_the_unanswered_to_be_answered() {
    let mut c = with_device();
    let slot = slot_of(c.take(Ok(bulk(1, 5))));
    c.submitted(slot, 1);
    c.unplug(port(2));
    assert_eq!(c.unanswered(port(2)).collect::<Vec<_>>(), [slot]);
    assert_eq!(c.take(Ok(bulk(2, 5))), answered(2, UrbStatus::NODEV));
    assert!(
        c.complete(slot, UrbResult::new(UrbStatus::NODEV, 0))
            .is_some()
    );
}

#[test]
fn a_full_buffer_is_65536_bytes_long_for_the_exporter() {
    let segments = [Segment {
        gref: 1,
        offset: 0,
        length: 4096,
    }; 16];
    let pipe = Pipe::new(1, address(5), 2, Direction::Out, TransferType::Bulk);
    let request = UrbRequest::new(1, pipe, 0, UrbKind::Bulk, &segments).unwrap();
    let decoded = UrbRequest::decode(&request.encode()).unwrap();
    assert_eq!(transfer_of(&decoded).unwrap().length, 65_536);
}

#[test]
fn a_control_transfer_is_as_long_as_its_data_stage_and_its_buffer() {
    let segment = Segment {
        gref: 1,
        offset: 0,
        length: 64,
    };
    for (w_length, expected) in [(255, 64), (64, 64), (18, 18), (0, 0)] {
        let setup = Setup::new(0x80, 6, 0x0200, 0, w_length);
        let pipe = Pipe::new(1, address(5), 0, Direction::In, TransferType::Control);
        let request = UrbRequest::new(1, pipe, 0, UrbKind::Control { setup }, &[segment]).unwrap();
        let transfer = transfer_of(&request).unwrap();
        assert_eq!(transfer.length, u32::from(expected));
        assert_eq!(transfer.setup, Setup::new(0x80, 6, 0x0200, 0, expected).0);
    }
}

#[test]
fn an_isochronous_request_carries_its_packets_and_its_start() {
    let pipe = Pipe::new(1, address(5), 3, Direction::In, TransferType::Isochronous);
    let kind = |packets| UrbKind::Isochronous {
        interval: 8,
        start_frame: 0x1234,
        packets,
    };
    let data = [Segment {
        gref: 1,
        offset: 0,
        length: 4096,
    }];
    let descriptors = [Segment {
        gref: 2,
        offset: 0,
        length: 4096,
    }];
    let request = |packets| {
        UrbRequest::with_descriptors(7, pipe, 0, kind(packets), &data, &descriptors).unwrap()
    };
    let transfer = transfer_of(&request(10)).unwrap();
    assert_eq!(transfer.iso_packets(), 10);
    assert_eq!(transfer.setup[2..4], [0x34, 0x12]);
    assert_eq!((transfer.endpoint, transfer.interval), (0x83, 8));
    assert_eq!(
        transfer_of(&request(129)),
        None,
        "more packets than a frame takes"
    );
    let mut c = with_device();
    assert_eq!(c.take(Ok(request(129))), answered(7, UrbStatus::INVAL));
}

#[test]
fn a_request_of_a_ring_that_is_gone_is_answered_when_it_is_unlinked() {
    let mut c = with_device();
    // Nobody says that there may be such: the two have crossed.
    assert_eq!(c.take(Ok(unlink(1, 7))), answered(1, UrbStatus::OK));
    c.forget_requests();
    c.expect_stale();
    c.tell_all();
    let _ = c.take(Ok(bulk(3, 5)));
    // One answer for one request: a second would take the place of a request that is not read yet.
    assert_eq!(c.take(Ok(unlink(2, 7))), answered(7, UrbStatus::IOERROR));
    assert_eq!(c.stale_answered(), 1);
    // It is not stale any more, and neither is what came over this ring.
    assert_eq!(c.take(Ok(unlink(4, 7))), answered(4, UrbStatus::OK));
    assert_eq!(c.take(Ok(unlink(5, 2))), answered(5, UrbStatus::OK));
    assert_eq!(c.take(Ok(unlink(6, 900))), answered(6, UrbStatus::OK));
    assert_eq!(c.stale_answered(), 1);
}

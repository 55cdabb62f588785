// SPDX-License-Identifier: GPL-3.0-or-later
use std::collections::HashMap;

use proptest::prelude::*;
use usbif::{
    BadConnResponse, ConnResponse, DeviceAddress, Direction, Pipe, SHORT_NOT_OK, Segment,
    TransferType, UrbStatus,
};

use super::*;

fn port(n: u8) -> PortNumber {
    PortNumber::new(n).unwrap()
}

fn plug(front: &mut Front, n: u8, speed: Speed) {
    front.handle_event(Ok(ConnResponse {
        id: 0,
        port: port(n),
        speed,
    }));
}

/// A controller of four ports with a device on each.
fn plugged() -> Front {
    let mut front = Front::new(4);
    for n in 1..=4 {
        plug(&mut front, n, Speed::High);
    }
    while front.next_port_change().is_some() {}
    front
}

fn submission(n: u8, tag: u64, flags: u16) -> Submission {
    let address = DeviceAddress::new(n).unwrap();
    let pipe = Pipe::new(n, address, 1, Direction::In, TransferType::Bulk);
    let data = [Segment {
        gref: 8,
        offset: 0,
        length: 512,
    }];
    let request = UrbRequest::new(0, pipe, flags, UrbKind::Bulk, &data).unwrap();
    Submission {
        root_port: port(n),
        request,
        tag,
    }
}

fn answer(id: u16, actual_length: u32) -> UrbResponse {
    UrbResponse {
        actual_length,
        ..UrbResponse::with_status(id, UrbStatus::OK)
    }
}

#[test]
fn ids_are_used_as_xen_hcd_does() {
    let mut front = plugged();
    for tag in 0..3 {
        front.submit(submission(1, tag, 0)).unwrap();
    }
    let mut ids = Vec::new();
    while let Some(request) = front.next_request() {
        ids.push(request.id);
    }
    assert_eq!(ids, [0, 1, 2]);
    // The one freed last goes first.
    front.handle_response(answer(0, 512));
    front.handle_response(answer(2, 512));
    front.submit(submission(1, 3, 0)).unwrap();
    front.submit(submission(1, 4, 0)).unwrap();
    assert_eq!(front.next_request().unwrap().id, 2);
    assert_eq!(front.next_request().unwrap().id, 0);
}

#[test]
fn an_unlink_has_two_answers_in_either_order() {
    for unlink_first in [false, true] {
        let mut front = plugged();
        let urb = front.submit(submission(2, 7, 0)).unwrap();
        let request = front.next_request().unwrap();
        assert!(front.unlink(urb));
        assert!(!front.unlink(urb), "once is enough");
        let unlink = front.next_request().unwrap();
        assert_eq!(unlink.kind, UrbKind::Unlink { id: request.id });
        assert!(unlink.pipe.is_unlink());
        assert_ne!(unlink.id, request.id);
        if unlink_first {
            front.handle_response(answer(unlink.id, 0));
            assert_eq!(front.next_completion(), None);
        }
        front.handle_response(answer(request.id, 100));
        let completion = front.next_completion().unwrap();
        assert_eq!(completion.result, Err(TransferError::Unlinked));
        assert_eq!(
            completion.actual_length, 100,
            "what was transferred is not lost"
        );
        if !unlink_first {
            assert_eq!(front.unlinks_unanswered(), 1);
            front.handle_response(answer(unlink.id, 0));
        }
        assert_eq!(front.unlinks_unanswered(), 0);
        assert_eq!(front.next_violation(), None);
    }
}

#[test]
fn a_urb_that_waits_for_an_id_is_unlinked_without_the_backend() {
    let mut front = plugged();
    let urb = front.submit(submission(1, 0, 0)).unwrap();
    assert!(front.unlink(urb));
    assert_eq!(
        front.next_completion().unwrap().result,
        Err(TransferError::Unlinked)
    );
    assert_eq!(front.next_request(), None);
}

#[test]
fn an_unlink_that_has_become_needless_is_not_sent() {
    let mut front = plugged();
    let urb = front.submit(submission(1, 0, 0)).unwrap();
    let id = front.next_request().unwrap().id;
    assert!(front.unlink(urb));
    front.handle_response(answer(id, 0));
    assert_eq!(front.next_request(), None);
    assert!(!front.unlink(urb), "it is gone");
}

#[test]
fn statuses_are_what_xen_hcd_makes_of_them() {
    let cases = [
        (UrbStatus::OK, Ok(())),
        (UrbStatus::NODEV, Err(TransferError::NoDevice)),
        (UrbStatus::INVAL, Err(TransferError::Invalid)),
        (UrbStatus::STALL, Err(TransferError::Stall)),
        (UrbStatus::IOERROR, Err(TransferError::Io)),
        (UrbStatus::BABBLE, Err(TransferError::Babble)),
        (UrbStatus::SHUTDOWN, Err(TransferError::Shutdown)),
    ];
    let mut front = plugged();
    for (status, result) in cases {
        front.submit(submission(1, 0, 0)).unwrap();
        let id = front.next_request().unwrap().id;
        front.handle_response(UrbResponse::with_status(id, status));
        assert_eq!(front.next_completion().unwrap().result, result);
    }
    assert_eq!(front.next_violation(), None);
    front.submit(submission(1, 0, 0)).unwrap();
    let id = front.next_request().unwrap().id;
    front.handle_response(UrbResponse::with_status(id, UrbStatus(-121)));
    assert_eq!(
        front.next_completion().unwrap().result,
        Err(TransferError::Shutdown)
    );
    assert_eq!(
        front.next_violation(),
        Some(Violation::UndefinedStatus(-121))
    );
    assert!(!front.is_dead());
}

#[test]
fn a_short_transfer_is_an_error_only_where_it_was_asked_for() {
    let mut front = plugged();
    for (flags, result) in [(0, Ok(())), (SHORT_NOT_OK, Err(TransferError::Short))] {
        front.submit(submission(1, 0, flags)).unwrap();
        let id = front.next_request().unwrap().id;
        front.handle_response(answer(id, 511));
        let completion = front.next_completion().unwrap();
        assert_eq!((completion.result, completion.actual_length), (result, 511));
    }
}

#[test]
fn a_length_beyond_the_buffer_is_cut_down() {
    let mut front = plugged();
    front.submit(submission(1, 0, 0)).unwrap();
    let id = front.next_request().unwrap().id;
    front.handle_response(answer(id, u32::MAX));
    assert_eq!(front.next_completion().unwrap().actual_length, 512);
    let violation = Violation::LengthBeyondBuffer {
        actual: u32::MAX,
        buffer: 512,
    };
    assert_eq!(front.next_violation(), Some(violation));
    assert!(!front.is_dead());
}

#[test]
fn an_answer_given_twice_ends_the_controller() {
    for bad_id in [0, 5, 16, 0xffff] {
        let mut front = plugged();
        front.submit(submission(1, 0, 0)).unwrap();
        front.next_request().unwrap();
        front.handle_response(answer(0, 0));
        front.handle_response(answer(bad_id, 0));
        assert_eq!(front.next_violation(), Some(Violation::UnknownId(bad_id)));
        assert!(front.is_dead());
        assert_eq!(front.submit(submission(1, 0, 0)), Err(SubmitError::Dead));
    }
}

#[test]
fn events_that_make_no_sense_end_the_controller() {
    let mut front = Front::new(4);
    plug(&mut front, 5, Speed::High);
    assert_eq!(front.next_violation(), Some(Violation::NoSuchPort(port(5))));
    assert!(front.is_dead());
    let mut front = Front::new(4);
    let bad = BadConnResponse {
        id: 0,
        portnum: 0,
        speed: 3,
    };
    front.handle_event(Err(bad));
    assert_eq!(front.next_violation(), Some(Violation::BadEvent(bad)));
    assert!(front.is_dead());
}

#[test]
fn an_event_with_the_known_speed_is_ignored() {
    let mut front = plugged();
    plug(&mut front, 1, Speed::High);
    assert_eq!(front.next_port_change(), None);
    assert_eq!(front.counters().events_ignored, 1);
    assert_eq!(front.counters().disconnects, 0);
}

#[test]
fn a_replug_that_nobody_watched_is_still_a_change() {
    let mut front = plugged();
    plug(&mut front, 1, Speed::None);
    plug(&mut front, 1, Speed::High);
    let change = PortChange {
        port: port(1),
        was: Speed::High,
        now: Speed::High,
    };
    assert_eq!(front.next_port_change(), Some(change));
    assert_eq!(front.next_port_change(), None);
    assert_eq!(front.counters().disconnects, 1);
}

#[test]
fn a_disconnect_takes_back_the_urbs_of_its_port_only() {
    let mut front = plugged();
    let gone = front.submit(submission(1, 1, 0)).unwrap();
    front.submit(submission(2, 2, 0)).unwrap();
    let first = front.next_request().unwrap();
    front.next_request().unwrap();
    plug(&mut front, 1, Speed::None);
    assert_eq!(
        front.next_request().unwrap().kind,
        UrbKind::Unlink { id: first.id }
    );
    assert_eq!(front.next_request(), None);
    front.handle_response(UrbResponse::with_status(first.id, UrbStatus::SHUTDOWN));
    assert_eq!(front.next_completion().unwrap().urb, gone);
    assert_eq!(
        front.submit(submission(1, 0, 0)),
        Err(SubmitError::NoDevice(port(1)))
    );
}

#[test]
fn a_freeze_takes_everything_back_and_takes_nothing() {
    let mut front = plugged();
    for tag in 0..20 {
        front.submit(submission(1, tag, 0)).unwrap();
    }
    for _ in 0..15 {
        front.next_request().unwrap();
    }
    front.freeze();
    // Five had not been sent.
    for tag in 15..20 {
        assert_eq!(front.next_completion().unwrap().tag, tag);
    }
    assert_eq!(front.submit(submission(1, 0, 0)), Err(SubmitError::Frozen));
    // One id is free: unlinks go out one by one.
    for _ in 0..15 {
        let unlink = front.next_request().unwrap();
        let UrbKind::Unlink { id } = unlink.kind else {
            panic!("{unlink:?}")
        };
        front.handle_response(answer(id, 0));
        front.handle_response(answer(unlink.id, 0));
    }
    assert_eq!(front.in_flight(), 0);
    assert_eq!(front.unlinks_unanswered(), 0);
    front.thaw();
    assert!(front.submit(submission(1, 0, 0)).is_ok());
    assert_eq!(front.next_violation(), None);
}

#[test]
fn ids_lost_with_an_old_ring_end_a_controller_that_keeps_its_table() {
    // A stock driver: sixteen requests went to the dead ring, the new one has room.
    let mut front = plugged();
    for tag in 0..17 {
        front.submit(submission(1, tag, 0)).unwrap();
    }
    for _ in 0..16 {
        front.next_request().unwrap();
    }
    assert_eq!(front.next_request(), None);
    assert_eq!(front.next_violation(), Some(Violation::IdsExhausted));
    assert!(front.is_dead());
}

#[test]
fn a_clean_table_gives_back_what_was_in_flight_and_sends_the_rest() {
    let mut front = plugged();
    for tag in 0..17 {
        front.submit(submission(1, tag, 0)).unwrap();
    }
    for _ in 0..16 {
        front.next_request().unwrap();
    }
    front.start_over();
    for tag in 0..16 {
        let completion = front.next_completion().unwrap();
        assert_eq!(
            (completion.tag, completion.result),
            (tag, Err(TransferError::Shutdown))
        );
    }
    assert_eq!(front.in_flight(), 0);
    assert_eq!(front.next_request().unwrap().id, 0);
    assert_eq!(front.next_violation(), None);
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Submit(u8),
    Unlink(usize),
    Send,
    Answer(usize),
    Plug(u8, bool),
    Freeze,
    Thaw,
    StartOver,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (1u8..5).prop_map(Act::Submit),
        2 => (0usize..32).prop_map(Act::Unlink),
        8 => Just(Act::Send),
        8 => (0usize..16).prop_map(Act::Answer),
        1 => (1u8..5, any::<bool>()).prop_map(|(n, on)| Act::Plug(n, on)),
        1 => Just(Act::Freeze),
        2 => Just(Act::Thaw),
        1 => Just(Act::StartOver),
    ]
}

proptest! {
    #[test]
    fn every_urb_completes_exactly_once_with_an_honest_backend(acts in proptest::collection::vec(act(), 0..400)) {
        let mut front = plugged();
        let mut outstanding: HashMap<UrbHandle, u64> = HashMap::new();
        let mut handles = Vec::new();
        // The backend: requests that it has not answered.
        let mut held: Vec<UrbRequest> = Vec::new();
        let mut tag = 0;
        for act in acts {
            match act {
                Act::Submit(n) => {
                    tag += 1;
                    if let Ok(urb) = front.submit(submission(n, tag, 0)) {
                        prop_assert_eq!(outstanding.insert(urb, tag), None);
                        handles.push(urb);
                    }
                }
                Act::Unlink(nth) => {
                    if let Some(urb) = handles.get(nth % handles.len().max(1)) {
                        front.unlink(*urb);
                    }
                }
                Act::Send => {
                    // Ring slots and ids are the same number here.
                    if held.len() < 16 && let Some(request) = front.next_request() {
                        prop_assert!(held.iter().all(|r| r.id != request.id), "id used twice");
                        held.push(request);
                    }
                }
                Act::Answer(nth) => {
                    if !held.is_empty() {
                        let request = held.swap_remove(nth % held.len());
                        front.handle_response(answer(request.id, 1));
                    }
                }
                Act::Plug(n, on) => plug(&mut front, n, if on { Speed::High } else { Speed::None }),
                Act::Freeze => front.freeze(),
                Act::Thaw => front.thaw(),
                Act::StartOver => {
                    front.start_over();
                    held.clear();
                }
            }
            while let Some(done) = front.next_completion() {
                prop_assert_eq!(outstanding.remove(&done.urb), Some(done.tag));
            }
            let urbs = held.iter().filter(|r| !matches!(r.kind, UrbKind::Unlink { .. })).count();
            prop_assert_eq!(front.in_flight() as usize, urbs);
            prop_assert_eq!(front.unlinks_unanswered() as usize, held.len() - urbs);
            prop_assert_eq!(front.next_violation(), None);
        }
        front.shut_down();
        while let Some(done) = front.next_completion() {
            prop_assert_eq!(outstanding.remove(&done.urb), Some(done.tag));
        }
        prop_assert!(outstanding.is_empty());
    }

    #[test]
    fn nothing_that_a_backend_sends_makes_it_panic(answers in proptest::collection::vec(
            (any::<bool>(), 0u16..20, any::<i32>(), any::<u32>(), 0u8..34, 0u8..5), 0..100)) {
        let mut front = plugged();
        for (is_event, id, status, actual_length, portnum, speed) in answers {
            let _ = front.submit(submission(1, 0, 0));
            let _ = front.next_request();
            if is_event {
                let event = match (PortNumber::new(portnum), Speed::from_wire(speed)) {
                    (Some(port), Some(speed)) => Ok(ConnResponse { id, port, speed }),
                    _ => Err(BadConnResponse { id, portnum, speed }),
                };
                front.handle_event(event);
            } else {
                let status = UrbStatus(status);
                front.handle_response(UrbResponse { id, start_frame: 0, status, actual_length, error_count: 0 });
            }
            while let Some(done) = front.next_completion() {
                prop_assert!(done.actual_length <= 512);
            }
            prop_assert!(front.in_flight() <= 16);
        }
    }
}

/// A device that moves bytes for the oldest of its requests.
#[derive(Default)]
struct Mover {
    /// Requests, oldest first, with the bytes that were moved for them.
    requests: Vec<(UrbRequest, usize)>,
    moved: usize,
}

impl Mover {
    fn take(&mut self, front: &mut Front) {
        while self.requests.len() < 16
            && let Some(request) = front.next_request()
        {
            let UrbKind::Unlink { id } = request.kind else {
                self.requests.push((request, 0));
                continue;
            };
            let place = self.requests.iter().position(|(r, _)| r.id == id);
            if let Some(place) = place {
                let (victim, moved) = self.requests.remove(place);
                let cancelled = UrbResponse::with_status(victim.id, UrbStatus::SHUTDOWN);
                front.handle_response(UrbResponse {
                    actual_length: moved as u32,
                    ..cancelled
                });
            }
            front.handle_response(answer(request.id, 0));
        }
    }

    fn run(&mut self, front: &mut Front, packets: usize) {
        for _ in 0..packets {
            let Some((request, moved)) = self.requests.first_mut() else {
                return;
            };
            *moved += 64;
            self.moved += 64;
            if *moved == request.buffer_len() {
                let (request, moved) = self.requests.remove(0);
                front.handle_response(answer(request.id, moved as u32));
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Stir {
    Submit,
    Send,
    Run(usize),
    Recall,
    GoOn { moved: bool },
}

fn stir() -> impl Strategy<Value = Stir> {
    prop_oneof![
        6 => Just(Stir::Submit),
        6 => Just(Stir::Send),
        6 => (1usize..20).prop_map(Stir::Run),
        2 => Just(Stir::Recall),
        2 => any::<bool>().prop_map(|moved| Stir::GoOn { moved }),
    ]
}

proptest! {
    /// Whatever is recalled and wherever it stands: every byte is moved for one URB, in order, and no
    /// driver sees that there was a suspend.
    #[test]
    fn a_recalled_stream_goes_on_where_it_stood(stirs in proptest::collection::vec(stir(), 0..200)) {
        let mut front = plugged();
        front.set_recalls(true);
        let mut mover = Mover::default();
        let (mut submitted, mut done) = (0, 0);
        let mut check = |front: &mut Front| {
            while let Some(completion) = front.next_completion() {
                assert_eq!(completion.result, Ok(()));
                assert_eq!(completion.tag, done, "out of order");
                assert_eq!(completion.actual_length, 512);
                done += 1;
            }
            done
        };
        for stir in stirs {
            match stir {
                Stir::Submit => {
                    front.submit(submission(1, submitted, 0)).unwrap();
                    submitted += 1;
                }
                Stir::Send => mover.take(&mut front),
                Stir::Run(packets) => mover.run(&mut front, packets),
                Stir::Recall => front.recall(true),
                Stir::GoOn { moved } => {
                    if moved {
                        // A suspend that took place: all was answered before it.
                        front.recall(true);
                        mover.take(&mut front);
                        prop_assert_eq!(front.in_flight(), 0);
                        front.start_over();
                    }
                    front.thaw();
                }
            }
            check(&mut front);
            prop_assert_eq!(front.next_violation(), None);
        }
        front.thaw();
        for _ in 0..submitted {
            mover.take(&mut front);
            mover.run(&mut front, 8);
        }
        prop_assert_eq!(check(&mut front), submitted);
        prop_assert_eq!(mover.moved as u64, 512 * submitted);
    }
}

#[test]
fn a_control_transfer_that_was_recalled_and_cancelled_has_failed() {
    let mut front = plugged();
    front.set_recalls(true);
    let mut control = submission(1, 7, 0);
    control.request.kind = UrbKind::Control {
        setup: usbif::Setup::new(0x80, 6, 0x0100, 0, 512),
    };
    front.submit(control).unwrap();
    let request = front.next_request().unwrap();
    front.recall(false);
    assert_eq!(front.next_request(), None, "it has time to end by itself");
    front.recall(true);
    let unlink = front.next_request().unwrap();
    assert_eq!(unlink.kind, UrbKind::Unlink { id: request.id });
    front.handle_response(answer(unlink.id, 0));
    front.handle_response(UrbResponse::with_status(request.id, UrbStatus::SHUTDOWN));
    let completion = front.next_completion().unwrap();
    assert_eq!(completion.result, Err(TransferError::Io));
}

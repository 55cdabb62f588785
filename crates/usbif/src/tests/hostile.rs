// SPDX-License-Identifier: GPL-3.0-or-later
//! A peer that writes whatever it likes, whenever it likes.

use proptest::prelude::*;
use std::vec::Vec;

use super::memory::Page;
use crate::*;

const REQ_PROD: usize = 0;
const RSP_PROD: usize = 8;

fn response(id: u16) -> UrbResponse {
    UrbResponse::with_status(id, UrbStatus::OK)
}

#[test]
fn an_index_too_far_ahead_is_corrupt_and_not_empty() {
    let page = Page::zeroed();
    let mut ring = BackRing::<_, Urb>::new(&page);
    assert_eq!(ring.next_request(), Ok(None));
    page.poke_u32(REQ_PROD, 16);
    assert!(ring.next_request().unwrap().is_some());
    page.poke_u32(REQ_PROD, 17);
    let corrupt = ring.next_request().unwrap_err();
    assert_eq!(
        corrupt,
        RingCorrupt {
            published: 17,
            indices: RingIndices { req: 1, rsp: 0 }
        }
    );
    assert!(
        ring.final_check(),
        "a corrupt ring must be looked at, not slept on"
    );
}

#[test]
fn an_index_that_runs_backwards_is_corrupt() {
    let page = Page::zeroed();
    let mut ring = BackRing::<_, Urb>::new(&page);
    page.poke_u32(REQ_PROD, 3);
    for _ in 0..3 {
        assert!(ring.next_request().unwrap().is_some());
    }
    page.poke_u32(REQ_PROD, 2);
    assert!(ring.next_request().is_err());
}

#[test]
fn a_response_cannot_run_ahead_of_the_requests() {
    let page = Page::zeroed();
    let mut ring = BackRing::<_, Urb>::new(&page);
    page.poke_u32(REQ_PROD, 2);
    let before = page.bytes();
    assert_eq!(ring.push_response(&response(0)), Err(NoRequestToAnswer));
    assert_eq!(page.bytes(), before);
    assert!(ring.next_request().unwrap().is_some());
    assert_eq!(ring.push_response(&response(0)), Ok(()));
    assert_eq!(ring.push_response(&response(0)), Err(NoRequestToAnswer));
    assert_eq!(ring.unpublished(), 1);
}

#[test]
fn our_own_index_is_never_read_back() {
    let page = Page::zeroed();
    let mut ring = BackRing::<_, Urb>::new(&page);
    page.poke_u32(REQ_PROD, 1);
    assert!(ring.next_request().unwrap().is_some());
    page.poke_u32(RSP_PROD, 0xdead_beef);
    // The frontend asks for no event at 1, and 0 is long past, wherever it says that we are.
    ring.push_response(&response(0)).unwrap();
    assert!(!ring.publish());
    assert_eq!(page.load_acquire(RSP_PROD), 1);
}

#[test]
fn a_frontend_does_not_take_a_response_that_nobody_asked_for() {
    let page = Page::zeroed();
    let mut ring = FrontRing::<_, Urb>::new(&page);
    page.poke_u32(RSP_PROD, 1);
    assert!(ring.next_response().is_err());
    let request = UrbRequest::new(
        0,
        Pipe::new(
            1,
            DeviceAddress::DEFAULT,
            1,
            Direction::In,
            TransferType::Bulk,
        ),
        0,
        UrbKind::Bulk,
        &[],
    );
    ring.push_request(&request.unwrap()).unwrap();
    assert!(ring.next_response().is_err(), "pushed, but not published");
    let _ = ring.publish();
    assert!(ring.next_response().unwrap().is_some());
}

#[test]
fn saved_indices_are_checked() {
    let page = Page::zeroed();
    let far = RingIndices { req: 20, rsp: 3 };
    assert!(BackRing::<_, Urb>::resume(&page, far).is_err());
    let near = RingIndices {
        req: 2,
        rsp: u32::MAX,
    };
    let ring = BackRing::<_, Urb>::resume(&page, near).unwrap();
    assert_eq!(ring.unanswered(), 3);
}

#[derive(Clone, Debug)]
enum Act {
    Poke(usize, Vec<u8>),
    PokeIndex(usize, u32),
    Advance(usize, u32),
    Next,
    Push,
    Publish,
    FinalCheck,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        1 => (0usize..4000, proptest::collection::vec(any::<u8>(), 1..96)).prop_map(|(o, b)| Act::Poke(o, b)),
        1 => (0usize..4, any::<u32>()).prop_map(|(i, v)| Act::PokeIndex(i * 4, v)),
        1 => (0usize..4, 0u32..20).prop_map(|(i, v)| Act::Advance(i * 4, v)),
        5 => Just(Act::Next),
        3 => Just(Act::Push),
        1 => Just(Act::Publish),
        1 => Just(Act::FinalCheck),
    ]
}

fn disturb(page: &Page, act: &Act) {
    match act {
        Act::Poke(offset, bytes) => page.poke(*offset, bytes),
        Act::PokeIndex(offset, value) => page.poke_u32(*offset, *value),
        Act::Advance(offset, by) => {
            page.poke_u32(*offset, page.load_acquire(*offset).wrapping_add(*by));
        }
        _ => {}
    }
}

proptest! {
    #[test]
    fn nothing_that_a_frontend_writes_harms_a_backend(start: u32, acts in proptest::collection::vec(act(), 0..200)) {
        let page = Page::zeroed();
        page.poke_u32(RSP_PROD, start);
        page.poke_u32(REQ_PROD, start);
        let mut ring = BackRing::<_, Urb>::attach(&page);
        let (mut read, mut pushed) = (0u32, 0u32);
        for act in acts {
            disturb(&page, &act);
            page.take_slot_reads();
            match act {
                Act::Next => {
                    let took = matches!(ring.next_request(), Ok(Some(_)));
                    read += u32::from(took);
                    prop_assert_eq!(page.take_slot_reads(), u32::from(took));
                }
                Act::Push => pushed += u32::from(ring.push_response(&response(1)).is_ok()),
                Act::Publish => {
                    let waiting = ring.unpublished() > 0;
                    let _ = ring.publish();
                    if waiting {
                        prop_assert_eq!(page.load_acquire(RSP_PROD), start.wrapping_add(pushed));
                    }
                }
                Act::FinalCheck => { let _ = ring.final_check(); }
                _ => {}
            }
            prop_assert!(pushed <= read);
            prop_assert!(ring.unanswered() <= 16);
            prop_assert_eq!(ring.unanswered(), read - pushed);
        }
    }

    #[test]
    fn nothing_that_a_backend_writes_harms_a_frontend(start: u32, acts in proptest::collection::vec(act(), 0..200)) {
        let page = Page::zeroed();
        let mut ring = FrontRing::<_, Conn>::starting_at(&page, start);
        let (mut pushed, mut read) = (0u32, 0u32);
        for act in acts {
            disturb(&page, &act);
            match act {
                Act::Next => read += u32::from(matches!(ring.next_response(), Ok(Some(_)))),
                Act::Push => pushed += u32::from(ring.push_request(&ConnRequest { id: 3 }).is_ok()),
                Act::Publish => { let _ = ring.publish(); }
                Act::FinalCheck => { let _ = ring.final_check(); }
                _ => {}
            }
            prop_assert!(read <= pushed);
            prop_assert!(ring.pending() <= 512);
            prop_assert_eq!(ring.pending(), pushed - read);
        }
    }
}

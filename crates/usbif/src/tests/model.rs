// SPDX-License-Identifier: GPL-3.0-or-later
//! Both ends against each other, and against queues that cannot be wrong.

use proptest::prelude::*;
use std::collections::VecDeque;

use super::memory::Page;
use crate::*;

/// What is on its way.
#[derive(Default)]
struct Model {
    requests_pushed: VecDeque<u16>,
    requests_published: VecDeque<u16>,
    requests_read: VecDeque<u16>,
    responses_pushed: VecDeque<u16>,
    responses_published: VecDeque<u16>,
    next_id: u16,
    back_sleeps: bool,
    front_sleeps: bool,
}

impl Model {
    fn in_ring(&self) -> usize {
        self.requests_pushed.len()
            + self.requests_published.len()
            + self.requests_read.len()
            + self.responses_pushed.len()
            + self.responses_published.len()
    }
}

#[derive(Clone, Copy, Debug)]
enum Act {
    PushRequest,
    PublishRequests,
    ReadRequest,
    /// Answers the request that is this far down the list of unanswered ones.
    PushResponse(usize),
    PublishResponses,
    ReadResponse,
    BackSleeps,
    FrontSleeps,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => Just(Act::PushRequest),
        2 => Just(Act::PublishRequests),
        3 => Just(Act::ReadRequest),
        3 => (0usize..16).prop_map(Act::PushResponse),
        2 => Just(Act::PublishResponses),
        3 => Just(Act::ReadResponse),
        1 => Just(Act::BackSleeps),
        1 => Just(Act::FrontSleeps),
    ]
}

fn request(id: u16) -> UrbRequest {
    let pipe = Pipe::new(
        1,
        DeviceAddress::DEFAULT,
        1,
        Direction::In,
        TransferType::Bulk,
    );
    UrbRequest::new(id, pipe, 0, UrbKind::Bulk, &[]).unwrap()
}

fn start() -> impl Strategy<Value = u32> {
    // Nearly always close enough to the end of the indices to wrap.
    prop_oneof![Just(0), (0u32..40).prop_map(|n| u32::MAX - n), any::<u32>()]
}

proptest! {
    #[test]
    fn requests_and_responses_arrive_once_and_in_order(start in start(), acts in proptest::collection::vec(act(), 0..600)) {
        let page = Page::zeroed();
        let mut front = FrontRing::<_, Urb>::starting_at(&page, start);
        let mut back = BackRing::<_, Urb>::attach(&page);
        let mut model = Model::default();
        for act in acts {
            match act {
                Act::PushRequest => {
                    let id = model.next_id;
                    let pushed = front.push_request(&request(id));
                    prop_assert_eq!(pushed.is_ok(), model.in_ring() < 16);
                    if pushed.is_ok() {
                        model.next_id = id.wrapping_add(1);
                        model.requests_pushed.push_back(id);
                    }
                }
                Act::PublishRequests => {
                    let notify = front.publish();
                    if model.requests_pushed.is_empty() {
                        prop_assert!(!notify, "nothing to tell");
                    } else if model.back_sleeps {
                        prop_assert!(notify, "the backend sleeps");
                        model.back_sleeps = false;
                    }
                    model.requests_published.append(&mut model.requests_pushed);
                }
                Act::ReadRequest => {
                    let read = back.next_request().unwrap().map(|r| r.unwrap().id);
                    prop_assert_eq!(read, model.requests_published.pop_front());
                    model.requests_read.extend(read);
                    model.back_sleeps &= read.is_none();
                }
                Act::PushResponse(nth) => {
                    let len = model.requests_read.len();
                    match model.requests_read.remove(nth % len.max(1)) {
                        Some(id) => {
                            let response = UrbResponse::with_status(id, UrbStatus::STALL);
                            prop_assert_eq!(back.push_response(&response), Ok(()));
                            model.responses_pushed.push_back(id);
                        }
                        None => {
                            let response = UrbResponse::with_status(0xdead, UrbStatus::OK);
                            prop_assert_eq!(back.push_response(&response), Err(NoRequestToAnswer));
                        }
                    }
                }
                Act::PublishResponses => {
                    let notify = back.publish();
                    if model.responses_pushed.is_empty() {
                        prop_assert!(!notify, "nothing to tell");
                    } else if model.front_sleeps {
                        prop_assert!(notify, "the frontend sleeps");
                        model.front_sleeps = false;
                    }
                    model.responses_published.append(&mut model.responses_pushed);
                }
                Act::ReadResponse => {
                    let read = front.next_response().unwrap().map(|r| r.id);
                    prop_assert_eq!(read, model.responses_published.pop_front());
                    model.front_sleeps &= read.is_none();
                }
                Act::BackSleeps => {
                    let more = back.final_check();
                    prop_assert_eq!(more, !model.requests_published.is_empty());
                    model.back_sleeps |= !more;
                }
                Act::FrontSleeps => {
                    let more = front.final_check();
                    prop_assert_eq!(more, !model.responses_published.is_empty());
                    model.front_sleeps |= !more;
                }
            }
            prop_assert_eq!(front.pending() as usize, model.in_ring());
            prop_assert_eq!(back.unanswered() as usize, model.requests_read.len());
            prop_assert_eq!(back.unpublished() as usize, model.responses_pushed.len());
        }
    }

    #[test]
    fn a_backend_that_was_restarted_goes_on_where_it_was(start in start(), read in 0u32..17, answered in 0u32..17) {
        let page = Page::zeroed();
        let mut front = FrontRing::<_, Urb>::starting_at(&page, start);
        for id in 0..16 {
            front.push_request(&request(id)).unwrap();
        }
        prop_assert!(front.publish());
        let read = read.min(16);
        let answered = answered.min(read);
        let mut back = BackRing::<_, Urb>::attach(&page);
        for _ in 0..read {
            back.next_request().unwrap().unwrap().unwrap();
        }
        for id in 0..answered {
            back.push_response(&UrbResponse::with_status(id as u16, UrbStatus::OK)).unwrap();
        }
        let _ = back.publish();
        let mut again = BackRing::<_, Urb>::resume(&page, back.indices()).unwrap();
        prop_assert_eq!(again.unanswered(), read - answered);
        for id in read..16 {
            prop_assert_eq!(again.next_request().unwrap().unwrap().unwrap().id, id as u16);
        }
        prop_assert_eq!(again.next_request(), Ok(None));

        // Without a record only what lies in slots that no response has used yet is there.
        let mut attached = BackRing::<_, Urb>::attach(&page);
        for id in answered..16 {
            prop_assert_eq!(attached.next_request().unwrap().unwrap().unwrap().id, id as u16);
        }
        prop_assert_eq!(attached.next_request(), Ok(None));
    }
}

#[test]
fn the_connection_ring_goes_round() {
    let page = Page::zeroed();
    let mut front = FrontRing::<_, Conn>::new(&page);
    let mut back = BackRing::<_, Conn>::new(&page);
    for id in 0..512 {
        front.push_request(&ConnRequest { id }).unwrap();
    }
    assert_eq!(front.push_request(&ConnRequest { id: 0 }), Err(RingFull));
    assert!(front.publish());
    for round in 0..2000u32 {
        let id = back.next_request().unwrap().unwrap().id;
        assert_eq!(u32::from(id), round % 512);
        let port = PortNumber::new((round % 31 + 1) as u8).unwrap();
        let event = ConnResponse {
            id,
            port,
            speed: Speed::High,
        };
        back.push_response(&event).unwrap();
        let _ = back.publish();
        assert_eq!(front.next_response().unwrap(), Some(Ok(event)));
        front.push_request(&ConnRequest { id }).unwrap();
        let _ = front.publish();
    }
}

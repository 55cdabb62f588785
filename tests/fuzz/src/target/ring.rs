// SPDX-License-Identifier: GPL-3.0-or-later
//! A frontend that writes whatever it likes into its ring pages, at any time; the backend's ends of
//! both rings look at them.

use std::cell::RefCell;

use usbif::{
    BackRing, Conn, ConnResponse, PAGE_BYTES, PortNumber, RingMemory, Speed, Urb, UrbResponse,
    UrbStatus,
};

use crate::{Input, Target};

/// See the module's documentation.
pub const TARGET: Target = Target {
    name: "ring",
    seeds,
    run,
};

struct Page(RefCell<Box<[u8; PAGE_BYTES]>>);

impl Page {
    fn zeroed() -> Self {
        Self(RefCell::new(Box::new([0; PAGE_BYTES])))
    }

    fn poke(&self, offset: usize, bytes: &[u8]) {
        let mut page = self.0.borrow_mut();
        for (at, byte) in bytes.iter().enumerate() {
            page[(offset + at) % PAGE_BYTES] = *byte;
        }
    }
}

impl RingMemory for Page {
    fn read(&self, offset: usize, dst: &mut [u8]) {
        dst.copy_from_slice(&self.0.borrow()[offset..offset + dst.len()]);
    }
    fn write(&self, offset: usize, src: &[u8]) {
        self.0.borrow_mut()[offset..offset + src.len()].copy_from_slice(src);
    }
    fn load_acquire(&self, offset: usize) -> u32 {
        let page = self.0.borrow();
        u32::from_le_bytes(page[offset..offset + 4].try_into().unwrap())
    }
    fn store_release(&self, offset: usize, value: u32) {
        assert!(offset == 4 || offset == 8, "a backend writes its indices");
        self.write(offset, &value.to_le_bytes());
    }
    fn full_barrier(&self) {}
}

/// Where the indices of `ring.h` are.
const REQ_PROD: usize = 0;
const RSP_PROD: usize = 8;

fn seeds() -> Vec<Vec<u8>> {
    let advance = |by: u8| vec![1, 0, by];
    let mut whole = advance(16);
    for _ in 0..16 {
        whole.extend([4, 5, 6, 7]);
    }
    vec![
        advance(1),
        whole,
        vec![8, 0xff, 0xff, 0xff, 0xff, 1, 0, 4, 4, 4, 5, 6],
    ]
}

fn run(input: &mut Input<'_>) {
    let (urb_page, conn_page) = (Page::zeroed(), Page::zeroed());
    let mut urb = BackRing::<_, Urb>::new(&urb_page);
    let mut conn = BackRing::<_, Conn>::new(&conn_page);
    let (mut read, mut pushed) = (0_u64, 0_u64);
    while !input.is_empty() {
        match input.below(10) {
            0 => {
                let offset = usize::from(input.u16());
                let len = input.below(200);
                urb_page.poke(offset, input.take(len));
            }
            1 => advance(&urb_page, input),
            2 => advance(&conn_page, input),
            3 => {
                let offset = 4 * input.below(4);
                let value = input.u32().to_le_bytes();
                let page = [&urb_page, &conn_page][input.below(2)];
                page.poke(offset, &value);
            }
            4 => match urb.next_request() {
                Ok(Some(request)) => {
                    read += 1;
                    match &request {
                        Ok(request) => {
                            let total: usize = request
                                .segments()
                                .iter()
                                .map(|s| usize::from(s.length))
                                .sum();
                            assert_eq!(total, request.buffer_len());
                            assert!(total <= 65_536);
                            assert!(request.segments().iter().all(|s| s.is_within_page()));
                            input.did(("request", std::mem::discriminant(&request.kind)));
                        }
                        Err(bad) => input.did(("bad", std::mem::discriminant(&bad.reason))),
                    }
                }
                Ok(None) => input.did("empty"),
                Err(_) => {
                    input.did("corrupt");
                    assert!(urb.final_check(), "a corrupt ring is not slept on");
                }
            },
            5 => {
                let response = UrbResponse::with_status(input.u16(), UrbStatus::OK);
                let result = urb.push_response(&response);
                assert_eq!(result.is_ok(), pushed < read);
                pushed += u64::from(result.is_ok());
            }
            6 => {
                let anything = urb.unpublished() > 0;
                let signal = urb.publish();
                if anything {
                    let shown = urb_page.load_acquire(RSP_PROD);
                    assert_eq!(shown, pushed as u32, "what was pushed is shown");
                }
                input.did(("publish", signal));
            }
            7 => {
                let more = urb.final_check();
                input.did(("final", more));
            }
            8 => {
                // Rings that start anywhere, as a backend finds them that was restarted.
                let start = input.u32();
                urb_page.poke(RSP_PROD, &start.to_le_bytes());
                urb_page.poke(REQ_PROD, &start.to_le_bytes());
                urb = BackRing::attach(&urb_page);
                let from = u64::from(start);
                (read, pushed) = (from, from);
            }
            _ => connection(&mut conn, input),
        }
        assert!(urb.unanswered() <= 16, "no more than the ring has slots");
        assert_eq!(u64::from(urb.unanswered()), read - pushed);
    }
}

fn advance(page: &Page, input: &mut Input<'_>) {
    let by = u32::from(input.u16()) & 0x3ff;
    let index = page.load_acquire(REQ_PROD).wrapping_add(by);
    page.poke(REQ_PROD, &index.to_le_bytes());
}

fn connection(conn: &mut BackRing<&Page, Conn>, input: &mut Input<'_>) {
    match conn.next_request() {
        Ok(Some(request)) => {
            let response = ConnResponse {
                id: request.id,
                port: PortNumber::new(1 + input.byte() % 31).unwrap(),
                speed: Speed::High,
            };
            conn.push_response(&response).unwrap();
            let signal = conn.publish();
            input.did(("connection", signal));
        }
        Ok(None) => {
            let more = conn.final_check();
            input.did(("no form", more));
        }
        Err(_) => input.did("connection ring corrupt"),
    }
}

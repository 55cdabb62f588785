// SPDX-License-Identifier: GPL-3.0-or-later
//! A URB costs no allocation once the tables have grown.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use frontend_shim::{Front, Submission};
use usbif::{
    ConnResponse, DeviceAddress, Direction, FrontRing, Pipe, PortNumber, RingMemory, Segment,
    Speed, TransferType, Urb, UrbKind, UrbRequest, UrbResponse, UrbStatus,
};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to `System` as it is; counting does not allocate, because the counter is
// initialised at compile time and has no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are those that `System` wants.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are those that `System` wants.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Page(std::cell::RefCell<[u8; 4096]>);

impl RingMemory for Page {
    fn read(&self, offset: usize, dst: &mut [u8]) {
        dst.copy_from_slice(&self.0.borrow()[offset..offset + dst.len()]);
    }
    fn write(&self, offset: usize, src: &[u8]) {
        self.0.borrow_mut()[offset..offset + src.len()].copy_from_slice(src);
    }
    fn load_acquire(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }
    fn store_release(&self, offset: usize, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }
    fn full_barrier(&self) {}
}

/// Twenty URBs through the machine and the ring, sixteen at a time.
fn round(front: &mut Front, ring: &mut FrontRing<&Page, Urb>, page: &Page) -> u64 {
    let port = PortNumber::new(1).unwrap();
    let address = DeviceAddress::new(1).unwrap();
    let pipe = Pipe::new(1, address, 1, Direction::In, TransferType::Bulk);
    let data = [Segment {
        gref: 9,
        offset: 0,
        length: 4096,
    }; 16];
    for tag in 0..20 {
        let request = UrbRequest::new(0, pipe, 0, UrbKind::Bulk, &data).unwrap();
        front
            .submit(Submission {
                root_port: port,
                request,
                tag,
            })
            .unwrap();
    }
    let mut back = usbif::BackRing::<_, Urb>::attach(page);
    let mut done = 0;
    while done < 20 {
        while ring.free() > 0 && front.has_requests() {
            ring.push_request(&front.next_request().unwrap()).unwrap();
        }
        let _ = ring.publish();
        while let Some(request) = back.next_request().unwrap() {
            let id = request.unwrap().id;
            back.push_response(&UrbResponse::with_status(id, UrbStatus::OK))
                .unwrap();
        }
        let _ = back.publish();
        while let Some(response) = ring.next_response().unwrap() {
            front.handle_response(response);
        }
        while front.next_completion().is_some() {
            done += 1;
        }
    }
    done
}

#[test]
fn a_urb_costs_no_allocation() {
    let page = Page(std::cell::RefCell::new([0; 4096]));
    let mut front = Front::new(1);
    let port = PortNumber::new(1).unwrap();
    front.handle_event(Ok(ConnResponse {
        id: 0,
        port,
        speed: Speed::High,
    }));
    let mut ring = FrontRing::<_, Urb>::new(&page);
    round(&mut front, &mut ring, &page);
    let before = ALLOCATIONS.with(Cell::get);
    let mut urbs = 0;
    for _ in 0..100 {
        urbs += round(&mut front, &mut ring, &page);
    }
    assert_eq!(urbs, 2000);
    assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0);
    assert!(before > 0, "the counter counts");
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! A backend on a thread, over any `xen::Backend`.

use std::collections::HashMap;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use frontend_shim::RingGrants;
use usbif::{
    BackRing, Conn, ConnResponse, Direction, PortNumber, Speed, Urb, UrbKind, UrbRequest,
    UrbResponse, UrbStatus,
};
use xen::{
    Access, Backend, CopyBuffer, CopyOp, CopyStatus, DomId, EventChannel, GrantRef, RingPage,
};

use super::disk::{BULK_IN, BULK_OUT, DiskDevice};

pub(crate) enum Order {
    Plug(u8, Speed),
    Unplug(u8),
    /// Answer bulk requests only after `Release`.
    Hold,
    Release,
    /// Answers the request answered last once more, ahead of any request.
    AnswerTwice,
    /// Keep the mapping of the next request's pages beyond its answer.
    KeepMapping,
    /// Answer this id on the present ring, as if it came from it.
    AnswerStale(u16),
}

/// What the backend knows when it ends; another one can go on from there.
pub(crate) struct Remains {
    pub(crate) device: DiskDevice,
    pub(crate) addresses: HashMap<u8, u8>,
    /// Requests that were not answered.
    pub(crate) held: Vec<UrbRequest>,
    pub(crate) requests: u64,
    pub(crate) unlinks: u64,
}

pub(crate) struct FakeBackend {
    orders: Sender<(Order, Sender<()>)>,
    thread: JoinHandle<Remains>,
}

impl FakeBackend {
    pub(crate) fn start<B: Backend>(
        xen: B,
        dom: DomId,
        grants: RingGrants,
        device: DiskDevice,
        addresses: HashMap<u8, u8>,
    ) -> Self {
        let (orders, inbox) = mpsc::channel();
        let ring = |gref| RingPage::new(xen.map(dom, &[gref], Access::ReadWrite).unwrap(), 0);
        let server = Server {
            urb: BackRing::new(ring(grants.urb_ring)),
            conn: BackRing::new(ring(grants.conn_ring)),
            channel: xen.bind_interdomain(dom, grants.event_channel).unwrap(),
            xen,
            dom,
            device,
            addresses,
            held: Vec::new(),
            holding: false,
            keep_mapping: false,
            kept: Vec::new(),
            last_id: 0,
            requests: 0,
            unlinks: 0,
        };
        let thread = thread::spawn(move || server.run(&inbox));
        Self { orders, thread }
    }

    /// Returns when it has been obeyed.
    pub(crate) fn order(&self, order: Order) {
        let (done, obeyed) = mpsc::channel();
        self.orders.send((order, done)).unwrap();
        obeyed.recv().unwrap();
    }

    /// Ends it as the end of the domain on this host would.
    pub(crate) fn stop(self) -> Remains {
        drop(self.orders);
        self.thread.join().unwrap()
    }
}

struct Server<B: Backend> {
    xen: B,
    dom: DomId,
    urb: BackRing<RingPage<B::Mapping>, Urb>,
    conn: BackRing<RingPage<B::Mapping>, Conn>,
    channel: B::Channel,
    device: DiskDevice,
    /// Port of each address.
    addresses: HashMap<u8, u8>,
    held: Vec<UrbRequest>,
    holding: bool,
    keep_mapping: bool,
    kept: Vec<B::Mapping>,
    last_id: u16,
    requests: u64,
    unlinks: u64,
}

impl<B: Backend> Server<B> {
    fn run(mut self, inbox: &Receiver<(Order, Sender<()>)>) -> Remains {
        loop {
            self.channel.take_event().unwrap();
            loop {
                match inbox.try_recv() {
                    Ok((order, done)) => {
                        self.obey(&order);
                        let _ = done.send(());
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        return Remains {
                            device: self.device,
                            addresses: self.addresses,
                            held: self.held,
                            requests: self.requests,
                            unlinks: self.unlinks,
                        };
                    }
                }
            }
            self.take_requests();
            if self.urb.publish() {
                self.channel.notify().unwrap();
            }
            if !self.urb.final_check() {
                // There is no descriptor for orders, so it does not sleep on the channel.
                thread::sleep(Duration::from_micros(100));
            }
        }
    }

    fn take_requests(&mut self) {
        while let Some(request) = self.urb.next_request().unwrap() {
            self.requests += 1;
            match request {
                Ok(request) => self.serve(request),
                Err(bad) => self.answer(UrbResponse::with_status(bad.id, UrbStatus::INVAL)),
            }
        }
    }

    /// An order comes after every request that was sent before it.
    fn obey(&mut self, order: &Order) {
        self.take_requests();
        match *order {
            Order::Plug(port, speed) => self.event(port, speed),
            Order::Unplug(port) => {
                self.addresses.retain(|_, at| *at != port);
                for request in std::mem::take(&mut self.held) {
                    self.answer(UrbResponse::with_status(request.id, UrbStatus::SHUTDOWN));
                }
                self.event(port, Speed::None);
            }
            Order::Hold => self.holding = true,
            Order::Release => {
                self.holding = false;
                for request in std::mem::take(&mut self.held) {
                    self.serve(request);
                }
            }
            Order::AnswerTwice => {
                // The ring itself does not let a response run ahead: go behind its back.
                let memory = self.urb.memory();
                let ahead = usbif::RingMemory::load_acquire(memory, 8).wrapping_add(1);
                usbif::RingMemory::store_release(memory, 8, ahead);
                self.channel.notify().unwrap();
            }
            Order::KeepMapping => self.keep_mapping = true,
            Order::AnswerStale(id) => self.answer(UrbResponse::with_status(id, UrbStatus::IOERROR)),
        }
    }

    fn event(&mut self, port: u8, speed: Speed) {
        let form = self
            .conn
            .next_request()
            .unwrap()
            .expect("512 forms are enough");
        let port = PortNumber::new(port).unwrap();
        self.conn
            .push_response(&ConnResponse {
                id: form.id,
                port,
                speed,
            })
            .unwrap();
        if self.conn.publish() {
            self.channel.notify().unwrap();
        }
        let _ = self.conn.final_check();
    }

    fn answer(&mut self, response: UrbResponse) {
        self.last_id = response.id;
        self.urb.push_response(&response).unwrap();
    }

    fn serve(&mut self, request: UrbRequest) {
        if let UrbKind::Unlink { id } = request.kind {
            self.unlinks += 1;
            if let Some(at) = self.held.iter().position(|held| held.id == id) {
                let victim = self.held.remove(at);
                self.answer(UrbResponse::with_status(victim.id, UrbStatus::IOERROR));
            }
            self.answer(UrbResponse::with_status(request.id, UrbStatus::OK));
            return;
        }
        if self.keep_mapping
            && let Some(segment) = request.segments().first()
        {
            self.keep_mapping = false;
            let refs = [GrantRef(segment.gref)];
            self.kept
                .push(self.xen.map(self.dom, &refs, Access::ReadWrite).unwrap());
        }
        let known = self.addresses.contains_key(&request.pipe.device().get());
        match request.kind {
            _ if !request.pipe.device().is_default() && !known => {
                self.answer(UrbResponse::with_status(request.id, UrbStatus::NODEV));
            }
            UrbKind::Control { setup } if setup.is_set_address() => {
                self.addresses
                    .insert(setup.value() as u8, request.pipe.port_bits());
                self.answer(UrbResponse::with_status(request.id, UrbStatus::OK));
            }
            UrbKind::Control { setup } => {
                let result = self.device.control(setup);
                self.finish(&request, result);
            }
            UrbKind::Bulk if self.holding => self.held.push(request),
            UrbKind::Bulk => {
                let result = match (request.pipe.endpoint_address(), request.direction()) {
                    (BULK_IN, Direction::In) => self.device.bulk_in(request.buffer_len()),
                    (BULK_OUT, Direction::Out) => {
                        let data = self.fetch(&request);
                        self.device.bulk_out(&data).map(|_| Vec::new())
                    }
                    _ => Err(UrbStatus::INVAL),
                };
                self.finish(&request, result);
            }
            _ => self.held.push(request),
        }
    }

    /// Answers with the data of an IN transfer, or with the length of an OUT transfer.
    fn finish(&mut self, request: &UrbRequest, result: Result<Vec<u8>, UrbStatus>) {
        let mut response = UrbResponse::with_status(request.id, UrbStatus::OK);
        match result {
            Err(status) => response.status = status,
            Ok(data) if request.direction() == Direction::In => {
                self.deliver(request, &data);
                response.actual_length = data.len() as u32;
            }
            Ok(_) => response.actual_length = request.buffer_len() as u32,
        }
        self.answer(response);
    }

    fn fetch(&self, request: &UrbRequest) -> Vec<u8> {
        let mut data = vec![0; request.buffer_len()];
        let mut rest = &mut data[..];
        for segment in request.segments() {
            let (piece, tail) = rest.split_at_mut(usize::from(segment.length));
            let mut op = CopyOp {
                gref: GrantRef(segment.gref),
                offset: segment.offset,
                buffer: CopyBuffer::FromGuest(piece),
                status: CopyStatus::Pending,
            };
            self.xen
                .copy(self.dom, std::slice::from_mut(&mut op))
                .unwrap();
            assert_eq!(op.status, CopyStatus::Done);
            rest = tail;
        }
        data
    }

    fn deliver(&self, request: &UrbRequest, mut data: &[u8]) {
        for segment in request.segments() {
            let (piece, tail) = data.split_at(data.len().min(usize::from(segment.length)));
            let mut op = CopyOp {
                gref: GrantRef(segment.gref),
                offset: segment.offset,
                buffer: CopyBuffer::ToGuest(piece),
                status: CopyStatus::Pending,
            };
            self.xen
                .copy(self.dom, std::slice::from_mut(&mut op))
                .unwrap();
            assert_eq!(op.status, CopyStatus::Done);
            data = tail;
        }
        assert!(data.is_empty());
    }
}

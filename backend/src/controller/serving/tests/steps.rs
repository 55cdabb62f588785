// SPDX-License-Identifier: GPL-3.0-or-later
//! Single steps of one port: a guest that sends one request at a time, and a session whose frames are
//! looked at.

use std::rc::Rc;
use std::sync::Arc;

use session::Epoch;
use session::client::MAX_OUTSTANDING;
use session::frame::TransferStatus;
use session::server::{Event, Outcome, Server};
use slog::{Discard, Logger, o};
use tokio::sync::Notify;
use usbif::{
    DeviceAddress, Direction, FrontRing, Pipe, PortNumber, Segment, Setup, Speed, TransferType,
    Urb, UrbKind, UrbRequest, UrbResponse,
};
use xen::{DomId, EvtchnPort, GrantRef};

use super::guest::{CHANNEL, CONN_REF, URB_REF};
use super::host::{Page, Power, Xen};
use crate::controller::rings::RingDetails;
use crate::controller::serving::Serving;

const DATA_REF: u32 = 10;

fn port() -> PortNumber {
    PortNumber::new(1).unwrap()
}

/// An exporter whose device was claimed under this epoch.
fn claimed(epoch: u64) -> Server {
    let mut server = Server::new(Epoch(0));
    server.claim(Epoch(epoch));
    server
}

struct Steps {
    serving: Serving<Xen>,
    urb: FrontRing<Page, Urb>,
    next_id: u16,
}

impl Steps {
    /// A high-speed device at port 1, whose lease is claimed under epoch 1.
    fn new(recalls: bool) -> Self {
        let xen = Xen::new(Power::new(u64::MAX));
        let urb = FrontRing::new(xen.page(URB_REF));
        let log = Logger::root(Discard, o!());
        let mut serving = Serving::new(xen, DomId(7), 1, Arc::default(), log);
        serving.core.plug(port(), Speed::High, None).unwrap();
        serving.attach(port(), Rc::new(Notify::new()));
        let details = RingDetails {
            urb: GrantRef(URB_REF),
            conn: GrantRef(CONN_REF),
            channel: EvtchnPort(CHANNEL),
            recalls,
        };
        serving.connect(details).unwrap();
        serving.claimed(port(), Epoch(1));
        Self {
            serving,
            urb,
            next_id: 1,
        }
    }

    fn send(&mut self, address: u8, kind: UrbKind, transfer: TransferType, len: u16) -> u16 {
        let id = self.next_id;
        self.next_id += 1;
        let address = DeviceAddress::new(address).unwrap();
        let direction = match kind {
            UrbKind::Control { setup } => setup.direction(),
            _ => Direction::In,
        };
        let pipe = Pipe::new(
            1,
            address,
            u8::from(transfer != TransferType::Control),
            direction,
            transfer,
        );
        let pipe = match kind {
            UrbKind::Unlink { .. } => pipe.with_unlink(),
            _ => pipe,
        };
        let segment = Segment {
            gref: DATA_REF,
            offset: 0,
            length: len,
        };
        let segments = [segment];
        let segments = &segments[..usize::from(len != 0)];
        let request = UrbRequest::new(id, pipe, 0, kind, segments).unwrap();
        self.urb.push_request(&request).unwrap();
        let _ = self.urb.publish();
        self.serving.service().unwrap();
        id
    }

    fn get_descriptor(&mut self) -> u16 {
        let setup = Setup::new(0x80, Setup::GET_DESCRIPTOR, 0x0100, 0, 64);
        self.send(0, UrbKind::Control { setup }, TransferType::Control, 64)
    }

    fn set_address(&mut self, value: u16) -> u16 {
        let setup = Setup::new(0, Setup::SET_ADDRESS, value, 0, 0);
        self.send(0, UrbKind::Control { setup }, TransferType::Control, 0)
    }

    fn response(&mut self) -> Option<UrbResponse> {
        self.urb.next_response().unwrap()
    }

    /// Gives the exporter what was sent to it. It carries all of it out, if it `works`, and answers. Says
    /// what there was.
    fn carry_out(&mut self, server: &mut Server, works: bool) -> Vec<&'static str> {
        let bytes = std::mem::take(self.serving.client(port()).unwrap().output());
        let mut rest = &bytes[..];
        let (mut done, mut names) = (Vec::new(), Vec::new());
        while let Some((event, len)) = server.next_event(rest).unwrap() {
            rest = &rest[len..];
            let (name, request) = match event {
                Event::Submit { request, .. } => ("submit", Some(request)),
                Event::Reset { request } => ("reset", Some(request)),
                Event::Save { request } => ("save", Some(request)),
                Event::Cancel { .. } => ("cancel", None),
                Event::Freeze => ("freeze", None),
                Event::Orphan => ("orphan", None),
                _ => continue,
            };
            names.push(name);
            done.extend(request);
        }
        let status = match works {
            true => TransferStatus::Completed,
            false => TransferStatus::Protocol,
        };
        for request in done {
            let outcome = Outcome::new(status, 0);
            server.complete(server.epoch(), request, outcome, |_| ());
        }
        let bytes = server.output().to_vec();
        server.sent(bytes.len());
        self.serving.receive(port(), &bytes).unwrap();
        names
    }
}

/// The exporter is started again while a guest's reset is under way: the device is reset in the session
/// that follows, before the guest's first request reaches it.
#[test]
fn a_reset_is_not_lost_with_its_session() {
    let mut steps = Steps::new(false);
    let mut server = claimed(1);
    steps.set_address(5);
    assert_eq!(steps.carry_out(&mut server, true), ["save"]);
    assert!(steps.response().unwrap().status.is_ok());
    let id = steps.get_descriptor();
    // These frames do not arrive.
    steps.serving.client(port()).unwrap().lost();
    let mut server = claimed(2);
    steps.serving.claimed(port(), Epoch(2));
    assert_eq!(steps.carry_out(&mut server, true), ["reset"]);
    assert_eq!(steps.response(), None, "not before the device was reset");
    assert_eq!(steps.carry_out(&mut server, true), ["submit"]);
    assert_eq!(steps.response().map(|r| r.id), Some(id));
}

/// The guest resets the port while the lease is not claimed yet.
#[test]
fn a_reset_of_a_device_that_is_not_claimed_is_carried_out_when_it_is() {
    let mut steps = Steps::new(false);
    let mut server = claimed(1);
    steps.set_address(5);
    steps.carry_out(&mut server, true);
    steps.serving.core.hold(port());
    steps.get_descriptor();
    let mut server = claimed(2);
    steps.serving.claimed(port(), Epoch(2));
    assert_eq!(steps.carry_out(&mut server, true), ["reset"]);
    assert_eq!(steps.carry_out(&mut server, true), ["submit"]);
}

/// A device whose first request fails is reset when the guest resets the port, though it has no address.
#[test]
fn a_device_that_fails_its_first_request_is_reset() {
    let mut steps = Steps::new(false);
    let mut server = claimed(1);
    steps.get_descriptor();
    assert_eq!(steps.carry_out(&mut server, false), ["submit"]);
    assert!(!steps.response().unwrap().status.is_ok());
    steps.get_descriptor();
    assert_eq!(steps.carry_out(&mut server, true), ["reset"]);
    assert_eq!(steps.carry_out(&mut server, true), ["submit"]);
    assert!(steps.response().unwrap().status.is_ok());
}

/// The exporter is away, and the guest gives up more transfers than a session holds: the next ones wait
/// for it. The device is not gone.
#[test]
fn requests_wait_for_a_session_that_is_full_of_unlinked_ones() {
    let mut steps = Steps::new(false);
    let mut server = claimed(1);
    steps.set_address(5);
    steps.carry_out(&mut server, true);
    steps.response().unwrap();
    server.disconnected();
    steps.serving.client(port()).unwrap().lost();
    let read = |steps: &mut Steps| steps.send(5, UrbKind::Bulk, TransferType::Bulk, 64);
    for given_up in 0..MAX_OUTSTANDING as u64 {
        let id = read(&mut steps);
        steps.send(5, UrbKind::Unlink { id }, TransferType::Bulk, 0);
        // After the SET_ADDRESS.
        steps.serving.give_up(port(), given_up + 2);
        assert_eq!(steps.response().map(|r| r.id), Some(id));
        assert_eq!(steps.response().map(|r| r.id), Some(id + 1));
    }
    let (first, second) = (read(&mut steps), read(&mut steps));
    assert_eq!(steps.response(), None);
    // One that waits is unlinked at once.
    let third = read(&mut steps);
    steps.send(5, UrbKind::Unlink { id: third }, TransferType::Bulk, 0);
    assert_eq!(steps.response().map(|r| r.id), Some(third));
    assert_eq!(steps.response().map(|r| r.id), Some(third + 1));
    let received = server.resume(1).unwrap();
    steps.serving.resumed(port(), received).unwrap();
    let sent = steps.carry_out(&mut server, true);
    assert_eq!(
        sent.iter().filter(|s| **s == "submit").count(),
        MAX_OUTSTANDING
    );
    assert_eq!(steps.carry_out(&mut server, true), ["submit", "submit"]);
    assert_eq!(steps.response().map(|r| r.id), Some(first));
    assert_eq!(steps.response().map(|r| r.id), Some(second));
}

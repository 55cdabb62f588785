// SPDX-License-Identifier: GPL-3.0-or-later
//! The two ends against each other, over a connection that is cut anywhere.

use std::collections::BTreeMap;
use std::convert::Infallible;

use proptest::prelude::*;

use super::*;
use crate::client::{self, Client};
use crate::frame::{MAX_COOKIE_LEN, Transfer, TransferStatus, TransferType};

fn bulk(is_in: bool, length: u32) -> Transfer {
    Transfer {
        transfer_type: TransferType::Bulk,
        endpoint: if is_in { 0x81 } else { 0x02 },
        flags: 0,
        length,
        interval: 0,
        setup: [0; 8],
    }
}

/// Data that belongs to one request of one epoch.
fn pattern(epoch: Epoch, request: u64, length: u32) -> Vec<u8> {
    let seed = epoch.0.wrapping_mul(31).wrapping_add(request) as u8;
    (0..length).map(|i| seed.wrapping_add(i as u8)).collect()
}

/// What became of a request.
#[derive(Debug, Default)]
struct Fate {
    transfer: Option<Transfer>,
    executed: usize,
    answered: usize,
}

/// A backend, an exporter, and the bytes between them.
struct World {
    client: Client,
    server: Server,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
    /// By the device, in the order in which the server handed them out.
    running: Vec<(Epoch, u64)>,
    fates: BTreeMap<(Epoch, u64), Fate>,
    last_executed: (Epoch, u64),
}

impl World {
    fn new() -> Self {
        let mut server = Server::new(Epoch(1));
        server.claim(Epoch(2));
        Self {
            client: Client::new(Epoch(2)),
            server,
            to_server: Vec::new(),
            to_client: Vec::new(),
            running: Vec::new(),
            fates: BTreeMap::new(),
            last_executed: (Epoch(0), 0),
        }
    }

    fn submit(&mut self, is_in: bool, length: u32) {
        if !self.client.has_room() {
            return;
        }
        let transfer = bulk(is_in, length);
        let epoch = self.client.epoch();
        let next = self.fates.keys().filter(|k| k.0 == epoch).count() as u64 + 1;
        let body = Self::body(epoch, next, &transfer);
        let fill = |out: &mut Vec<u8>| -> Result<(), Infallible> {
            out.extend_from_slice(&body);
            Ok(())
        };
        let Ok(request) = self.client.submit(&transfer, fill);
        assert_eq!(request, next);
        self.fates.entry((epoch, request)).or_default().transfer = Some(transfer);
        self.flush_client();
    }

    fn body(epoch: Epoch, request: u64, transfer: &Transfer) -> Vec<u8> {
        match transfer.is_in() {
            true => Vec::new(),
            false => pattern(epoch, request, transfer.length),
        }
    }

    fn flush_client(&mut self) {
        self.to_server.append(self.client.output());
    }

    /// Some bytes reach the server, which executes what they ask for.
    fn deliver_to_server(&mut self, len: usize) {
        let available = len.min(self.to_server.len());
        let mut taken = 0;
        while let Some((event, len)) = self
            .server
            .next_event(&self.to_server[taken..available])
            .unwrap()
        {
            taken += len;
            let epoch = self.server.epoch();
            match event {
                Event::Submit {
                    request,
                    transfer,
                    body,
                } => {
                    assert!((epoch, request) > self.last_executed);
                    self.last_executed = (epoch, request);
                    let fate = self.fates.get_mut(&(epoch, request)).unwrap();
                    fate.executed += 1;
                    assert_eq!(fate.transfer, Some(transfer));
                    assert_eq!(body, Self::body(epoch, request, &transfer));
                    self.running.push((epoch, request));
                }
                Event::Cancel { request } => {
                    self.complete_one(epoch, request, TransferStatus::Cancelled)
                }
                Event::Handled => (),
                other => panic!("{other:?} was not sent"),
            }
        }
        self.to_server.drain(..taken);
    }

    fn complete_one(&mut self, epoch: Epoch, request: u64, status: TransferStatus) {
        let at = self
            .running
            .iter()
            .position(|r| *r == (epoch, request))
            .unwrap();
        self.running.remove(at);
        let transfer = self.fates[&(epoch, request)].transfer.unwrap();
        let wanted = self.server.complete(
            epoch,
            request,
            Outcome::new(status, transfer.length),
            |out| {
                if transfer.is_in() {
                    out.extend(pattern(epoch, request, transfer.length));
                }
            },
        );
        assert_eq!(wanted, epoch == self.server.epoch());
    }

    fn complete(&mut self, which: usize) {
        if !self.running.is_empty() {
            let (epoch, request) = self.running[which % self.running.len()];
            self.complete_one(epoch, request, TransferStatus::Completed);
        }
    }

    fn cancel(&mut self, which: usize) {
        let epoch = self.client.epoch();
        let requests: Vec<_> = self.fates.keys().filter(|k| k.0 == epoch).collect();
        if !requests.is_empty() {
            let (_, request) = *requests[which % requests.len()];
            self.client.cancel(request);
            self.flush_client();
        }
    }

    /// The server's task writes some of its output, and some of what is on the way arrives.
    fn deliver_to_client(&mut self, len: usize) {
        let sent = len.min(self.server.output().len());
        self.to_client
            .extend_from_slice(&self.server.output()[..sent]);
        self.server.sent(sent);
        let mut taken = 0;
        while let Some((event, len)) = self.client.next_event(&self.to_client[taken..]).unwrap() {
            taken += len;
            match event {
                client::Event::Completed { completion, body } => {
                    let epoch = self.client.epoch();
                    let fate = self.fates.get_mut(&(epoch, completion.request)).unwrap();
                    fate.answered += 1;
                    let transfer = fate.transfer.unwrap();
                    assert_eq!(completion.actual_length, transfer.length);
                    match transfer.is_in() {
                        true => {
                            assert_eq!(body, pattern(epoch, completion.request, transfer.length))
                        }
                        false => assert!(body.is_empty()),
                    }
                }
                other => panic!("{other:?} was not sent"),
            }
        }
        self.to_client.drain(..taken);
        self.client.acknowledge();
        self.flush_client();
    }

    /// Everything on the way is lost, and the backend resumes.
    fn cut(&mut self, noticed: bool) {
        self.to_server.clear();
        self.to_client.clear();
        if noticed {
            self.server.disconnected();
            assert!(self.server.output().is_empty());
        }
        self.client.lost();
        let crate::open::How::Resume {
            epoch,
            completions_received,
        } = self.client.resume()
        else {
            panic!("a lost client resumes");
        };
        assert_eq!(epoch, self.server.epoch());
        let received = self.server.resume(completions_received).unwrap();
        self.client.resumed(received).unwrap();
        let again: Vec<_> = self.client.unsent(received).collect();
        for request in again {
            let transfer = self.fates[&(epoch, request)].transfer.unwrap();
            let body = Self::body(epoch, request, &transfer);
            let fill = |out: &mut Vec<u8>| -> Result<(), Infallible> {
                out.extend_from_slice(&body);
                Ok(())
            };
            let Ok(()) = self.client.resend(request, &transfer, fill);
        }
        self.client.resend_cancels();
        self.flush_client();
    }

    /// Another backend takes over. The old one is told, wherever its stream was cut.
    fn claim(&mut self, delivered: bool) {
        let epoch = Epoch(self.server.epoch().0 + 1);
        let farewell = self.server.claim(epoch);
        if delivered {
            self.to_client.extend_from_slice(&farewell);
            let mut rest = self.to_client.as_slice();
            let mut fenced = false;
            while let Some((event, len)) = self.client.next_event(rest).unwrap() {
                assert!(!fenced, "something follows the fence");
                fenced = event == client::Event::Fenced;
                rest = &rest[len..];
            }
            assert!(fenced && rest.is_empty());
        }
        self.to_server.clear();
        self.to_client.clear();
        self.client = Client::new(epoch);
    }

    /// Everything arrives and ends. Then every request of the last epoch was executed once and
    /// answered once, and those of older ones at most once.
    fn finish(mut self) {
        while self.client.outstanding() > 0 {
            self.deliver_to_server(usize::MAX);
            while !self.running.is_empty() {
                self.complete(0);
            }
            self.deliver_to_client(usize::MAX);
        }
        self.deliver_to_server(usize::MAX);
        assert_eq!(self.server.log.kept(), 0, "acknowledged, and still kept");
        for ((epoch, request), fate) in &self.fates {
            assert!(
                fate.executed <= 1 && fate.answered <= fate.executed,
                "{epoch} {request}: {fate:?}"
            );
            if *epoch == self.server.epoch() {
                assert!(
                    fate.executed == 1 && fate.answered == 1,
                    "{epoch} {request}: {fate:?}"
                );
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Submit { is_in: bool, length: u32 },
    Cancel(usize),
    Complete(usize),
    ToServer(usize),
    ToClient(usize),
    Cut { noticed: bool },
    Claim { delivered: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (any::<bool>(), 0..200_u32).prop_map(|(is_in, length)| Step::Submit { is_in, length }),
        1 => any::<usize>().prop_map(Step::Cancel),
        4 => any::<usize>().prop_map(Step::Complete),
        4 => (0..400_usize).prop_map(Step::ToServer),
        4 => (0..400_usize).prop_map(Step::ToClient),
        1 => any::<bool>().prop_map(|noticed| Step::Cut { noticed }),
        1 => any::<bool>().prop_map(|delivered| Step::Claim { delivered }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn every_request_is_executed_once_and_answered_once(steps in prop::collection::vec(step(), 0..200)) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Submit { is_in, length } => world.submit(is_in, length),
                Step::Cancel(which) => world.cancel(which),
                Step::Complete(which) => world.complete(which),
                Step::ToServer(len) => world.deliver_to_server(len),
                Step::ToClient(len) => world.deliver_to_client(len),
                Step::Cut { noticed } => world.cut(noticed),
                Step::Claim { delivered } => world.claim(delivered),
            }
        }
        world.finish();
    }

    #[test]
    fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..400), kind in 0..16_u8) {
        let mut bytes = bytes;
        if let Some(k) = bytes.get_mut(4) {
            *k = kind;
        }
        let mut server = Server::new(Epoch(1));
        server.claim(Epoch(2));
        let mut taken = 0;
        while let Ok(Some((_, len))) = server.next_event(&bytes[taken..]) {
            taken += len;
        }
        prop_assert!(server.executing() <= MAX_OPEN);
    }
}

fn connected() -> Server {
    let mut server = Server::new(Epoch(1));
    server.claim(Epoch(2));
    server
}

fn submit(request: u64, ack: u64, length: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode_submit(&mut bytes, request, ack, &bulk(true, length));
    bytes
}

fn plain(kind: Kind, request: u64, ack: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode_plain(&mut bytes, kind, request, ack, body);
    bytes
}

/// What the server has against a frame.
fn refusal(server: &mut Server, frame: &[u8]) -> Option<ServerError> {
    server.next_event(frame).err()
}

fn complete(server: &mut Server, request: u64, data: &[u8]) {
    let outcome = Outcome::new(TransferStatus::Completed, data.len() as u32);
    let epoch = server.epoch();
    assert!(server.complete(epoch, request, outcome, |out| out.extend_from_slice(data)));
}

#[test]
fn one_who_never_acknowledges_is_stopped() {
    let mut server = connected();
    for request in 1..=MAX_OPEN as u64 {
        server.next_event(&submit(request, 0, 4)).unwrap();
        complete(&mut server, request, b"data");
    }
    let next = MAX_OPEN as u64 + 1;
    let refused = refusal(&mut server, &submit(next, 0, 4));
    assert_eq!(refused, Some(ServerError::TooManyRequests));
    // Once it acknowledges, there is room.
    let len = server.output().len();
    server.sent(len);
    assert!(server.next_event(&submit(next, 1, 4)).is_ok());
}

#[test]
fn one_who_pings_without_listening_is_stopped() {
    let mut server = connected();
    let ping = plain(Kind::Ping, 0, 0, &[]);
    for _ in 0..MAX_OPEN {
        assert_eq!(
            server.next_event(&ping).unwrap(),
            Some((Event::Handled, HEADER_LEN))
        );
    }
    assert_eq!(server.next_event(&ping), Err(ServerError::Flood));
}

#[test]
fn numbers_that_are_not_due_are_refused() {
    let mut server = connected();
    let refused = refusal(&mut server, &submit(2, 0, 4));
    assert_eq!(
        refused,
        Some(ServerError::RequestNumber {
            got: 2,
            expected: 1
        })
    );
    server.next_event(&submit(1, 0, 4)).unwrap();
    let refused = refusal(&mut server, &submit(1, 0, 4));
    assert_eq!(
        refused,
        Some(ServerError::RequestNumber {
            got: 1,
            expected: 2
        })
    );
    // Acknowledging what was completed but not sent.
    complete(&mut server, 1, b"data");
    let refused = refusal(&mut server, &plain(Kind::Ack, 0, 1, &[]));
    assert_eq!(refused, Some(ServerError::Acknowledged { got: 1, last: 0 }));
}

#[test]
fn a_resume_with_impossible_numbers_is_refused() {
    let mut server = connected();
    server.next_event(&submit(1, 0, 4)).unwrap();
    complete(&mut server, 1, b"data");
    let len = server.output().len();
    server.sent(len);
    server.next_event(&plain(Kind::Ack, 0, 1, &[])).unwrap();
    assert_eq!(
        server.resume(2),
        Err(ServerError::Acknowledged { got: 2, last: 1 })
    );
    assert_eq!(
        server.resume(0),
        Err(ServerError::Forgotten {
            got: 0,
            acknowledged: 1
        })
    );
    assert!(!server.is_connected());
    assert_eq!(server.resume(1), Ok(1));
    assert!(server.is_connected());
}

#[test]
fn an_exporters_frames_are_refused() {
    for kind in [Kind::Gone, Kind::Fenced] {
        let refused = refusal(&mut connected(), &plain(kind, 0, 0, &[]));
        assert_eq!(refused, Some(ServerError::Direction));
    }
}

#[test]
fn what_is_said_about_the_guest_comes_out() {
    let mut server = connected();
    let cookie = [7; MAX_COOKIE_LEN];
    for (frame, event) in [
        (plain(Kind::Cookie, 0, 0, &cookie), Event::Cookie(&cookie)),
        (plain(Kind::Freeze, 0, 0, &[]), Event::Freeze),
        (plain(Kind::Thaw, 0, 0, &[]), Event::Thaw),
        (plain(Kind::Orphan, 0, 0, &[]), Event::Orphan),
        (
            plain(Kind::ResumeYes, 0, 0, &[]),
            Event::FrontendResumes(true),
        ),
        (
            plain(Kind::ResumeNo, 0, 0, &[]),
            Event::FrontendResumes(false),
        ),
        (plain(Kind::Cancel, 9, 0, &[]), Event::Handled),
    ] {
        assert_eq!(
            server.next_event(&frame).unwrap(),
            Some((event, frame.len()))
        );
    }
}

#[test]
fn an_address_is_not_for_the_device() {
    let mut server = connected();
    let mut bytes = plain(Kind::Cookie, 0, 0, b"address 5");
    let transfer = Transfer {
        transfer_type: TransferType::Control,
        endpoint: 0,
        flags: 0,
        length: 0,
        interval: 0,
        setup: [0, 5, 5, 0, 0, 0, 0, 0],
    };
    frame::encode_submit(&mut bytes, 1, 0, &transfer);
    let (event, len) = server.next_event(&bytes).unwrap().unwrap();
    assert_eq!(event, Event::Cookie(b"address 5"));
    let (event, _) = server.next_event(&bytes[len..]).unwrap().unwrap();
    assert_eq!(event, Event::Save { request: 1 });
    // It counts like any other, and is answered once.
    assert_eq!(server.executing(), 1);
    complete(&mut server, 1, b"");
    assert_eq!(server.executing(), 0);
    // A class's request of this number is the device's.
    let class = Transfer {
        setup: [0x21, 5, 5, 0, 0, 0, 0, 0],
        ..transfer
    };
    bytes.clear();
    frame::encode_submit(&mut bytes, 2, 0, &class);
    let (event, _) = server.next_event(&bytes).unwrap().unwrap();
    assert!(matches!(event, Event::Submit { request: 2, .. }));
}

#[test]
fn a_device_that_babbles_does_not_break_the_connection() {
    let mut server = connected();
    server.next_event(&submit(1, 0, 4)).unwrap();
    let outcome = Outcome::new(TransferStatus::Overflow, 9);
    server.complete(Epoch(2), 1, outcome, |out| {
        out.extend_from_slice(b"too much!")
    });
    let (header, body) = frame::decode(server.output()).unwrap().unwrap();
    let Header::Complete(completion) = header else {
        panic!("{header:?}");
    };
    assert_eq!((completion.actual_length, body), (4, &b"too "[..]));
}

#[test]
fn long_runs_keep_the_log_short() {
    let mut server = connected();
    let data = vec![5; 65_536];
    // The client is always one completion behind, so that the log never becomes empty.
    for request in 1..=1000 {
        let ack = request - 1;
        server
            .next_event(&submit(request, ack.saturating_sub(1), 65_536))
            .unwrap();
        complete(&mut server, request, &data);
        let len = server.output().len();
        server.sent(len);
    }
    assert_eq!(server.log.kept(), 2);
    assert!(
        server.log.capacity() < 2 * 1024 * 1024,
        "{}",
        server.log.capacity()
    );
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! A guest reads numbered reports, is suspended, goes on or moves, over a connection with delays.

use std::collections::VecDeque;
use std::convert::Infallible;

use proptest::prelude::*;

use super::*;
use crate::Epoch;
use crate::client::{self, Client};
use crate::open::How;
use crate::server::Event;

const IN: u8 = 0x81;
const LENGTH: u32 = 8;

fn read(transfer_type: TransferType) -> Transfer {
    Transfer {
        transfer_type,
        endpoint: IN,
        flags: 0,
        length: LENGTH,
        interval: 8,
        setup: [0; 8],
    }
}

fn control(setup: [u8; 8]) -> Transfer {
    Transfer {
        transfer_type: TransferType::Control,
        endpoint: 0,
        length: 0,
        setup,
        ..read(TransferType::Control)
    }
}

struct World {
    transfer_type: TransferType,
    /// Bytes of a report: a number, and zeros. As long as a transfer, or shorter.
    report_len: usize,
    /// The guest uses what its recalled requests bring.
    recalls: bool,
    client: Client,
    server: Server,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
    /// What the device has, oldest first.
    device: VecDeque<(Epoch, u64)>,
    /// Numbers of control requests, which bring no report.
    controls: Vec<u64>,
    /// The next report.
    next: u32,
    /// The reports that the guest has read.
    read: Vec<u32>,
    /// Whether the device answers a cancellation with data, in turns.
    races: VecDeque<bool>,
}

impl World {
    fn new(transfer_type: TransferType) -> Self {
        let mut server = Server::new(Epoch(1));
        server.claim(Epoch(2));
        Self {
            transfer_type,
            report_len: 4,
            recalls: false,
            client: Client::new(Epoch(2)),
            server,
            to_server: Vec::new(),
            to_client: Vec::new(),
            device: VecDeque::new(),
            controls: Vec::new(),
            next: 0,
            read: Vec::new(),
            races: VecDeque::new(),
        }
    }

    fn submit(&mut self) {
        if self.client.outstanding() < 8 {
            let transfer = read(self.transfer_type);
            let Ok(_) = self.client.submit(&transfer, |_| Ok::<_, Infallible>(()));
        }
    }

    /// The device has a report for the oldest transfer.
    fn report(&mut self) {
        if let Some((epoch, request)) = self.device.pop_front() {
            self.complete(epoch, request, true);
        }
    }

    fn complete(&mut self, epoch: Epoch, request: u64, with_report: bool) {
        let status = match with_report {
            true => TransferStatus::Completed,
            false => TransferStatus::Cancelled,
        };
        let mut data = self.next.to_le_bytes().to_vec();
        data.resize(self.report_len, 0);
        let actual_length = data.len() as u32;
        let wanted = self.server.try_complete(epoch, request, |out| {
            if with_report {
                out.extend_from_slice(&data);
            }
            Some(Outcome::new(
                status,
                if with_report { actual_length } else { 0 },
            ))
        });
        assert!(wanted, "a transfer that nobody waits for");
        self.next += u32::from(with_report);
        self.carry_out();
    }

    fn cancel(&mut self, request: u64) {
        let Some(at) = self.device.iter().position(|t| t.1 == request) else {
            return;
        };
        // A device has data for its oldest transfer only.
        let race = at == 0 && self.races.pop_front().unwrap_or(false);
        if let Some((epoch, request)) = self.device.remove(at) {
            self.complete(epoch, request, race);
        }
    }

    fn carry_out(&mut self) {
        while let Some(order) = self.server.next_order() {
            match order {
                Order::Submit { request, transfer } => {
                    assert!(transfer.is_stream());
                    self.device.push_back((self.server.epoch(), request));
                }
                Order::Cancel { request } => self.cancel(request),
            }
        }
    }

    /// Some bytes arrive at the exporter.
    fn feed_server(&mut self, len: usize) {
        self.to_server.append(self.client.output());
        let input: Vec<u8> = self.to_server.clone();
        let end = len.min(input.len());
        let mut taken = 0;
        loop {
            let next = self.server.next_event(&input[taken..end]).unwrap();
            let Some((event, len)) = next else { break };
            taken += len;
            match event {
                Event::Submit {
                    request, transfer, ..
                } if transfer.is_stream() => {
                    let epoch = self.server.epoch();
                    self.device.push_back((epoch, request));
                }
                Event::Submit { request, .. } => {
                    self.controls.push(request);
                    let done = Outcome::new(TransferStatus::Completed, 0);
                    let epoch = self.server.epoch();
                    assert!(self.server.complete(epoch, request, done, |_| ()));
                }
                Event::Cancel { request } => self.cancel(request),
                Event::Keep { request } => self.server.keep(request, Some(8)),
                Event::Recall { request } => self.server.recall(request, Some(8)),
                Event::Handled => (),
                other => panic!("{other:?}"),
            }
            self.carry_out();
        }
        self.to_server.drain(..taken);
    }

    /// Some bytes arrive at the backend.
    fn feed_client(&mut self, len: usize) {
        let output = self.server.output().to_vec();
        self.server.sent(output.len());
        self.to_client.extend(output);
        let end = len.min(self.to_client.len());
        let mut taken = 0;
        while let Some((event, len)) = self.client.next_event(&self.to_client[taken..end]).unwrap()
        {
            taken += len;
            let client::Event::Completed { completion, body } = event else {
                panic!("{event:?}");
            };
            if completion.status.is_success() && !self.controls.contains(&completion.request) {
                assert_eq!(body.len(), self.report_len);
                let number = body.first_chunk().expect("reports have a number");
                self.read.push(u32::from_le_bytes(*number));
            }
            assert_eq!(completion.actual_length as usize, body.len());
        }
        self.to_client.drain(..taken);
    }

    fn settle(&mut self) {
        for _ in 0..4 {
            self.feed_server(usize::MAX);
            self.feed_client(usize::MAX);
        }
    }

    /// The guest takes everything back, the last first, and waits for it. The connection may break
    /// when this many bytes of that have arrived.
    fn suspend(&mut self, break_after: Option<usize>) {
        let outstanding: Vec<u64> = self.client.unsent(0).collect();
        for request in outstanding.into_iter().rev() {
            match self.recalls {
                true => self.client.recall(request),
                false => self.client.keep(request),
            }
        }
        if let Some(len) = break_after {
            self.feed_server(len);
            self.cut();
        }
        self.settle();
        assert_eq!(self.client.outstanding(), 0);
        self.client.acknowledge();
        self.settle();
    }

    fn claim(&mut self) {
        let epoch = Epoch(self.server.epoch().0 + 1);
        let abandoned: Vec<u64> = self.server.at_device().collect();
        self.server.claim(epoch);
        self.device.retain(|t| !abandoned.contains(&t.1));
        self.carry_out();
        self.client = Client::new(epoch);
        self.controls.clear();
        self.to_server.clear();
        self.to_client.clear();
    }

    /// The connection breaks, and whatever was on its way is gone.
    fn cut(&mut self) {
        self.client.lost();
        self.to_server.clear();
        self.to_client.clear();
        let How::Resume {
            completions_received,
            ..
        } = self.client.resume()
        else {
            panic!("a claim");
        };
        let received = self.server.resume(completions_received).unwrap();
        self.client.resumed(received).unwrap();
        let unsent: Vec<u64> = self.client.unsent(received).collect();
        for request in unsent {
            let transfer = read(self.transfer_type);
            let Ok(()) = self
                .client
                .resend(request, &transfer, |_| Ok::<_, Infallible>(()));
        }
        self.client.resend_cancels();
    }

    /// Reads until every report was read.
    fn read_all(&mut self) {
        for _ in 0..self.next + 64 {
            if self.read.len() as u32 == self.next {
                break;
            }
            self.submit();
            self.settle();
        }
    }

    fn assert_in_order(&self) {
        let all: Vec<u32> = (0..self.next).collect();
        assert_eq!(self.read, all);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Submit,
    Report,
    ToServer(usize),
    ToClient(usize),
    Cut,
    /// And what happens meanwhile: reports, whether the guest moves.
    Suspend {
        break_after: Option<usize>,
        reports: usize,
        cut: bool,
        moves: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Submit),
        4 => Just(Step::Report),
        3 => (1_usize..200).prop_map(Step::ToServer),
        3 => (1_usize..200).prop_map(Step::ToClient),
        1 => Just(Step::Cut),
        2 => (
            prop::option::of(0_usize..400),
            0_usize..4,
            any::<bool>(),
            any::<bool>(),
        )
            .prop_map(|(break_after, reports, cut, moves)| Step::Suspend {
                break_after,
                reports,
                cut,
                moves,
            }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whenever the guest is suspended, wherever it goes on: it reads every report, once, in order.
    #[test]
    fn every_report_arrives_once_and_in_order(
        kind in 0..3,
        full in any::<bool>(),
        races in prop::collection::vec(any::<bool>(), 0..40),
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let transfer_type = match kind {
            0 => TransferType::Bulk,
            _ => TransferType::Interrupt,
        };
        let mut world = World::new(transfer_type);
        world.recalls = kind == 2;
        world.races = races.into();
        world.report_len = if full { LENGTH as usize } else { 4 };
        for step in steps {
            match step {
                Step::Submit => world.submit(),
                Step::Report => world.report(),
                Step::ToServer(len) => world.feed_server(len),
                Step::ToClient(len) => world.feed_client(len),
                Step::Cut => world.cut(),
                Step::Suspend { break_after, reports, cut, moves } => {
                    world.suspend(break_after);
                    for _ in 0..reports {
                        world.report();
                    }
                    if cut {
                        world.cut();
                    }
                    if moves {
                        world.claim();
                    }
                }
            }
        }
        world.settle();
        world.read_all();
        world.assert_in_order();
    }
}

/// A guest with two reads at the device is suspended, and three reports come in the blackout.
fn away() -> World {
    let mut world = World::new(TransferType::Interrupt);
    world.submit();
    world.submit();
    world.settle();
    world.suspend(None);
    for _ in 0..3 {
        world.report();
    }
    assert_eq!(world.next, 3, "the endpoint is polled");
    assert_eq!(world.server.stash_counters().kept, 3);
    world
}

#[test]
fn a_guest_that_was_away_reads_what_it_missed() {
    let mut world = away();
    world.claim();
    world.read_all();
    world.assert_in_order();
    assert_eq!(world.server.stash_counters().delivered, 3);
    // It reads on, and nobody polls for it.
    world.submit();
    world.settle();
    assert_eq!(world.device.len(), 1);
    assert!(!world.server.is_away());
}

#[test]
fn a_report_that_fills_its_transfer_is_followed_by_nothing() {
    let mut world = World::new(TransferType::Interrupt);
    world.report_len = LENGTH as usize;
    world.submit();
    world.settle();
    world.suspend(None);
    // It comes when the guest is back and the poll is being cancelled.
    world.races = [true].into();
    world.submit();
    world.settle();
    world.submit();
    world.settle();
    assert_eq!((world.read.len(), world.device.len()), (1, 1));
}

#[test]
fn a_bulk_endpoint_is_not_polled() {
    let mut world = World::new(TransferType::Bulk);
    world.submit();
    world.settle();
    world.suspend(None);
    assert!(world.device.is_empty());
    assert!(!world.server.is_away());
}

#[test]
fn without_a_suspend_a_cancelled_transfer_takes_its_data_along() {
    let mut world = World::new(TransferType::Interrupt);
    world.submit();
    world.settle();
    let request = world.client.unsent(0).next().unwrap();
    world.client.cancel(request);
    world.races.push_back(true);
    world.settle();
    assert_eq!(world.read, [0], "the data is the backend's to judge");
    assert!(world.device.is_empty());
    assert_eq!(world.server.stash_counters(), StashCounters::default());
}

#[test]
fn a_transfer_that_crossed_its_cancellation_is_kept() {
    let mut world = World::new(TransferType::Interrupt);
    world.client.hold_acknowledgements(true);
    world.submit();
    world.settle();
    let request = world.client.unsent(0).next().unwrap();
    world.report();
    world.settle();
    // The guest has taken it back before it saw the answer, and threw its data away.
    assert_eq!(world.read.pop(), Some(0));
    world.client.keep_completed(request);
    world.settle();
    world.report();
    world.client.hold_acknowledgements(false);
    world.read_all();
    world.assert_in_order();
}

#[test]
fn an_order_that_is_wrong_is_worse_than_a_gap() {
    let mut world = World::new(TransferType::Bulk);
    world.client.hold_acknowledgements(true);
    world.submit();
    world.submit();
    world.settle();
    let first = world.client.unsent(0).next().unwrap();
    world.report();
    world.report();
    world.settle();
    assert_eq!(world.read, [0, 1]);
    world.client.keep_completed(first);
    world.settle();
    let counters = world.server.stash_counters();
    assert_eq!((counters.kept, counters.overflowed), (0, 1));
}

#[test]
fn what_a_reset_device_sent_before_is_forgotten() {
    let setups = [[0x00, 9, 1, 0, 0, 0, 0, 0], [0x02, 1, 0, 0, IN, 0, 0, 0]];
    for setup in setups {
        let mut world = away();
        world.claim();
        let Ok(_) = world
            .client
            .submit(&control(setup), |_| Ok::<_, Infallible>(()));
        world.settle();
        assert!(world.device.is_empty(), "still polled after {setup:?}");
        world.submit();
        world.settle();
        assert!(world.read.is_empty());
        world.report();
        world.settle();
        assert_eq!(world.read, [3]);
        let counters = world.server.stash_counters();
        assert_eq!((counters.delivered, counters.discarded), (0, 3));
    }
}

#[test]
fn other_requests_and_other_endpoints_forget_nothing() {
    let setups = [
        [0x80, 6, 0, 1, 0, 0, 18, 0],
        [0x02, 1, 0, 0, 0x82, 0, 0, 0],
        [0x02, 1, 1, 0, IN, 0, 0, 0],
        [0x21, 9, 0, 2, 0, 0, 0, 0],
    ];
    let mut world = away();
    world.claim();
    for setup in setups {
        let Ok(_) = world
            .client
            .submit(&control(setup), |_| Ok::<_, Infallible>(()));
    }
    world.read_all();
    world.assert_in_order();
}

#[test]
fn a_new_lease_starts_with_nothing() {
    let mut world = away();
    world.server.abort(TransferStatus::NoDevice);
    assert!(!world.server.is_away());
    assert_eq!(world.server.stash_counters().discarded, 3);
}

#[test]
fn a_device_that_halts_the_endpoint_is_polled_no_more() {
    let mut world = away();
    let (epoch, request) = world.device.pop_front().unwrap();
    let stall = Outcome::new(TransferStatus::Stall, 0);
    assert!(world.server.complete(epoch, request, stall, |_| ()));
    world.carry_out();
    assert!(world.device.is_empty());
    world.read_all();
    world.assert_in_order();
}

#[test]
fn a_beginning_goes_on_at_the_device() {
    let mut world = World::new(TransferType::Bulk);
    let long = Transfer {
        length: 64,
        ..read(TransferType::Bulk)
    };
    let Ok(request) = world.client.submit(&long, |_| Ok::<_, Infallible>(()));
    world.settle();
    world.client.keep(request);
    world.feed_server(0);
    let mut frames = std::mem::take(&mut world.to_server);
    frames.append(world.client.output());
    while let Some((event, len)) = world.server.next_event(&frames).unwrap() {
        assert!(matches!(event, Event::Keep { .. }));
        frames.drain(..len);
    }
    world.server.keep(request, Some(8));
    assert_eq!(world.server.next_order(), Some(Order::Cancel { request }));
    // Two packets had come.
    let cancelled = Outcome::new(TransferStatus::Cancelled, 16);
    let epoch = world.server.epoch();
    world
        .server
        .complete(epoch, request, cancelled, |out| out.extend([1; 16]));
    let Ok(request) = world.client.submit(&long, |_| Ok::<_, Infallible>(()));
    let mut frames = std::mem::take(world.client.output());
    while let Some((_, len)) = world.server.next_event(&frames).unwrap() {
        frames.drain(..len);
    }
    let Some(Order::Submit { transfer, .. }) = world.server.next_order() else {
        panic!("the rest is to be had from the device");
    };
    assert_eq!(transfer.length, 48);
    let done = Outcome::new(TransferStatus::Completed, 4);
    world
        .server
        .complete(epoch, request, done, |out| out.extend([2; 4]));
    let output = world.server.output().to_vec();
    let mut at = 0;
    let mut bodies = Vec::new();
    while let Some((event, len)) = world.client.next_event(&output[at..]).unwrap() {
        let client::Event::Completed { completion, body } = event else {
            panic!("{event:?}");
        };
        bodies.push((completion.status, body.to_vec()));
        at += len;
    }
    let whole = [vec![1; 16], vec![2; 4]].concat();
    assert_eq!(
        bodies,
        [
            (TransferStatus::Cancelled, vec![]),
            (TransferStatus::Completed, whole)
        ]
    );
    assert!(!world.server.is_away());
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! A lent device whose thread is in the test's hands: it does nothing until it is told to run.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use session::frame::{self, Header};
use session::server::Event;
use usbfs::{Kernel, Memory, Operator, Ready, Refused, Worker};

use super::*;

const EPOCH: Epoch = Epoch(7);

/// Takes everything, and ends it at once.
#[derive(Default)]
struct Prompt(VecDeque<Urb>);

impl Kernel for Prompt {
    fn submit(&mut self, mut urb: Urb) -> Result<(), Refused> {
        urb.begin_piece(self.max_bulk());
        urb.finish_piece(0, 0);
        self.0.push_back(urb);
        Ok(())
    }

    fn discard(&mut self, _context: u64) {}

    fn reap(&mut self) -> Option<Urb> {
        self.0.pop_front()
    }

    fn wait(&mut self, _wake: BorrowedFd<'_>, _watch: bool, _timeout: Option<Duration>) -> Ready {
        std::thread::sleep(Duration::from_millis(1));
        Ready {
            woken: true,
            ..Ready::default()
        }
    }

    fn max_bulk(&self) -> usize {
        usize::MAX
    }
}

/// Carries everything out.
struct Obedient;

impl Operator<Prompt> for Obedient {
    type Operation = Operation;
    type Outcome = TransferStatus;

    fn operate(&mut self, _kernel: &mut Prompt, _operation: Operation) -> TransferStatus {
        TransferStatus::Completed
    }

    fn gone(&self) -> TransferStatus {
        TransferStatus::NoDevice
    }
}

struct Bench {
    server: Server,
    open: Open,
    worker: Option<Worker<Prompt, Obedient>>,
    sent: u64,
}

impl Bench {
    /// At high speed, or, where `presented`, at SuperSpeed.
    fn new(presented: bool) -> Self {
        let shared = Arc::new(Shared::default());
        let memory = Memory::new(None);
        let made = Worker::new(Prompt::default(), Obedient, &memory, shared.sink());
        let (handle, worker) = made.unwrap();
        let mut raw = vec![0; 18];
        raw[17] = 1;
        raw.extend([9, 2, 25, 0, 1, 1, 0, 0, 0]);
        raw.extend([9, 4, 0, 1, 1, 0xff, 0, 0, 0]);
        raw.extend([7, 5, 0x81, 2, 0, 2, 0]);
        let mut server = Server::new(Epoch(1));
        server.claim(EPOCH);
        Self {
            server,
            open: Open::new(Opened {
                handle,
                shared,
                configurations: Arc::new(Configurations::new(&raw)),
                configuration: 1,
                descriptors: None,
                bulk_only: presented.then_some(0),
                note: None,
            }),
            worker: Some(worker),
            sent: 0,
        }
    }

    fn submit(&mut self, transfer: Transfer) -> u64 {
        self.sent += 1;
        let mut frame = Vec::new();
        frame::encode_submit(&mut frame, self.sent, 0, &transfer);
        frame.resize(frame.len() + transfer.submit_body_len(), 0);
        match self.server.next_event(&frame).unwrap() {
            Some((
                Event::Submit {
                    request, transfer, ..
                },
                _,
            )) => {
                let body = vec![0; transfer.submit_body_len()];
                self.open
                    .submit(&mut self.server, request, &transfer, &body);
            }
            other => panic!("{other:?}"),
        }
        self.sent
    }

    fn reset(&mut self) -> u64 {
        self.sent += 1;
        let mut frame = Vec::new();
        frame::encode_plain(&mut frame, frame::Kind::Reset, self.sent, 0, &[]);
        self.server.next_event(&frame).unwrap();
        self.open.reset(&mut self.server, self.sent);
        self.sent
    }

    /// What is over by now.
    fn over(&mut self) -> Vec<(u64, TransferStatus)> {
        self.open.drain(&mut self.server);
        self.open.flush();
        let output = self.server.output().to_vec();
        self.server.sent(output.len());
        let mut rest = &output[..];
        let mut over = Vec::new();
        while let Some((header, body)) = frame::decode(rest).unwrap() {
            if let Header::Complete(completion) = header {
                over.push((completion.request, completion.status));
            }
            rest = &rest[frame::HEADER_LEN + body.len()..];
        }
        over
    }

    /// Lets the thread run until `count` are over.
    fn run_until(&mut self, count: usize) -> Vec<(u64, TransferStatus)> {
        let worker = self.worker.take().unwrap();
        std::thread::spawn(move || {
            worker.run();
        });
        let mut over = Vec::new();
        let start = Instant::now();
        while over.len() < count {
            assert!(start.elapsed() < Duration::from_secs(30), "only {over:?}");
            over.extend(self.over());
            std::thread::sleep(Duration::from_millis(1));
        }
        over
    }
}

fn bulk_in() -> Transfer {
    Transfer {
        transfer_type: TransferType::Bulk,
        endpoint: 0x81,
        flags: 0,
        length: 512,
        interval: 0,
        setup: [0; 8],
    }
}

fn control(setup: [u8; 8]) -> Transfer {
    Transfer {
        transfer_type: TransferType::Control,
        endpoint: 0,
        length: 0,
        setup,
        ..bulk_in()
    }
}

const SET_INTERFACE: [u8; 8] = [1, 11, 1, 0, 0, 0, 0, 0];
const SET_CONFIGURATION: [u8; 8] = [0, 9, 1, 0, 0, 0, 0, 0];
const UNCONFIGURE: [u8; 8] = [0, 9, 0, 0, 0, 0, 0, 0];

/// Defect 1: whatever is asked of a device whose thread is stuck, the thread of the sessions goes on.
#[test]
fn nothing_that_is_asked_of_a_stuck_device_waits_for_it() {
    let mut bench = Bench::new(false);
    let first = bench.submit(bulk_in());
    let operation = bench.submit(control(SET_INTERFACE));
    // It ends what its interface does, and that was not begun.
    assert_eq!(bench.over(), [(first, TransferStatus::Cancelled)]);
    let second = bench.submit(bulk_in());
    bench.open.cancel(&mut bench.server, second);
    assert_eq!(bench.over(), [(second, TransferStatus::Cancelled)]);
    bench.open.cancel(&mut bench.server, operation);
    assert_eq!(bench.over(), [(operation, TransferStatus::Cancelled)]);
    let third = bench.submit(bulk_in());
    let configure = bench.submit(control(SET_CONFIGURATION));
    let reset = bench.reset();
    let mut over = bench.over();
    over.sort_by_key(|(request, _)| *request);
    let cancelled = |request| (request, TransferStatus::Cancelled);
    assert_eq!(over, [cancelled(third), cancelled(configure)]);
    // A reset cannot be taken back; what comes behind it is done behind it.
    bench.open.cancel(&mut bench.server, reset);
    let fourth = bench.submit(bulk_in());
    assert_eq!(bench.over(), []);
    let done = [reset, fourth].map(|request| (request, TransferStatus::Completed));
    assert_eq!(bench.run_until(2), done);
    bench.open.release();
}

#[test]
fn operations_and_transfers_end_in_their_order() {
    let mut bench = Bench::new(false);
    let mut expected = Vec::new();
    for setup in [
        SET_CONFIGURATION,
        SET_INTERFACE,
        UNCONFIGURE,
        SET_CONFIGURATION,
    ] {
        expected.push(bench.submit(control(setup)));
        expected.push(bench.submit(control([0x80, 6, 0, 1, 0, 0, 0, 0])));
    }
    let done: Vec<_> = expected
        .into_iter()
        .map(|request| (request, TransferStatus::Completed))
        .collect();
    assert_eq!(bench.run_until(done.len()), done);
    bench.open.release();
}

#[test]
fn no_endpoint_but_0_until_it_is_configured() {
    let mut bench = Bench::new(false);
    bench.submit(control(UNCONFIGURE));
    let refused = bench.submit(bulk_in());
    assert_eq!(bench.over(), [(refused, TransferStatus::Invalid)]);
    bench.submit(control(SET_CONFIGURATION));
    bench.submit(bulk_in());
    assert_eq!(bench.run_until(3).len(), 3);
    bench.open.release();
}

/// A holder that is fenced: what was not begun is not done any more, and nobody is told.
#[test]
fn what_a_fenced_holder_wanted_is_not_begun() {
    let mut bench = Bench::new(true);
    let transfers = [
        bench.submit(bulk_in()),
        bench.submit(control(SET_INTERFACE)),
    ];
    bench.open.abandon(EPOCH, &transfers);
    assert!(bench.open.operations.is_empty());
    bench.server.claim(Epoch(8));
    bench.sent = 0;
    assert_eq!(bench.over(), []);
    assert_eq!(bench.open.slots.used().count(), 0);
}

/// The thread of a device panicked: its guest is told that the device is gone, and nothing waits for ever.
#[test]
fn a_thread_that_dies_takes_its_device_along() {
    let mut bench = Bench::new(false);
    let request = bench.submit(bulk_in());
    let operation = bench.submit(control(SET_CONFIGURATION));
    bench.over();
    let last = bench.submit(bulk_in());
    bench.worker = None;
    let mut over = bench.over();
    over.sort_by_key(|(request, _)| *request);
    let gone = |request| (request, TransferStatus::NoDevice);
    assert_eq!(over, [gone(operation), gone(last)]);
    assert!(request < operation);
    assert_eq!(bench.over(), []);
}

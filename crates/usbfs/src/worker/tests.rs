// SPDX-License-Identifier: GPL-3.0-or-later
//! A worker over a kernel that is not one: it takes transfers, ends them when told, has so much memory, and its operations
//! last as long as the test likes.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Condvar, Mutex};
use std::thread::{self, JoinHandle, ThreadId};

use super::*;
use crate::kernel::Ready;
use crate::wake::{Wait, poll};
use crate::{Kind, Packet};

/// Longer than anything here takes, unless something is wrong.
const LONG: Duration = Duration::from_secs(20);
/// Longer than what must not happen would take.
const SHORT: Duration = Duration::from_millis(100);

/// The kernel's side of a device, as the test sees it.
#[derive(Clone)]
struct Device {
    state: Arc<(Mutex<State>, Condvar)>,
    /// Set while something can be reaped, or it is gone.
    news: Arc<EventFd>,
}

#[derive(Default)]
struct State {
    at_device: Vec<Urb>,
    over: VecDeque<Urb>,
    /// Contexts in the order in which they were taken.
    submitted: Vec<u64>,
    /// Transfers that it refused for want of memory.
    refused: usize,
    /// Transfers that it has memory for.
    room: Option<usize>,
    gone: bool,
    closed: bool,
    max_bulk: Option<usize>,
    /// Pieces that were submitted, in bytes.
    pieces: Vec<usize>,
}

impl Device {
    fn new() -> Self {
        Self {
            state: Arc::default(),
            news: Arc::new(EventFd::new().unwrap()),
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let (state, changed) = &*self.state;
        let mut state = state.lock().unwrap();
        let result = change(&mut state);
        if state.gone || !state.over.is_empty() {
            self.news.set();
        } else {
            self.news.clear();
        }
        changed.notify_all();
        result
    }

    /// Waits until it is so.
    fn until(&self, what: &str, is_so: impl Fn(&State) -> bool) {
        let (state, changed) = &*self.state;
        let state = state.lock().unwrap();
        let (state, timeout) = changed
            .wait_timeout_while(state, LONG, |s| !is_so(s))
            .unwrap();
        drop(state);
        assert!(!timeout.timed_out(), "never {what}");
    }

    fn until_submitted(&self, contexts: &[u64]) {
        self.until("submitted", |s| s.submitted == contexts);
    }

    /// Ends a transfer.
    fn finish(&self, context: u64, errno: i32) {
        self.change(|state| state.finish(context, errno, usize::MAX));
    }

    fn unplug(&self) {
        self.change(|state| {
            state.gone = true;
            while let Some(urb) = state.at_device.first() {
                let context = urb.context();
                state.finish(context, libc::ENOENT, 0);
            }
        });
    }

    fn set_room(&self, room: usize) {
        self.change(|state| state.room = Some(room));
    }
}

impl State {
    fn finish(&mut self, context: u64, errno: i32, len: usize) {
        let at = self.at_device.iter().position(|u| u.context() == context);
        let mut urb = self.at_device.remove(at.expect("not at the device"));
        let len = len.min(urb.piece().len());
        urb.finish_piece(errno, len);
        self.over.push_back(urb);
    }
}

impl Kernel for Device {
    fn submit(&mut self, mut urb: Urb) -> Result<(), Refused> {
        let max_bulk = self.max_bulk();
        self.change(|state| {
            if state.gone {
                let errno = libc::ENODEV;
                return Err(Refused { urb, errno });
            }
            if state.room.is_some_and(|r| state.at_device.len() >= r) {
                state.refused += 1;
                let errno = libc::ENOMEM;
                return Err(Refused { urb, errno });
            }
            urb.start_piece(max_bulk);
            state.pieces.push(urb.piece().len());
            state.submitted.push(urb.context());
            state.at_device.push(urb);
            Ok(())
        })
    }

    fn discard(&mut self, context: u64) {
        self.change(|state| {
            if state.at_device.iter().any(|u| u.context() == context) {
                state.finish(context, libc::ENOENT, 0);
            }
        });
    }

    fn reap(&mut self) -> Option<Urb> {
        self.change(|state| state.over.pop_front())
    }

    fn wait(&mut self, wake: BorrowedFd<'_>, watch: bool, timeout: Option<Duration>) -> Ready {
        let news = Wait {
            fd: self.news.as_fd(),
            events: libc::POLLIN,
        };
        let [woken, _] = poll(wake, watch.then_some(news), timeout);
        let (reap, gone) = self.change(|s| (!s.over.is_empty(), s.gone));
        Ready {
            woken: woken != 0,
            reap: watch && reap,
            gone: watch && gone,
        }
    }

    fn max_bulk(&self) -> usize {
        self.change(|state| state.max_bulk.unwrap_or(usize::MAX))
    }
}

/// Operations.
#[derive(Debug)]
enum Operation {
    /// Says that it was begun, and lasts until it is told to end.
    Slow(Sender<()>, Receiver<()>),
    /// Answers what the device has by then.
    Note,
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Done(Vec<u64>),
    Gone,
}

struct Desk;

impl Operator<Device> for Desk {
    type Operation = Operation;
    type Outcome = Outcome;

    fn operate(&mut self, device: &mut Device, operation: Operation) -> Outcome {
        if let Operation::Slow(begun, end) = operation {
            begun.send(()).unwrap();
            let _ = end.recv_timeout(LONG);
        }
        Outcome::Done(device.change(|s| s.submitted.clone()))
    }

    fn gone(&self) -> Outcome {
        Outcome::Gone
    }
}

/// What came out of a worker: context, how it ended, bytes.
#[derive(Debug, PartialEq, Eq)]
enum Over {
    Transfer(u64, Status, usize),
    Operation(u64, Outcome),
}

struct Bench {
    device: Device,
    handle: Option<Handle<Operation>>,
    over: Receiver<Vec<Over>>,
    thread: JoinHandle<()>,
}

impl Bench {
    fn new(memory: &Memory) -> Self {
        Self::with(Device::new(), memory)
    }

    fn with(device: Device, memory: &Memory) -> Self {
        let (send, over) = mpsc::channel();
        let sink = move |batch: &mut Vec<Completion<Outcome>>| {
            let batch = batch.drain(..).map(|completion| match completion {
                Completion::Transfer { urb, status } => {
                    Over::Transfer(urb.context(), status, urb.actual_length())
                }
                Completion::Operation { context, outcome } => Over::Operation(context, outcome),
            });
            let _ = send.send(batch.collect());
        };
        let (handle, worker) = Worker::new(device.clone(), Desk, memory, sink).unwrap();
        let thread = thread::spawn(move || {
            let (device, Desk) = worker.run();
            device.change(|state| state.closed = true);
        });
        Self {
            device,
            handle: Some(handle),
            over,
            thread,
        }
    }

    fn handle(&mut self) -> &mut Handle<Operation> {
        self.handle.as_mut().unwrap()
    }

    fn submit(&mut self, context: u64, endpoint: u8) {
        self.submit_of(context, endpoint, 512);
    }

    fn submit_of(&mut self, context: u64, endpoint: u8, len: usize) {
        self.handle().submit(urb(context, endpoint, len));
        self.handle().flush();
    }

    fn cancel(&mut self, context: u64) -> bool {
        let taken = self.handle().cancel(context);
        self.handle().flush();
        taken.is_some()
    }

    /// Starts an operation that lasts until what is returned is dropped.
    fn occupy(&mut self, context: u64) -> Sender<()> {
        let (begun, has_begun) = mpsc::channel();
        let (end, ends) = mpsc::channel();
        self.handle().operate(context, Operation::Slow(begun, ends));
        self.handle().flush();
        has_begun.recv_timeout(LONG).unwrap();
        end
    }

    /// The next `count` that are over.
    fn take(&self, count: usize) -> Vec<Over> {
        let mut all = Vec::new();
        while all.len() < count {
            all.extend(self.over.recv_timeout(LONG).expect("not over"));
        }
        assert_eq!(all.len(), count, "{all:?}");
        all
    }

    fn nothing_is_over(&self) {
        if let Ok(over) = self.over.recv_timeout(SHORT) {
            panic!("over: {over:?}");
        }
    }

    /// Drops the handle and waits for the worker.
    fn close(mut self) {
        self.handle = None;
        self.device.until("closed", |s| s.closed);
        self.thread.join().unwrap();
    }
}

fn urb(context: u64, endpoint: u8, len: usize) -> Urb {
    let mut urb = Urb::new(len);
    let kind = if endpoint & 0x0f == 0 {
        Kind::Control
    } else {
        Kind::Bulk
    };
    urb.prepare(kind, endpoint, 0..len);
    urb.set_context(context);
    urb
}

fn done(context: u64) -> Over {
    Over::Transfer(context, Status::Completed, 512)
}

fn cancelled(context: u64) -> Over {
    Over::Transfer(context, Status::Cancelled, 0)
}

fn no_limit() -> Memory {
    Memory::new(None)
}

#[test]
fn transfers_go_to_the_device_and_come_back() {
    let mut bench = Bench::new(&no_limit());
    for context in 1..=3 {
        bench.submit(context, 0x81);
    }
    bench.device.until_submitted(&[1, 2, 3]);
    bench.device.finish(2, libc::EPIPE);
    assert_eq!(bench.take(1), [Over::Transfer(2, Status::Stall, 512)]);
    bench.device.finish(3, 0);
    bench.device.finish(1, 0);
    let mut both = bench.take(2);
    both.sort_by_key(|o| matches!(o, Over::Transfer(3, ..)));
    assert_eq!(both, [done(1), done(3)]);
    bench.close();
}

/// What came together is handed over together.
#[test]
fn what_is_over_comes_in_batches() {
    let mut bench = Bench::new(&no_limit());
    for context in 0..64 {
        bench.handle().submit(urb(context, 0x81, 512));
    }
    bench.handle().flush();
    bench.device.until("all", |s| s.at_device.len() == 64);
    bench.device.change(|state| {
        for context in 0..64 {
            state.finish(context, 0, 512);
        }
    });
    assert_eq!(bench.over.recv_timeout(LONG).unwrap().len(), 64);
    bench.close();
}

/// Defect 1: nobody waits for a device that does not answer, neither who asks for something nor another device.
#[test]
fn a_slow_operation_is_nobody_elses_business() {
    let memory = no_limit();
    let (mut slow, mut other) = (Bench::new(&memory), Bench::new(&memory));
    slow.submit(1, 0x81);
    slow.device.until_submitted(&[1]);
    let end = slow.occupy(2);
    // What arrives at the slow device meanwhile, a submission and cancellations of all kinds
    slow.device.finish(1, 0);
    slow.submit(3, 0x81);
    slow.submit(4, 0x02);
    assert!(!slow.cancel(1), "it is at the device");
    assert!(slow.cancel(3), "it can be taken back");
    slow.handle().operate(5, Operation::Note);
    assert!(slow.cancel(5));
    for round in 0..100 {
        other.submit(round, 0x02);
        other.device.until("submitted", |s| s.at_device.len() == 1);
        other.device.finish(round, 0);
        assert_eq!(other.take(1), [done(round)]);
    }
    slow.nothing_is_over();
    slow.device.until_submitted(&[1]);
    drop(end);
    let over = slow.take(2);
    assert!(over.contains(&done(1)), "{over:?}");
    assert!(
        over.contains(&Over::Operation(2, Outcome::Done(vec![1]))),
        "{over:?}"
    );
    slow.device.until_submitted(&[1, 4]);
    slow.close();
    other.close();
}

/// Defect 1: a device that never answers is dropped without waiting for it.
#[test]
fn a_stuck_device_is_dropped_without_waiting() {
    let mut bench = Bench::new(&no_limit());
    let end = bench.occupy(1);
    bench.submit(2, 0x81);
    bench.handle = None;
    assert!(!bench.device.change(|s| s.closed));
    drop(end);
    bench.close();
}

/// What is over is handed over before an operation that may last.
#[test]
fn an_operation_withholds_nothing_that_is_over() {
    let mut bench = Bench::new(&no_limit());
    bench.submit(1, 0x81);
    bench.submit(2, 0x81);
    bench.device.until_submitted(&[1, 2]);
    for context in [1, 2] {
        assert!(bench.handle().cancel(context).is_none());
    }
    let end = bench.occupy(3);
    let mut over = bench.take(2);
    over.sort_by_key(|o| matches!(o, Over::Transfer(2, ..)));
    assert_eq!(over, [cancelled(1), cancelled(2)]);
    drop(end);
    assert_eq!(
        bench.take(1),
        [Over::Operation(3, Outcome::Done(vec![1, 2]))]
    );
    bench.close();
}

#[test]
fn operations_are_in_order_with_transfers() {
    let mut bench = Bench::new(&no_limit());
    let handle = bench.handle();
    handle.submit(urb(1, 0x81, 512));
    handle.operate(10, Operation::Note);
    handle.submit(urb(2, 0, 512));
    handle.submit(urb(3, 0x81, 512));
    handle.operate(11, Operation::Note);
    handle.flush();
    let noted = [
        Over::Operation(10, Outcome::Done(vec![1])),
        Over::Operation(11, Outcome::Done(vec![1, 2, 3])),
    ];
    assert_eq!(bench.take(2), noted);
    bench.close();
}

/// Defect 2: the last owner of everything lets go of it within the sink, on the worker's own thread.
#[test]
fn whoever_drops_everything_in_the_sink_does_not_wait_for_himself() {
    let device = Device::new();
    let slot: Arc<Mutex<Option<Handle<Operation>>>> = Arc::default();
    let (dropped, was_dropped) = mpsc::channel::<ThreadId>();
    let in_sink = slot.clone();
    let sink = move |batch: &mut Vec<Completion<Outcome>>| {
        batch.clear();
        in_sink.lock().unwrap().take();
        dropped.send(thread::current().id()).unwrap();
    };
    let (mut handle, worker) = Worker::new(device.clone(), Desk, &no_limit(), sink).unwrap();
    for context in [1, 2] {
        handle.submit(urb(context, 0x81, 512));
    }
    handle.flush();
    *slot.lock().unwrap() = Some(handle);
    let closing = device.clone();
    let thread = thread::spawn(move || {
        worker.run();
        closing.change(|state| state.closed = true);
    });
    device.until_submitted(&[1, 2]);
    device.finish(1, 0);
    let by = was_dropped.recv_timeout(LONG).unwrap();
    assert_eq!(by, thread.thread().id());
    device.until("closed", |s| s.closed);
    thread.join().unwrap();
    // The other one was cancelled, and is nobody's any more.
    assert!(device.change(|s| s.at_device.is_empty() && s.over.is_empty()));
}

/// Defect 6: the kernel has no memory. Nobody hears of that; each endpoint keeps its order.
#[test]
fn what_the_kernel_has_no_memory_for_waits_in_its_order() {
    let mut bench = Bench::new(&no_limit());
    bench.device.set_room(2);
    for (context, endpoint) in [
        (1, 0x81),
        (2, 0x81),
        (3, 0x81),
        (4, 0x02),
        (5, 0x02),
        (6, 0x81),
    ] {
        bench.submit(context, endpoint);
    }
    bench.device.until("refused", |s| s.refused > 0);
    bench.nothing_is_over();
    let mut order: BTreeMap<bool, Vec<u64>> = BTreeMap::new();
    for _ in 0..6 {
        bench.device.until("submitted", |s| !s.at_device.is_empty());
        let next = bench.device.change(|s| s.at_device[0].context());
        bench.device.finish(next, 0);
        assert_eq!(bench.take(1), [done(next)]);
        order.entry([4, 5].contains(&next)).or_default().push(next);
    }
    assert_eq!(order[&false], [1, 2, 3, 6]);
    assert_eq!(order[&true], [4, 5]);
    bench.close();
}

/// The memory is another program's, which tells nobody when it is free.
#[test]
fn memory_that_nobody_tells_of_is_found() {
    let mut bench = Bench::new(&no_limit());
    bench.device.set_room(0);
    bench.submit(1, 0x81);
    bench.device.until("refused twice", |s| s.refused > 1);
    bench.device.set_room(1);
    bench.device.until_submitted(&[1]);
    bench.close();
}

#[test]
fn what_waits_for_memory_can_be_cancelled_and_holds_up_only_its_endpoint() {
    let mut bench = Bench::new(&no_limit());
    bench.device.set_room(0);
    bench.submit(1, 0x00);
    bench.submit(2, 0x00);
    bench.handle().operate(3, Operation::Note);
    bench.handle().flush();
    bench.submit(4, 0x81);
    bench.device.until("refused", |s| s.refused > 0);
    // An operation is in order with endpoint 0, and what is behind it waits for it.
    bench.nothing_is_over();
    assert!(!bench.cancel(1));
    assert_eq!(bench.take(1), [cancelled(1)]);
    assert!(!bench.cancel(2));
    let both = [cancelled(2), Over::Operation(3, Outcome::Done(vec![]))];
    assert_eq!(bench.take(2), both);
    bench.nothing_is_over();
    assert!(!bench.cancel(4));
    assert_eq!(bench.take(1), [cancelled(4)]);
    bench.close();
}

/// Defect 6: one device holds all there is with transfers that nothing comes for; another one writes.
#[test]
fn a_greedy_device_leaves_the_others_theirs() {
    let memory = Memory::new(Some(1 << 20));
    let (mut greedy, mut other) = (Bench::new(&memory), Bench::new(&memory));
    for context in 0..20 {
        greedy.submit_of(context, 0x81, 64 * 1024);
    }
    greedy.device.until("some", |s| s.at_device.len() > 1);
    for round in 0..10 {
        other.submit_of(round, 0x02, 64 * 1024);
        other.device.until("submitted", |s| s.at_device.len() == 1);
        other.device.finish(round, 0);
        assert_eq!(
            other.take(1),
            [Over::Transfer(round, Status::Completed, 64 * 1024)]
        );
    }
    assert!(greedy.device.change(|s| s.submitted.len()) < 20);
    // What it could not have yet it gets, in order.
    for round in 0..20 {
        let ready = |s: &State| s.at_device.first().is_some_and(|u| u.context() == round);
        greedy.device.until("its turn", ready);
        greedy.device.finish(round, 0);
        greedy.take(1);
    }
    greedy.close();
    other.close();
    assert_eq!(memory.used(), 0);
}

#[test]
fn a_device_that_is_unplugged_ends_everything() {
    for room in [None, Some(1)] {
        let mut bench = Bench::new(&no_limit());
        bench.device.change(|state| state.room = room);
        for context in 1..=4 {
            bench.submit(context, 0x81);
        }
        bench.device.until("submitted", |s| !s.submitted.is_empty());
        bench.device.unplug();
        let mut over = bench.take(4);
        over.sort_by_key(|o| match o {
            Over::Transfer(context, ..) | Over::Operation(context, _) => *context,
        });
        let gone = |context| Over::Transfer(context, Status::NoDevice, 0);
        assert_eq!(over, [1, 2, 3, 4].map(gone));
        bench.submit(5, 0x81);
        bench.handle().operate(6, Operation::Note);
        bench.handle().flush();
        assert_eq!(bench.take(2), [gone(5), Over::Operation(6, Outcome::Gone)]);
        bench.close();
    }
}

/// A device that goes while the worker is in a call, and what it had comes back later.
#[test]
fn a_device_that_goes_during_an_operation() {
    let mut bench = Bench::new(&no_limit());
    bench.submit(1, 0x81);
    bench.device.until_submitted(&[1]);
    let end = bench.occupy(2);
    bench.submit(3, 0x81);
    bench.device.change(|state| state.gone = true);
    drop(end);
    assert_eq!(bench.take(1), [Over::Operation(2, Outcome::Done(vec![1]))]);
    assert_eq!(bench.take(1), [Over::Transfer(3, Status::NoDevice, 0)]);
    bench.nothing_is_over();
    bench.device.unplug();
    assert_eq!(bench.take(1), [Over::Transfer(1, Status::NoDevice, 0)]);
    bench.close();
}

/// Where the host controller takes no long transfers, they are divided, and nothing comes in between.
#[test]
fn long_transfers_are_divided_and_keep_their_place() {
    let device = Device::new();
    device.change(|state| state.max_bulk = Some(1000));
    let mut bench = Bench::with(device, &no_limit());
    bench.submit_of(1, 0x02, 2500);
    bench.submit_of(2, 0x02, 10);
    bench.submit_of(3, 0x81, 10);
    for len in [1000, 1000, 500] {
        let is_at = |s: &State| s.at_device.iter().any(|u| u.context() == 1);
        bench.device.until("submitted", is_at);
        assert!(!bench.device.change(|s| s.submitted.contains(&2)));
        bench.device.finish(1, 0);
        bench.device.until("reaped", |s| s.over.is_empty());
        assert!(bench.device.change(|s| s.pieces.contains(&len)));
    }
    assert_eq!(bench.take(1), [Over::Transfer(1, Status::Completed, 2500)]);
    bench.device.until_submitted(&[1, 3, 1, 1, 2]);
    // A short one is over at its first piece; one that is cancelled, where it is.
    bench.submit_of(4, 0x83, 2500);
    bench
        .device
        .until("submitted", |s| s.submitted.last() == Some(&4));
    bench.device.change(|state| state.finish(4, 0, 999));
    assert_eq!(bench.take(1), [Over::Transfer(4, Status::Completed, 999)]);
    bench.submit_of(5, 0x83, 2500);
    bench
        .device
        .until("submitted", |s| s.submitted.last() == Some(&5));
    bench.device.finish(5, 0);
    let again = |s: &State| s.submitted.ends_with(&[5, 5]);
    bench.device.until("submitted", again);
    assert!(!bench.cancel(5));
    assert_eq!(bench.take(1), [Over::Transfer(5, Status::Cancelled, 1000)]);
    bench.close();
}

/// Submissions, completions, cancellations, want of memory and operations at random: all is over once, in the order of its endpoint
/// where it was not cancelled.
#[test]
fn everything_is_over_once() {
    let memory = Memory::new(Some(1 << 20));
    for seed in 0..20_u64 {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut below = |n: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % n
        };
        let mut bench = Bench::new(&memory);
        let mut open = Vec::new();
        let (mut next, mut over) = (0, BTreeMap::new());
        let take_in = |all: Vec<Over>, over: &mut BTreeMap<u64, usize>| {
            for o in all {
                let (Over::Transfer(context, ..) | Over::Operation(context, _)) = o;
                *over.entry(context).or_default() += 1;
            }
        };
        for _ in 0..400 {
            match below(10) {
                0..5 => {
                    let endpoint = [0x81, 0x02, 0x00, 0x83][below(4) as usize];
                    bench.submit_of(next, endpoint, 1 + below(64 * 1024) as usize);
                    open.push(next);
                    next += 1;
                }
                5 => {
                    bench.handle().operate(next, Operation::Note);
                    bench.handle().flush();
                    next += 1;
                }
                6 if !open.is_empty() => {
                    let context = open.swap_remove(below(open.len() as u64) as usize);
                    if bench.cancel(context) {
                        *over.entry(context).or_default() += 1;
                    }
                }
                7 => bench.device.set_room(below(6) as usize),
                _ => bench.device.change(|state| {
                    if let Some(urb) = state.at_device.first() {
                        let context = urb.context();
                        state.finish(context, 0, usize::MAX);
                    }
                }),
            }
            while let Ok(batch) = bench.over.try_recv() {
                take_in(batch, &mut over);
            }
        }
        bench.device.set_room(100);
        while over.len() < next as usize {
            bench.device.change(|state| {
                while let Some(urb) = state.at_device.first() {
                    let context = urb.context();
                    state.finish(context, 0, usize::MAX);
                }
            });
            if let Ok(batch) = bench.over.recv_timeout(Duration::from_millis(1)) {
                take_in(batch, &mut over);
            }
        }
        assert!(over.values().all(|times| *times == 1), "seed {seed}");
        bench.close();
        assert_eq!(memory.used(), 0, "seed {seed}");
    }
}

#[test]
fn isochronous_results_are_readable() {
    let mut urb = Urb::new(64);
    urb.prepare(Kind::Isochronous, 0x81, 0..64);
    urb.set_packets([16, 8]);
    let packet = |length| Packet {
        length,
        actual_length: 0,
        status: Status::Cancelled,
    };
    assert!(urb.packets().eq([packet(16), packet(8)]));
    assert_eq!(urb.error_count(), 0);
}

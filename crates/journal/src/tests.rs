// SPDX-License-Identifier: GPL-3.0-or-later
use std::cell::Cell;
use std::vec::Vec;

use usbif::PortNumber;

use super::*;
use crate::layout::port_at;
use crate::port::LAST_REQUEST;

struct Memory(Vec<Cell<u64>>);

impl Words for Memory {
    fn load(&self, at: usize) -> u64 {
        self.0[at].get()
    }
    fn store(&self, at: usize, value: u64) {
        self.0[at].set(value);
    }
}

/// The process is killed between noting a request and counting it, and killed again when that request
/// is over: its number is not given to another.
#[test]
fn a_number_that_was_noted_is_counted() {
    let memory = Memory((0..LEN_BYTES / 8).map(|_| Cell::new(0)).collect());
    let port = PortNumber::new(1).unwrap();
    let mut journal = Journal::create(&memory, 1);
    journal.open_session(port, 5);
    for number in 1..=2 {
        let record = journal.take(&[0; 148]).unwrap();
        journal.submitted(record, port, 5, number);
    }
    memory.store(port_at(port) + LAST_REQUEST, 1);
    let mut journal = Journal::open(&memory).unwrap();
    assert_eq!(journal.session(port).unwrap().last_request, 2);
    journal.end();
    let journal = Journal::open(&memory).unwrap();
    assert_eq!(journal.session(port).unwrap().last_request, 2);
}

#[test]
fn attempts_grow_over_processes_and_sessions() {
    let memory = Memory((0..LEN_BYTES / 8).map(|_| Cell::new(0)).collect());
    let port = PortNumber::new(3).unwrap();
    let mut journal = Journal::create(&memory, 77);
    assert_eq!((journal.life(), journal.next_attempt(port)), (77, 1));
    journal.open_session(port, 5);
    journal.close_session(port);
    let mut journal = Journal::open(&memory).unwrap();
    assert_eq!((journal.life(), journal.next_attempt(port)), (77, 2));
}

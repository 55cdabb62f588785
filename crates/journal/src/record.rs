// SPDX-License-Identifier: GPL-3.0-or-later
//! What is kept of a request:
//!
//! | word | content |
//! |---|---|
//! | 0 | bits 0 to 7 how far it is, 8 to 15 its port, 32 to 63 the index of its response |
//! | 1 | the how manieth request of the ring it is, from 0 |
//! | 2, 3 | number and epoch in its session |
//! | 4, 5 | its response |
//! | 6 to 24 | the request as it was on the ring |
//!
//! Word 0 is written last, whenever it changes.

use usbif::{PortNumber, UrbResponse};

use crate::Words;
use crate::layout::record_at;

/// The bytes of a request's slot.
pub type RawRequest = [u8; 148];

const STATE: usize = 0;
const ORDER: usize = 1;
const NUMBER: usize = 2;
const RESPONSE: usize = 4;
const REQUEST: usize = 6;
const REQUEST_WORDS: usize = 19;

const FREE: u64 = 0;
const TAKEN: u64 = 1;
const PLACED: u64 = 2;
const SUBMITTED: u64 = 3;
const ANSWERED: u64 = 4;

/// A request in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "a record is freed by the answer to its request only"]
pub struct Record(pub(crate) u8);

/// What word 0 says, with what belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Free,
    Taken,
    Placed(PortNumber),
    Submitted {
        port: PortNumber,
        epoch: u64,
        number: u64,
    },
    Answered {
        index: u32,
        response: UrbResponse,
    },
}

impl Record {
    fn at(self, word: usize) -> usize {
        record_at(usize::from(self.0)) + word
    }

    pub(crate) fn free(self, words: &impl Words) {
        words.store(self.at(STATE), FREE);
    }

    pub(crate) fn take(self, words: &impl Words, order: u64, raw: &RawRequest) {
        let mut request = [0; REQUEST_WORDS];
        let (whole, rest) = raw.as_chunks();
        for (word, bytes) in request.iter_mut().zip(whole) {
            *word = u64::from_ne_bytes(*bytes);
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        request[REQUEST_WORDS - 1] = u64::from_ne_bytes(last);
        words.store_all(self.at(REQUEST), &request);
        words.store(self.at(ORDER), order);
        words.store(self.at(STATE), TAKEN);
    }

    pub(crate) fn place(self, words: &impl Words, port: PortNumber) {
        words.store(self.at(STATE), PLACED | u64::from(port.get()) << 8);
    }

    pub(crate) fn submit(self, words: &impl Words, port: PortNumber, epoch: u64, number: u64) {
        words.store_all(self.at(NUMBER), &[number, epoch]);
        words.store(self.at(STATE), SUBMITTED | u64::from(port.get()) << 8);
    }

    pub(crate) fn answer(self, words: &impl Words, index: u32, response: &UrbResponse) {
        let [first, second] = u128_halves(u128::from_le_bytes(response.encode()));
        words.store_all(self.at(RESPONSE), &[first, second]);
        words.store(self.at(STATE), ANSWERED | u64::from(index) << 32);
    }

    /// `None` when the words were not written so.
    pub(crate) fn state(self, words: &impl Words) -> Option<State> {
        let word = words.load(self.at(STATE));
        let port = PortNumber::new((word >> 8) as u8);
        Some(match word & 0xff {
            FREE => State::Free,
            TAKEN => State::Taken,
            PLACED => State::Placed(port?),
            SUBMITTED => State::Submitted {
                port: port?,
                epoch: words.load(self.at(NUMBER + 1)),
                number: words.load(self.at(NUMBER)),
            },
            ANSWERED => {
                let response = [0, 1].map(|n| words.load(self.at(RESPONSE + n)));
                let bytes = u128::from(response[0]) | u128::from(response[1]) << 64;
                State::Answered {
                    index: (word >> 32) as u32,
                    response: UrbResponse::decode(&bytes.to_le_bytes()),
                }
            }
            _ => return None,
        })
    }

    pub(crate) fn order(self, words: &impl Words) -> u64 {
        words.load(self.at(ORDER))
    }

    pub(crate) fn request(self, words: &impl Words) -> RawRequest {
        let mut raw = [0; 148];
        for (n, bytes) in raw.chunks_mut(8).enumerate() {
            let word = words.load(self.at(REQUEST + n)).to_ne_bytes();
            bytes.copy_from_slice(&word[..bytes.len()]);
        }
        raw
    }
}

fn u128_halves(value: u128) -> [u64; 2] {
    [value as u64, (value >> 64) as u64]
}

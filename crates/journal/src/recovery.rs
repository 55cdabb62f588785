// SPDX-License-Identifier: GPL-3.0-or-later
//! What a backend that was started again does with a ring.

use alloc::boxed::Box;

use arrayvec::ArrayVec;
use usbif::{PortNumber, RingIndices, UrbResponse};

use crate::layout::{CONSUMED_AT, RECORDS, RING_AT};
use crate::record::{RawRequest, Record, State};
use crate::writer::Journal;
use crate::{Identity, Words};

/// Slots of the URB ring.
const SLOTS: u32 = 16;

/// What is to be done with a ring that a frontend is connected with.
#[derive(Debug)]
pub enum Decision {
    /// It was set up anew: begin at index 0, and tell it what is plugged in.
    Fresh,
    /// Go on where the process of before stopped.
    Resume(Box<Resumed>),
}

/// Where to go on. In this order: the ring from `indices` on; the responses of `again`; then the
/// requests of `pending`, those [taken](Stage::Taken) last.
#[derive(Debug)]
pub struct Resumed {
    /// For `BackRing::resume`.
    pub indices: RingIndices,
    /// Responses that were pushed and not published, in their order.
    pub again: ArrayVec<(Record, UrbResponse), RECORDS>,
    /// Requests without an answer, in the order of the ring.
    pub pending: ArrayVec<Pending, RECORDS>,
}

/// A request without an answer.
#[derive(Clone, Copy, Debug)]
pub struct Pending {
    /// Its record.
    pub record: Record,
    /// As it was on the ring; to be checked again.
    pub raw: RawRequest,
    /// How far it had come.
    pub stage: Stage,
    order: u64,
}

/// How far a request had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing was decided, or it is an unlink that waits: decide (again).
    Taken,
    /// Held for the device at this port.
    Placed(PortNumber),
    /// Submitted to the session of this port.
    Submitted {
        /// The port.
        port: PortNumber,
        /// The session's epoch.
        epoch: u64,
        /// Its number there.
        number: u64,
    },
}

/// The ring cannot be served any more; the frontend must connect anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    /// It was in use, and nothing is known of it.
    #[error("requests were in flight on this ring and no journal of it is left")]
    Unknown,
    /// The frontend's indices are not those of a ring that we served, or the journal is damaged.
    #[error(
        "ring and journal contradict each other (shared request index {}, response index {}; {consumed} \
         requests consumed, {unanswered} unanswered)",
        shared.req,
        shared.rsp
    )]
    Contradiction {
        /// The producer indices on the ring.
        shared: RingIndices,
        /// Requests consumed, by the journal.
        consumed: u64,
        /// Requests whose response is not published, by the journal.
        unanswered: usize,
    },
}

impl<W: Words> Journal<W> {
    /// Compares the journal with the URB ring that the frontend is connected with, of which `shared`
    /// are the two producer indices. With [`Decision::Resume`] the journal goes on, else
    /// [`Journal::begin`] is next.
    ///
    /// # Errors
    /// [`Corrupt`].
    pub fn recover(
        &mut self,
        identity: &Identity,
        shared: RingIndices,
    ) -> Result<Decision, Corrupt> {
        if self.words.load(RING_AT) != 1 || !identity.is_stored(&self.words) {
            return match shared.rsp {
                // Nobody ever answered on it: what was taken is still there.
                0 => Ok(Decision::Fresh),
                rsp if shared.req == rsp => {
                    self.begin(identity, rsp);
                    Ok(Decision::Resume(Box::new(Resumed {
                        indices: shared,
                        again: ArrayVec::new(),
                        pending: ArrayVec::new(),
                    })))
                }
                _ => Err(Corrupt::Unknown),
            };
        }
        match self.resolve(shared) {
            Ok(resumed) => Ok(Decision::Resume(Box::new(resumed))),
            // A frontend that connects anew may well get the references that it gave back.
            Err(_) if shared.rsp == 0 => Ok(Decision::Fresh),
            Err(e) => Err(e),
        }
    }

    fn resolve(&mut self, shared: RingIndices) -> Result<Resumed, Corrupt> {
        self.free = 0;
        self.unpublished.clear();
        let mut consumed = self.words.load(CONSUMED_AT);
        let mut published = ArrayVec::<Record, RECORDS>::new();
        let mut again = ArrayVec::<(u32, Record, UrbResponse), RECORDS>::new();
        let mut pending = ArrayVec::<Pending, RECORDS>::new();
        let mut damaged = false;
        for n in 0..RECORDS as u8 {
            let record = Record(n);
            let mut wait = |stage| {
                pending.push(Pending {
                    record,
                    raw: record.request(&self.words),
                    stage,
                    order: record.order(&self.words),
                });
            };
            match record.state(&self.words) {
                Some(State::Free) => {
                    self.free |= 1 << n;
                    continue;
                }
                Some(State::Taken) => wait(Stage::Taken),
                Some(State::Placed(port)) => wait(Stage::Placed(port)),
                Some(State::Submitted {
                    port,
                    epoch,
                    number,
                }) => wait(Stage::Submitted {
                    port,
                    epoch,
                    number,
                }),
                Some(State::Answered { index, response }) => {
                    // At most a few dozen apart, so that a wrapped difference tells.
                    match index.wrapping_sub(shared.rsp) as i32 {
                        0.. => again.push((index.wrapping_sub(shared.rsp), record, response)),
                        _ => published.push(record),
                    }
                }
                None => damaged = true,
            }
            // The record is written first.
            consumed = consumed.max(record.order(&self.words) + 1);
        }
        again.sort_unstable_by_key(|&(ahead, ..)| ahead);
        pending.sort_unstable_by_key(|p| p.order);
        damaged |= !again.iter().map(|a| a.0).eq(0..again.len() as u32);
        let unanswered = again.len() + pending.len();
        let req = consumed as u32;
        let unread = shared.req.wrapping_sub(req);
        if damaged || req.wrapping_sub(shared.rsp) as usize != unanswered || unread > SLOTS {
            return Err(Corrupt::Contradiction {
                shared,
                consumed,
                unanswered,
            });
        }
        for record in published {
            record.free(&self.words);
            self.free |= 1 << record.0;
        }
        self.consumed = consumed;
        self.words.store(CONSUMED_AT, consumed);
        Ok(Resumed {
            indices: RingIndices {
                req,
                rsp: shared.rsp,
            },
            again: again
                .into_iter()
                .map(|(_, record, r)| (record, r))
                .collect(),
            pending,
        })
    }
}

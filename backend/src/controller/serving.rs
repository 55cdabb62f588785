// SPDX-License-Identifier: GPL-3.0-or-later
//! The hot path: between the rings of a frontend and the sessions of its devices.
//!
//! Everything here runs on the controller's own thread, and nothing waits: a wake-up takes all that
//! is on the rings, and what it leads to is sent and published in one go.

mod copy;
mod sessions;

use std::rc::Rc;
use std::sync::Arc;

use control::Counters;
use handoff::Cookie;
use session::client::Client;
use slog::{Logger, warn};
use tokio::sync::Notify;
use usbif::{BackRing, ConnResponse, PortNumber, RingCorrupt, UrbResponse};
use vusb_core::{Answers, Controller, Slot, UrbResult, Verdict};
use xen::{Access, Backend, DomId, EventChannel, GrantError, RingPage};

use super::rings::{RingDetails, RingError, Rings};
use crate::totals::Totals;

/// Requests taken in one wake-up before others get their turn. A guest whose requests are answered
/// at once could else keep the thread for itself.
const BUDGET: usize = 64;

/// The device at a port.
#[derive(Clone)]
pub struct Attached {
    /// Its session, once the lease is claimed.
    pub client: Option<Client>,
    /// Wakes the task that sends the session's output.
    pub wake: Rc<Notify>,
    /// What went through.
    pub counters: Counters,
    /// What was saved last.
    saved: Option<Cookie>,
    /// The device reset under way.
    reset: Option<u64>,
}

/// Requests in flight, the rings they came from, and the sessions they went to.
pub struct Serving<B: Backend> {
    platform: B,
    domid: DomId,
    totals: Arc<Totals>,
    log: Logger,
    /// The ports.
    pub core: Controller,
    rings: Option<Rings<B>>,
    attached: [Option<Attached>; PortNumber::MAX as usize],
    /// Unlinked OUT transfers are given a moment to finish.
    pub quiescing: bool,
    /// The rings are looked at again without an event.
    pub polled: bool,
    /// Notified when completions have been answered.
    pub completions: Rc<Notify>,
    /// Requests taken since it was last asked.
    activity: bool,
}

/// What came of a look at the rings.
#[derive(Debug, Default)]
pub struct Outcome {
    /// There is more to do: come back after others had their turn.
    pub more: bool,
    /// Transfers that the guest wants cancelled, and whether they may have a moment to finish.
    pub unlinked: arrayvec::ArrayVec<(PortNumber, u64), 16>,
}

impl<B: Backend> Serving<B> {
    /// A controller with empty ports and no rings.
    pub fn new(
        platform: B,
        domid: DomId,
        port_count: u8,
        totals: Arc<Totals>,
        log: Logger,
    ) -> Self {
        Self {
            totals,
            platform,
            domid,
            log,
            core: Controller::new(port_count),
            rings: None,
            attached: std::array::from_fn(|_| None),
            quiescing: false,
            polled: false,
            completions: Rc::default(),
            activity: false,
        }
    }

    // ---- rings

    /// Maps the rings and binds the event channel, which it returns.
    pub fn connect(&mut self, details: RingDetails) -> Result<Rc<B::Channel>, RingError> {
        let page = |gref| {
            let mapping = self.platform.map(self.domid, &[gref], Access::ReadWrite)?;
            Ok::<_, GrantError>(RingPage::new(mapping, 0))
        };
        let (urb, conn) = (page(details.urb)?, page(details.conn)?);
        let port = details.channel;
        let channel = self
            .platform
            .bind_interdomain(self.domid, port)
            .map_err(|source| RingError::Channel { port, source })?;
        let channel = Rc::new(channel);
        self.rings = Some(Rings {
            urb: BackRing::new(urb),
            conn: BackRing::new(conn),
            channel: channel.clone(),
        });
        self.core.tell_all();
        Ok(channel)
    }

    /// Unmaps the rings. Transfers in flight are cancelled; their completions find no request.
    pub fn disconnect(&mut self) {
        for port in self.core.ports() {
            let numbers: arrayvec::ArrayVec<u64, 16> = self
                .core
                .unanswered(port)
                .filter_map(|slot| self.core.urb(slot).and_then(|u| u.submitted))
                .collect();
            for number in numbers {
                self.cancel(port, number);
            }
        }
        self.core.forget_requests();
        self.rings = None;
    }

    /// Whether a request was taken since the last call.
    pub fn take_activity(&mut self) -> bool {
        std::mem::take(&mut self.activity)
    }

    /// Requests that were taken and are not answered.
    pub fn in_flight(&self) -> u32 {
        self.rings.as_ref().map_or(0, |r| r.urb.unanswered())
    }

    /// Takes what is on the rings, as far as the budget goes.
    ///
    /// # Errors
    /// [`RingCorrupt`]: this frontend is beyond help until it connects anew.
    pub fn service(&mut self) -> Result<Outcome, RingCorrupt> {
        let mut outcome = Outcome::default();
        let mut budget = BUDGET;
        loop {
            let Some(rings) = &mut self.rings else {
                return Ok(outcome);
            };
            match rings.urb.next_request()? {
                Some(request) => {
                    self.activity = true;
                    let verdict = self.core.take(request);
                    self.act(verdict, &mut outcome);
                    budget -= 1;
                }
                // Who looks again anyway needs no event, and the guest can do without sending one.
                None if !self.polled && rings.urb.final_check() => {}
                None => break,
            }
            if budget == 0 {
                outcome.more = true;
                break;
            }
        }
        self.tell_connections()?;
        self.save_cookies();
        self.publish();
        Ok(outcome)
    }

    /// Shows the frontend what was answered, and signals it if it wants that.
    pub fn publish(&mut self) {
        let Some(rings) = &mut self.rings else { return };
        let urb = rings.urb.publish();
        let conn = rings.conn.publish();
        if (urb || conn)
            && let Err(e) = rings.channel.notify()
        {
            warn!(self.log, "cannot signal the frontend: {}", e);
        }
    }

    /// Pushes connection events, as far as the frontend has left requests for them.
    fn tell_connections(&mut self) -> Result<(), RingCorrupt> {
        let Some(rings) = &mut self.rings else {
            return Ok(());
        };
        while let Some(event) = self.core.next_event() {
            let Some(request) = rings.conn.next_request()? else {
                if rings.conn.final_check() {
                    continue;
                }
                break;
            };
            let response = ConnResponse {
                id: request.id,
                port: event.port,
                speed: event.speed,
            };
            if rings.conn.push_response(&response).is_ok() {
                self.core.told(event);
            }
        }
        Ok(())
    }

    fn act(&mut self, verdict: Verdict, outcome: &mut Outcome) {
        match verdict {
            Verdict::Answer(response) => self.push(&response),
            Verdict::AnswerBoth(answers) => self.answer(answers),
            Verdict::Submit(slot) => self.submit(slot),
            Verdict::Hold => {}
            Verdict::Reset(port) => self.reset(port),
            Verdict::Cancel(slot) => {
                let Some(urb) = self.core.urb(slot) else {
                    return;
                };
                let (port, finishing) = (urb.port, self.quiescing && !urb.transfer.is_in());
                let Some(number) = urb.submitted else { return };
                self.count(
                    port,
                    Counters {
                        unlinked: 1,
                        ..Counters::default()
                    },
                );
                if !finishing {
                    self.cancel(port, number);
                }
                let _ = outcome.unlinked.try_push((port, number));
            }
        }
    }

    fn push(&mut self, response: &UrbResponse) {
        let Some(rings) = &mut self.rings else { return };
        if rings.urb.push_response(response).is_err() {
            // Each answer belongs to a request taken from this very ring.
            debug_assert!(false, "answer {response:?} without a request");
            warn!(self.log, "answer without a request"; "id" => response.id);
        }
    }

    fn answer(&mut self, answers: Answers) {
        if let Some(unlink) = answers.unlink {
            self.push(&unlink);
        }
        self.push(&answers.urb);
    }

    fn finish(&mut self, slot: Slot, result: UrbResult) {
        let Some(urb) = self.core.urb(slot) else {
            return;
        };
        if urb.submitted.is_some() {
            let bytes = u64::from(result.actual_length);
            let (bytes_in, bytes_out) = if urb.transfer.is_in() {
                (bytes, 0)
            } else {
                (0, bytes)
            };
            let more = Counters {
                answered: 1,
                errors: u64::from(!result.status.is_ok()),
                bytes_in,
                bytes_out,
                ..Counters::default()
            };
            self.count(urb.port, more);
        }
        if let Some(answers) = self.core.complete(slot, result) {
            self.answer(answers);
        }
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! The hot path: between the rings of a frontend and the sessions of its devices.
//!
//! Everything here runs on the controller's own thread, and nothing waits: a wake-up takes all that
//! is on the rings, and what it leads to is sent and published in one go.

mod answers;
mod completion;
mod copy;
mod pause;
mod quiesce;
mod recovery;
mod sessions;
mod submission;
#[cfg(test)]
mod tests;
mod told;

use std::rc::Rc;
use std::sync::Arc;

use control::Counters;
use handoff::Cookie;
use journal::Record;
use session::VmUuid;
use session::client::Client;
use slog::{Logger, warn};
use tokio::sync::Notify;
use usbif::{BadRequest, PortNumber, RingCorrupt, UrbRequest};
use vusb_core::{Controller, Slot, Verdict};
use xen::{Access, Backend, DomId, GrantError, RingPage};

use super::allowance::Spent;
use super::rings::{RingDetails, RingError, Rings};
use crate::state::ControllerJournal;
use crate::totals::Totals;
use quiesce::Recent;
use told::Told;

pub use completion::End;
pub use pause::Unanswered;

/// Requests taken in one wake-up before others get their turn. A guest whose requests are answered
/// at once could else keep the thread for itself.
const BUDGET: usize = 64;
/// Unanswered requests: slots of the ring.
const SLOTS: usize = 16;

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
    /// Whether the guest stays connected when it is pulled out.
    pauses: bool,
    /// Whether it is a mass storage.
    is_storage: bool,
    /// A request or a reset waits because the session has no room.
    is_full: bool,
    /// It is pulled out, and whatever is a later stage of a command fails: see `pause`.
    fails_stages: bool,
}

/// Where a controller is.
#[derive(Clone)]
pub struct Place<B> {
    /// Xen.
    pub platform: B,
    /// Its domain.
    pub domid: DomId,
    /// Its number there.
    pub devid: u16,
    /// The VM.
    pub vm: VmUuid,
    /// The daemon's counters.
    pub totals: Arc<Totals>,
    /// Its logger.
    pub log: Logger,
}

/// Requests in flight, the rings they came from, and the sessions they went to.
pub struct Serving<B: Backend> {
    place: Place<B>,
    /// The ports.
    pub core: Controller,
    rings: Option<Rings<B>>,
    attached: [Option<Attached>; PortNumber::MAX as usize],
    /// What a process after this one is to know.
    journal: ControllerJournal,
    /// The record of each unanswered request, and of the unlink that waits for its answer.
    records: [(Option<Record>, Option<Record>); SLOTS],
    /// The first frontend to connect may be one that an earlier process served.
    recovering: bool,
    /// What came of that.
    recovered: Outcome,
    /// The rings are looked at again without an event.
    pub polled: bool,
    /// Notified when completions have been answered.
    pub completions: Rc<Notify>,
    /// The guest was asked to suspend: see `quiesce`.
    quiescing: bool,
    /// The frontend asks for its requests itself then, and every answer counts.
    recalls: bool,
    /// What was answered since then and may cross with an unlink.
    answered: Recent,
    /// What the exporters were told of the guest.
    told: Told,
    /// Requests taken since it was last asked.
    activity: bool,
    /// What the guest made of them since then.
    spent: Spent,
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
    /// A controller with empty ports and no rings, of which nothing is kept.
    pub fn new(
        platform: B,
        domid: DomId,
        port_count: u8,
        totals: Arc<Totals>,
        log: Logger,
    ) -> Self {
        let place = Place {
            platform,
            domid,
            devid: 0,
            vm: VmUuid(uuid::Uuid::nil()),
            totals,
            log,
        };
        Self::keeping(place, port_count, crate::state::no_journal())
    }

    /// A controller with empty ports and no rings.
    pub fn keeping(place: Place<B>, port_count: u8, journal: ControllerJournal) -> Self {
        Self {
            place,
            core: Controller::new(port_count),
            rings: None,
            attached: std::array::from_fn(|_| None),
            journal,
            records: [(None, None); SLOTS],
            recovering: false,
            recovered: Outcome::default(),
            quiescing: false,
            recalls: false,
            polled: false,
            completions: Rc::default(),
            answered: Recent::default(),
            told: Told::default(),
            activity: false,
            spent: Spent::default(),
        }
    }

    // ---- rings

    /// Maps the rings and binds the event channel, which it returns. Where an earlier process served
    /// these very rings, goes on with them; then [`take_recovered`](Self::take_recovered) is next.
    ///
    /// # Errors
    /// [`RingError`]; then no rings are mapped.
    pub fn connect(&mut self, details: RingDetails) -> Result<Rc<B::Channel>, RingError> {
        let Place {
            platform, domid, ..
        } = &self.place;
        let page = |gref| {
            let mapping = platform.map(*domid, &[gref], Access::ReadWrite)?;
            Ok::<_, GrantError>(RingPage::new(mapping, 0))
        };
        let (urb, conn) = (page(details.urb)?, page(details.conn)?);
        let port = details.channel;
        let channel = platform
            .bind_interdomain(*domid, port)
            .map_err(|source| RingError::Channel { port, source })?;
        let channel = Rc::new(channel);
        self.recalls = details.recalls;
        self.recovered = self.take_up(details, urb, conn, channel.clone())?;
        Ok(channel)
    }

    /// What came of taking up the rings of an earlier process.
    pub fn take_recovered(&mut self) -> Outcome {
        std::mem::take(&mut self.recovered)
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
        self.note_ports();
        self.journal.end();
        self.records = [(None, None); SLOTS];
        self.rings = None;
    }

    /// Whether a request was taken since the last call.
    pub fn take_activity(&mut self) -> bool {
        std::mem::take(&mut self.activity)
    }

    /// What came of requests since the last call.
    pub fn take_spent(&mut self) -> Spent {
        std::mem::take(&mut self.spent)
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
            if !self.journal.has_room() {
                self.publish();
            }
            let Some(rings) = &mut self.rings else {
                return Ok(outcome);
            };
            match rings.urb.next_slot()? {
                Some(raw) => {
                    self.activity = true;
                    let record = self.journal.take(&raw);
                    self.decide(record, UrbRequest::decode(&raw), &mut outcome);
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

    /// Keeps in the journal what changed at the ports. Called before anything goes out that depends
    /// on it.
    pub fn note_ports(&mut self) {
        if self.core.take_ports_changed() {
            for port in self.core.ports() {
                self.journal.save_port(port, &self.core.snapshot(port));
            }
        }
    }

    fn decide(
        &mut self,
        record: Option<Record>,
        request: Result<UrbRequest, BadRequest>,
        outcome: &mut Outcome,
    ) {
        let crossed = self.crossed(&request);
        let stale = self.core.stale_answered();
        let verdict = self.core.take(request);
        self.note_ports();
        if stale == 0 && self.core.stale_answered() > 0 {
            warn!(
                self.place.log,
                "the guest's driver used the device while it resumed, and has lost request ids by \
                 that: remove the controller with `xl usbctrl-detach` and add it again before the \
                 guest uses it heavily, or load the xen-vusb-hcd module in the guest"
            );
        }
        if let Some((port, number)) = crossed {
            self.crossed_over(port, number);
        }
        match verdict {
            Verdict::Answer(response) => {
                self.spent.useless += 1;
                self.push(record, &response);
            }
            Verdict::AnswerBoth(slot, answers) => {
                self.spent.useless += 1;
                self.records[slot.index()].1 = record;
                self.answer(slot, answers);
            }
            Verdict::Submit(slot) => {
                self.records[slot.index()] = (record, None);
                self.submit(slot);
            }
            Verdict::Hold(slot) => {
                self.place(slot, record);
                self.fail_stage(slot);
            }
            Verdict::Reset(slot) => {
                self.place(slot, record);
                if let Some(port) = self.core.urb(slot).map(|u| u.port) {
                    self.reset(port);
                }
            }
            Verdict::Cancel(slot) => {
                self.records[slot.index()].1 = record;
                let Some(urb) = self.core.urb(slot) else {
                    return;
                };
                let (port, is_kept) = (urb.port, quiesce::is_kept(&urb.transfer));
                let finishing = self.quiescing && !urb.transfer.is_in();
                let Some(number) = urb.submitted else { return };
                self.count(
                    port,
                    Counters {
                        unlinked: 1,
                        ..Counters::default()
                    },
                );
                if self.quiescing && is_kept {
                    self.keep(port, number);
                } else if !finishing {
                    self.cancel(port, number);
                }
                let _ = outcome.unlinked.try_push((port, number));
            }
        }
    }

    /// The request waits for its device.
    fn place(&mut self, slot: Slot, record: Option<Record>) {
        self.records[slot.index()] = (record, None);
        if let (Some(record), Some(urb)) = (record, self.core.urb(slot)) {
            self.journal.placed(record, urb.port);
        }
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! Taking up rings, also those that an earlier process served.

use std::rc::Rc;

use control::Counters;
use journal::{Decision, Identity, Pending, Resumed, Stage};
use session::Epoch;
use session::client::Client;
use slog::{info, warn};
use usbif::{BackRing, Conn, PortNumber, UrbRequest, UrbResponse, UrbStatus};
use vusb_core::{ConnEvent, Urb, UrbResult, transfer_of};
use xen::{Backend, RingPage};

use super::{Outcome, RingDetails, RingError, Rings, Serving};

impl<B: Backend> Serving<B> {
    /// The journal is that of an earlier process: the ports are as it left them.
    pub fn adopt(&mut self) {
        self.recovering = true;
        for port in self.core.ports() {
            let snapshot = self.journal.port(port);
            self.core.restore_port(port, &snapshot);
        }
    }

    /// The epoch of a port's session in the earlier process.
    pub fn session_before(&self, port: PortNumber) -> Option<Epoch> {
        self.journal.session(port).map(|s| Epoch(s.epoch))
    }

    /// Whether the guest was being suspended when the earlier process ended, or was asked to while nobody
    /// served its frontend.
    pub fn was_quiescing(&self) -> bool {
        self.journal.is_quiescing() || self.told.is_suspended()
    }

    pub(super) fn take_up(
        &mut self,
        details: RingDetails,
        urb: RingPage<B::Mapping>,
        conn: RingPage<B::Mapping>,
        channel: Rc<B::Channel>,
    ) -> Result<Outcome, RingError> {
        let identity = Identity {
            domid: self.place.domid.0,
            devid: self.place.devid,
            vm: self.place.vm.0.into_bytes(),
            urb: details.urb.0,
            conn: details.conn.0,
            channel: details.channel.0,
        };
        let shared = BackRing::<_, usbif::Urb>::shared_indices(&urb);
        let decision = match std::mem::take(&mut self.recovering) {
            true => self.journal.recover(&identity, shared)?,
            false => Decision::Fresh,
        };
        match decision {
            Decision::Fresh => {
                for port in self.core.ports() {
                    // What a session of an earlier process executes is of no use: the next claim ends
                    // it.
                    if self.client(port).is_none() {
                        self.core.hold(port);
                    }
                }
                // In this order: whoever finds the journal of this ring finds what it is to be told.
                self.core.tell_all();
                self.note_ports();
                self.journal.begin(&identity, 0);
                self.rings = Some(Rings {
                    urb: BackRing::new(urb),
                    conn: BackRing::new(conn),
                    channel,
                });
                Ok(Outcome::default())
            }
            Decision::Resume(resumed) => {
                let told = BackRing::<_, Conn>::shared_indices(&conn).rsp;
                self.rings = Some(Rings {
                    urb: BackRing::resume(urb, resumed.indices)?,
                    conn: BackRing::attach(conn),
                    channel,
                });
                self.quiescing = self.journal.is_quiescing();
                Ok(self.restore(&resumed, told))
            }
        }
    }

    /// Goes on where the earlier process stopped. Nothing is sent here: the sessions are not
    /// connected yet.
    fn restore(&mut self, resumed: &Resumed, conn_rsp_prod: u32) -> Outcome {
        let mut outcome = Outcome {
            more: true,
            ..Outcome::default()
        };
        for port in self.core.ports() {
            if self.journal.was_told(port, conn_rsp_prod)
                && let Some(speed) = self.core.snapshot(port).events[0]
            {
                self.core.told(ConnEvent { port, speed });
            }
        }
        self.note_ports();
        for port in self.core.ports() {
            self.restore_session(port, &resumed.pending);
        }
        for (record, response) in &resumed.again {
            self.push(Some(*record), response);
        }
        let decided = |p: &&Pending| p.stage != Stage::Taken;
        for pending in resumed.pending.iter().filter(decided) {
            self.restore_urb(pending);
        }
        // Unlinks that wait for what was just restored, and what nothing was decided about.
        for pending in resumed.pending.iter().filter(|p| !decided(p)) {
            let request = UrbRequest::decode(&pending.raw);
            self.decide(Some(pending.record), request, &mut outcome);
        }
        for port in self.core.ports() {
            self.resume_port(port);
        }
        info!(self.place.log, "frontend taken up again"; "answered" => resumed.again.len(),
            "pending" => resumed.pending.len());
        self.publish();
        // The signal of what was published before may not have gone out.
        self.signal();
        outcome
    }

    fn restore_session(&mut self, port: PortNumber, pending: &[Pending]) {
        let Some(session) = self.journal.session(port) else {
            self.core.hold(port);
            return;
        };
        let reset = session.reset.filter(|_| self.core.is_held(port));
        let known = pending.iter().filter_map(|p| match p.stage {
            Stage::Submitted {
                port: at,
                epoch,
                number,
            } if at == port && epoch == session.epoch => {
                let request = UrbRequest::decode(&p.raw).ok()?;
                Some((number, Some(transfer_of(&request)?)))
            }
            _ => None,
        });
        let client = Client::restore(
            Epoch(session.epoch),
            session.last_request,
            session.completions_received,
            known.chain(reset.map(|number| (number, None))),
        );
        match (client, self.at_mut(port)) {
            (Some(client), Some(attached)) => {
                attached.client = Some(client);
                attached.reset = reset;
            }
            (client, _) => {
                if client.is_none() {
                    warn!(self.place.log, "the journal's session makes no sense";
                        "port" => port.get(), "session" => ?session);
                }
                if let Some(attached) = self.at_mut(port) {
                    attached.reset = reset;
                }
                self.core.hold(port);
                self.note_ports();
                self.journal.close_session(port);
            }
        }
    }

    fn restore_urb(&mut self, pending: &Pending) {
        let (port, number) = match pending.stage {
            Stage::Placed(port) => (port, None),
            Stage::Submitted {
                port,
                epoch,
                number,
            } => (port, Some((epoch, number))),
            Stage::Taken => return,
        };
        let current = self.client(port).map(|c| c.epoch().0);
        let submitted = number.filter(|(epoch, _)| Some(*epoch) == current);
        let request = UrbRequest::decode(&pending.raw);
        let id = request.as_ref().map_or_else(|bad| bad.id, |r| r.id);
        let slot = request
            .ok()
            .and_then(|r| self.core.restore_urb(r, port, submitted.map(|s| s.1)));
        let Some(slot) = slot else {
            let response = UrbResponse::with_status(id, UrbStatus::INVAL);
            self.push(Some(pending.record), &response);
            return;
        };
        self.records[slot.index()] = (Some(pending.record), None);
        if submitted.is_some() {
            // Its answer will be counted here; so is it, or there would be more answers than requests.
            self.count(
                port,
                Counters {
                    urbs: 1,
                    ..Counters::default()
                },
            );
        }
        if number.is_some() && submitted.is_none() {
            match self.core.urb(slot).is_some_and(Urb::sets_address) {
                true => self.wait_again(port, slot),
                // Of an epoch that is over: whether the device saw it is unknown.
                false => self.finish(slot, UrbResult::failed(UrbStatus::IOERROR)),
            }
        }
    }

    fn resume_port(&mut self, port: PortNumber) {
        let Some(attached) = self.at(port) else {
            if self.core.snapshot(port).speed != usbif::Speed::None {
                self.detach(port);
            }
            return;
        };
        if attached.client.is_none() {
            return;
        }
        match (self.core.is_held(port), attached.reset) {
            // Its completion releases the port.
            (true, Some(_)) => {}
            (true, None) => self.reset(port),
            (false, _) => self.release(port),
        }
    }
}

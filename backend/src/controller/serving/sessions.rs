// SPDX-License-Identifier: GPL-3.0-or-later
//! The devices of a controller, and their sessions: begun, claimed, resumed, and gone.

use std::rc::Rc;

use arrayvec::ArrayVec;
use control::Counters;
use session::Epoch;
use session::client::{Client, ClientError};
use session::open::Attempt;
use slog::warn;
use tokio::sync::Notify;
use usbif::{PortNumber, RingKind, Speed, UrbStatus};
use vusb_core::{PortSnapshot, Slot, Urb, UrbResult};
use xen::Backend;

use super::{Attached, SLOTS, Serving};

impl<B: Backend> Serving<B> {
    /// A device was plugged into the core at this port.
    pub fn attach(&mut self, port: PortNumber, wake: Rc<Notify>) {
        self.attached[port.index()] = Some(Attached {
            client: None,
            wake,
            counters: Counters::default(),
            saved: None,
            reset: None,
            pauses: false,
            is_storage: false,
            is_full: false,
            fails_stages: false,
        });
        self.note_ports();
    }

    /// The guest stays connected when this device is pulled out.
    pub fn set_pauses(&mut self, port: PortNumber, is_storage: bool) {
        if let Some(attached) = self.at_mut(port) {
            attached.pauses = true;
            attached.is_storage = is_storage;
        }
    }

    /// Unplugs a device: the guest is told, and everything unanswered is answered.
    pub fn detach(&mut self, port: PortNumber) -> Option<Attached> {
        self.core.unplug(port);
        self.note_ports();
        self.journal.close_session(port);
        for slot in self.unanswered(port) {
            self.finish(slot, UrbResult::failed(UrbStatus::NODEV));
        }
        let attached = self.attached[port.index()].take();
        self.flush();
        attached
    }

    /// Takes a device away that no guest has seen: the port is as it was before it was plugged in.
    pub fn forget_planned(&mut self, port: PortNumber) {
        self.core.restore_port(port, &PortSnapshot::default());
        self.note_ports();
        self.journal.close_session(port);
        self.attached[port.index()] = None;
    }

    /// Lets the guest see the port empty, for a while; the session goes on.
    pub fn withdraw(&mut self, port: PortNumber) {
        self.core.unplug(port);
        self.note_ports();
        for slot in self.unanswered(port) {
            if let Some(number) = self.core.urb(slot).and_then(|urb| urb.submitted) {
                self.cancel(port, number);
            }
            self.finish(slot, UrbResult::failed(UrbStatus::NODEV));
        }
        self.flush();
    }

    /// Lets the guest see a device again that was [withdrawn](Serving::withdraw).
    pub fn give_again(&mut self, port: PortNumber, speed: Speed) {
        // The port is empty: nothing else could be attached to it meanwhile.
        if self.core.plug(port, speed, None).is_ok() {
            self.core.expect_reset(port);
            if self.client(port).is_some() {
                self.release(port);
            }
        }
        self.note_ports();
        self.flush();
    }

    /// Resets the device; requests to it are held until that is done.
    pub fn start_over(&mut self, port: PortNumber) {
        if self.client(port).is_some() {
            self.core.hold(port);
            self.note_ports();
            self.reset(port);
        }
    }

    pub(super) fn count(&mut self, port: PortNumber, more: Counters) {
        self.place.totals.add(&more);
        if let Some(attached) = self.at_mut(port) {
            attached.counters += more;
        }
    }

    /// The device at a port.
    pub fn at(&self, port: PortNumber) -> Option<&Attached> {
        self.attached[port.index()].as_ref()
    }

    /// The device at a port.
    pub fn at_mut(&mut self, port: PortNumber) -> Option<&mut Attached> {
        self.attached[port.index()].as_mut()
    }

    /// The session of the device at a port.
    pub fn client(&mut self, port: PortNumber) -> Option<&mut Client> {
        self.at_mut(port)?.client.as_mut()
    }

    /// The next attempt to claim or resume the lease of the device at a port, after all those of before,
    /// also of an earlier process.
    pub fn next_attempt(&mut self, port: PortNumber) -> Attempt {
        Attempt {
            life: self.journal.life(),
            number: self.journal.next_attempt(port),
        }
    }

    /// The epoch of the session of the device at a port: request numbers are unique within it.
    pub fn epoch(&self, port: PortNumber) -> Option<Epoch> {
        Some(self.at(port)?.client.as_ref()?.epoch())
    }

    /// The lease is claimed under this epoch: what was submitted under an earlier one has failed, what
    /// is held goes out.
    pub fn claimed(&mut self, port: PortNumber, epoch: Epoch) {
        self.fail_submitted(port);
        self.open(port, Client::new(epoch));
        self.flush();
    }

    /// The connection is back, and the exporter has had the requests up to this one.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn resumed(&mut self, port: PortNumber, requests_received: u64) -> Result<(), ClientError> {
        if let Some(client) = self.client(port) {
            client.resumed(requests_received)?;
        }
        self.resume(port, requests_received);
        Ok(())
    }

    /// The lease is claimed: requests go to this session from now on, those held first.
    fn open(&mut self, port: PortNumber, client: Client) {
        let (epoch, told) = (client.epoch(), self.told);
        let hold = self.holds_acknowledgements();
        if let Some(attached) = self.at_mut(port) {
            let client = attached.client.insert(client);
            // It may be claimed while the guest is being suspended.
            client.hold_acknowledgements(hold);
            told.say_again(client);
            attached.saved = None;
            // The one that was under way in an earlier session: whether the device was reset is unknown.
            let was_resetting = attached.reset.take().is_some();
            attached.is_full = false;
            attached.fails_stages = false;
            // In this order: a port that is held in an open session is one that is being reset.
            match was_resetting || self.core.is_reset_due(port) {
                true => {
                    self.core.hold(port);
                    self.note_ports();
                    self.journal.open_session(port, epoch.0);
                    self.reset(port);
                }
                false => {
                    self.core.release(port);
                    self.note_ports();
                    self.journal.open_session(port, epoch.0);
                    self.submit_held(port);
                }
            }
        }
    }

    /// Every unanswered request to a port.
    fn unanswered(&self, port: PortNumber) -> ArrayVec<Slot, SLOTS> {
        self.core.unanswered(port).collect()
    }

    /// Those of them that were submitted.
    pub(super) fn submitted(&self, port: PortNumber) -> ArrayVec<Slot, SLOTS> {
        let is_submitted = |slot: &Slot| {
            let urb = self.core.urb(*slot);
            urb.is_some_and(|u| u.submitted.is_some())
        };
        self.core.unanswered(port).filter(is_submitted).collect()
    }

    /// Answers what was submitted in an epoch that has ended with an error: whether the device saw
    /// it is unknown, and it must not see it twice.
    fn fail_submitted(&mut self, port: PortNumber) {
        for slot in self.submitted(port) {
            match self.core.urb(slot).is_some_and(Urb::sets_address) {
                // No device sees that, however often it is sent.
                true => self.wait_again(port, slot),
                false => self.finish(slot, UrbResult::failed(UrbStatus::IOERROR)),
            }
        }
    }

    /// The connection is back: sends again what did not arrive.
    fn resume(&mut self, port: PortNumber, requests_received: u64) {
        self.count(
            port,
            Counters {
                reconnects: 1,
                ..Counters::default()
            },
        );
        let Some(client) = self.client(port) else {
            return;
        };
        let unsent: ArrayVec<u64, 32> = client.unsent(requests_received).collect();
        if let Some(attached) = self.at_mut(port) {
            attached.saved = None;
        }
        // In this order: a SET_ADDRESS is answered when what came before it is saved.
        self.save_cookies();
        for number in unsent {
            self.resend(port, number);
        }
        let told = self.told;
        if let Some(client) = self.client(port) {
            client.resend_cancels();
            told.say_again(client);
        }
        self.flush();
    }

    /// After a batch of completions: whatever they led to goes out.
    pub fn flush(&mut self) {
        if let Err(e) = self.tell_connections() {
            warn!(self.place.log, "connection ring is corrupt: {}", e);
        }
        self.save_cookies();
        self.publish();
    }

    /// Whether every slot of the URB ring waits for an answer.
    pub fn is_full(&self) -> bool {
        let rings = self.rings.as_ref();
        rings.is_some_and(|r| r.urb.unanswered() >= <usbif::Urb as RingKind>::SLOTS)
    }

    pub(super) fn release(&mut self, port: PortNumber) {
        self.core.release(port);
        self.note_ports();
        self.submit_held(port);
    }
}

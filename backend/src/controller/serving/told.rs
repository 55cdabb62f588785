// SPDX-License-Identifier: GPL-3.0-or-later
//! What the exporters are told of the guest: that it is suspended, or goes on, or that its domain is gone.

use session::client::Client;
use session::frame::Kind;
use xen::Backend;

use super::Serving;

/// What they were told, for who was not there to hear it or has forgotten it: an exporter that was
/// started again knows nothing of it, and goes by it when the guest's domain is gone.
#[derive(Clone, Copy, Debug, Default, Hash)]
pub(super) struct Told {
    /// Freeze or Thaw.
    suspended: Option<bool>,
    orphaned: bool,
}

impl Told {
    /// The guest is about to be suspended: what was said of the last time is of no interest.
    pub(super) fn begin_anew(&mut self) {
        self.suspended = None;
    }

    /// Whether the exporters were told that the guest is suspended.
    pub(super) fn is_suspended(self) -> bool {
        self.suspended == Some(true)
    }

    /// Says it on a connection that was just made.
    pub(super) fn say_again(self, client: &mut Client) {
        match self.suspended {
            Some(true) => client.say(Kind::Freeze),
            Some(false) => client.say(Kind::Thaw),
            None => {}
        }
        if self.orphaned {
            client.say(Kind::Orphan);
        }
    }
}

impl<B: Backend> Serving<B> {
    /// The guest is suspended: nothing is in flight. The exporters are to know, also where its domain is
    /// gone by now.
    pub fn freeze(&mut self) {
        self.acknowledge_all();
        self.told.suspended = Some(true);
        // Whoever tells an exporter later that the domain is gone says this first.
        self.journal.set_quiescing(true);
        self.say(Kind::Freeze);
    }

    /// The guest goes on here.
    pub fn thaw(&mut self) {
        self.told.suspended = Some(false);
        self.say(Kind::Thaw);
        self.hold_acknowledgements();
    }

    /// The guest's domain is gone.
    pub fn orphan(&mut self) {
        self.told.orphaned = true;
        self.say(Kind::Orphan);
    }

    /// Has every exporter that is there answer when it has saved what it was told; see
    /// [`Serving::is_silent`].
    pub fn ask_for_receipts(&mut self) {
        for port in self.core.ports() {
            if let Some(attached) = self.at_mut(port)
                && let Some(client) = &mut attached.client
                && client.is_connected()
                && client.has_room()
            {
                client.ask_for_receipt();
                attached.wake.notify_one();
            }
        }
    }

    /// Whether no exporter that is there has anything left to hear or to answer.
    pub fn is_silent(&mut self) -> bool {
        self.core.ports().all(|port| {
            let client = self.client(port).filter(|c| c.is_connected());
            client.is_none_or(|c| c.output().is_empty() && c.outstanding() == 0)
        })
    }

    fn say(&mut self, kind: Kind) {
        for port in self.core.ports() {
            if let Some(attached) = self.at_mut(port)
                && let Some(client) = &mut attached.client
            {
                client.say(kind);
                attached.wake.notify_one();
            }
        }
    }
}

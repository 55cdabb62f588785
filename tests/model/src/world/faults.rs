// SPDX-License-Identifier: GPL-3.0-or-later
//! What goes wrong, and what else need not happen.

use backend::xenbus::XenbusState;

use super::toolstack::Phase;
use super::{Step, World};
use crate::guest::Mode;
use crate::host::{Stage, Watch};
use crate::memory::{self, Kept};

impl World {
    pub(super) fn faults(&self, may: &mut impl FnMut(Step, bool)) {
        let left = &self.left;
        for (&id, connection) in &self.connections {
            may(Step::Cut(id), left.cuts > 0 && !connection.cut);
        }
        may(Step::Abort, left.aborts > 0 && self.may_abort());
        may(
            Step::CrashExporter,
            left.exporter_crashes > 0 && self.exporter.up,
        );
        for at in 0..2 {
            let matters = self.nodes.values().any(|n| n.host == at);
            may(Step::CrashHost(at), left.host_crashes > 0 && matters);
            let host = &self.hosts[at];
            let known = !host.controllers.is_empty();
            may(Step::SpuriousWatches(at), left.spurious > 0 && known);
            let may_end = left.restarts > 0 && host.up && known && host.dies_after.is_none();
            may(Step::KillVusbd(at), may_end);
            for stores in 1..=left.stores {
                may(Step::KillVusbdAfter(at, stores), may_end);
            }
            let loses = left.store_losses > 0 && host.has_store && known;
            may(Step::LoseStore(at), loses);
        }
        for at in 0..2 {
            let may_start = left.copies > 0 && self.copy.is_none() && self.phase == Phase::Calm;
            may(Step::StartCopy(at), may_start);
            for (&dom, controller) in &self.hosts[at].controllers {
                let waits = controller
                    .task
                    .as_ref()
                    .is_some_and(|t| t.refused && t.stage == Stage::Down);
                let retries = waits && self.exporter.up && !self.would_admit(at, dom);
                may(Step::Retry(at, dom), left.retries > 0 && retries);
            }
        }
        let orphaned = self.exporter.deadline_ms().is_some();
        may(Step::HoldOver, left.holds > 0 && orphaned);
        let settled = self.phase == Phase::Calm && self.guest.mode == Mode::Running;
        let may_reload = settled && self.guest.is_connected();
        may(Step::GuestReload, left.reloads > 0 && may_reload);
        may(
            Step::GuestUnlink,
            left.unlinks > 0 && self.guest.can_unlink(),
        );
        may(
            Step::SpuriousSignal,
            left.spurious > 0 && self.guest.is_connected(),
        );
    }

    fn may_abort(&self) -> bool {
        match self.phase {
            Phase::Built { .. } | Phase::Made { .. } | Phase::Ready { .. } => true,
            Phase::Asked { .. } => self.guest.mode == Mode::Suspended,
            _ => false,
        }
    }

    pub(super) fn fault(&mut self, fault: Step) {
        match fault {
            Step::Cut(id) => {
                self.left.cuts -= 1;
                self.end_of(id, |c| c.cut());
            }
            Step::Abort => {
                self.left.aborts -= 1;
                self.migration_fails();
            }
            Step::CrashExporter => {
                self.left.exporter_crashes -= 1;
                self.history.excused = true;
                self.exporter.crash();
                for connection in self.connections.values_mut() {
                    connection.cut();
                    connection.exporter = false;
                }
            }
            Step::CrashHost(at) => {
                self.left.host_crashes -= 1;
                self.crash_host(at);
            }
            Step::KillVusbd(at) => {
                self.left.restarts -= 1;
                self.vusbd_ends(at);
            }
            Step::KillVusbdAfter(at, stores) => {
                self.left.restarts -= 1;
                self.hosts[at].dies_after = Some(stores);
            }
            Step::LoseStore(at) => {
                self.left.store_losses -= 1;
                let host = &mut self.hosts[at];
                host.lose_store();
                for controller in host.controllers.values_mut() {
                    controller.lose_store();
                }
            }
            Step::HoldOver => {
                self.left.holds -= 1;
                self.now_ms = self
                    .now_ms
                    .max(self.exporter.deadline_ms().unwrap_or_default());
                let (released, said) = self.exporter.expire(self.now_ms);
                if released {
                    self.history.release();
                }
                self.say(said);
            }
            Step::GuestReload => {
                self.left.reloads -= 1;
                self.guest.forget(&mut self.history);
                self.set_frontend(XenbusState::Closing, None);
            }
            Step::GuestUnlink => {
                self.left.unlinks -= 1;
                self.guest.unlink_one(&mut self.history);
            }
            Step::SpuriousWatches(at) => {
                self.left.spurious -= 1;
                let host = &mut self.hosts[at];
                let mut pending = Vec::new();
                for &dom in host.controllers.keys() {
                    let all = [
                        Watch::Backend(dom),
                        Watch::Frontend(dom),
                        Watch::Shutdown(dom),
                    ];
                    pending.extend(all);
                }
                for watch in pending {
                    host.tell(watch);
                }
            }
            Step::StartCopy(at) => {
                self.left.copies -= 1;
                self.start_copy(at);
            }
            Step::Retry(at, dom) => {
                self.left.retries -= 1;
                self.connect(at, dom);
            }
            Step::SpuriousSignal => {
                self.left.spurious -= 1;
                memory::channel(self.guest.dom, |c| {
                    (c.to_backend, c.to_frontend) = (true, true)
                });
            }
            _ => {}
        }
    }

    fn crash_host(&mut self, at: usize) {
        for dom in std::mem::take(&mut self.hosts[at]).had {
            Kept(dom).remove();
        }
        for connection in self.connections.values_mut().filter(|c| c.host == at) {
            connection.cut();
            connection.backend = false;
        }
        let died: Vec<u16> = self
            .nodes
            .iter()
            .filter_map(|(&dom, n)| (n.host == at).then_some(dom))
            .collect();
        for dom in &died {
            self.suspends_heard.remove(dom);
            self.nodes.remove(dom);
            memory::revoke(*dom, u32::MAX);
        }
        if self.copy.as_ref().is_some_and(|c| died.contains(&c.dom)) {
            self.copy = None;
        }
        let guest_died = died.contains(&self.guest.dom) && self.guest.mode != Mode::Off;
        match self.phase {
            Phase::Starting { dom } if died.contains(&dom) => self.phase = Phase::Gone,
            Phase::Unpaused { from } if died.contains(&from) => self.phase = Phase::Calm,
            // One that is asked to suspend finds out when it has.
            Phase::Asked { to, .. } if guest_died => self.destroy(to),
            Phase::Built { to, .. } | Phase::Made { to } | Phase::Ready { to }
                if guest_died || died.contains(&to) =>
            {
                self.migration_fails();
            }
            _ => {}
        }
        if guest_died {
            if let Phase::Unpaused { from } = self.phase {
                self.destroy(from);
            }
            self.guest.mode = Mode::Off;
            self.guest.forget(&mut self.history);
            self.phase = Phase::Gone;
        }
    }
}

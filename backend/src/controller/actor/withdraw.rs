// SPDX-License-Identifier: GPL-3.0-or-later
//! Replug at the source: a device that a guest with a stock frontend would not keep across a
//! migration is disconnected before the guest is suspended, and connected where it goes on.
//!
//! Why before: a stock `xen-hcd` has no resume callback, and what drivers submit while they resume
//! goes to a dead ring (docs/decisions/0011-replug-before-suspend.md). A device that is gone by then
//! is not resumed. It is disconnected as soon as a host announces that the guest is on its way, and
//! at the latest when the guest is asked to suspend, which is all that is known of an `xl save`.

use session::OnMigrate;
use slog::{info, warn};
use tokio::time::{Duration, Instant};
use usbif::PortNumber;
use xen::Backend;

use handoff::State;

use super::Actor;
use super::devices::Plugged;

/// A guest that was asked to suspend gets its devices back after this time, if it is still here: the
/// suspend was cancelled, which nobody tells us. A guest that is suspended by then does not see it.
const SUSPENDED_WITHIN: Duration = Duration::from_secs(10);

/// Why a device is disconnected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Withdrawn {
    /// The guest is on its way to another domain.
    Moving,
    /// It was asked to suspend.
    Suspending,
    /// The device's exporter is out of reach.
    OutOfReach,
    /// Another domain with the VM's uuid has it.
    HeldElsewhere,
}

impl<B: Backend> Actor<B> {
    /// The guest is on its way to another domain, or not after all, as this exporter says.
    pub(super) fn moving(&mut self, exporter: &str, moving: bool) {
        match moving {
            true => self.withdraw(Withdrawn::Moving, |e| e == exporter),
            false => self.give_again(Withdrawn::Moving, |e| e == exporter),
        }
    }

    /// The guest was asked to suspend.
    pub(super) fn withdraw_suspending(&mut self) {
        self.withdraw(Withdrawn::Suspending, |_| true);
        let any = |w: Option<Withdrawn>| w == Some(Withdrawn::Suspending);
        if self.plugged.iter().flatten().any(|p| any(p.withdrawn)) {
            self.give_again_at = Some(Instant::now() + SUSPENDED_WITHIN);
        }
    }

    /// It has not gone.
    pub(super) fn give_again_suspended(&mut self) {
        self.give_again_at = None;
        self.give_again(Withdrawn::Suspending, |_| true);
    }

    /// A device's exporter is out of reach for longer than the guest is to wait.
    pub(super) fn out_of_reach(&mut self, port: PortNumber) {
        // A guest that is being suspended has taken back what it had, and does not wait.
        if !matches!(self.state, State::Serving | State::Claiming) {
            return;
        }
        let Some(plugged) = &mut self.plugged[port.index()] else {
            return;
        };
        if plugged.withdrawn.is_some() {
            return;
        }
        warn!(self.log, "exporter {} is out of reach for too long: device disconnected until it is \
            back", plugged.exporter.name; "port" => port.get());
        plugged.withdrawn = Some(Withdrawn::OutOfReach);
        self.serving.borrow_mut().withdraw(port);
    }

    /// The exporter is back.
    pub(super) fn in_reach(&mut self, port: PortNumber) {
        let Some(plugged) = &mut self.plugged[port.index()] else {
            return;
        };
        if plugged.withdrawn != Some(Withdrawn::OutOfReach) {
            return;
        }
        info!(self.log, "connected again"; "port" => port.get());
        plugged.withdrawn = None;
        let speed = super::devices::speed_of(&plugged.lease);
        let mut serving = self.serving.borrow_mut();
        serving.give_again(port, speed);
        // What it was in the middle of was not ended in order.
        serving.start_over(port);
    }

    fn withdraw(&mut self, why: Withdrawn, which: impl Fn(&str) -> bool) {
        if *self.frontend_resumes.borrow() || !self.state.has_rings() {
            return;
        }
        let ports = self.serving.borrow().core.ports();
        for port in ports {
            let plugged = self.plugged[port.index()].as_ref();
            let is_one =
                |p: &Plugged| p.lease.on_migrate == OnMigrate::Replug && which(&p.exporter.name);
            if plugged.is_some_and(is_one) {
                self.withdraw_away(port);
            }
        }
        let plugged = self.plugged.iter_mut().flatten();
        for plugged in plugged.filter(|p| which(&p.exporter.name)) {
            let replugs = plugged.lease.on_migrate == OnMigrate::Replug;
            let Some(port) = PortNumber::new(plugged.lease.port) else {
                continue;
            };
            if !replugs || plugged.away.is_some() || plugged.withdrawn.is_some() {
                continue;
            }
            info!(self.log, "disconnected before the guest is suspended";
                "port" => port.get(), "why" => ?why);
            plugged.withdrawn = Some(why);
            self.serving.borrow_mut().withdraw(port);
        }
    }

    fn give_again(&mut self, why: Withdrawn, which: impl Fn(&str) -> bool) {
        let plugged = self.plugged.iter_mut().flatten();
        for plugged in plugged.filter(|p| which(&p.exporter.name)) {
            let Some(port) = PortNumber::new(plugged.lease.port) else {
                continue;
            };
            if plugged.withdrawn != Some(why) {
                continue;
            }
            info!(self.log, "connected again"; "port" => port.get());
            plugged.withdrawn = None;
            let speed = super::devices::speed_of(&plugged.lease);
            self.serving.borrow_mut().give_again(port, speed);
        }
    }
}

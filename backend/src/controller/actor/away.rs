// SPDX-License-Identifier: GPL-3.0-or-later
//! Devices that are pulled out and waited for (docs/decisions/0015-exchange.md): their ports, and how
//! they come back. Where they are the daemon finds out.

use session::{Epoch, Lease, OnExchange};
use slog::{info, warn};
use tokio::sync::oneshot;
use tokio::time::{Duration, Instant};
use usbif::PortNumber;
use vusb_core::PortState;
use xen::Backend;

use super::devices::{Plugged, speed_of};
use super::{Actor, State};
use crate::config;
use crate::controller::handle::{Fetched, Waiting};

/// A device that is waited for.
pub(super) struct Away {
    pub(super) waiting: Waiting,
    /// `None` for a persistent attachment, which waits without a limit.
    until: Option<Instant>,
}

impl Away {
    pub(super) fn new(lease: &Lease, paused: bool) -> Self {
        let seconds = lease.exchange.map_or(0, |e| e.seconds);
        Self {
            waiting: Waiting {
                paused,
                confirmed: false,
                note: None,
            },
            until: (!lease.persistence.is_persistent())
                .then(|| Instant::now() + Duration::from_secs(seconds.into())),
        }
    }
}

/// Whether a guest that arrives while its device is pulled out stays connected.
pub(super) fn pauses(lease: &Lease, carried: Option<PortState>) -> bool {
    lease.exchange.is_some_and(|e| e.on == OnExchange::Pause)
        && carried.is_some_and(|state| state.address.is_some())
}

impl<B: Backend> Actor<B> {
    /// The device at a port is pulled out; `paused` if the guest stays connected.
    pub(super) fn went_away(&mut self, port: PortNumber, paused: bool, epoch: Option<Epoch>) {
        let Some(plugged) = &mut self.plugged[port.index()] else {
            return;
        };
        info!(self.log, "device pulled out; waiting for it"; "port" => port.get(),
            "paused" => paused, "seconds" => plugged.lease.exchange.map_or(0, |e| e.seconds));
        plugged.task = None;
        plugged.claimed = false;
        plugged.fresh = false;
        plugged.withdrawn = None;
        plugged.lease.epoch = epoch.unwrap_or(plugged.lease.epoch);
        plugged.away = Some(Away::new(&plugged.lease, paused));
        if let Some(waiting) = plugged.waiting.take() {
            let _ = waiting.send(Err("it was pulled out of its exporter".to_owned()));
        }
        if !paused {
            self.serving.borrow_mut().detach(port);
        }
        self.keep_devices();
        self.look.notify_one();
    }

    /// A lease whose device is pulled out, of a guest that arrives here or was served by an earlier process.
    pub(super) fn plug_away(
        &mut self,
        port: PortNumber,
        exporter: config::Exporter,
        lease: Lease,
        paused: bool,
    ) {
        info!(self.log, "waiting for a device that was pulled out"; "port" => port.get(),
            "device" => format!("{}/{}", exporter.name, lease.device.id), "paused" => paused);
        if paused {
            // Nobody is there to be woken.
            let mut serving = self.serving.borrow_mut();
            serving.attach(port, Default::default());
            serving.set_pauses(port, lease.device.is_storage());
            serving.fail_stages(port);
        }
        self.plugged[port.index()] = Some(Plugged {
            away: Some(Away::new(&lease, paused)),
            ..Plugged::new(exporter, lease)
        });
        self.keep_devices();
        self.look.notify_one();
    }

    /// The old exporter has the lease so; a note is for people.
    pub(super) fn learn_away(
        &mut self,
        port: PortNumber,
        lease: Option<Lease>,
        note: Option<String>,
    ) {
        let Some(plugged) = &mut self.plugged[port.index()] else {
            return;
        };
        let Some(away) = &mut plugged.away else {
            return;
        };
        if let Some(note) = note
            && away.waiting.note.as_ref() != Some(&note)
        {
            warn!(self.log, "{}", note; "port" => port.get());
            away.waiting.note = Some(note);
        }
        if let Some(lease) = lease {
            let news = !std::mem::replace(&mut away.waiting.confirmed, true);
            if news || plugged.lease != lease {
                plugged.lease = lease;
                self.keep_devices();
            }
        }
    }

    /// The device is back, under a new lease; `same` if it is what the guest knows.
    pub(super) fn come_back(
        &mut self,
        port: PortNumber,
        exporter: config::Exporter,
        lease: Lease,
        same: bool,
        answer: oneshot::Sender<Fetched>,
    ) {
        let away = self.plugged[port.index()]
            .as_ref()
            .and_then(|p| p.away.as_ref());
        let Some(paused) = away.map(|a| a.waiting.paused) else {
            let _ = answer.send(Fetched::NotWanted);
            return;
        };
        if !matches!(self.state, State::Serving | State::Quiescing) {
            // It is on its way to another host, or here again in a moment.
            let _ = answer.send(Fetched::Later);
            return;
        }
        info!(self.log, "device is back"; "port" => port.get(), "paused" => paused,
            "same" => same, "device" => format!("{}/{}", exporter.name, lease.device.id));
        self.note_speed(&exporter, &lease);
        if !(paused && same) {
            let mut serving = self.serving.borrow_mut();
            if paused {
                serving.detach(port);
            }
            if let Err(e) = serving.core.plug(port, speed_of(&lease), None) {
                warn!(self.log, "device not plugged in again: {}", e);
                let _ = answer.send(Fetched::NotWanted);
                return;
            }
        }
        // The guest may leave before the lease is claimed. Who has claimed it then is where it went.
        self.start(port, exporter, lease, None, true);
        if paused && same {
            self.serving.borrow_mut().fail_stages(port);
        }
        self.keep_devices();
        let _ = answer.send(Fetched::Plugged);
    }

    /// This exporter has ended a lease.
    pub(super) fn lease_ended(&mut self, exporter: &str, device: &session::DeviceId) {
        let waits = |p: &&Plugged| {
            p.away.is_some() && p.exporter.name == exporter && p.lease.device.id == *device
        };
        let port = self
            .plugged
            .iter()
            .flatten()
            .find(waits)
            .map(|p| p.lease.port);
        if let Some(port) = port.and_then(PortNumber::new) {
            self.wait_no_longer(port);
        }
    }

    /// When to call [`Actor::look_away`] next.
    pub(super) fn away_until(&self) -> Option<Instant> {
        let away = self
            .plugged
            .iter()
            .flatten()
            .filter_map(|p| p.away.as_ref());
        away.filter_map(|a| a.until).min()
    }

    /// Gives up what did not come back in time.
    pub(super) fn look_away(&mut self) {
        let now = Instant::now();
        for at in 0..self.plugged.len() {
            let until = |p: &Plugged| p.away.as_ref().and_then(|a| a.until);
            let over = |p: &Plugged| until(p).is_some_and(|until| until <= now);
            if self.plugged[at].as_ref().is_some_and(over)
                && let Some(port) = PortNumber::new(at as u8 + 1)
            {
                self.wait_no_longer(port);
            }
        }
    }

    fn wait_no_longer(&mut self, port: PortNumber) {
        warn!(self.log, "device unplugged: it was pulled out and did not come back in time";
            "port" => port.get());
        self.plugged[port.index()] = None;
        self.serving.borrow_mut().detach(port);
        self.keep_devices();
        self.look_claimed();
    }

    /// A guest whose frontend cannot resume is about to be suspended: what is paused is disconnected, as if it
    /// were there.
    pub(super) fn withdraw_away(&mut self, port: PortNumber) {
        if let Some(plugged) = &mut self.plugged[port.index()]
            && let Some(away) = &mut plugged.away
            && std::mem::replace(&mut away.waiting.paused, false)
        {
            self.serving.borrow_mut().detach(port);
            self.keep_devices();
        }
    }
}

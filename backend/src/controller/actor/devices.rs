// SPDX-License-Identifier: GPL-3.0-or-later
//! The devices of a controller: plugged in, unplugged, and the news of their tasks.

use std::cell::Cell;
use std::rc::Rc;

use control::Counters;
use handoff::{Cookie, CookieError, Event, Incoming, State};
use session::{Lease, LeasePhase, OnExchange};
use slog::{debug, error, info, warn};
use tokio::sync::{Notify, oneshot};
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::Instant;
use usbif::{DeviceAddress, PortNumber, Speed};
use vusb_core::PortState;
use xen::Backend;

use super::Actor;
use super::away::{Away, pauses};
use super::withdraw::Withdrawn;
use crate::config;
use crate::controller::device::{DeviceTask, News, NewsSender, TaskId, held_elsewhere};
use crate::controller::handle::{Detached, Device, Report};
use crate::controller::tenure::Tenure;
use crate::state::{Saved, SavedDevice};

/// A device at a port.
pub(super) struct Plugged {
    pub(super) exporter: config::Exporter,
    pub(super) lease: Lease,
    /// Not while it is away.
    pub(super) task: Option<AbortHandle>,
    /// The task that was started for it.
    pub(super) task_id: TaskId,
    pub(super) claimed: bool,
    /// Leased for this controller, not brought by a guest that arrived.
    pub(super) fresh: bool,
    /// Whether the guest does not see it for now.
    pub(super) withdrawn: Option<Withdrawn>,
    /// It is pulled out, and waited for.
    pub(super) away: Option<Away>,
    pub(super) waiting: Option<oneshot::Sender<Result<(), String>>>,
    /// Since when there is no connection to its exporter. Its task sets it.
    pub(super) lost_at: Rc<Cell<Option<Instant>>>,
    /// What people are told where it is [`Withdrawn::HeldElsewhere`].
    pub(super) note: Option<String>,
}

impl Plugged {
    /// Without a task.
    pub(super) fn new(exporter: config::Exporter, lease: Lease) -> Self {
        Self {
            exporter,
            lease,
            task: None,
            task_id: TaskId::default(),
            claimed: false,
            fresh: false,
            withdrawn: None,
            away: None,
            waiting: None,
            lost_at: Rc::default(),
            note: None,
        }
    }
}

impl<B: Backend> Actor<B> {
    pub(super) fn plug_arriving(
        &mut self,
        exporter: config::Exporter,
        lease: Lease,
        incoming: Incoming,
    ) {
        let Some(port) = PortNumber::new(lease.port) else {
            return;
        };
        self.note_speed(&exporter, &lease);
        let carried = carried(&lease, incoming).unwrap_or_else(|e| {
            warn!(self.log, "device will be replugged: {}", e; "port" => lease.port);
            None
        });
        if incoming == Incoming::Elsewhere {
            let note = held_elsewhere(&lease.holder, lease.phase == LeasePhase::Serving);
            if let Err(e) = self.plug_elsewhere(port, exporter, lease, note) {
                warn!(self.log, "lease ignored: {}", e);
            }
            return;
        }
        let plugged = match lease.phase {
            LeasePhase::Absent => self.plug_absent(port, exporter, lease, carried),
            _ => self.plug(port, exporter, lease, carried, None),
        };
        if let Err(e) = plugged {
            warn!(self.log, "lease ignored: {}", e);
            return;
        }
        if carried.is_none() {
            let mut serving = self.serving.borrow_mut();
            serving.core.replug(port);
            serving.core.expect_stale();
            serving.note_ports();
        }
    }

    /// A lease that waits for its device.
    fn plug_absent(
        &mut self,
        port: PortNumber,
        exporter: config::Exporter,
        lease: Lease,
        carried: Option<PortState>,
    ) -> Result<(), String> {
        let paused = pauses(&lease, carried);
        if paused {
            let speed = speed_of(&lease);
            let plugged = self.serving.borrow_mut().core.plug(port, speed, carried);
            plugged.map_err(|e| e.to_string())?;
        } else if self.plugged[port.index()].is_some() {
            return Err(format!("port {port} is taken"));
        }
        self.plug_away(port, exporter, lease, paused);
        Ok(())
    }

    /// A device that an earlier process had plugged in.
    pub(super) fn plug_again(&mut self, exporter: config::Exporter, device: SavedDevice) {
        let SavedDevice {
            lease,
            fresh,
            away,
            elsewhere,
            ..
        } = device;
        let Some(port) = PortNumber::new(lease.port) else {
            return;
        };
        self.note_speed(&exporter, &lease);
        let known = self.serving.borrow().core.snapshot(port).speed != Speed::None;
        if away {
            self.plug_away(port, exporter, lease, known);
            return;
        }
        if elsewhere && !known {
            let note = held_elsewhere(&lease.holder, true);
            if let Err(e) = self.plug_elsewhere(port, exporter, lease, note) {
                warn!(self.log, "device not plugged in again: {}", e);
            }
            return;
        }
        if known {
            self.start(port, exporter, lease, None, false);
        } else if let Err(e) = self.plug(port, exporter, lease, None, None) {
            warn!(self.log, "device not plugged in again: {}", e);
            return;
        }
        if let Some(plugged) = &mut self.plugged[port.index()] {
            plugged.fresh = fresh;
        }
    }

    /// Sessions that were taken up again are claimed already.
    pub(super) fn note_sessions(&mut self) {
        let mut serving = self.serving.borrow_mut();
        for (at, plugged) in self.plugged.iter_mut().enumerate() {
            let port = PortNumber::new(at as u8 + 1);
            if let (Some(plugged), Some(port)) = (plugged, port) {
                plugged.claimed |= serving.client(port).is_some();
            }
        }
    }

    /// Writes down which devices there are.
    pub(super) fn keep_devices(&self) {
        // Whoever tells the exporter that the domain is gone says this again, and a target goes by it.
        let frontend_resumes = *self.frontend_resumes.borrow();
        let devices = self.plugged.iter().flatten().map(|p| SavedDevice {
            exporter: p.exporter.name.clone(),
            lease: Lease {
                frontend_resumes,
                ..p.lease.clone()
            },
            fresh: p.fresh && !p.claimed,
            away: p.away.is_some(),
            elsewhere: p.is_elsewhere(),
        });
        let saved = Saved {
            vm: self.vm,
            domid: self.key.domid.0,
            devid: self.key.devid,
            devices: devices.collect(),
            arrives: self.arrives,
            first_connect: self.first_connect,
        };
        if let Err(e) = self.files.save(&saved) {
            warn!(
                self.log,
                "a restart of vusbd will cost the guest its devices: {}", e
            );
        }
    }

    pub(super) fn attach(
        &mut self,
        exporter: config::Exporter,
        lease: Lease,
        answer: oneshot::Sender<Result<(), String>>,
    ) {
        let Some(port) = PortNumber::new(lease.port) else {
            let _ = answer.send(Err(format!("port {} is not 1 to 31", lease.port)));
            return;
        };
        if let Err(e) = self.check_speed(&exporter, &lease) {
            let _ = answer.send(Err(e));
            return;
        }
        let running = *self.may_claim.borrow();
        let (waiting, at_once) = if running {
            (Some(answer), None)
        } else {
            (None, Some(answer))
        };
        let result = self.plug(port, exporter, lease, None, waiting);
        match &result {
            Err(e) => warn!(self.log, "device not attached: {}", e),
            Ok(()) => {
                if let Some(plugged) = &mut self.plugged[port.index()] {
                    plugged.fresh = true;
                }
            }
        }
        if let Some(answer) = at_once {
            let _ = answer.send(result);
        }
    }

    /// Whether a device can be plugged into this controller.
    ///
    /// # Errors
    /// Why not, and what to do.
    fn check_speed(&self, exporter: &config::Exporter, lease: &Lease) -> Result<(), String> {
        match self.usb_version.takes(speed_of(lease)) {
            true => Ok(()),
            false => Err(too_fast(
                &format!("{}/{}", exporter.name, lease.device.id),
                self.key.devid,
                &lease.vm_name,
            )),
        }
    }

    /// A device that was plugged in elsewhere, or before, stays: some drivers serve it all the same, and the
    /// guest may be using it.
    pub(super) fn note_speed(&self, exporter: &config::Exporter, lease: &Lease) {
        if let Err(e) = self.check_speed(exporter, lease) {
            error!(self.log, "the guest may not see a device: {}", e; "port" => lease.port);
        }
    }

    fn plug(
        &mut self,
        port: PortNumber,
        exporter: config::Exporter,
        lease: Lease,
        carried: Option<PortState>,
        waiting: Option<oneshot::Sender<Result<(), String>>>,
    ) -> Result<(), String> {
        let speed = speed_of(&lease);
        let plugged = self.serving.borrow_mut().core.plug(port, speed, carried);
        if let Err(e) = plugged {
            let text = e.to_string();
            if let Some(waiting) = waiting {
                let _ = waiting.send(Err(text.clone()));
            }
            return Err(text);
        }
        self.start(port, exporter, lease, waiting, false);
        self.keep_devices();
        Ok(())
    }

    /// Starts the task of a device that is plugged into the core; `held` if nobody else's claim is to be
    /// overruled.
    pub(super) fn start(
        &mut self,
        port: PortNumber,
        exporter: config::Exporter,
        lease: Lease,
        waiting: Option<oneshot::Sender<Result<(), String>>>,
        held: bool,
    ) {
        let wake = Rc::new(Notify::new());
        let mut serving = self.serving.borrow_mut();
        serving.attach(port, wake.clone());
        if lease.exchange.is_some_and(|e| e.on == OnExchange::Pause) {
            serving.set_pauses(port, lease.device.is_storage());
        }
        let session = serving.session_before(port);
        drop(serving);
        let lost_at = Rc::new(Cell::new(Some(Instant::now())));
        self.last_task.0 += 1;
        let task_id = self.last_task;
        let task = DeviceTask {
            serving: self.serving.clone(),
            port,
            tenure: Tenure::new(lease.epoch, session)
                .holding(held)
                .with(self.evidence()),
            lease: lease.clone(),
            domid: self.key.domid.0,
            domains: self.domains.clone(),
            exporter: exporter.clone(),
            identity: self.identity.clone(),
            wake,
            may_claim: self.may_claim.subscribe(),
            frontend_resumes: self.frontend_resumes.subscribe(),
            news: NewsSender {
                task: task_id,
                sender: self.news.clone(),
            },
            lost_at: lost_at.clone(),
            log: self.log.new(slog::o!(
                "port" => port.get(),
                "device" => format!("{}/{}", exporter.name, lease.device.id),
            )),
        };
        let task = spawn_local(task.run()).abort_handle();
        self.plugged[port.index()] = Some(Plugged {
            task: Some(task),
            task_id,
            waiting,
            lost_at,
            ..Plugged::new(exporter, lease)
        });
    }

    pub(super) fn detach(&mut self, port: PortNumber) -> Option<Detached> {
        let plugged = self.plugged[port.index()].take()?;
        let elsewhere = plugged.is_elsewhere();
        let Plugged {
            exporter,
            mut lease,
            task,
            ..
        } = plugged;
        if let Some(task) = task {
            task.abort();
        }
        let attached = self.serving.borrow_mut().detach(port);
        self.keep_devices();
        if let Some(client) = attached.and_then(|a| a.client) {
            lease.epoch = client.epoch();
        }
        Some(Detached {
            exporter: exporter.name,
            lease,
            elsewhere,
        })
    }

    pub(super) fn device(&mut self, task: TaskId, news: News) {
        if !is_current(&self.plugged, task, &news) {
            debug!(self.log, "news of a device that was detached"; "news" => ?news);
            return;
        }
        match news {
            News::Claimed(port) => {
                if let Some(plugged) = &mut self.plugged[port.index()] {
                    let first = !std::mem::replace(&mut plugged.claimed, true);
                    if let Some(waiting) = plugged.waiting.take() {
                        let _ = waiting.send(Ok(()));
                    }
                    if first && plugged.fresh {
                        self.keep_devices();
                    }
                }
                self.no_longer_elsewhere(port);
            }
            News::HeldElsewhere(port, note) => self.held_elsewhere(port, note),
            News::Unreachable(port) => self.out_of_reach(port),
            News::Reached(port) => self.in_reach(port),
            News::Absent {
                port,
                paused,
                epoch,
            } => self.went_away(port, paused, epoch),
            News::Lost(port, why) => {
                // What a migration ends in at its source; anywhere else it is worth a look.
                match self.state {
                    State::Frozen => info!(self.log, "handed over"; "port" => port.get()),
                    _ => warn!(self.log, "device unplugged: {}", why; "port" => port.get()),
                }
                if let Some(Plugged {
                    waiting: Some(waiting),
                    ..
                }) = self.plugged[port.index()].take()
                {
                    let _ = waiting.send(Err(why));
                }
                self.serving.borrow_mut().detach(port);
                self.keep_devices();
            }
        }
        self.look_claimed();
    }

    pub(super) fn look_claimed(&mut self) {
        if self.state == State::Claiming
            && self
                .plugged
                .iter()
                .flatten()
                .all(|p| p.claimed || p.away.is_some() || p.is_elsewhere())
        {
            self.event(Event::Claimed);
        }
    }

    pub(super) fn report(&self) -> Report {
        let serving = self.serving.borrow();
        let devices = self.plugged.iter().flatten().map(|p| {
            let mut lease = p.lease.clone();
            let attached = PortNumber::new(lease.port).and_then(|port| serving.at(port));
            if let Some(client) = attached.and_then(|a| a.client.as_ref()) {
                lease.epoch = client.epoch();
            }
            Device {
                exporter: p.exporter.name.clone(),
                lease,
                fresh: p.fresh && !p.claimed,
                counters: attached.map_or(Counters::default(), |a| a.counters),
                waiting: p.away.as_ref().map(|a| a.waiting.clone()),
                elsewhere: p.note.clone().filter(|_| p.is_elsewhere()),
            }
        });
        Report {
            state: self.state,
            backend: self.backend,
            frontend_resumes: *self.frontend_resumes.borrow(),
            devices: devices.collect(),
        }
    }
}

/// Whether news are of the device that is at their port now. A task that was aborted may have sent them
/// before, and another device may have been attached meanwhile.
fn is_current(plugged: &[Option<Plugged>], task: TaskId, news: &News) -> bool {
    let at = plugged.get(news.port().index()).and_then(Option::as_ref);
    at.is_some_and(|p| p.task_id == task)
}

/// What a guest that arrives knows of the device already; `None` where it is shown to it anew.
pub fn carried(lease: &Lease, incoming: Incoming) -> Result<Option<PortState>, CookieError> {
    if incoming != Incoming::Seamless {
        return Ok(None);
    }
    let cookie = Cookie::decode(&lease.cookie)?;
    Ok(cookie.map(|c| PortState {
        speed: Speed::from_wire(c.speed).unwrap_or_default(),
        address: DeviceAddress::new(c.address).filter(|a| !a.is_default()),
    }))
}

/// Why a high-speed device is refused, and what to do.
pub fn too_fast(device: &str, devid: u16, domain: &str) -> String {
    format!(
        "{device} is a high-speed device, and controller {devid} of domain {domain} is a USB 1.1 one \
         (version=1), which has none. Add a USB 2.0 controller with `xl usbctrl-attach {domain} type=pv \
         version=2 ports=4`, or write version=2 into the usbctrl= line of the domain and start it again"
    )
}

/// The speed that the guest is told.
pub(super) fn speed_of(lease: &Lease) -> Speed {
    speed_told(lease.device.speed)
}

/// The speed that a guest is told of such a device.
pub fn speed_told(speed: session::Speed) -> Speed {
    match speed {
        session::Speed::Low => Speed::Low,
        session::Speed::Full => Speed::Full,
        session::Speed::High | session::Speed::Super => Speed::High,
    }
}

#[cfg(test)]
mod tests {
    use session::{DeviceId, DeviceInfo, DeviceState, Epoch, Holder, OnMigrate, VmUuid};

    use super::*;

    fn plugged(task_id: TaskId) -> Plugged {
        let exporter = config::Exporter {
            name: "e".into(),
            address: "e:1".into(),
            on_unreachable: Default::default(),
            unreachable_seconds: 60,
        };
        let lease = Lease {
            device: DeviceInfo {
                id: DeviceId("1-2".into()),
                vendor: 1,
                product: 2,
                serial: None,
                name: String::new(),
                speed: session::Speed::High,
                classes: vec![8],
                state: DeviceState::Free,
            },
            vm: VmUuid(Default::default()),
            vm_name: "vm".into(),
            controller: 0,
            port: 1,
            epoch: Epoch(3),
            holder: Holder {
                host: "a".into(),
                domid: 7,
            },
            phase: LeasePhase::Serving,
            on_migrate: OnMigrate::Replug,
            frontend_resumes: true,
            cookie: vec![],
            note: None,
            stash: Default::default(),
            exchange: None,
            own_controller: None,
            descriptors: None,
            configured: session::Configured::default(),
            persistence: Default::default(),
            silent_seconds: None,
        };
        Plugged {
            task_id,
            ..Plugged::new(exporter, lease)
        }
    }

    #[test]
    fn news_of_a_task_that_has_ended_are_not_about_the_next_device_of_its_port() {
        let port = PortNumber::new(1).unwrap();
        let lost = News::Lost(port, "unplugged".into());
        let mut ports = [const { None }; 2];
        assert!(!is_current(&ports, TaskId(1), &lost), "detached");
        ports[0] = Some(plugged(TaskId(2)));
        assert!(!is_current(&ports, TaskId(1), &lost), "attached again");
        assert!(is_current(&ports, TaskId(2), &lost));
    }
}

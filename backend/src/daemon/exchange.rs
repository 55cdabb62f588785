// SPDX-License-Identifier: GPL-3.0-or-later
//! Looks for devices that were pulled out and are waited for (docs/decisions/0015-exchange.md).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use handoff::State;
use session::control::{Acquire, Reply, Request, Returns};
use session::{DeviceInfo, DeviceSelector, Exchange, Lease, LeasePhase, OnExchange, OnMigrate};
use slog::{Logger, info, warn};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout};

use crate::admin::{Admin, Entry};
use crate::controller::{Command, Device, Fetched, Waiting};
use crate::exporter::Exporter;
use crate::xenbus::Key;

/// How often it is looked again while something is waited for, though nothing was heard.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Longest wait for an exporter's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a device may be seen at two places while it is moved from one to the other, until each exporter
/// has noticed.
const MOVED_WITHIN: Duration = Duration::from_secs(2);

/// A port of a guest, here.
type Place = (Key, u8);

/// Another device that says the same as one that is attached.
#[derive(Clone, Copy, Debug)]
enum Twin {
    /// Seen since then; perhaps the device is just being moved.
    Seen(Instant),
    /// There are two. Neither is taken for the other.
    Sure,
}

/// See the module's documentation.
pub(super) struct Seeker {
    admin: Rc<Admin>,
    log: Logger,
    /// Notified when it is to be looked.
    look: Arc<Notify>,
    /// Something is waited for.
    seeking: Cell<bool>,
    twins: RefCell<BTreeMap<Place, Twin>>,
}

/// An attachment that follows its device.
struct Follows {
    key: Key,
    entry: Rc<Entry>,
    device: Device,
    sought: Sought,
    /// Whether the guest runs here now.
    serves: bool,
}

/// What is the device of an attachment again.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sought {
    /// What has this serial number, wherever it is plugged in.
    Serial(DeviceSelector),
    /// What is plugged in at the same place: the same device, by what it says of itself, or any.
    Place { any: bool },
}

impl Sought {
    /// `None` for an attachment that ends when its device is pulled out.
    fn of(lease: &Lease) -> Option<Self> {
        let exchange = lease.exchange?;
        Some(match lease.device.identity() {
            Some(identity) if !exchange.at_place => Self::Serial(identity),
            _ => Self::Place {
                any: exchange.at_place,
            },
        })
    }

    /// Whether `device` of an exporter is it; `lease` is for a device of the exporter `old`.
    fn is(&self, exporter: &str, device: &DeviceInfo, old: &str, lease: &Lease) -> bool {
        match self {
            Self::Serial(identity) => identity.matches(device),
            Self::Place { any } => {
                exporter == old
                    && device.id == lease.device.id
                    && (*any || device.is_same(&lease.device))
            }
        }
    }

    /// How to ask for it; `lease` is the one of before.
    fn selector(&self, lease: &Lease) -> DeviceSelector {
        match self {
            Self::Serial(identity) => identity.clone(),
            Self::Place { .. } => DeviceSelector::Place(lease.device.id.clone()),
        }
    }
}

/// The terms of the lease of `found`, which takes the place of the device of `lease`.
fn terms(lease: &Lease, found: &DeviceInfo) -> (Option<OnMigrate>, Option<Exchange>) {
    // What was the default for one device need not be it for another: a modem was a disk before.
    let chosen = lease.on_migrate != OnMigrate::default_for(&lease.device);
    let on_migrate = (chosen || found.is_same(&lease.device)).then_some(lease.on_migrate);
    let exchange = lease.exchange.map(|exchange| Exchange {
        // A guest does not go on with what cannot be told from another.
        on: match found.identity() {
            Some(_) => exchange.on,
            None => OnExchange::Replug,
        },
        ..exchange
    });
    (on_migrate, exchange)
}

impl Seeker {
    pub(super) fn new(admin: Rc<Admin>, look: Arc<Notify>, log: Logger) -> Self {
        Self {
            admin,
            log,
            look,
            seeking: Cell::new(false),
            twins: RefCell::default(),
        }
    }

    /// Looks whenever there is a reason to. Never ends.
    pub(super) async fn run(self) {
        loop {
            let looked = self.look.notified();
            if self.seeking.get() {
                let _ = timeout(LOOK_AGAIN, looked).await;
            } else {
                looked.await;
            }
            let seeking = self.seek().await;
            self.seeking.set(seeking);
        }
    }

    /// Looks once. Answers whether it is to be looked again soon.
    async fn seek(&self) -> bool {
        let follows = self.follows().await;
        self.forget_twins(&follows);
        if follows.is_empty() {
            return false;
        }
        for follows in follows.iter().filter(|f| f.serves) {
            self.confirm(follows).await;
        }
        // What they know by now.
        let follows = self.follows().await;
        let here = self.devices().await;
        let mut again = false;
        for follows in &follows {
            let Device {
                exporter, lease, ..
            } = &follows.device;
            let is_it =
                |(e, d): &&(Exporter, DeviceInfo)| follows.sought.is(e.name(), d, exporter, lease);
            let found = here.iter().filter(is_it);
            let found: Vec<_> = found.collect();
            match &follows.device.waiting {
                None if follows.serves => {
                    if let Sought::Serial(identity) = &follows.sought {
                        again |= self.look_for_twins(follows, identity, &found);
                    }
                }
                None => {}
                Some(waiting) => {
                    again = true;
                    if follows.serves {
                        self.fetch(follows, waiting, &found).await;
                    }
                }
            }
        }
        again
    }

    /// Every attachment here that follows its device.
    async fn follows(&self) -> Vec<Follows> {
        let mut all = Vec::new();
        for key in self.admin.controllers.keys() {
            let Some(entry) = self.admin.controllers.get(key) else {
                continue;
            };
            let Some(report) = entry.handle.describe().await else {
                continue;
            };
            let serves = matches!(report.state, State::Serving | State::Quiescing);
            for device in report.devices {
                if let Some(sought) = Sought::of(&device.lease) {
                    all.push(Follows {
                        key,
                        entry: entry.clone(),
                        device,
                        sought,
                        serves,
                    });
                }
            }
        }
        all
    }

    /// Has the old exporter say that the device is gone, and what the guest had set at it.
    async fn confirm(&self, follows: &Follows) {
        let Device {
            exporter,
            lease,
            waiting: Some(_),
            ..
        } = &follows.device
        else {
            return;
        };
        let Some(exporter) = self.admin.exporters.get(exporter) else {
            return;
        };
        let Ok(Reply::Leases(leases)) = ask(exporter, Request::Leases { vm: Some(lease.vm) }).await
        else {
            return;
        };
        let ours = |l: &&Lease| {
            l.is_at(lease.vm, lease.controller, lease.port)
                && (l.phase != LeasePhase::Absent || l.device.id == lease.device.id)
        };
        let command = match leases.iter().find(ours) {
            Some(found) if found.phase == LeasePhase::Absent => {
                Command::Away(lease.port, Some(Box::new(found.clone())), None)
            }
            // It was fetched already, by whoever ended before it could say so.
            Some(_) => Command::Away(lease.port, Some(Box::new(lease.clone())), None),
            None => match self.is_elsewhere(lease).await {
                // Fetched by the host that the guest has just left, which then ended this lease.
                Some(true) => Command::Away(lease.port, Some(Box::new(lease.clone())), None),
                Some(false) => Command::Ended(exporter.name().to_owned(), lease.device.id.clone()),
                None => return,
            },
        };
        follows.entry.handle.tell(command);
    }

    /// Whether an exporter has lent a device for this port of the guest. `None` when one that does not answer
    /// may have.
    async fn is_elsewhere(&self, lease: &Lease) -> Option<bool> {
        let mut all_answered = true;
        for exporter in self.admin.exporters.all() {
            let request = Request::Leases { vm: Some(lease.vm) };
            match ask(exporter, request).await {
                Ok(Reply::Leases(leases)) => {
                    let there = |l: &Lease| {
                        l.is_at(lease.vm, lease.controller, lease.port)
                            && l.phase != LeasePhase::Absent
                    };
                    if leases.iter().any(there) {
                        return Some(true);
                    }
                }
                _ => all_answered = false,
            }
        }
        all_answered.then_some(false)
    }

    /// The devices of all exporters that answer.
    async fn devices(&self) -> Vec<(Exporter, DeviceInfo)> {
        let mut all = Vec::new();
        for exporter in self.admin.exporters.all() {
            if let Ok(Reply::Devices(devices)) = ask(exporter, Request::Devices).await {
                all.extend(devices.into_iter().map(|d| (exporter.clone(), d)));
            }
        }
        all
    }

    /// While the device is plugged in there must be no other that says the same: if it is pulled out,
    /// that one is not it.
    fn look_for_twins(
        &self,
        follows: &Follows,
        identity: &DeviceSelector,
        found: &[&(Exporter, DeviceInfo)],
    ) -> bool {
        let place = (follows.key, follows.device.lease.port);
        let mut twins = self.twins.borrow_mut();
        if found.len() < 2 {
            if let Some(Twin::Seen(_)) = twins.get(&place) {
                twins.remove(&place);
            }
            return false;
        }
        match *twins.entry(place).or_insert(Twin::Seen(Instant::now())) {
            Twin::Seen(since) if since.elapsed() >= MOVED_WITHIN => {
                warn!(self.log, "there are two devices {}: neither is taken for the other", identity;
                    "controller" => %follows.key, "at" => names(found));
                twins.insert(place, Twin::Sure);
                false
            }
            Twin::Seen(_) => true,
            Twin::Sure => false,
        }
    }

    fn forget_twins(&self, follows: &[Follows]) {
        let there = |place: &Place| {
            follows
                .iter()
                .any(|f| (f.key, f.device.lease.port) == *place)
        };
        self.twins.borrow_mut().retain(|place, _| there(place));
    }

    /// Takes the device, if it is the only one that it can be.
    async fn fetch(&self, follows: &Follows, waiting: &Waiting, found: &[&(Exporter, DeviceInfo)]) {
        let Follows {
            key,
            entry,
            device:
                Device {
                    exporter: old,
                    lease,
                    ..
                },
            sought,
            ..
        } = follows;
        let port = lease.port;
        let selector = sought.selector(lease);
        let note = |text: String| {
            entry.handle.tell(Command::Away(port, None, Some(text)));
        };
        // Until the exporter has said so, the device may be where it was.
        if !waiting.confirmed {
            return;
        }
        let (exporter, device) = match *found {
            [] => return,
            [one] => one,
            _ => {
                return note(format!(
                    "there are {} devices {selector}, at {}: none is taken; unplug all but the right one",
                    found.len(),
                    names(found)
                ));
            }
        };
        if let Some(Twin::Sure) = self.twins.borrow().get(&(*key, port)) {
            return note(format!(
                "another device {selector} was plugged in while this one was, so it is not known which \
                 one {} is: not taken; detach and attach it again",
                names(found)
            ));
        }
        let returns = match waiting.paused {
            true => Returns {
                configured: lease.configured.clone(),
                cookie: lease.cookie.clone(),
                descriptors: lease.descriptors,
                frontend_resumes: lease.frontend_resumes,
            },
            false => Returns {
                frontend_resumes: lease.frontend_resumes,
                ..Returns::default()
            },
        };
        let (on_migrate, exchange) = terms(lease, device);
        let acquire = Acquire {
            device: selector,
            vm: lease.vm,
            vm_name: lease.vm_name.clone(),
            domid: key.domid.0,
            controller: key.devid,
            port,
            on_migrate,
            exchange,
            own_controller: lease.own_controller,
            persistence: lease.persistence,
            returns: Some(returns),
        };
        let new = match exporter.ask(Request::Acquire(acquire)).await {
            Ok(Reply::Lease(new)) => *new,
            Ok(_) => return note(exporter.nonsense().to_string()),
            Err(e) => return note(e.to_string()),
        };
        let same = new.descriptors.is_some()
            && new.descriptors == lease.descriptors
            && new.device.is_same(&lease.device);
        let (answer, answered) = oneshot::channel();
        entry.handle.tell(Command::Back {
            port,
            exporter: exporter.config().clone(),
            lease: Box::new(new.clone()),
            same,
            answer,
        });
        match answered.await.unwrap_or(Fetched::Later) {
            Fetched::Plugged => {}
            // Whoever serves the guest next is given the same lease.
            Fetched::Later => return,
            Fetched::NotWanted => {
                if let Err(e) = self.admin.exporters.release(exporter.name(), &new).await {
                    info!(self.log, "device not given back: {}", e);
                }
                return;
            }
        }
        info!(self.log, "attachment follows its device"; "controller" => %key, "port" => port,
            "from" => format!("{old}/{}", lease.device.id),
            "to" => format!("{}/{}", exporter.name(), new.device.id));
        if old != exporter.name()
            && let Err(e) = self.admin.exporters.release(old, lease).await
        {
            info!(self.log, "the lease of before ends by itself: {}", e);
        }
    }
}

async fn ask(exporter: &Exporter, request: Request) -> Result<Reply, crate::exporter::AskError> {
    let reply = timeout(ANSWER_TIMEOUT, exporter.ask(request)).await;
    reply.map_err(|_| exporter.too_slow(ANSWER_TIMEOUT))?
}

fn names(found: &[&(Exporter, DeviceInfo)]) -> String {
    let names = found.iter().map(|(e, d)| format!("{}/{}", e.name(), d.id));
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use session::{Configured, DeviceId, DeviceState, Epoch, Holder, Speed, StashCounters, VmUuid};

    use super::*;

    fn device(place: &str, product: u16, serial: Option<&str>) -> DeviceInfo {
        DeviceInfo {
            id: DeviceId(place.to_owned()),
            vendor: 0x12d1,
            product,
            serial: serial.map(str::to_owned),
            name: String::new(),
            speed: Speed::High,
            classes: vec![if product == MODEM { 2 } else { 8 }],
            state: DeviceState::Free,
        }
    }

    const DISK: u16 = 0x1446;
    const MODEM: u16 = 0x1001;

    fn lease(device: DeviceInfo, exchange: Option<Exchange>) -> Lease {
        Lease {
            vm: VmUuid(uuid::Uuid::nil()),
            vm_name: String::new(),
            controller: 0,
            port: 1,
            epoch: Epoch(1),
            holder: Holder {
                host: "a".into(),
                domid: 1,
            },
            phase: LeasePhase::Absent,
            on_migrate: OnMigrate::default_for(&device),
            frontend_resumes: true,
            cookie: Vec::new(),
            note: None,
            stash: StashCounters::default(),
            exchange,
            own_controller: None,
            descriptors: None,
            configured: Configured::default(),
            persistence: Default::default(),
            silent_seconds: None,
            device,
        }
    }

    fn follows(at_place: bool) -> Option<Exchange> {
        Some(Exchange {
            on: OnExchange::Pause,
            seconds: 60,
            at_place,
        })
    }

    /// What is taken for the device of an attachment, by how it was attached.
    #[test]
    fn what_comes_back_is_the_same_or_at_the_place_that_was_attached() {
        let there = [
            ("pi4", device("1-1", DISK, None)),
            ("pi4", device("1-1", DISK, Some("S"))),
            ("pi4", device("1-1", MODEM, None)),
            ("pi4", device("1-2", DISK, None)),
            ("pi4", device("1-2", DISK, Some("S"))),
            ("pi5", device("1-1", DISK, None)),
            ("pi5", device("1-1", DISK, Some("S"))),
        ];
        for (serial, at_place, expected) in [
            // Without a serial number: the same, where it was.
            (None, false, vec![0]),
            // With one: anywhere.
            (Some("S"), false, vec![1, 4, 6]),
            // A place: whatever is there, and nothing elsewhere.
            (None, true, vec![0, 1, 2]),
            (Some("S"), true, vec![0, 1, 2]),
        ] {
            let lease = lease(device("1-1", DISK, serial), follows(at_place));
            let sought = Sought::of(&lease).unwrap();
            let found = there.iter().enumerate();
            let found = found.filter(|(_, (e, d))| sought.is(e, d, "pi4", &lease));
            let found: Vec<_> = found.map(|(at, _)| at).collect();
            assert_eq!(found, expected, "{serial:?} {at_place}");
            let by_place = matches!(sought.selector(&lease), DeviceSelector::Place(_));
            assert_eq!(by_place, at_place || serial.is_none());
        }
        assert_eq!(
            Sought::of(&lease(device("1-1", DISK, Some("S")), None)),
            None
        );
    }

    #[test]
    fn another_device_has_terms_of_its_own() {
        let disk = lease(device("1-1", DISK, Some("S")), follows(true));
        let (on_migrate, exchange) = terms(&disk, &disk.device);
        assert_eq!(
            (on_migrate, exchange),
            (Some(OnMigrate::Refuse), disk.exchange)
        );
        // A disk's default is not a modem's, and a guest pauses only for what has a serial number.
        let (on_migrate, exchange) = terms(&disk, &device("1-1", MODEM, None));
        assert_eq!(on_migrate, None);
        assert_eq!(exchange.unwrap().on, OnExchange::Replug);
        assert!(exchange.unwrap().at_place);
        // What the administrator has chosen stays.
        let mut chosen = disk;
        chosen.on_migrate = OnMigrate::Risk;
        let (on_migrate, _) = terms(&chosen, &device("1-1", MODEM, None));
        assert_eq!(on_migrate, Some(OnMigrate::Risk));
    }
}

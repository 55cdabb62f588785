// SPDX-License-Identifier: GPL-3.0-or-later
//! What the exporters know of a VM, and what becomes of it here.

use std::time::Duration;

use handoff::{Incoming, may_change, verdict};
use session::control::{Event, Reply, Request};
use session::{Holder, Lease, LeasePhase};
use slog::{Logger, debug, error, info, warn};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};
use xen::{Backend, DomId};

use super::Daemon;
use crate::admin::Entry;
use crate::config::{self, WhenUnreachable};
use crate::controller::Command;
use crate::domain::Domain;
use crate::exporter::Exporter;
use crate::own_controller;
use crate::xenbus::{Key, XenbusState};

/// Longest wait for the exporters' leases when a controller appears. libxl waits 10 s for us.
pub(super) const LEASES_TIMEOUT: Duration = Duration::from_secs(3);

/// Pause before an exporter that is not connected is asked again.
pub(super) const ASK_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// How long a guest that connects for the first time waits for its source to say that it is suspended, where its
/// toolstack does not say that it arrives. A copy of a VM that runs waits so long for its empty port. `xl` always
/// says so.
const FREEZE_TIMEOUT: Duration = Duration::from_millis(500);

/// Why leases are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Occasion {
    /// The controller was made.
    Made,
    /// Its frontend connects for the first time.
    Connects,
}

/// Leases gathered for a controller.
pub(super) struct Gathered {
    key: Key,
    occasion: Occasion,
    leases: Vec<(config::Exporter, Lease)>,
    /// Names of exporters that did not answer.
    silent: Vec<String>,
}

impl<B: Backend> Daemon<B> {
    /// Asks all exporters at once what a VM holds, and comes back to [`Daemon::decide`].
    pub(super) fn gather(&self, key: Key, domain: &Domain, occasion: Occasion) {
        let exporters = self.admin.exporters.all().to_vec();
        let request = Request::Expect {
            vm: domain.vm,
            domid: key.domid.0,
            name: domain.name_for_exporters(),
        };
        let (gathered, log) = (self.gathered.clone(), self.log.clone());
        // A guest on its way surely has its devices somewhere; a new one is not kept waiting.
        let arriving = domain.arrives;
        let me = self.holder(key);
        spawn_local(async move {
            let until = Instant::now() + FREEZE_TIMEOUT;
            let (leases, silent) = loop {
                let (mut leases, silent) =
                    ask_all(key, exporters.clone(), &request, arriving, &log).await;
                leases.retain(|(_, lease)| lease.controller == key.devid);
                let runs = |lease: &Lease| lease.phase == LeasePhase::Serving && lease.holder != me;
                let waits =
                    occasion == Occasion::Connects && !arriving && own_controller::is_own(key);
                let runs = waits && leases.iter().any(|(_, lease)| runs(lease));
                if !runs || Instant::now() >= until {
                    break (leases, silent);
                }
                sleep(ASK_AGAIN_AFTER).await;
            };
            let mut leases = leases;
            without_returned(&mut leases);
            let _ = gathered.send(Gathered {
                key,
                occasion,
                leases,
                silent,
            });
        });
    }

    pub(super) fn holder(&self, key: Key) -> Holder {
        Holder {
            host: self.identity.name().into(),
            domid: key.domid.0,
        }
    }

    pub(super) async fn decide(&mut self, gathered: Gathered) {
        let Gathered {
            key,
            occasion,
            leases,
            silent,
        } = gathered;
        let Some(entry) = self.admin.controllers.get(key) else {
            return;
        };
        let out_of_reach = silent.join(", ");
        entry.silent.replace(silent.clone());
        let me = self.holder(key);
        let arrives = entry.arrives;
        // No toolstack waits for a controller of our own, and none for a guest that has connected: the guest comes
        // whatever it says.
        let own = own_controller::is_own(key);
        let may_refuse = !own && occasion == Occasion::Made;
        if occasion == Occasion::Made {
            let suspended = arrives && !own;
            let changes = leases.iter().any(|(_, l)| may_change(l, &me, suspended));
            entry.look_again.set(changes);
        }
        let leases: Vec<_> = leases
            .into_iter()
            .map(|(exporter, lease)| {
                let incoming = match verdict(&lease, &me, arrives) {
                    Incoming::Refuse if !may_refuse => Incoming::Replug,
                    incoming => incoming,
                };
                (exporter, lease, incoming)
            })
            .collect();
        let blind = may_refuse && arrives && !out_of_reach.is_empty();
        if occasion == Occasion::Connects {
            entry.handle.tell(Command::LeasesAgain { leases, silent });
        } else if blind && self.config.hand_off.unreachable == WhenUnreachable::Refuse {
            error!(self.log, "migration of VM {} ({}) to {} refused: an exporter is out of reach from \
                here, and may have lent it devices. Make it reachable, or take it out of vusbd.toml, or \
                set `unreachable = \"go-on\"` there", entry.domain.name, entry.domain.vm,
                self.identity.name(); "exporter" => out_of_reach);
            entry.handle.tell(Command::Refuse);
        } else if leases
            .iter()
            .any(|(_, _, incoming)| *incoming == Incoming::Refuse)
        {
            for (exporter, lease, _) in leases.iter().filter(|l| l.2 == Incoming::Refuse) {
                self.refuse(exporter, lease);
            }
            entry.handle.tell(Command::Refuse);
        } else {
            entry.handle.tell(Command::Leases(leases));
        }
        entry.decided.set(true);
        self.look_at_frontend(key, &entry).await;
    }

    /// The frontend may have been quicker than the exporters, and was not listened to then.
    async fn look_at_frontend(&mut self, key: Key, entry: &Entry) {
        entry.frontend.set(XenbusState::Unknown);
        if let Err(e) = self.frontend_changed(key.domid, &key.frontend()).await {
            warn!(self.log, "xenstore: {}", e);
        }
    }

    fn refuse(&self, exporter: &config::Exporter, lease: &Lease) {
        let Lease {
            vm_name,
            vm,
            port,
            device,
            ..
        } = lease;
        let text = format!(
            "migration of VM {vm_name} ({vm}) to {} refused: device {}/{} ({}) at port {port} may \
             not be interrupted and the guest's frontend cannot resume. Load the xen-vusb-hcd module \
             in the guest, or `xl-vusb detach {vm_name} {port}` first, or attach the device with \
             --on-migrate replug",
            self.identity.name(),
            exporter.name,
            device.id,
            device.name,
        );
        error!(self.log, "{}", text);
        // Names of devices are in it.
        let text = text.replace(char::is_control, " ");
        let Some(exporter) = self.admin.exporters.get(&exporter.name).cloned() else {
            return;
        };
        let request = Request::Note {
            device: device.id.clone(),
            vm: *vm,
            text,
        };
        spawn_local(async move { drop(exporter.ask(request).await) });
    }

    pub(super) fn exporter_event(&self, exporter: &str, event: Option<Event>) {
        match event {
            // Leases that we could not be told of while it was away.
            None => {
                self.look.notify_one();
                if let Some(exporter) = self.admin.exporters.get(exporter) {
                    for domain in self.expected.values() {
                        self.expect(exporter, domain);
                    }
                }
                for domain in self.expected.values().filter(|d| d.arrives) {
                    self.announce_to(exporter, domain, true);
                }
                for key in self.admin.controllers.keys() {
                    let Some(entry) = self.admin.controllers.get(key) else {
                        continue;
                    };
                    if entry.decided.get() {
                        self.gather_again(key, exporter, &entry.domain);
                    }
                }
            }
            Some(Event::Arriving {
                vm,
                host,
                domid,
                arriving,
            }) => {
                for (key, entry) in self.admin.controllers.of_vm(vm) {
                    let is_itself = host == self.identity.name() && domid == key.domid.0;
                    if !is_itself {
                        let moving = Command::Moving(exporter.to_owned(), arriving);
                        entry.handle.tell(moving);
                    }
                }
            }
            Some(Event::Devices) => self.look.notify_one(),
            Some(Event::Released { device, vm, reason }) => {
                info!(self.log, "lease ended: {}", reason;
                    "exporter" => exporter, "device" => %device, "vm" => %vm);
                // Of a device that is waited for here: is it over, or has another host fetched it?
                self.look.notify_one();
            }
            Some(Event::Lease(lease)) if lease.persistence.is_persistent() => {
                self.persistent_lease(exporter, &lease);
            }
            Some(event) => debug!(self.log, "exporter"; "exporter" => exporter, "event" => ?event),
        }
    }

    /// A lease of a VM that may run here has no holder: its device was plugged in.
    fn persistent_lease(&self, exporter: &str, lease: &Lease) {
        if !lease.phase.is_orphaned() {
            return;
        }
        for (key, entry) in self.admin.controllers.of_vm(lease.vm) {
            if key.devid == lease.controller && entry.decided.get() {
                self.gather_again(key, exporter, &entry.domain);
            }
        }
    }

    /// Tells every exporter that a domain is gone.
    pub(super) fn say_ended(&self, domain: &Domain) {
        for exporter in self.admin.exporters.all() {
            let exporter = exporter.clone();
            let request = Request::Ended {
                vm: domain.vm,
                domid: domain.domid.0,
            };
            // One that does not answer finds it out when the VM starts.
            spawn_local(async move { drop(exporter.ask(request).await) });
        }
    }

    /// Tells every exporter that a domain is arriving here, or is not any more.
    pub(super) fn announce(&self, domain: &Domain, arriving: bool) {
        for exporter in self.admin.exporters.all() {
            self.announce_to(exporter.name(), domain, arriving);
        }
    }

    fn announce_to(&self, exporter: &str, domain: &Domain, arriving: bool) {
        let Some(exporter) = self.admin.exporters.get(exporter).cloned() else {
            return;
        };
        let request = Request::Arriving {
            vm: domain.vm,
            domid: domain.domid.0,
            arriving,
        };
        // One that does not answer is told when it does.
        spawn_local(async move { drop(exporter.ask(request).await) });
    }

    /// A domain that was arriving runs, or is gone.
    pub(super) fn arrived(&mut self, domid: DomId) {
        self.landing.remove(&domid);
        self.domains.runs(domid);
        let Some(domain) = self.expected.get_mut(&domid).filter(|d| d.arrives) else {
            return;
        };
        (domain.arrives, domain.incoming) = (false, false);
        let domain = domain.clone();
        self.announce(&domain, false);
    }

    /// After an exporter came back: plugs in what is ours there and not plugged in yet.
    fn gather_again(&self, key: Key, exporter: &str, domain: &Domain) {
        let found = self.admin.exporters.get(exporter);
        let (Some(exporter), Some(entry)) = (found.cloned(), self.admin.controllers.get(key))
        else {
            return;
        };
        let me = Holder {
            host: self.identity.name().into(),
            domid: key.domid.0,
        };
        let request = Request::Leases {
            vm: Some(domain.vm),
        };
        spawn_local(async move {
            let name = exporter.name().to_owned();
            let Ok(found) = leases(exporter, request).await else {
                return;
            };
            let Some(report) = entry.handle.describe().await else {
                return;
            };
            // One that was silent when the guest arrived still has the source as holder.
            let missed = entry.silent.borrow().contains(&name);
            let ours = found.into_iter().filter(|(_, lease)| {
                lease.controller == key.devid
                    && (lease.holder == me || missed || is_nobodys(lease))
                    // What was waited for here and given up is not waited for again.
                    && (lease.phase != LeasePhase::Absent || missed)
                    && report.at(lease.port).is_none()
            });
            let ours = ours.map(|(exporter, lease)| {
                let incoming = match verdict(&lease, &me, entry.arrives) {
                    // Too late to keep the guest from coming.
                    Incoming::Refuse => Incoming::Replug,
                    incoming => incoming,
                };
                (exporter, lease, incoming)
            });
            entry.handle.tell(Command::Leases(ours.collect()));
        });
    }
}

/// Whether a lease is of a VM that was off.
fn is_nobodys(lease: &Lease) -> bool {
    lease.persistence.is_persistent() && lease.phase.is_orphaned()
}

/// Asks all exporters at once what a VM holds. Also gives the names of those that do not answer.
async fn ask_all(
    key: Key,
    exporters: Vec<Exporter>,
    request: &Request,
    arriving: bool,
    log: &Logger,
) -> (Vec<(config::Exporter, Lease)>, Vec<String>) {
    let asked: Vec<_> = exporters
        .into_iter()
        .map(|exporter| {
            let (request, name) = (request.clone(), exporter.name().to_owned());
            let task = spawn_local(async move {
                match arriving {
                    true => leases_with_patience(exporter, request).await,
                    false => leases(exporter, request).await,
                }
            });
            (name, task)
        })
        .collect();
    let (mut leases, mut silent) = (Vec::new(), Vec::new());
    for (name, task) in asked {
        match task.await {
            Ok(Ok(found)) => leases.extend(found),
            Ok(Err(e)) => {
                warn!(log, "leases unknown: {}", e; "controller" => %key);
                silent.push(name);
            }
            Err(e) => error!(log, "leases unknown: {}", e),
        }
    }
    (leases, silent)
}

/// Where a device has come back, and the lease of before is still there: only the new one counts.
fn without_returned(leases: &mut Vec<(config::Exporter, Lease)>) {
    let there: Vec<_> = leases
        .iter()
        .filter(|(_, l)| l.phase != LeasePhase::Absent)
        .map(|(_, l)| (l.controller, l.port))
        .collect();
    leases
        .retain(|(_, l)| l.phase != LeasePhase::Absent || !there.contains(&(l.controller, l.port)));
}

/// As [`leases`], but again until the time is up when the connection is (still) lost.
async fn leases_with_patience(
    exporter: Exporter,
    request: Request,
) -> Result<Vec<(config::Exporter, Lease)>, crate::exporter::AskError> {
    let until = Instant::now() + LEASES_TIMEOUT;
    loop {
        match leases(exporter.clone(), request.clone()).await {
            Err(crate::exporter::AskError::Unreachable { .. }) if Instant::now() < until => {
                sleep(ASK_AGAIN_AFTER).await;
            }
            result => return result,
        }
    }
}

async fn leases(
    exporter: Exporter,
    request: Request,
) -> Result<Vec<(config::Exporter, Lease)>, crate::exporter::AskError> {
    let reply = timeout(LEASES_TIMEOUT, exporter.ask(request)).await;
    match reply.map_err(|_| exporter.too_slow(LEASES_TIMEOUT))?? {
        Reply::Leases(leases) => Ok(leases
            .into_iter()
            .map(|lease| (exporter.config().clone(), lease))
            .collect()),
        _ => Err(exporter.nonsense()),
    }
}

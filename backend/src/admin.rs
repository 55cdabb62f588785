// SPDX-License-Identifier: GPL-3.0-or-later
//! The controllers of this host, and what administrators ask about them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use control::{
    Attachment, Controller, ExportedDevice, Forecast, Outcome, Request, Response, Status,
    WhenExchanged,
};
use session::control::{Acquire, Reply, Request as Ask};
use session::{DeviceId, DeviceSelector, Exchange, Lease, LeasePhase, OnMigrate, VmUuid};
use slog::{Logger, info, warn};
use tokio::sync::oneshot;
use tokio::time::timeout;
use usbif::PortNumber;
use xen::DomId;
use xen::xenstore::XenStore;

use crate::config;
use crate::controller::{Command, Device, Handle, Report};
use crate::domain::Domain;
use crate::exporter::Exporter;
use crate::totals::Totals;
use crate::xenbus::{Key, XenbusState};

/// Longest wait for a claim when a device is attached.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(10);

/// A controller of this host.
pub struct Entry {
    /// Its thread.
    pub handle: Handle,
    /// Its domain.
    pub domain: Domain,
    /// The frontend's state as last seen.
    pub frontend: Cell<XenbusState>,
    /// Whether its leases were asked for.
    pub decided: Cell<bool>,
    /// Names of exporters that did not answer then.
    pub silent: RefCell<Vec<String>>,
}

impl Entry {
    /// A controller whose frontend was not seen yet.
    pub fn new(handle: Handle, domain: Domain) -> Self {
        let frontend = Cell::new(XenbusState::Unknown);
        Self {
            handle,
            domain,
            frontend,
            decided: Cell::new(false),
            silent: RefCell::default(),
        }
    }
}

/// The state that the daemon and the control socket share, and the answers made of it.
pub struct Admin<B> {
    host: String,
    exporters: Vec<Exporter>,
    store: XenStore,
    controllers: RefCell<BTreeMap<Key, Rc<Entry>>>,
    exchange: config::Exchange,
    log: Logger,
    /// What went through this daemon.
    pub totals: Arc<Totals>,
    platform: std::marker::PhantomData<B>,
}

/// What is to be attached, and how.
struct Wanted {
    device: DeviceSelector,
    controller: Option<u16>,
    port: Option<u8>,
    on_migrate: Option<OnMigrate>,
    on_exchange: Option<WhenExchanged>,
    exchange_seconds: Option<u32>,
}

/// Why a request was not done: the text that the administrator reads.
type Refused = String;

impl<B> Admin<B> {
    /// No controllers yet.
    pub fn new(
        host: &str,
        exporters: Vec<Exporter>,
        store: XenStore,
        exchange: config::Exchange,
        log: Logger,
    ) -> Self {
        Self {
            host: host.to_owned(),
            exporters,
            store,
            controllers: RefCell::default(),
            exchange,
            log,
            totals: Arc::default(),
            platform: std::marker::PhantomData,
        }
    }

    /// Every exporter.
    pub fn exporters(&self) -> &[Exporter] {
        &self.exporters
    }

    /// Every controller's key, sorted.
    pub fn keys(&self) -> Vec<Key> {
        self.controllers.borrow().keys().copied().collect()
    }

    /// One controller.
    pub fn entry(&self, key: Key) -> Option<Rc<Entry>> {
        self.controllers.borrow().get(&key).cloned()
    }

    /// The controllers of a domain, by devid.
    pub fn controllers_of(&self, domid: DomId) -> Vec<(Key, Rc<Entry>)> {
        let all = self.controllers.borrow();
        all.iter()
            .filter(|(k, _)| k.domid == domid)
            .map(|(k, e)| (*k, e.clone()))
            .collect()
    }

    /// Adds a controller.
    pub fn insert(&self, key: Key, entry: Entry) {
        self.controllers.borrow_mut().insert(key, Rc::new(entry));
    }

    /// Takes a controller out.
    pub fn remove(&self, key: Key) -> Option<Rc<Entry>> {
        self.controllers.borrow_mut().remove(&key)
    }

    /// Answers an administrator.
    pub async fn answer(&self, request: Request) -> Response {
        let result = match request {
            Request::Exporters => Ok(Response::Exporters(
                self.exporters.iter().map(Exporter::status).collect(),
            )),
            Request::Devices => Ok(self.devices().await),
            Request::Attach {
                domain,
                exporter,
                device,
                controller,
                port,
                on_migrate,
                on_exchange,
                exchange_seconds,
            } => {
                let wanted = Wanted {
                    device,
                    controller,
                    port,
                    on_migrate,
                    on_exchange,
                    exchange_seconds,
                };
                let attached = self.attach(&domain, &exporter, wanted).await;
                attached.map(|a| Response::Attached(Box::new(a)))
            }
            Request::Detach {
                domain,
                controller,
                port,
            } => self
                .detach(&domain, controller, port)
                .await
                .map(|a| Response::Detached(Box::new(a))),
            Request::Release { exporter, device } => self.take_away(&exporter, &device).await,
            Request::List => Ok(Response::Attachments(self.attachments().await)),
            Request::Status => Ok(Response::Status(Box::new(self.status().await))),
            Request::Check { domain } => self.check(&domain).await.map(Response::Check),
        };
        result.unwrap_or_else(Response::Error)
    }

    async fn devices(&self) -> Response {
        let (mut devices, mut unreachable) = (Vec::new(), Vec::new());
        for exporter in &self.exporters {
            match exporter.ask(Ask::Devices).await {
                Ok(Reply::Devices(found)) => {
                    devices.extend(found.into_iter().map(|device| ExportedDevice {
                        exporter: exporter.name().into(),
                        device,
                    }))
                }
                Ok(_) => warn!(self.log, "{}", exporter.nonsense()),
                Err(e) => {
                    let mut status = exporter.status();
                    status.error.get_or_insert(e.to_string());
                    unreachable.push(status);
                }
            }
        }
        Response::Devices {
            devices,
            unreachable,
        }
    }

    async fn attach(
        &self,
        domain: &str,
        exporter: &str,
        wanted: Wanted,
    ) -> Result<Attachment, Refused> {
        let domain = self.domain(domain).await?;
        let exporter = self.exporter(exporter)?;
        let exchange = self.exchange(&wanted)?;
        if exchange.is_some() {
            self.refuse_twins(&wanted.device).await?;
        }
        let (key, entry, port) = self.place(&domain, wanted.controller, wanted.port).await?;
        let acquire = Acquire {
            device: wanted.device,
            vm: domain.vm,
            vm_name: domain.name.clone(),
            domid: domain.domid.0,
            controller: key.devid,
            port: port.get(),
            on_migrate: wanted.on_migrate,
            exchange,
            returns: None,
        };
        let reply = exporter
            .ask(Ask::Acquire(acquire))
            .await
            .map_err(|e| e.to_string())?;
        let Reply::Lease(lease) = reply else {
            return Err(exporter.nonsense().to_string());
        };
        let (answer, attached) = oneshot::channel();
        entry.handle.tell(Command::Attach(
            exporter.config().clone(),
            lease.clone(),
            answer,
        ));
        let result = match timeout(CLAIM_TIMEOUT, attached).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(format!("domain {} went away meanwhile", domain.name)),
            Err(_) => Err(format!(
                "exporter {} did not hand the device over",
                exporter.name()
            )),
        };
        if let Err(e) = result {
            let (answer, _) = oneshot::channel();
            entry.handle.tell(Command::Detach(port, answer));
            self.give_back(exporter.name(), *lease).await;
            return Err(e);
        }
        info!(self.log, "device attached"; "controller" => %key, "port" => port.get(),
            "device" => format!("{}/{}", exporter.name(), lease.device.id));
        let attachments = self.attachments_of(key, &entry).await;
        let found = attachments.into_iter().find(|a| a.port == port.get());
        found.ok_or_else(|| "the device was lost again at once; see vusbd's log".into())
    }

    /// Ends the lease of a VM that is gone. One that runs somewhere keeps its device.
    async fn take_away(
        &self,
        exporter: &str,
        device: &DeviceSelector,
    ) -> Result<Response, Refused> {
        let reply = self.exporter(exporter)?.ask(Ask::Leases { vm: None }).await;
        let Reply::Leases(leases) = reply.map_err(|e| e.to_string())? else {
            return Err(self.exporter(exporter)?.nonsense().to_string());
        };
        let mut found = leases.into_iter().filter(|l| device.matches(&l.device));
        let lease = match (found.next(), found.next()) {
            (None, _) => return Err(format!("nobody holds {exporter}/{device}")),
            (Some(lease), None) => lease,
            (Some(_), Some(_)) => {
                return Err(format!(
                    "several devices are {exporter}/{device}; name one by its place, as `xl-vusb \
                     devices` shows it"
                ));
            }
        };
        if !lease.phase.is_orphaned() {
            return Err(format!(
                "{exporter}/{} is held by {} for VM {}, which is not gone; `xl-vusb detach {} {}` \
                 there",
                lease.device.id, lease.holder, lease.vm_name, lease.vm_name, lease.port
            ));
        }
        self.release(exporter, &lease).await?;
        info!(self.log, "device taken away from a VM that is gone"; "vm" => &lease.vm_name,
            "device" => format!("{exporter}/{}", lease.device.id));
        Ok(Response::Released {
            exporter: exporter.to_owned(),
            device: Box::new(lease.device),
            vm_name: lease.vm_name,
        })
    }

    /// How an attachment follows its device: what is asked for, or the configuration's default for
    /// devices that are named by their serial number.
    fn exchange(&self, wanted: &Wanted) -> Result<Option<Exchange>, Refused> {
        let is_named = matches!(
            wanted.device,
            DeviceSelector::Kind {
                serial: Some(_),
                ..
            }
        );
        let when = match (wanted.on_exchange, is_named) {
            (Some(WhenExchanged::None), _) | (None, false) => return Ok(None),
            (Some(when), true) => when,
            (None, true) => self.exchange.on_exchange,
            (Some(when), false) => {
                return Err(format!(
                    "--on-exchange {when} is for a device named by EXPORTER/VID:PID:SERIAL, which is \
                     how it is known again elsewhere, not by '{}'",
                    wanted.device
                ));
            }
        };
        let seconds = wanted.exchange_seconds;
        Ok(when.on().map(|on| Exchange {
            on,
            seconds: seconds.unwrap_or(self.exchange.exchange_seconds),
        }))
    }

    /// Of two devices that say the same nobody knows which one comes back.
    async fn refuse_twins(&self, device: &DeviceSelector) -> Result<(), Refused> {
        let Response::Devices { devices, .. } = self.devices().await else {
            return Ok(());
        };
        let found: Vec<_> = devices
            .iter()
            .filter(|d| device.matches(&d.device))
            .map(|d| format!("{}/{}", d.exporter, d.device.id))
            .collect();
        match found.len() {
            0 | 1 => Ok(()),
            count => Err(format!(
                "{device} is ambiguous: {count} devices say that they are it, {}. Unplug all but one, or \
                 attach it with --on-exchange none",
                found.join(", ")
            )),
        }
    }

    /// Gives back a lease that could not be used, under the newest epoch it may have reached.
    async fn give_back(&self, exporter: &str, mut lease: Lease) {
        let now = self.leases_now(lease.vm).await;
        if let Some(current) = now.get(&(exporter.to_owned(), lease.device.id.clone())) {
            lease.epoch = current.epoch;
        }
        if let Err(e) = self.release(exporter, &lease).await {
            warn!(self.log, "device not given back: {}", e);
        }
    }

    /// Gives a lease back.
    pub async fn release(&self, exporter: &str, lease: &Lease) -> Result<(), Refused> {
        let Lease {
            device, vm, epoch, ..
        } = lease;
        let release = Ask::Release {
            device: device.id.clone(),
            vm: *vm,
            epoch: *epoch,
        };
        let reply = self.exporter(exporter)?.ask(release).await;
        reply.map(drop).map_err(|e| e.to_string())
    }

    /// Controller and port for a new device.
    async fn place(
        &self,
        domain: &Domain,
        controller: Option<u16>,
        port: Option<u8>,
    ) -> Result<(Key, Rc<Entry>, PortNumber), Refused> {
        let mut full = Vec::new();
        for (key, entry) in self.controllers(domain, controller)? {
            let Some(report) = entry.handle.describe().await else {
                continue;
            };
            let count = entry.handle.port_count;
            let wanted = match port {
                Some(port) if !(1..=count).contains(&port) => {
                    return Err(format!(
                        "controller {} of domain {} has ports 1 to {count}, not {port}",
                        key.devid, domain.name
                    ));
                }
                Some(port) => port,
                None => match (1..=count).find(|&p| report.at(p).is_none()) {
                    Some(port) => port,
                    None => {
                        full.push(key.devid.to_string());
                        continue;
                    }
                },
            };
            if let Some(Device {
                exporter, lease, ..
            }) = report.at(wanted)
            {
                return Err(format!(
                    "port {wanted} of controller {} of domain {} is taken by {exporter}/{}; leave \
                     --port out for the first free one",
                    key.devid, domain.name, lease.device.id
                ));
            }
            if let Some(port) = PortNumber::new(wanted) {
                return Ok((key, entry, port));
            }
        }
        Err(format!(
            "every port of controller {} of domain {} is taken; detach a device, or add a \
             controller with `xl usbctrl-attach {} type=pv version=2 ports=4`",
            full.join(", "),
            domain.name,
            domain.name
        ))
    }

    async fn detach(
        &self,
        domain: &str,
        controller: Option<u16>,
        port: u8,
    ) -> Result<Attachment, Refused> {
        let domain = self.domain(domain).await?;
        let controllers = self.controllers(&domain, controller)?;
        if controllers.len() > 1 {
            return Err(format!(
                "domain {} has several PV USB controllers; say which with --controller",
                domain.name
            ));
        }
        let nothing = || {
            format!(
                "nothing is attached at port {port} of domain {}",
                domain.name
            )
        };
        let (key, entry) = controllers.into_iter().next().ok_or_else(nothing)?;
        let attachments = self.attachments_of(key, &entry).await;
        let attachment = attachments
            .into_iter()
            .find(|a| a.port == port)
            .ok_or_else(nothing)?;
        let (answer, detached) = oneshot::channel();
        let number = PortNumber::new(port).ok_or_else(nothing)?;
        entry.handle.tell(Command::Detach(number, answer));
        let Ok(Some((exporter, lease))) = detached.await else {
            return Err(nothing());
        };
        info!(self.log, "device detached"; "controller" => %key, "port" => port);
        self.release(&exporter, &lease).await.map_err(|e| {
            format!("the guest no longer has the device, but it was not given back: {e}")
        })?;
        Ok(attachment)
    }

    async fn check(&self, domain: &str) -> Result<Vec<Forecast>, Refused> {
        let domain = self.domain(domain).await?;
        let mut forecasts = Vec::new();
        for (key, entry) in self.controllers_of(domain.domid) {
            let attachments = self.attachments_of(key, &entry).await;
            forecasts.extend(attachments.into_iter().map(forecast));
        }
        Ok(forecasts)
    }

    async fn status(&self) -> Status {
        let mut controllers = Vec::new();
        for key in self.keys() {
            let Some(entry) = self.entry(key) else {
                continue;
            };
            let Some(report) = entry.handle.describe().await else {
                continue;
            };
            controllers.push(Controller {
                vm: entry.domain.vm,
                domid: key.domid.0,
                vm_name: self.name_of(&entry).await,
                controller: key.devid,
                ports: entry.handle.port_count,
                frontend: entry.frontend.get().to_string(),
                backend: report.backend.to_string(),
                hand_off: report.state.to_string(),
                frontend_resumes: report.frontend_resumes,
            });
        }
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            host: self.host.clone(),
            exporters: self.exporters.iter().map(Exporter::status).collect(),
            controllers,
            attachments: self.attachments().await,
            totals: self.totals.get(),
        }
    }

    async fn attachments(&self) -> Vec<Attachment> {
        let mut all = Vec::new();
        for key in self.keys() {
            if let Some(entry) = self.entry(key) {
                all.extend(self.attachments_of(key, &entry).await);
            }
        }
        all
    }

    async fn attachments_of(&self, key: Key, entry: &Entry) -> Vec<Attachment> {
        let Some(Report {
            devices,
            frontend_resumes,
            ..
        }) = entry.handle.describe().await
        else {
            return Vec::new();
        };
        if devices.is_empty() {
            return Vec::new();
        }
        let now = self.leases_now(entry.domain.vm).await;
        let vm_name = self.name_of(entry).await;
        let attachments = devices.into_iter().map(
            |Device {
                 exporter,
                 lease,
                 counters,
                 waiting,
                 ..
             }| {
                let current = now.get(&(exporter.clone(), lease.device.id.clone()));
                Attachment {
                    vm: lease.vm,
                    domid: key.domid.0,
                    vm_name: vm_name.clone(),
                    controller: key.devid,
                    port: lease.port,
                    frontend_resumes,
                    on_migrate: lease.on_migrate,
                    phase: match waiting {
                        Some(_) => LeasePhase::Absent,
                        None => current.map_or(LeasePhase::Disconnected, |l| l.phase),
                    },
                    exchange: lease.exchange,
                    note: waiting
                        .and_then(|w| w.note)
                        .or_else(|| current.and_then(|l| l.note.clone())),
                    stash: current.map_or_else(Default::default, |l| l.stash),
                    counters,
                    device: lease.device,
                    exporter,
                }
            },
        );
        attachments.collect()
    }

    /// The leases as their exporters have them this moment; those of silent ones are missing.
    async fn leases_now(&self, vm: VmUuid) -> HashMap<(String, DeviceId), Lease> {
        let mut leases = HashMap::new();
        for exporter in &self.exporters {
            if let Ok(Reply::Leases(found)) = exporter.ask(Ask::Leases { vm: Some(vm) }).await {
                leases.extend(
                    found
                        .into_iter()
                        .map(|l| ((exporter.name().into(), l.device.id.clone()), l)),
                );
            }
        }
        leases
    }

    /// A domain's name now: it changes at the end of a migration.
    async fn name_of(&self, entry: &Entry) -> String {
        match Domain::read(&self.store, entry.domain.domid).await {
            Ok(Some(domain)) => domain.name,
            _ => entry.domain.name.clone(),
        }
    }

    async fn domain(&self, wanted: &str) -> Result<Domain, Refused> {
        let found = Domain::find(&self.store, wanted).await;
        found
            .map_err(|e| format!("xenstore does not answer: {e}"))?
            .ok_or_else(|| format!("no domain '{wanted}' on this host; `xl list` shows them"))
    }

    fn exporter(&self, name: &str) -> Result<&Exporter, Refused> {
        self.exporters
            .iter()
            .find(|e| e.name() == name)
            .ok_or_else(|| {
                let known: Vec<_> = self.exporters.iter().map(Exporter::name).collect();
                match known.is_empty() {
                    true => {
                        format!("no exporter '{name}': vusbd.toml names none; add an [[exporter]]")
                    }
                    false => format!(
                        "no exporter '{name}' in vusbd.toml; it has {}",
                        known.join(", ")
                    ),
                }
            })
    }

    fn controllers(
        &self,
        domain: &Domain,
        devid: Option<u16>,
    ) -> Result<Vec<(Key, Rc<Entry>)>, Refused> {
        let mut all = self.controllers_of(domain.domid);
        if all.is_empty() {
            return Err(format!(
                "domain {} has no PV USB controller; add\n    \
                 usbctrl=['type=pv,version=2,ports=4']\nto its configuration, or run `xl \
                 usbctrl-attach {} type=pv version=2 ports=4`",
                domain.name, domain.name
            ));
        }
        if let Some(devid) = devid {
            let known: Vec<_> = all.iter().map(|(k, _)| k.devid.to_string()).collect();
            all.retain(|(k, _)| k.devid == devid);
            if all.is_empty() {
                return Err(format!(
                    "domain {} has no PV USB controller {devid}; it has {}",
                    domain.name,
                    known.join(", ")
                ));
            }
        }
        Ok(all)
    }
}

/// What a migration would do to an attachment, and why.
fn forecast(attachment: Attachment) -> Forecast {
    let Attachment {
        on_migrate,
        frontend_resumes,
        port,
        ref vm_name,
        ..
    } = attachment;
    let stock = "the guest's frontend cannot resume (no feature-resume)";
    let (outcome, reason) = match (frontend_resumes, on_migrate) {
        (true, _) => (
            Outcome::Seamless,
            "the guest's frontend reconnects inside its resume".to_owned(),
        ),
        (false, OnMigrate::Risk) => (
            Outcome::Seamless,
            format!("{stock}, but it was attached with --on-migrate risk"),
        ),
        (false, OnMigrate::Replug) => (
            Outcome::Replug,
            format!("{stock}; load the xen-vusb-resume module in the guest to avoid it"),
        ),
        (false, OnMigrate::Refuse) => (
            Outcome::Refused,
            format!(
                "{stock}; load the xen-vusb-resume module in the guest, or `xl-vusb detach {vm_name} \
                 {port}` first, or attach the device with --on-migrate replug"
            ),
        ),
    };
    Forecast {
        attachment,
        outcome,
        reason,
    }
}

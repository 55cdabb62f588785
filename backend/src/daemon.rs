// SPDX-License-Identifier: GPL-3.0-or-later
//! The daemon: what changes in xenstore, and which controller is to know.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use handoff::{Incoming, verdict};
use session::control::{Event, Reply, Request};
use session::{Holder, Lease};
use slog::{Logger, debug, error, info, o, warn};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};
use transport::Identity;
use xen::xenstore::{Endpoint, Error, WatchEvent, XenStore};
use xen::{Backend, DomId, EvtchnPort, GrantRef};

use crate::admin::{Admin, Entry};
use crate::config::{self, Config};
use crate::controller::{self, Command, RingDetails, Setup};
use crate::domain::{DOMAINS, Domain};
use crate::exporter::Exporter;
use crate::socket;
use crate::xenbus::{BACKENDS, Key, XenbusState, frontends};

/// Longest wait for the exporters' leases when a controller appears. libxl waits 10 s for us.
const LEASES_TIMEOUT: Duration = Duration::from_secs(3);

/// Pause before an exporter that is not connected is asked again.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(20);

const TOKEN_BACKEND: &str = "backend";
const TOKEN_DOMAINS: &str = "domains";
const TOKEN_FRONTEND: &str = "frontend/";
const TOKEN_SHUTDOWN: &str = "shutdown/";

/// Leases gathered for a controller.
struct Gathered {
    key: Key,
    leases: Vec<(config::Exporter, Lease)>,
    /// Names of exporters that did not answer.
    silent: Vec<String>,
}

struct Daemon<B: Backend> {
    admin: Rc<Admin<B>>,
    platform: B,
    config: Config,
    identity: Identity,
    store: XenStore,
    log: Logger,
    gathered: mpsc::UnboundedSender<Gathered>,
    /// Domains that exporters were told to expect.
    expected: BTreeMap<DomId, Domain>,
    /// Controllers that were told to end and may still hold the guest's pages.
    leaving: BTreeMap<Key, Rc<Entry>>,
}

/// Runs the daemon; see [`crate::run`].
pub async fn serve<B: Backend>(
    platform: B,
    endpoint: &Endpoint,
    config: Config,
    identity: Identity,
    log: Logger,
) -> Result<()> {
    let listener = socket::bind(&config.socket)?;
    let (store, mut watches) = XenStore::connect(endpoint).await?;
    let (exporter_events, mut from_exporters) = mpsc::unbounded_channel();
    let exporters = config
        .exporters
        .iter()
        .map(|e| Exporter::start(e.clone(), identity.clone(), exporter_events.clone(), &log))
        .collect();
    let (gathered, mut leases) = mpsc::unbounded_channel();
    let admin = Rc::new(Admin::new(
        identity.name(),
        exporters,
        store.clone(),
        log.clone(),
    ));
    let mut daemon = Daemon {
        admin: admin.clone(),
        platform,
        config,
        identity,
        store,
        log: log.clone(),
        gathered,
        expected: BTreeMap::new(),
        leaving: BTreeMap::new(),
    };
    daemon.watch().await.context("cannot watch xenstore")?;
    spawn_local(socket::serve(listener, admin, log.clone()));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // No socket from systemd is no error: then nobody waits for us.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    info!(log, "ready");
    loop {
        tokio::select! {
            event = watches.next() => match event {
                Some(event) => daemon.watched(event).await,
                None => return Ok(()),
            },
            Some(gathered) = leases.recv() => daemon.decide(gathered).await,
            Some((exporter, event)) = from_exporters.recv() => {
                daemon.exporter_event(&exporter, event);
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    info!(log, "stopping");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    Ok(())
}

impl<B: Backend> Daemon<B> {
    async fn watch(&self) -> Result<(), Error> {
        self.store.watch(BACKENDS, TOKEN_BACKEND).await?;
        // libxl makes /vm/<uuid> before it copies memory, and introduces the domain after.
        self.store.watch("/vm", TOKEN_DOMAINS).await?;
        self.store.watch("@introduceDomain", TOKEN_DOMAINS).await?;
        self.store.watch("@releaseDomain", TOKEN_DOMAINS).await
    }

    async fn watched(&mut self, event: WatchEvent) {
        let result = match event {
            WatchEvent::Changed { path, token } => self.changed(&path, &token).await,
            WatchEvent::Reconnected => {
                warn!(self.log, "xenstored was restarted");
                Ok(())
            }
            WatchEvent::Lost { path, errno, .. } => {
                warn!(self.log, "watch lost"; "path" => path, "errno" => errno.name());
                Ok(())
            }
        };
        if let Err(e) = result {
            warn!(self.log, "xenstore: {}", e);
        }
    }

    async fn changed(&mut self, path: &str, token: &str) -> Result<(), Error> {
        if let Some(domid) = token
            .strip_prefix(TOKEN_FRONTEND)
            .and_then(|d| d.parse().ok())
        {
            return self.frontend_changed(DomId(domid)).await;
        }
        if let Some(domid) = token
            .strip_prefix(TOKEN_SHUTDOWN)
            .and_then(|d| d.parse().ok())
        {
            return self.shutdown_changed(DomId(domid), path).await;
        }
        if token == TOKEN_DOMAINS {
            return self.domains_changed().await;
        }
        match Key::of_backend_path(path) {
            Some(key) => self.backend_changed(key).await,
            None => self.backends_changed().await,
        }
    }

    // ---- domains

    /// Tells the exporters of domains that are being built, and forgets those that are gone.
    async fn domains_changed(&mut self) -> Result<(), Error> {
        let domids = Domain::all(&self.store).await?;
        self.expected.retain(|domid, _| domids.contains(domid));
        for domid in domids {
            if self.expected.contains_key(&domid) {
                continue;
            }
            let Some(domain) = Domain::read(&self.store, domid).await? else {
                continue;
            };
            debug!(self.log, "domain seen"; "domid" => domid.0, "name" => &domain.name);
            let request = Request::Expect {
                vm: domain.vm,
                domid: domid.0,
            };
            self.expected.insert(domid, domain);
            for exporter in self.admin.exporters() {
                let (exporter, request) = (exporter.clone(), request.clone());
                // It only prepares them; whether it arrives is found out when it matters.
                spawn_local(async move { drop(exporter.ask(request).await) });
            }
        }
        for key in self.admin.keys() {
            if !self.expected.contains_key(&key.domid)
                && !self
                    .store
                    .exists(&format!("{DOMAINS}/{}", key.domid))
                    .await?
            {
                self.end(key).await;
            }
        }
        Ok(())
    }

    async fn shutdown_changed(&mut self, domid: DomId, path: &str) -> Result<(), Error> {
        // The guest clears the node as soon as it has read it; what is missed here costs only
        // the moment that OUT transfers are given.
        if self.store.read_optional(path).await?.as_deref() == Some("suspend") {
            for (_, entry) in self.admin.controllers_of(domid) {
                entry.handle.tell(Command::Suspend);
            }
        }
        Ok(())
    }

    // ---- controllers

    async fn backends_changed(&mut self) -> Result<(), Error> {
        let list = async |path: String| match self.store.directory(&path).await {
            Err(e) if e.is_not_found() => Ok(Vec::new()),
            other => other,
        };
        let mut keys = self.admin.keys();
        for domid in list(BACKENDS.into()).await? {
            for devid in list(format!("{BACKENDS}/{domid}")).await? {
                keys.extend(Key::of_backend_path(&format!("{BACKENDS}/{domid}/{devid}")));
            }
        }
        keys.sort();
        keys.dedup();
        for key in keys {
            self.backend_changed(key).await?;
        }
        Ok(())
    }

    async fn backend_changed(&mut self, key: Key) -> Result<(), Error> {
        let base = key.backend();
        let state = self.store.read_optional(&format!("{base}/state")).await?;
        let state = state
            .as_deref()
            .map_or(XenbusState::Unknown, XenbusState::parse);
        let online = self.store.read_optional(&format!("{base}/online")).await?;
        let removed = online.as_deref() == Some("0")
            || (state == XenbusState::Unknown && !self.store.exists(&base).await?);
        self.leaving.retain(|_, entry| entry.handle.is_running());
        match self.admin.entry(key) {
            Some(_) if removed => self.end(key).await,
            Some(_) => {}
            None if !removed && state == XenbusState::Initialising => self.begin(key).await?,
            // Its thread says so when it has let go of everything.
            None if self.leaving.contains_key(&key) => {}
            // Nobody serves it, for example because it came and went while we were away: what is
            // waited for is Closed.
            None if state == XenbusState::Closing && removed => {
                self.store
                    .write(&format!("{base}/state"), XenbusState::Closed.as_str())
                    .await?;
            }
            None => {}
        }
        Ok(())
    }

    async fn begin(&mut self, key: Key) -> Result<(), Error> {
        let log = self.log.new(o!("controller" => key.to_string()));
        let Some(domain) = Domain::read(&self.store, key.domid).await? else {
            warn!(log, "controller without a domain");
            return Ok(());
        };
        let ports = self
            .store
            .read_optional(&format!("{}/num-ports", key.backend()))
            .await?;
        let Some(port_count @ 1..=31) = ports.and_then(|p| p.trim().parse().ok()) else {
            error!(
                log,
                "num-ports is not 1 to 31; correct the usbctrl line of the domain"
            );
            return Ok(());
        };
        info!(log, "controller appeared"; "vm" => %domain.vm, "name" => &domain.name);
        let setup = Setup {
            key,
            port_count,
            platform: self.platform.clone(),
            store: self.store.clone(),
            identity: self.identity.clone(),
            hand_off: self.config.hand_off,
            totals: self.admin.totals.clone(),
            log: log.clone(),
        };
        let handle = match controller::spawn(setup) {
            Ok(handle) => handle,
            Err(e) => {
                error!(log, "cannot start the controller's thread: {}", e);
                return Ok(());
            }
        };
        let first = self.admin.controllers_of(key.domid).is_empty();
        self.admin.insert(key, Entry::new(handle, domain.clone()));
        self.gather(key, &domain);
        if first {
            let domid = key.domid;
            let set = async {
                self.store
                    .watch(&frontends(domid), &format!("{TOKEN_FRONTEND}{domid}"))
                    .await?;
                let shutdown = format!("{DOMAINS}/{domid}/control/shutdown");
                self.store
                    .watch(&shutdown, &format!("{TOKEN_SHUTDOWN}{domid}"))
                    .await
            };
            set.await?;
        }
        Ok(())
    }

    async fn end(&mut self, key: Key) {
        let Some(entry) = self.admin.remove(key) else {
            return;
        };
        self.give_back_fresh(&entry);
        entry.handle.tell(Command::Gone);
        self.leaving.insert(key, entry);
        let domid = key.domid;
        if self.admin.controllers_of(domid).is_empty() {
            let frontend = format!("{TOKEN_FRONTEND}{domid}");
            let shutdown = format!("{TOKEN_SHUTDOWN}{domid}");
            let path = format!("{DOMAINS}/{domid}/control/shutdown");
            let _ = self.store.unwatch(&frontends(domid), &frontend).await;
            let _ = self.store.unwatch(&path, &shutdown).await;
        }
    }

    /// Devices that were leased for a controller whose frontend never connected: no guest knows
    /// them, and no other host waits for them.
    fn give_back_fresh(&self, entry: &Entry) {
        let (answer, report) = oneshot::channel();
        entry.handle.tell(Command::Describe(answer));
        let (admin, log) = (self.admin.clone(), self.log.clone());
        spawn_local(async move {
            let Ok(report) = report.await else { return };
            for device in report.devices.into_iter().filter(|d| d.fresh) {
                if let Err(e) = admin.release(&device.exporter, &device.lease).await {
                    warn!(log, "device not given back: {}", e);
                }
            }
        });
    }

    async fn frontend_changed(&mut self, domid: DomId) -> Result<(), Error> {
        for (key, entry) in self.admin.controllers_of(domid) {
            let base = key.frontend();
            let read = async |name: &str| self.store.read_optional(&format!("{base}/{name}")).await;
            let state = read("state").await?;
            let state = state
                .as_deref()
                .map_or(XenbusState::Unknown, XenbusState::parse);
            let resumes = read("feature-resume").await?.as_deref() == Some("1");
            entry.handle.tell(Command::FrontendResumes(resumes));
            let before = entry.frontend.replace(state);
            if before == state {
                continue;
            }
            match state {
                XenbusState::Initialised | XenbusState::Connected
                    if before != XenbusState::Initialised =>
                {
                    let number = async |name: &str| {
                        Ok::<_, Error>(read(name).await?.and_then(|n| n.trim().parse().ok()))
                    };
                    let urb = number("urb-ring-ref").await?;
                    let conn = number("conn-ring-ref").await?;
                    let channel = number("event-channel").await?;
                    let (Some(urb), Some(conn), Some(channel)) = (urb, conn, channel) else {
                        warn!(self.log, "frontend connected without its rings";
                            "controller" => key.to_string());
                        continue;
                    };
                    entry.handle.tell(Command::FrontendConnected(RingDetails {
                        urb: GrantRef(urb),
                        conn: GrantRef(conn),
                        channel: EvtchnPort(channel),
                    }));
                }
                XenbusState::Closing | XenbusState::Closed => {
                    entry.handle.tell(Command::FrontendClosed(state));
                }
                XenbusState::Initialising => {
                    entry.handle.tell(Command::FrontendInitialising);
                }
                _ => {}
            }
        }
        Ok(())
    }

    // ---- leases

    /// Asks all exporters at once what a VM holds, and comes back to [`Daemon::decide`].
    fn gather(&self, key: Key, domain: &Domain) {
        let exporters = self.admin.exporters().to_vec();
        let request = Request::Expect {
            vm: domain.vm,
            domid: key.domid.0,
        };
        let (gathered, log) = (self.gathered.clone(), self.log.clone());
        // A guest on its way surely has its devices somewhere; a new one is not kept waiting.
        let arriving = domain.is_incoming();
        spawn_local(async move {
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
            leases.retain(|(_, lease)| lease.controller == key.devid);
            let _ = gathered.send(Gathered {
                key,
                leases,
                silent,
            });
        });
    }

    async fn decide(&mut self, gathered: Gathered) {
        let Gathered {
            key,
            leases,
            silent,
        } = gathered;
        let Some(entry) = self.admin.entry(key) else {
            return;
        };
        entry.silent.replace(silent);
        let me = Holder {
            host: self.identity.name().into(),
            domid: key.domid.0,
        };
        let leases: Vec<_> = leases
            .into_iter()
            .map(|(exporter, lease)| {
                let incoming = verdict(&lease, &me);
                (exporter, lease, incoming)
            })
            .collect();
        if leases
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
        // The frontend may have been quicker than the exporters, and was not listened to then.
        entry.frontend.set(XenbusState::Unknown);
        if let Err(e) = self.frontend_changed(key.domid).await {
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
             not be interrupted and the guest's frontend cannot resume. Load the xen-vusb-resume module \
             in the guest, or `xl-vusb detach {vm_name} {port}` first, or attach the device with \
             --on-migrate replug",
            self.identity.name(),
            exporter.name,
            device.id,
            device.name,
        );
        error!(self.log, "{}", text);
        let found = self
            .admin
            .exporters()
            .iter()
            .find(|e| e.name() == exporter.name);
        let Some(exporter) = found.cloned() else {
            return;
        };
        let request = Request::Note {
            device: device.id.clone(),
            vm: *vm,
            text,
        };
        spawn_local(async move { drop(exporter.ask(request).await) });
    }

    fn exporter_event(&self, exporter: &str, event: Option<Event>) {
        match event {
            // Leases that we could not be told of while it was away.
            None => {
                for key in self.admin.keys() {
                    let Some(entry) = self.admin.entry(key) else {
                        continue;
                    };
                    if entry.decided.get() {
                        self.gather_again(key, exporter, &entry.domain);
                    }
                }
            }
            Some(Event::Released { device, vm, reason }) => {
                info!(self.log, "lease ended: {}", reason;
                    "exporter" => exporter, "device" => %device, "vm" => %vm);
            }
            Some(event) => debug!(self.log, "exporter"; "exporter" => exporter, "event" => ?event),
        }
    }

    /// After an exporter came back: plugs in what is ours there and not plugged in yet.
    fn gather_again(&self, key: Key, exporter: &str, domain: &Domain) {
        let found = self.admin.exporters().iter().find(|e| e.name() == exporter);
        let (Some(exporter), Some(entry)) = (found.cloned(), self.admin.entry(key)) else {
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
                    && (lease.holder == me || missed)
                    && report.at(lease.port).is_none()
            });
            let ours = ours.map(|(exporter, lease)| {
                let incoming = match verdict(&lease, &me) {
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

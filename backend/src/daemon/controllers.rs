// SPDX-License-Identifier: GPL-3.0-or-later
//! Controllers come and go, and so do their frontends.

use slog::{error, info, o, warn};
use tokio::sync::oneshot;
use tokio::task::spawn_local;
use xen::xenstore::{Errno, Error};
use xen::{Backend, DomId, EvtchnPort, GrantRef};

use super::leases::Occasion;
use super::pace::Nodes;
use super::{Daemon, watched_nodes};
use crate::admin::Entry;
use crate::controller::{self, Adopted, Command, Device, RingDetails, Setup};
use crate::domain::Domain;
use crate::state::{ControllerFiles, ControllerJournal};
use crate::watched::{self, BackendNode, Due, Heard};
use crate::xenbus::{BACKENDS, Key, UsbVersion, XenbusState, frontends};

impl<B: Backend> Daemon<B> {
    pub(super) async fn backends_changed(&mut self) -> Result<(), Error> {
        let list = async |path: String| match self.store.directory(&path).await {
            Err(e) if e.is_not_found() => Ok(Vec::new()),
            other => other,
        };
        let mut keys = self.admin.controllers.keys();
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

    /// The controllers of a domain that is known as of now.
    pub(super) async fn backends_of(&mut self, domid: DomId) -> Result<(), Error> {
        let devids = match self.store.directory(&format!("{BACKENDS}/{domid}")).await {
            Err(e) if e.is_not_found() => return Ok(()),
            devids => devids?,
        };
        for devid in devids {
            if let Some(key) = Key::of_backend_path(&format!("{BACKENDS}/{domid}/{devid}")) {
                self.backend_changed(key).await?;
            }
        }
        Ok(())
    }

    /// What the toolstack says of a controller.
    pub(super) async fn read_backend(&self, key: Key) -> Result<BackendNode, Error> {
        let base = key.backend();
        let state = self.store.read_optional(&format!("{base}/state")).await?;
        let state = state
            .as_deref()
            .map_or(XenbusState::Unknown, XenbusState::parse);
        let online = self.store.read_optional(&format!("{base}/online")).await?;
        let removed = online.as_deref() == Some("0")
            || (state == XenbusState::Unknown && !self.store.exists(&base).await?);
        Ok(BackendNode { state, removed })
    }

    pub(super) async fn backend_changed(&mut self, key: Key) -> Result<(), Error> {
        let node = self.read_backend(key).await?;
        self.forget_left();
        let known = self.admin.controllers.get(key).is_some();
        let leaving = self.leaving.contains_key(&key);
        match watched::due(node, known, leaving) {
            Due::Nothing => {}
            Due::Begin => self.begin(key).await?,
            Due::Adopt => self.adopt(key, node.state).await?,
            Due::End => self.end(key).await,
            Due::Close => {
                let path = format!("{}/state", key.backend());
                self.store
                    .write(&path, XenbusState::Closed.as_str())
                    .await?;
            }
        }
        if node.removed && !known && !leaving {
            self.forget_unserved(key);
        }
        Ok(())
    }

    async fn begin(&mut self, key: Key) -> Result<(), Error> {
        let log = self.log.new(o!("controller" => key.to_string()));
        let Some(domain) = self.domains.read(key.domid).await? else {
            // Where its domain has only a temporary uuid yet, it is begun when the VM is known.
            warn!(log, "controller of a domain whose VM is not known");
            return Ok(());
        };
        info!(log, "controller appeared"; "vm" => %domain.vm, "name" => &domain.name);
        let mut files = self.state.files(key);
        let journal = files.create(&log);
        let started = self.start(key, &domain, files, journal, None).await?;
        if started {
            self.gather(key, &domain, Occasion::Made);
        }
        Ok(())
    }

    /// Starts a controller's thread, and watches its frontend. False when that was not possible,
    /// which was logged.
    pub(super) async fn start(
        &mut self,
        key: Key,
        domain: &Domain,
        files: ControllerFiles,
        journal: ControllerJournal,
        adopted: Option<Adopted>,
    ) -> Result<bool, Error> {
        let log = self.log.new(o!("controller" => key.to_string()));
        let base = key.backend();
        let read = async |name: &str| self.store.read_optional(&format!("{base}/{name}")).await;
        let ports = read("num-ports").await?;
        let version = read("usb-ver").await?;
        let ports = ports.and_then(|p| p.trim().parse().ok());
        let version = version.as_deref().and_then(UsbVersion::parse);
        let (Some(port_count @ 1..=31), Some(usb_version)) =
            // A guest that is served already loses nothing by a node that says nothing.
            (ports, version.or(adopted.is_some().then_some(UsbVersion::Usb20)))
        else {
            error!(log, "controller refused: num-ports is not 1 to 31, or usb-ver not 1 or 2; correct the \
                usbctrl= line of the domain, for example usbctrl=['type=pv,version=2,ports=4']");
            if adopted.is_none() {
                // libxl gives up at once, instead of in 10 s.
                self.store.rm(&format!("{base}/state")).await?;
            }
            return Ok(false);
        };
        // First: where that fails because xenstored goes away, all of this is done again.
        self.watch_domain(key.domid).await?;
        // By a sign of its toolstack it arrives until it runs.
        let arrives = domain.arrives || adopted.as_ref().is_some_and(|a| a.arrives);
        let setup = Setup {
            key,
            vm: domain.vm,
            arrives,
            port_count,
            usb_version,
            journal,
            files,
            adopted,
            platform: self.platform.clone(),
            store: self.store.clone(),
            identity: self.identity.clone(),
            hand_off: self.config.hand_off,
            domains: self.domains.clone(),
            poll: self.config.rings.poll(),
            totals: self.admin.totals.clone(),
            look: self.look.clone(),
            // What comes of it from now on is the guest's doing.
            log: logging::limited(&log),
        };
        let handle = match controller::spawn(setup) {
            Ok(handle) => handle,
            Err(e) => {
                error!(log, "cannot start the controller's thread: {}", e);
                return Ok(false);
            }
        };
        let entry = Entry::new(handle, domain.clone(), arrives);
        self.admin.controllers.insert(key, entry);
        Ok(true)
    }

    /// Watches the frontends of a domain, and whether it is asked to suspend.
    async fn watch_domain(&self, domid: DomId) -> Result<(), Error> {
        for nodes in [Nodes::Frontend, Nodes::Shutdown] {
            let (path, token) = watched_nodes(domid, nodes);
            match self.store.watch(&path, &token).await {
                // By another controller of this domain, or by an attempt that did not get further.
                Err(e) if e.errno() == Some(&Errno::Exists) => {}
                result => result?,
            }
        }
        Ok(())
    }

    pub(super) async fn end(&mut self, key: Key) {
        let Some(entry) = self.admin.controllers.remove(key) else {
            return;
        };
        self.give_back_fresh(&entry);
        entry.handle.tell(Command::Gone);
        self.leaving.insert(key, entry);
        let domid = key.domid;
        if self.admin.controllers.of(domid).is_empty() {
            for nodes in [Nodes::Frontend, Nodes::Shutdown] {
                let (path, token) = watched_nodes(domid, nodes);
                // Not there while it is not watched for changing too often.
                let _ = self.store.unwatch(&path, &token).await;
            }
            self.shutdown.remove(&domid);
            self.pace.forget(domid);
        }
    }

    /// Forgets the controllers whose thread has ended. Those that could not say it to every exporter
    /// have left their files, and it is said for them.
    pub(super) fn forget_left(&mut self) {
        let mut gone = Vec::new();
        self.leaving.retain(|&key, entry| {
            let runs = entry.handle.is_running();
            if !runs {
                gone.push(key);
            }
            runs
        });
        for key in gone {
            // A later controller of this number has files of its own.
            if self.admin.controllers.get(key).is_none()
                && let Some(saved) = self.state.files(key).saved()
            {
                self.say_gone(saved);
            }
        }
    }

    /// Devices that were leased for a controller whose frontend never connected: no guest knows
    /// them, and no other host waits for them. A persistent lease stays.
    fn give_back_fresh(&self, entry: &Entry) {
        let (answer, report) = oneshot::channel();
        entry.handle.tell(Command::Describe(answer));
        let (admin, log) = (self.admin.clone(), self.log.clone());
        spawn_local(async move {
            let Ok(report) = report.await else { return };
            for device in report
                .devices
                .into_iter()
                .filter(|d| d.fresh && !d.lease.persistence.is_persistent())
            {
                let Device {
                    exporter, lease, ..
                } = device;
                if let Err(e) = admin.exporters.release(&exporter, &lease).await {
                    warn!(log, "device not given back: {}", e);
                }
            }
        });
    }

    /// `path` is what has changed: one node of a frontend, or for all that we know any of the domain's.
    pub(super) async fn frontend_changed(&mut self, domid: DomId, path: &str) -> Result<(), Error> {
        for (key, entry) in self.admin.controllers.of(domid) {
            let base = key.frontend();
            let read = async |name: &str| self.store.read_optional(&format!("{base}/{name}")).await;
            // In this order: nodes that are gone by now are seen to be gone.
            let resumes = read("feature-resume").await?.as_deref() == Some("1");
            let state = read("state").await?;
            let state = state
                .as_deref()
                .map_or(XenbusState::Unknown, XenbusState::parse);
            // A domain that is destroyed takes nothing back: saved, it can still resume.
            if state != XenbusState::Unknown {
                entry.handle.tell(Command::FrontendResumes(resumes));
            }
            let before = entry.frontend.get();
            // The frontend writes its state when it has written the other nodes. Before that, some of
            // them are of rings that it has given up, and others of rings that it does not use yet.
            let of_one = path.starts_with(&format!("{}/", frontends(domid)));
            let wrote_state = !of_one || path == format!("{base}/state");
            let has_rings = matches!(state, XenbusState::Initialised | XenbusState::Connected);
            let mut rings = None;
            if has_rings && (wrote_state || state != before) {
                let number = async |name: &str| {
                    Ok::<_, Error>(read(name).await?.and_then(|n| n.trim().parse().ok()))
                };
                let urb = number("urb-ring-ref").await?;
                let conn = number("conn-ring-ref").await?;
                let channel = number("event-channel").await?;
                let recalls = read("feature-recall").await?.as_deref() == Some("1");
                rings = urb
                    .zip(conn)
                    .zip(channel)
                    .map(|((urb, conn), channel)| RingDetails {
                        urb: GrantRef(urb),
                        conn: GrantRef(conn),
                        channel: EvtchnPort(channel),
                        recalls,
                    });
            }
            let others =
                rings.is_some() && entry.rings.get().is_some_and(|told| Some(told) != rings);
            let heard = watched::heard(before, state, others);
            // Only now: where reading fails because xenstored goes away, it is read again.
            entry.frontend.set(state);
            let command = match (heard, rings) {
                (Heard::Nothing, _) => continue,
                (Heard::Closed(state), _) => {
                    // It waits for the backend to close with it.
                    if let Some(rings) = entry.waiting.take() {
                        entry.handle.tell(Command::FrontendConnected(rings));
                    }
                    Command::FrontendClosed(state)
                }
                (Heard::Initialising, _) => Command::FrontendInitialising,
                (Heard::Connected, None) => {
                    warn!(self.log, "frontend connected without its rings";
                        "controller" => key.to_string());
                    continue;
                }
                (Heard::Connected, Some(rings)) if entry.look_again.take() => {
                    // Looked at again when the answer is there.
                    entry.decided.set(false);
                    entry.waiting.set(Some(rings));
                    self.gather(key, &entry.domain, Occasion::Connects);
                    continue;
                }
                (Heard::Connected, Some(rings)) => {
                    self.arrived(domid);
                    entry.rings.set(Some(rings));
                    entry.waiting.set(None);
                    Command::FrontendConnected(rings)
                }
            };
            entry.handle.tell(command);
        }
        Ok(())
    }
}

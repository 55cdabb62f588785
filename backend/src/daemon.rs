// SPDX-License-Identifier: GPL-3.0-or-later
//! The daemon: what changes in xenstore, and which controller is to know.

mod adoption;
mod controllers;
mod exchange;
mod leases;
mod own;
mod pace;
mod supervisor;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use slog::{Logger, debug, info, warn};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, sleep_until};
use transport::Identity;
use xen::xenstore::{Endpoint, Errno, Error, WatchEvent, XenStore};
use xen::{Backend, DomId};

use self::leases::Gathered;
use self::pace::{Look, Nodes, Pace};
use crate::admin::{Admin, Entry};
use crate::config::Config;
use crate::controller::Command;
use crate::domain::{DOMAINS, Domain, Domains};
use crate::exporter::Exporter;
use crate::socket;
use crate::state::StateDir;
use crate::watched;
use crate::xenbus::{BACKENDS, Key, frontends};

const TOKEN_BACKEND: &str = "backend";
const TOKEN_DOMAINS: &str = "domains";
const TOKEN_FRONTEND: &str = "frontend/";
const TOKEN_SHUTDOWN: &str = "shutdown/";

/// How often controllers that were told to end are looked at.
const LEAVING_LOOK: Duration = Duration::from_millis(500);

/// How often it is looked whether a domain that was arriving is gone.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// How long a VM counts as arriving after its toolstack has said for the last time that it does, where no
/// frontend connects: it has no USB yet.
const RUNS_AFTER: Duration = Duration::from_secs(60);

struct Daemon<B: Backend> {
    admin: Rc<Admin>,
    platform: B,
    config: Config,
    identity: Identity,
    store: XenStore,
    log: Logger,
    gathered: mpsc::UnboundedSender<Gathered>,
    /// Which VM each domain is.
    domains: Domains,
    /// Domains that exporters were told to expect, as last seen.
    expected: BTreeMap<DomId, Domain>,
    /// When domains count as running whose toolstack does not say any more that they arrive.
    landing: BTreeMap<DomId, Instant>,
    /// `control/shutdown` of each domain, as last seen.
    shutdown: BTreeMap<DomId, Option<String>>,
    /// Controllers that were told to end and may still hold the guest's pages.
    leaving: BTreeMap<Key, Rc<Entry>>,
    /// Controllers of our own whose nodes are removed when their threads have ended.
    removing: BTreeSet<Key>,
    /// Controllers that are gone, which their exporters are being told.
    telling: Rc<RefCell<BTreeSet<Key>>>,
    /// How often each domain's nodes are looked at.
    pace: Pace,
    state: StateDir,
    /// Notified when a device is to be looked for that was pulled out.
    look: Arc<Notify>,
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
    let state = StateDir::open(&config.state_dir())?;
    let (store, mut watches) = XenStore::connect(endpoint).await?;
    let domains = Domains::new(store.clone(), state.known_domains(), log.clone());
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
        domains.clone(),
        config.exchange,
        log.clone(),
    ));
    let look = Arc::new(Notify::new());
    let mut daemon = Daemon {
        admin: admin.clone(),
        platform,
        config,
        identity,
        store,
        log: log.clone(),
        gathered,
        domains,
        expected: BTreeMap::new(),
        landing: BTreeMap::new(),
        shutdown: BTreeMap::new(),
        leaving: BTreeMap::new(),
        removing: BTreeSet::new(),
        telling: Rc::default(),
        pace: Pace::default(),
        state,
        look: look.clone(),
    };
    daemon.watch().await.context("cannot watch xenstore")?;
    // Before anybody asks: the controllers of an earlier vusbd.
    daemon.take_over().await.context("cannot read xenstore")?;
    spawn_local(exchange::Seeker::new(admin.clone(), look, log.clone()).run());
    spawn_local(socket::serve(listener, admin, log.clone()));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // A task of its own, not a branch of the loop below: the loop waits for xenstored, and a vusbd that is
    // killed because xenstored hangs could not start again. What all share is this thread.
    spawn_local(service::watchdog());
    spawn_local(supervisor::run(daemon.admin.clone(), log.clone()));
    service::ready();
    info!(log, "ready");
    loop {
        let due = daemon.pace.due();
        let lands = daemon.landing.values().min().copied();
        tokio::select! {
            event = watches.next() => match event {
                Some(event) => daemon.watched(event).await,
                None => return Ok(()),
            },
            Some(gathered) = leases.recv() => daemon.decide(gathered).await,
            () = sleep(LOOK_AGAIN), if daemon.expects_arrivals() => daemon.look_again().await,
            Some((exporter, event)) = from_exporters.recv() => {
                daemon.exporter_event(&exporter, event);
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                daemon.watch_due().await;
            }
            () = sleep_until(lands.unwrap_or_else(Instant::now)), if lands.is_some() => {
                daemon.landed(Instant::now());
            }
            () = sleep(LEAVING_LOOK), if !daemon.leaving.is_empty() || !daemon.removing.is_empty() => {
                daemon.forget_left();
                daemon.remove_nodes().await;
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    info!(log, "stopping");
    service::stopping();
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
            WatchEvent::Disconnected => {
                warn!(self.log, "connection to xenstored lost");
                // The next event of each is the watch's own again.
                self.shutdown.clear();
                Ok(())
            }
            WatchEvent::Reconnected => {
                info!(self.log, "connected to xenstored again");
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
        for (prefix, nodes) in [
            (TOKEN_FRONTEND, Nodes::Frontend),
            (TOKEN_SHUTDOWN, Nodes::Shutdown),
        ] {
            if let Some(domid) = token.strip_prefix(prefix).and_then(|d| d.parse().ok()) {
                return self.guest_changed(DomId(domid), nodes, path).await;
            }
        }
        if token == TOKEN_DOMAINS {
            return self.domains_changed(Some(path)).await;
        }
        match Key::of_backend_path(path) {
            Some(key) => self.backend_changed(key).await,
            None => self.backends_changed().await,
        }
    }

    // ---- domains

    /// Tells the exporters of domains that are being built, and forgets those that are gone. `path` has changed,
    /// where that is known.
    async fn domains_changed(&mut self, path: Option<&str>) -> Result<(), Error> {
        let domids = self.domains.all().await?;
        let gone: Vec<DomId> = self.expected.keys().copied().collect();
        for domid in gone.into_iter().filter(|domid| !domids.contains(domid)) {
            self.arrived(domid);
            self.landing.remove(&domid);
            if let Some(domain) = self.expected.remove(&domid) {
                self.say_ended(&domain);
            }
        }
        self.domains.keep(&domids);
        for domid in domids {
            let before = self.expected.get(&domid);
            if before.is_some_and(|before| !before.incoming) && !may_rename(path) {
                continue;
            }
            if let Some(domain) = self.domains.read(domid).await? {
                self.domain_seen(domain).await?;
            }
        }
        self.own_of_gone().await?;
        for key in self.admin.controllers.keys() {
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

    /// What a domain's nodes say, for the first time or again.
    async fn domain_seen(&mut self, domain: Domain) -> Result<(), Error> {
        let domid = domain.domid;
        let before = self.expected.insert(domid, domain.clone());
        let was_known = before.as_ref().is_some_and(|b| b.vm == domain.vm);
        let did_arrive = was_known && before.is_some_and(|b| b.arrives);
        if domain.arrives && !did_arrive {
            self.announce(&domain, true);
        }
        match domain.arrives && !domain.incoming {
            true => {
                let runs_at = Instant::now() + RUNS_AFTER;
                self.landing.entry(domid).or_insert(runs_at);
            }
            false => drop(self.landing.remove(&domid)),
        }
        if was_known {
            return Ok(());
        }
        debug!(self.log, "domain seen"; "domid" => domid.0, "name" => &domain.name,
            "vm" => %domain.vm, "arrives" => domain.arrives);
        for exporter in self.admin.exporters.all() {
            self.expect(exporter, &domain);
        }
        // A controller that was there before its domain's VM was known.
        self.backends_of(domid).await
    }

    /// VMs whose toolstack has let them run, and which have no frontend.
    fn landed(&mut self, now: Instant) {
        let due = self.landing.iter().filter(|(_, at)| **at <= now);
        for domid in due.map(|(domid, _)| *domid).collect::<Vec<_>>() {
            self.arrived(domid);
        }
    }

    fn expects_arrivals(&self) -> bool {
        self.expected.values().any(|domain| domain.incoming)
    }

    /// Whether domains that were arriving are gone. Nothing says so: `@releaseDomain` is for those
    /// that were introduced, which libxl does at the end, and the last thing that we see of the others
    /// is that their `/vm` is removed, before their own directory is.
    async fn look_again(&mut self) {
        if let Err(e) = self.domains_changed(None).await {
            warn!(self.log, "xenstore: {}", e);
        }
    }

    /// A guest has written nodes of its own, which it may do without pause.
    async fn guest_changed(&mut self, domid: DomId, nodes: Nodes, path: &str) -> Result<(), Error> {
        match (self.pace.may_look(domid, nodes, Instant::now()), nodes) {
            (Look::Now, Nodes::Frontend) => self.frontend_changed(domid, path).await,
            (Look::Now, Nodes::Shutdown) => self.shutdown_changed(domid).await,
            (Look::Later, _) => {
                debug!(self.log, "nodes change too often"; "domid" => domid.0, "nodes" => ?nodes);
                let (path, token) = watched_nodes(domid, nodes);
                self.store.unwatch(&path, &token).await
            }
            (Look::Waits, _) => Ok(()),
        }
    }

    /// Watches nodes again that changed too often. The watch's own event has them looked at.
    async fn watch_due(&mut self) {
        let Some((domid, nodes)) = self.pace.take_due(Instant::now()) else {
            return;
        };
        if nodes == Nodes::Shutdown {
            // What it was before says nothing about what happened meanwhile.
            self.shutdown.remove(&domid);
        }
        let (path, token) = watched_nodes(domid, nodes);
        match self.store.watch(&path, &token).await {
            Ok(()) => {}
            Err(e) if e.errno() == Some(&Errno::Exists) => {}
            Err(e) => {
                warn!(self.log, "xenstore: {}", e);
                self.pace.again(domid, nodes, Instant::now());
            }
        }
    }

    async fn shutdown_changed(&mut self, domid: DomId) -> Result<(), Error> {
        let path = format!("{DOMAINS}/{domid}/control/shutdown");
        let value = self.store.read_optional(&path).await?;
        let before = self.shutdown.get(&domid).map(Option::as_deref);
        let asked = watched::suspend_asked(before, value.as_deref());
        self.shutdown.insert(domid, value);
        if asked {
            for (_, entry) in self.admin.controllers.of(domid) {
                entry.handle.tell(Command::Suspend);
            }
        }
        Ok(())
    }
}

/// Whether a change of this path may be a step by which a toolstack says that a VM arrives or leaves.
fn may_rename(path: Option<&str>) -> bool {
    let names = ["name", "final-uuid", "origin-uuid", "uuid"];
    let last = path.and_then(|path| path.rsplit('/').next());
    last.is_some_and(|last| names.contains(&last))
}

/// Where nodes of a guest's own are watched, and the watch's token.
fn watched_nodes(domid: DomId, nodes: Nodes) -> (String, String) {
    match nodes {
        Nodes::Frontend => (frontends(domid), format!("{TOKEN_FRONTEND}{domid}")),
        Nodes::Shutdown => (
            format!("{DOMAINS}/{domid}/control/shutdown"),
            format!("{TOKEN_SHUTDOWN}{domid}"),
        ),
    }
}

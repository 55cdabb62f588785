// SPDX-License-Identifier: GPL-3.0-or-later
//! The controller's actor: what the daemon tells it, what its devices report, and the hand-off
//! machine in between.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use control::Counters;
use handoff::{Action, Cookie, Event, Incoming, State, step};
use session::Lease;
use session::frame::Kind;
use slog::{Logger, debug, error, info, warn};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, LocalSet, spawn_local};
use tokio::time::{Instant, sleep};
use transport::Identity;
use usbif::{DeviceAddress, PortNumber, RingCorrupt, Speed};
use vusb_core::PortState;
use xen::Backend;
use xen::xenstore::XenStore;

use super::device::{DeviceTask, News};
use super::node::StateNode;
use super::serving::{Outcome, RingDetails, Serving, Signal};
use crate::config::{self, HandOff};
use crate::totals::Totals;
use crate::xenbus::{Key, XenbusState};

/// A cancelled transfer is answered without the exporter after this time: the guest's USB core
/// waits for it, and with it a suspend.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);
/// Nothing in flight for this long while quiescing: the guest has unlinked what it had.
const IDLE_FOR: Duration = Duration::from_millis(20);
/// A ring that stays full for this long while quiescing waits for unlinks that will not come.
const FULL_FOR: Duration = Duration::from_millis(100);
/// A guest that still submits this long after it was asked to suspend will not suspend.
const SUSPEND_FORGOTTEN_AFTER: Duration = Duration::from_secs(10);
/// Longest wait for the last words to an exporter.
const GOODBYE: Duration = Duration::from_millis(500);

/// What a controller is made of.
pub struct Setup<B> {
    /// Which.
    pub key: Key,
    /// Its number of ports.
    pub port_count: u8,
    /// Xen.
    pub platform: B,
    /// Its nodes.
    pub store: XenStore,
    /// Our certificate.
    pub identity: Identity,
    /// Times.
    pub hand_off: HandOff,
    /// The daemon's counters.
    pub totals: Arc<Totals>,
    /// Its logger.
    pub log: Logger,
}

/// What the daemon tells a controller.
#[derive(Debug)]
pub enum Command {
    /// The VM's leases for this controller, with the exporter of each, and what is to become of
    /// them. libxl is waiting.
    Leases(Vec<(config::Exporter, Lease, Incoming)>),
    /// A lease forbids that the guest moves here.
    Refuse,
    /// The frontend has connected with these rings.
    FrontendConnected(RingDetails),
    /// The frontend is Closing or Closed; the state it has.
    FrontendClosed(XenbusState),
    /// The frontend starts anew, from Initialising.
    FrontendInitialising,
    /// The frontend says that it can resume, or not.
    FrontendResumes(bool),
    /// `control/shutdown` was set to `suspend`.
    Suspend,
    /// The domain or the controller goes away.
    Gone,
    /// Plug in a device that was just leased. Answered when its lease is claimed; at once where
    /// the frontend has not connected yet.
    Attach(
        config::Exporter,
        Box<Lease>,
        oneshot::Sender<Result<(), String>>,
    ),
    /// Unplug what is at a port. Answered with the exporter's name, and the lease with its epoch of
    /// now.
    Detach(PortNumber, oneshot::Sender<Option<(String, Lease)>>),
    /// What is there.
    Describe(oneshot::Sender<Report>),
}

/// What a controller says of itself.
#[derive(Clone, Debug)]
pub struct Report {
    /// Where its hand-off is.
    pub state: State,
    /// The state that its backend node has, or will have in a moment.
    pub backend: XenbusState,
    /// Whether the frontend can resume.
    pub frontend_resumes: bool,
    /// Its devices.
    pub devices: Vec<Device>,
}

/// One device of a [`Report`].
#[derive(Clone, Debug)]
pub struct Device {
    /// The exporter's name.
    pub exporter: String,
    /// The lease as it was when it was attached, but with its epoch of now.
    pub lease: Lease,
    /// Whether it was leased for this controller and never claimed: then nobody else waits for it.
    pub fresh: bool,
    /// What went through.
    pub counters: Counters,
}

impl Report {
    /// The device at a port.
    pub fn at(&self, port: u8) -> Option<&Device> {
        self.devices.iter().find(|d| d.lease.port == port)
    }
}

/// The daemon's handle of a controller. The thread ends after [`Command::Gone`], or when the handle
/// is dropped.
pub struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    /// How many ports it has.
    pub port_count: u8,
}

impl Handle {
    /// Tells it something. False when it has ended.
    pub fn tell(&self, command: Command) -> bool {
        self.commands.send(command).is_ok()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&self) -> bool {
        !self.commands.is_closed()
    }

    /// Asks what is there; `None` when it has ended.
    pub async fn describe(&self) -> Option<Report> {
        let (answer, report) = oneshot::channel();
        self.tell(Command::Describe(answer)).then_some(())?;
        report.await.ok()
    }
}

/// Starts a controller's thread.
pub fn spawn<B: Backend>(setup: Setup<B>) -> std::io::Result<Handle> {
    let (commands, inbox) = mpsc::unbounded_channel();
    let port_count = setup.port_count;
    let log = setup.log.clone();
    std::thread::Builder::new()
        .name(setup.key.to_string())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            match runtime {
                Ok(runtime) => {
                    LocalSet::new()
                        .block_on(&runtime, async { Actor::new(setup).run(inbox).await });
                }
                Err(e) => error!(log, "controller not started: {}", e),
            }
        })?;
    Ok(Handle {
        commands,
        port_count,
    })
}

struct Plugged {
    exporter: config::Exporter,
    lease: Lease,
    task: AbortHandle,
    claimed: bool,
    /// Leased for this controller, not brought by a guest that arrived.
    fresh: bool,
    waiting: Option<oneshot::Sender<Result<(), String>>>,
}

struct Actor<B: Backend> {
    key: Key,
    identity: Identity,
    hand_off: HandOff,
    log: Logger,
    node: StateNode,
    backend: XenbusState,
    state: State,
    serving: Rc<RefCell<Serving<B>>>,
    signal: Option<Signal<B>>,
    plugged: [Option<Plugged>; PortNumber::MAX as usize],
    may_claim: watch::Sender<bool>,
    frontend_resumes: watch::Sender<bool>,
    news: mpsc::UnboundedSender<News>,
    reports: Option<mpsc::UnboundedReceiver<News>>,
    rings: Option<RingDetails>,
    suspend_asked: Option<Instant>,
    idle_since: Option<Instant>,
    full_since: Option<Instant>,
}

impl<B: Backend> Actor<B> {
    fn new(setup: Setup<B>) -> Self {
        let Setup {
            key,
            port_count,
            platform,
            store,
            identity,
            hand_off,
            totals,
            log,
        } = setup;
        let (news, reports) = mpsc::unbounded_channel();
        let serving = Serving::new(platform, key.domid, port_count, totals, log.clone());
        Self {
            key,
            identity,
            hand_off,
            node: StateNode::start(store, key, log.clone()),
            log,
            backend: XenbusState::Initialising,
            state: State::Expecting,
            serving: Rc::new(RefCell::new(serving)),
            signal: None,
            plugged: std::array::from_fn(|_| None),
            may_claim: watch::Sender::new(false),
            frontend_resumes: watch::Sender::new(false),
            news,
            reports: Some(reports),
            rings: None,
            suspend_asked: None,
            idle_since: None,
            full_since: None,
        }
    }

    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        let Some(mut reports) = self.reports.take() else {
            return;
        };
        let mut more = false;
        while !self.state.is_final() {
            let quiescing = self.state == State::Quiescing;
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(command) => self.command(command),
                    None => self.event(Event::DomainGone),
                },
                Some(news) = reports.recv() => self.device(news),
                signalled = wait(&self.signal) => {
                    if let Err(e) = signalled {
                        error!(self.log, "event channel failed: {}", e);
                        self.signal = None;
                    }
                    more = self.service();
                }
                () = std::future::ready(()), if more => {
                    // The other tasks of this thread first.
                    tokio::task::yield_now().await;
                    more = self.service();
                }
                () = sleep(IDLE_FOR / 4), if quiescing => self.look_idle(),
            }
        }
        self.say_goodbye().await;
        info!(self.log, "controller ended"; "state" => %self.state);
        // The toolstack waits for the last state.
        self.node.finish().await;
    }

    // ---- what is told

    fn command(&mut self, command: Command) {
        match command {
            Command::Leases(leases) => {
                for (exporter, lease, incoming) in leases {
                    self.plug_arriving(exporter, lease, incoming);
                }
                self.event(Event::LeasesKnown);
            }
            Command::Refuse => self.event(Event::MoveForbidden),
            Command::FrontendConnected(details) => {
                self.rings = Some(details);
                self.event(Event::FrontendConnected);
            }
            Command::FrontendClosed(state) => self.follow(state),
            Command::FrontendInitialising => {
                if self.state == State::Closed {
                    self.switch(XenbusState::InitWait);
                }
            }
            Command::FrontendResumes(yes) => {
                self.frontend_resumes
                    .send_if_modified(|now| std::mem::replace(now, yes) != yes);
            }
            Command::Suspend => {
                self.suspend_asked = Some(Instant::now());
                self.idle_since = None;
                self.event(Event::SuspendRequested);
            }
            Command::Gone => self.event(Event::DomainGone),
            Command::Attach(exporter, lease, answer) => self.attach(exporter, *lease, answer),
            Command::Detach(port, answer) => {
                let _ = answer.send(self.detach(port));
            }
            Command::Describe(answer) => {
                let _ = answer.send(self.report());
            }
        }
    }

    fn event(&mut self, event: Event) {
        let (next, actions) = step(self.state, event);
        if next != self.state {
            info!(self.log, "hand-off: {} -> {}", self.state, next; "event" => ?event);
            self.state = next;
        }
        for action in actions {
            self.act(*action);
        }
        if event == Event::FrontendConnected {
            self.look_claimed();
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::AnswerInitWait => self.switch(XenbusState::InitWait),
            Action::RemoveStateNode => self.node.remove(),
            Action::MapRings => self.map_rings(),
            Action::Claim => drop(self.may_claim.send_replace(true)),
            Action::SwitchToConnected if self.signal.is_some() => {
                self.switch(XenbusState::Connected);
            }
            Action::SwitchToConnected => {}
            Action::StartQuiescing => self.serving.borrow_mut().quiescing = true,
            Action::StopQuiescing => self.serving.borrow_mut().quiescing = false,
            Action::Freeze => self.say(Kind::Freeze),
            Action::Thaw => self.say(Kind::Thaw),
            Action::UnmapRings => {
                self.signal = None;
                let mut serving = self.serving.borrow_mut();
                serving.disconnect();
                serving.quiescing = false;
            }
            Action::Orphan => self.say(Kind::Orphan),
            Action::Close => self.switch(XenbusState::Closed),
        }
    }

    /// Closes as far as the frontend has: one that starts anew, in a guest that has crashed into
    /// another kernel, waits for each of these states (`xenbus_reset_frontend_state`).
    fn follow(&mut self, state: XenbusState) {
        self.event(Event::FrontendClosed);
        if self.state == State::Closed {
            self.switch(state);
        }
    }

    fn switch(&mut self, state: XenbusState) {
        self.backend = state;
        self.node.switch(state);
    }

    fn say(&self, kind: Kind) {
        let mut serving = self.serving.borrow_mut();
        for port in serving.core.ports() {
            if let Some(attached) = serving.at_mut(port)
                && let Some(client) = &mut attached.client
            {
                client.say(kind);
                attached.wake.notify_one();
            }
        }
    }

    // ---- rings

    fn map_rings(&mut self) {
        let Some(details) = self.rings else { return };
        let connected = self.serving.borrow_mut().connect(details);
        match connected {
            Ok(signal) => self.signal = Some(signal),
            Err(e) => {
                // The guest's fault or ours; either way only this frontend stands still.
                error!(self.log, "frontend refused: {}", e);
                self.switch(XenbusState::Closing);
            }
        }
    }

    /// Looks at the rings; true when there is more.
    fn service(&mut self) -> bool {
        let (outcome, activity, late) = {
            let mut serving = self.serving.borrow_mut();
            let outcome = serving.service();
            let late = self
                .suspend_asked
                .is_some_and(|t| t.elapsed() > SUSPEND_FORGOTTEN_AFTER);
            (outcome, serving.take_activity(), late)
        };
        if activity {
            self.idle_since = None;
            if matches!(self.state, State::Frozen | State::Quiescing) {
                self.event(if late {
                    Event::SuspendForgotten
                } else {
                    Event::Request
                });
            }
        }
        match outcome {
            Ok(outcome) => {
                self.watch_unlinked(&outcome);
                outcome.more
            }
            Err(corrupt) => {
                self.corrupt(corrupt);
                false
            }
        }
    }

    fn corrupt(&mut self, corrupt: RingCorrupt) {
        error!(self.log, "ring is corrupt, frontend stopped: {}", corrupt);
        self.signal = None;
        self.serving.borrow_mut().disconnect();
        self.switch(XenbusState::Closing);
    }

    /// Sees to it that an unlink is answered in time, whatever the exporter does.
    fn watch_unlinked(&self, outcome: &Outcome) {
        let finishing = self.serving.borrow().quiescing;
        let quiesce = Duration::from_millis(self.hand_off.quiesce_ms);
        for &(port, number) in &outcome.unlinked {
            let serving = self.serving.clone();
            spawn_local(async move {
                if finishing {
                    sleep(quiesce).await;
                    serving.borrow_mut().cancel(port, number);
                }
                sleep(CANCEL_TIMEOUT).await;
                serving.borrow_mut().give_up(port, number);
            });
        }
    }

    fn look_idle(&mut self) {
        // Linux's xen-hcd never sends an unlink that found the ring full. A guest with 16 transfers
        // that only wait for data (16 read URBs of CDC-ACM) would wait for them for ever.
        if !self.serving.borrow().is_full() {
            self.full_since = None;
        } else if self.full_since.get_or_insert_with(Instant::now).elapsed() > FULL_FOR {
            self.full_since = None;
            self.serving.borrow_mut().cancel_waiting();
        }
        if !self.serving.borrow().core.is_idle() {
            self.idle_since = None;
            return;
        }
        let since = *self.idle_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= IDLE_FOR {
            self.event(Event::Idle);
        }
    }

    // ---- devices

    fn plug_arriving(&mut self, exporter: config::Exporter, lease: Lease, incoming: Incoming) {
        let Some(port) = PortNumber::new(lease.port) else {
            return;
        };
        let carried = match (incoming, Cookie::decode(&lease.cookie)) {
            (Incoming::Seamless, Ok(cookie)) => cookie,
            (Incoming::Seamless, Err(e)) => {
                warn!(self.log, "device will be replugged: {}", e; "port" => lease.port);
                None
            }
            _ => None,
        };
        let state = carried.map(|c| PortState {
            speed: Speed::from_wire(c.speed).unwrap_or_default(),
            address: DeviceAddress::new(c.address).filter(|a| !a.is_default()),
        });
        if let Err(e) = self.plug(port, exporter, lease, state, None) {
            warn!(self.log, "lease ignored: {}", e);
            return;
        }
        if carried.is_none() {
            self.serving.borrow_mut().core.replug(port);
        }
    }

    fn attach(
        &mut self,
        exporter: config::Exporter,
        lease: Lease,
        answer: oneshot::Sender<Result<(), String>>,
    ) {
        let Some(port) = PortNumber::new(lease.port) else {
            let _ = answer.send(Err(format!("port {} is not 1 to 31", lease.port)));
            return;
        };
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

    fn plug(
        &mut self,
        port: PortNumber,
        exporter: config::Exporter,
        lease: Lease,
        carried: Option<PortState>,
        waiting: Option<oneshot::Sender<Result<(), String>>>,
    ) -> Result<(), String> {
        let speed = match lease.device.speed {
            session::Speed::Low => Speed::Low,
            session::Speed::Full => Speed::Full,
            session::Speed::High | session::Speed::Super => Speed::High,
        };
        let wake = Rc::new(Notify::new());
        {
            let mut serving = self.serving.borrow_mut();
            if let Err(e) = serving.core.plug(port, speed, carried) {
                let text = e.to_string();
                if let Some(waiting) = waiting {
                    let _ = waiting.send(Err(text.clone()));
                }
                return Err(text);
            }
            serving.attach(port, wake.clone());
        }
        let task = DeviceTask {
            serving: self.serving.clone(),
            port,
            lease: lease.clone(),
            domid: self.key.domid.0,
            exporter: exporter.clone(),
            identity: self.identity.clone(),
            wake,
            may_claim: self.may_claim.subscribe(),
            held: false,
            frontend_resumes: self.frontend_resumes.subscribe(),
            news: self.news.clone(),
            log: self.log.new(slog::o!(
                "port" => port.get(),
                "device" => format!("{}/{}", exporter.name, lease.device.id),
            )),
        };
        let task = spawn_local(task.run()).abort_handle();
        self.plugged[port.index()] = Some(Plugged {
            exporter,
            lease,
            task,
            claimed: false,
            fresh: false,
            waiting,
        });
        Ok(())
    }

    fn detach(&mut self, port: PortNumber) -> Option<(String, Lease)> {
        let Plugged {
            exporter,
            mut lease,
            task,
            ..
        } = self.plugged[port.index()].take()?;
        task.abort();
        let attached = self.serving.borrow_mut().detach(port);
        if let Some(client) = attached.and_then(|a| a.client) {
            lease.epoch = client.epoch();
        }
        Some((exporter.name, lease))
    }

    fn device(&mut self, news: News) {
        match news {
            News::Claimed(port) => {
                if let Some(plugged) = &mut self.plugged[port.index()] {
                    plugged.claimed = true;
                    if let Some(waiting) = plugged.waiting.take() {
                        let _ = waiting.send(Ok(()));
                    }
                }
            }
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
            }
        }
        self.look_claimed();
    }

    fn look_claimed(&mut self) {
        if self.state == State::Claiming && self.plugged.iter().flatten().all(|p| p.claimed) {
            self.event(Event::Claimed);
        }
    }

    fn report(&self) -> Report {
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
            }
        });
        Report {
            state: self.state,
            backend: self.backend,
            frontend_resumes: *self.frontend_resumes.borrow(),
            devices: devices.collect(),
        }
    }

    /// Gives the last words to the exporters, and the last state, the time to leave.
    async fn say_goodbye(&self) {
        let until = Instant::now() + GOODBYE;
        while Instant::now() < until {
            sleep(Duration::from_millis(5)).await;
            let mut serving = self.serving.borrow_mut();
            let silent = serving.core.ports().all(|port| {
                let client = serving.client(port);
                client.is_none_or(|c| !c.is_connected() || c.output().is_empty())
            });
            if silent {
                break;
            }
        }
        sleep(Duration::from_millis(50)).await;
        debug!(self.log, "last words said");
    }
}

async fn wait<B: Backend>(signal: &Option<Signal<B>>) -> std::io::Result<()> {
    match signal {
        Some(signal) => signal.wait().await,
        None => std::future::pending().await,
    }
}

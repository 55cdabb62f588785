// SPDX-License-Identifier: GPL-3.0-or-later
//! The controller's actor: what the daemon tells it, what its devices report, and the hand-off
//! machine in between.

mod away;
mod devices;
mod elsewhere;
mod frontend;
mod goodbye;
mod plan;
mod quiescing;
mod withdraw;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use crate::domain::Domains;
use handoff::{Action, Event, State, step};
use session::VmUuid;
use slog::{Logger, error, info};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use transport::Identity;
use usbif::PortNumber;
use xen::Backend;

use self::devices::Plugged;
pub use self::devices::{carried, speed_told, too_fast};
use self::quiescing::IDLE_FOR;
use super::allowance::Allowance;
use super::device::{News, TaskId};
use super::handle::{Adopted, Command, Setup};
use super::node::StateNode;
use super::poll::{Moved, Polling};
use super::rings::{RingDetails, Signal};
use super::serving::{Place, Serving};
use super::unlinks::Unlinks;
use crate::config::HandOff;
use crate::state::ControllerFiles;
use crate::watched;
use crate::xenbus::{Key, UsbVersion, XenbusState};

/// A controller at work; see the module's documentation.
pub(super) struct Actor<B: Backend> {
    key: Key,
    vm: VmUuid,
    usb_version: UsbVersion,
    /// The toolstack said that the VM arrives in this domain from another one.
    arrives: bool,
    /// The frontend has not connected yet, to nobody.
    first_connect: bool,
    files: ControllerFiles,
    identity: Identity,
    hand_off: HandOff,
    log: Logger,
    domains: Domains,
    node: StateNode,
    backend: XenbusState,
    state: State,
    serving: Rc<RefCell<Serving<B>>>,
    signal: Option<Signal<B>>,
    plugged: [Option<Plugged>; PortNumber::MAX as usize],
    may_claim: watch::Sender<bool>,
    frontend_resumes: watch::Sender<bool>,
    news: mpsc::UnboundedSender<(TaskId, News)>,
    reports: Option<mpsc::UnboundedReceiver<(TaskId, News)>>,
    /// The device task that was started last.
    last_task: TaskId,
    rings: Option<RingDetails>,
    suspend_asked: Option<Instant>,
    /// When devices that were disconnected for a suspend are connected again.
    give_again_at: Option<Instant>,
    idle_since: Option<Instant>,
    full_since: Option<Instant>,
    polling: Polling,
    allowance: Allowance,
    unlinks: Unlinks,
    /// Notified when a device is to be looked for that was pulled out.
    look: Arc<Notify>,
}

impl<B: Backend> Actor<B> {
    /// A controller that was just made: no leases, no frontend.
    pub(super) fn new(setup: Setup<B>) -> Self {
        let Setup {
            key,
            vm,
            arrives,
            port_count,
            usb_version,
            journal,
            files,
            adopted,
            platform,
            store,
            domains,
            identity,
            hand_off,
            poll,
            totals,
            look,
            log,
        } = setup;
        let (news, reports) = mpsc::unbounded_channel();
        let place = Place {
            platform,
            domid: key.domid,
            devid: key.devid,
            vm,
            totals,
            log: log.clone(),
        };
        let serving = Serving::keeping(place, port_count, journal);
        let mut actor = Self {
            key,
            vm,
            usb_version,
            arrives,
            first_connect: adopted.as_ref().is_none_or(|a| a.first_connect),
            files,
            identity,
            hand_off,
            node: StateNode::start(store, key, log.clone()),
            domains,
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
            last_task: TaskId::default(),
            rings: None,
            suspend_asked: None,
            give_again_at: None,
            idle_since: None,
            full_since: None,
            polling: Polling::new(poll),
            allowance: Allowance::new(Instant::now()),
            unlinks: Unlinks::default(),
            look,
        };
        match adopted {
            Some(adopted) => actor.adopt(adopted),
            None => actor.keep_devices(),
        }
        actor
    }

    /// Goes on for an earlier process. The rings come with the frontend's state.
    fn adopt(&mut self, adopted: Adopted) {
        let Adopted {
            backend, devices, ..
        } = adopted;
        self.backend = backend;
        self.state = watched::adopted(backend);
        info!(self.log, "taking over from an earlier vusbd"; "backend" => %backend,
            "devices" => devices.len());
        self.serving.borrow_mut().adopt();
        // Until the frontend's own word is read.
        let resumes = devices.iter().any(|(_, d)| d.lease.frontend_resumes);
        self.frontend_resumes.send_replace(resumes);
        let first_connect = self.first_connect;
        for (exporter, device) in devices {
            // What no process has claimed for this domain, and was not refused: its frontend is still at its
            // first connection, also where an earlier process has seen that.
            self.first_connect =
                first_connect || !(device.fresh || device.away || device.elsewhere);
            self.plug_again(exporter, device);
        }
        self.first_connect = first_connect;
    }

    /// Runs until the domain or the controller is gone.
    pub(super) async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        let Some(mut reports) = self.reports.take() else {
            return;
        };
        let completed = self.serving.borrow().completions.clone();
        let mut more = false;
        while !self.state.is_final() {
            let quiescing = self.state == State::Quiescing;
            let looks = self.serving.borrow().polled;
            let give_again = self.give_again_at;
            let paused = self.allowance.paused_until();
            let unlinks = self.unlinks.next();
            let away_until = self.away_until();
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(command) => self.command(command),
                    // The daemon ends. The guest does not, and whoever comes after us goes on.
                    None => return,
                },
                Some((task, news)) = reports.recv() => self.device(task, news),
                signalled = wait(&self.signal), if paused.is_none() => {
                    if let Err(e) = signalled {
                        error!(self.log, "event channel failed: {}", e);
                        self.signal = None;
                    }
                    more = self.service(true);
                }
                () = completed.notified() => {
                    self.polling.moved(Moved::Completions, Instant::now());
                    self.look_again(false);
                    self.account(0);
                }
                () = std::future::ready(()), if (more || looks) && paused.is_none() => {
                    // The other tasks of this thread first.
                    tokio::task::yield_now().await;
                    self.look_again(true);
                    more = self.service(false);
                }
                // Whatever it was that had to wait.
                () = sleep_until(paused.unwrap_or_else(Instant::now)), if paused.is_some() => {
                    self.allowance.go_on();
                    self.watch_signal(true);
                    more = self.service(false);
                }
                () = sleep_until(unlinks.unwrap_or_else(Instant::now)), if unlinks.is_some() => {
                    self.look_unlinked();
                }
                () = sleep(IDLE_FOR / 4), if quiescing => self.look_idle(),
                () = sleep_until(give_again.unwrap_or_else(Instant::now)), if give_again.is_some() => {
                    self.give_again_suspended();
                }
                () = sleep_until(away_until.unwrap_or_else(Instant::now)), if away_until.is_some() => {
                    self.look_away();
                }
            }
        }
        let said = self.say_goodbye().await;
        if said || self.state == State::Abandoned {
            self.files.remove_own();
        }
        info!(self.log, "controller ended"; "state" => %self.state, "pauses" => self.allowance.pauses());
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
            // Whoever has claimed without them does not claim by them.
            Command::LeasesAgain { leases, silent } => {
                if self.first_connect {
                    self.plan_again(leases, &silent);
                }
            }
            Command::Refuse => self.event(Event::MoveForbidden),
            Command::FrontendConnected(details) => {
                if self.state.has_rings() && self.rings.is_some_and(|rings| rings != details) {
                    // It does not wait for us to close. What was on the other rings it has given up.
                    info!(self.log, "the frontend connects again, with other rings");
                    self.event(Event::FrontendClosed);
                }
                self.rings = Some(details);
                let first = std::mem::take(&mut self.first_connect);
                // Written down before anything is claimed by it. Without a record a later process asks for
                // the leases, and claims nothing by it.
                if first
                    && (self.plugged.iter().any(Option::is_some) || self.files.saved().is_some())
                {
                    self.keep_devices();
                }
                let was_quiescing = self.serving.borrow().was_quiescing();
                self.event(Event::FrontendConnected);
                if was_quiescing {
                    self.suspend();
                }
            }
            Command::FrontendClosed(state) => self.follow(state),
            Command::FrontendInitialising => {
                if self.state == State::Closed {
                    self.switch(XenbusState::InitWait);
                }
            }
            Command::FrontendResumes(yes) => {
                let changed = self
                    .frontend_resumes
                    .send_if_modified(|now| std::mem::replace(now, yes) != yes);
                if changed {
                    self.keep_devices();
                }
            }
            Command::Suspend => self.suspend(),
            Command::Moving(exporter, moving) => self.moving(&exporter, moving),
            Command::Gone => self.event(Event::DomainGone),
            Command::Attach(exporter, lease, answer) => self.attach(exporter, *lease, answer),
            Command::Detach(port, answer) => {
                let _ = answer.send(self.detach(port));
            }
            Command::Away(port, lease, note) => {
                if let Some(port) = PortNumber::new(port) {
                    self.learn_away(port, lease.map(|l| *l), note);
                }
            }
            Command::Back {
                port,
                exporter,
                lease,
                same,
                answer,
            } => {
                if let Some(port) = PortNumber::new(port) {
                    self.come_back(port, exporter, *lease, same, answer);
                }
            }
            Command::Ended(exporter, device) => self.lease_ended(&exporter, &device),
            Command::Describe(answer) => {
                let _ = answer.send(self.report());
            }
        }
    }

    fn suspend(&mut self) {
        self.suspend_asked = Some(Instant::now());
        self.idle_since = None;
        self.withdraw_suspending();
        self.event(Event::SuspendRequested);
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
            Action::SwitchToConnected
                if self.signal.is_some() && self.backend != XenbusState::Connected =>
            {
                self.switch(XenbusState::Connected);
            }
            Action::SwitchToConnected => {}
            Action::StartQuiescing => {
                self.serving.borrow_mut().set_quiescing(true);
                self.wait_for_recalled();
            }
            Action::StopQuiescing => {
                let mut serving = self.serving.borrow_mut();
                serving.set_quiescing(false);
                // Also where it was never frozen: what is kept for it is not kept for ever.
                serving.thaw();
            }
            Action::Freeze => self.serving.borrow_mut().freeze(),
            Action::Thaw => self.serving.borrow_mut().thaw(),
            Action::UnmapRings => {
                self.signal = None;
                let mut serving = self.serving.borrow_mut();
                serving.disconnect();
                serving.set_quiescing(false);
            }
            Action::Orphan => self.serving.borrow_mut().orphan(),
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
}

async fn wait<B: Backend>(signal: &Option<Signal<B>>) -> std::io::Result<()> {
    match signal {
        Some(signal) => signal.wait().await,
        None => std::future::pending().await,
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! The controller's actor: what the daemon tells it, what its devices report, and the hand-off
//! machine in between.

mod away;
mod devices;
mod withdraw;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use handoff::{Action, Event, State, step};
use session::VmUuid;
use session::client::Client;
use session::frame::Kind;
use slog::{Logger, debug, error, info, warn};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use transport::Identity;
use usbif::{PortNumber, RingCorrupt};
use xen::Backend;
use xen::xenstore::XenStore;

use self::devices::Plugged;
pub use self::devices::carried;
use super::allowance::{Allowance, Spent};
use super::device::News;
use super::handle::{Adopted, Command, Setup};
use super::node::StateNode;
use super::poll::{Moved, Polling};
use super::rings::{RingDetails, Signal};
use super::serving::{Outcome, Place, Serving};
use super::unlinks::{Unlinked, Unlinks};
use crate::config::HandOff;
use crate::state::ControllerFiles;
use crate::watched;
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
/// Requests in flight with which the time to the next event matters.
const FEW: u32 = 2;
/// Longest wait for the last words to an exporter.
const GOODBYE: Duration = Duration::from_millis(500);

/// A controller at work; see the module's documentation.
pub(super) struct Actor<B: Backend> {
    key: Key,
    vm: VmUuid,
    files: ControllerFiles,
    identity: Identity,
    hand_off: HandOff,
    log: Logger,
    store: XenStore,
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
            port_count,
            journal,
            files,
            adopted,
            platform,
            store,
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
            files,
            identity,
            hand_off,
            node: StateNode::start(store.clone(), key, log.clone()),
            store,
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
        let Adopted { backend, devices } = adopted;
        self.backend = backend;
        self.state = watched::adopted(backend);
        info!(self.log, "taking over from an earlier vusbd"; "backend" => %backend,
            "devices" => devices.len());
        self.serving.borrow_mut().adopt();
        // Until the frontend's own word is read.
        let resumes = devices.iter().any(|(_, d)| d.lease.frontend_resumes);
        self.frontend_resumes.send_replace(resumes);
        for (exporter, device) in devices {
            self.plug_again(exporter, device);
        }
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
                Some(news) = reports.recv() => self.device(news),
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
            Command::Refuse => self.event(Event::MoveForbidden),
            Command::FrontendConnected(details) => {
                self.rings = Some(details);
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
            Action::StartQuiescing => self.serving.borrow_mut().set_quiescing(true),
            Action::StopQuiescing => {
                self.serving.borrow_mut().set_quiescing(false);
                // Also where it was never frozen: what is kept for it is not kept for ever.
                self.say(Kind::Thaw);
            }
            Action::Freeze => {
                self.serving.borrow_mut().acknowledge_all();
                self.say(Kind::Freeze);
            }
            Action::Thaw => self.say(Kind::Thaw),
            Action::UnmapRings => {
                self.signal = None;
                let mut serving = self.serving.borrow_mut();
                serving.disconnect();
                serving.set_quiescing(false);
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
        match connected.and_then(|channel| Signal::new(channel, details.channel)) {
            Ok(signal) => {
                self.signal = Some(signal);
                // What lies on the ring already is announced by the channel, which starts with an event.
                let outcome = self.serving.borrow_mut().take_recovered();
                self.watch_unlinked(&outcome);
                self.note_sessions();
            }
            Err(e) => {
                // The guest's fault or ours; either way only this frontend stands still.
                error!(self.log, "frontend refused: {}", e);
                self.switch(XenbusState::Closing);
            }
        }
    }

    /// Looks at the rings, perhaps because the frontend has signalled; true when there is more.
    fn service(&mut self, signalled: bool) -> bool {
        let (outcome, activity, late) = {
            let mut serving = self.serving.borrow_mut();
            let outcome = serving.service();
            let late = self
                .suspend_asked
                .is_some_and(|t| t.elapsed() > SUSPEND_FORGOTTEN_AFTER);
            (outcome, serving.take_activity(), late)
        };
        if activity {
            self.polling.moved(Moved::Requests, Instant::now());
            self.look_again(false);
            self.idle_since = None;
            if matches!(self.state, State::Frozen | State::Quiescing) {
                self.event(if late {
                    Event::SuspendForgotten
                } else {
                    Event::Request
                });
            }
        }
        self.account(u32::from(signalled && !activity));
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

    /// Takes note of what the guest has caused, and of so many events with nothing behind them.
    fn account(&mut self, empty: u32) {
        let mut spent = self.serving.borrow_mut().take_spent();
        spent.useless += empty;
        if spent == Spent::default() {
            return;
        }
        let first = self.allowance.spend(spent, Instant::now());
        if self.allowance.paused_until().is_some() {
            self.watch_signal(false);
        }
        if first {
            warn!(
                self.log,
                "the guest sends requests that cannot be carried out, or events without any, faster \
                 than 250 in a second: its ring is looked at less often from now on"
            );
        }
    }

    fn watch_signal(&mut self, wanted: bool) {
        if let Some(signal) = &mut self.signal
            && let Err(e) = signal.set_watched(wanted)
        {
            error!(self.log, "event channel failed: {}", e);
            self.signal = None;
        }
    }

    /// Whether the rings are looked at again without an event. With many requests in flight that
    /// is no use: the next event is never far. It `may_stop` only where the rings are looked at
    /// next: an event was not asked for until then.
    fn look_again(&mut self, may_stop: bool) {
        let mut serving = self.serving.borrow_mut();
        let on = serving.in_flight() <= FEW && self.polling.is_on(Instant::now());
        serving.polled = on || (serving.polled && !may_stop);
    }

    fn corrupt(&mut self, corrupt: RingCorrupt) {
        error!(self.log, "ring is corrupt, frontend stopped: {}", corrupt);
        self.signal = None;
        self.serving.borrow_mut().disconnect();
        self.switch(XenbusState::Closing);
    }

    /// Sees to it that an unlink is answered in time, whatever the exporter does.
    fn watch_unlinked(&mut self, outcome: &Outcome) {
        let serving = self.serving.borrow();
        let finish = Duration::from_millis(self.hand_off.quiesce_ms);
        let finish = serving.is_quiescing().then_some(finish);
        // One time for all, so that they are cancelled in the order in which the guest has asked. Whoever
        // unlinks the newest first would else see a transfer done that comes after one that is not.
        let now = Instant::now();
        for &(port, number) in &outcome.unlinked {
            let which = (port, number, serving.epoch(port));
            let unlinked = Unlinked::new(which, now, finish, CANCEL_TIMEOUT);
            self.unlinks.add(unlinked, |u| is_waited_for(&serving, u));
        }
    }

    /// Cancels what had its moment to finish, and answers what was not cancelled in time.
    fn look_unlinked(&mut self) {
        while let Some(unlinked) = self.unlinks.take_due(Instant::now()) {
            let mut serving = self.serving.borrow_mut();
            if !is_waited_for(&serving, &unlinked) {
                continue;
            }
            let Unlinked { port, number, .. } = unlinked;
            match unlinked.cancel_at {
                Some(_) => serving.cancel(port, number),
                None => serving.give_up(port, number),
            }
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

    // ---- the end

    /// Gives the last words to the exporters, and the last state, the time to leave. Whether every
    /// exporter was there to hear them.
    async fn say_goodbye(&self) -> bool {
        // What is said without a connection is not said, also where one comes back meanwhile.
        let before = self.connections();
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
        let said = before.is_some() && before == self.connections();
        debug!(self.log, "last words said"; "to all" => said);
        said
    }

    /// How often the devices' connections were made again; `None` when one is not there.
    fn connections(&self) -> Option<u64> {
        let serving = self.serving.borrow();
        let away = |port: &PortNumber| {
            let plugged = self.plugged[port.index()].as_ref();
            plugged.is_some_and(|p| p.away.is_some())
        };
        let there = serving.core.ports().filter(|port| !away(port));
        let mut attached = there.filter_map(|port| serving.at(port));
        attached.try_fold(0, |sum, attached| {
            let connected = attached.client.as_ref().is_some_and(Client::is_connected);
            connected.then_some(sum + attached.counters.reconnects)
        })
    }
}

/// Whether it has no answer yet.
fn is_waited_for<B: Backend>(serving: &Serving<B>, unlinked: &Unlinked) -> bool {
    serving.epoch(unlinked.port) == unlinked.epoch
        && serving
            .core
            .by_number(unlinked.port, unlinked.number)
            .is_some()
}

async fn wait<B: Backend>(signal: &Option<Signal<B>>) -> std::io::Result<()> {
    match signal {
        Some(signal) => signal.wait().await,
        None => std::future::pending().await,
    }
}

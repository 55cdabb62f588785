// SPDX-License-Identifier: GPL-3.0-or-later
//! What may happen next, and letting it happen.

mod copy;
mod daemon;
mod faults;
mod toolstack;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use backend::xenbus::XenbusState;
use handoff::{Event, State};
use session::control::Refusal;
use session::lease::TAKEOVER_MS;
use session::open::Opened;
use session::{Holder, LeasePhase};

use crate::Limits;
use crate::exporter::{Exporter, Say, host_name, vm};
use crate::guest::{Guest, Mode};
use crate::history::History;
use crate::host::{Controller, Host, Nodes, Shutdown, Stage, Watch};
use crate::memory::{self, Memory};
use crate::network::{Connection, Message};
use toolstack::Phase;

/// One thing that may happen. Hosts are 0 and 1, domains have numbers that are never used twice,
/// and connections have the smallest free number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Step {
    Watch(usize),
    Ask(usize, u16),
    Decide(usize, u16),
    Service(usize, u16),
    Idle(usize, u16),
    Connect(usize, u16),
    Acknowledge(usize, u16),
    UnlinkedDue(usize, u16),
    Up(u8),
    Down(u8),
    BackendSeesEnd(u8),
    ExporterSeesEnd(u8),
    Save,
    Execute,
    RestartExporter,
    StartVusbd(usize),
    FindStore(usize),
    GuestConnect,
    GuestSubmit,
    GuestWake,
    GuestFreeze,
    GuestSuspend,
    GuestReinitialise,
    Toolstack,
    /// A host that died has been silent for long enough.
    Silence,
    /// The copy's frontend connects.
    CopyConnect,
    /// The copy is destroyed.
    EndCopy,
    // What need not happen.
    Cut(u8),
    Abort,
    CrashExporter,
    CrashHost(usize),
    /// SIGKILL, now.
    KillVusbd(usize),
    /// SIGKILL at one of its next stores to shared memory.
    KillVusbdAfter(usize, u16),
    /// Its connection to xenstored breaks.
    LoseStore(usize),
    HoldOver,
    GuestReload,
    GuestUnlink,
    SpuriousWatches(usize),
    SpuriousSignal,
    /// A second domain with the VM's uuid is made.
    StartCopy(usize),
    /// A claim that was refused is tried again, and is refused again.
    Retry(usize, u16),
}

impl Step {
    /// Whether it is a fault, or something else that need not happen.
    pub fn is_fault(self) -> bool {
        matches!(
            self,
            Self::Cut(_)
                | Self::Abort
                | Self::CrashExporter
                | Self::CrashHost(_)
                | Self::KillVusbd(_)
                | Self::KillVusbdAfter(..)
                | Self::LoseStore(_)
                | Self::HoldOver
                | Self::GuestReload
                | Self::GuestUnlink
                | Self::SpuriousWatches(_)
                | Self::SpuriousSignal
                | Self::StartCopy(_)
                | Self::Retry(..)
        )
    }

    /// Whether it is the end of a time that is longer than anything else takes.
    pub fn is_timer(self) -> bool {
        matches!(
            self,
            Self::UnlinkedDue(..) | Self::Idle(..) | Self::Acknowledge(..) | Self::Silence
        )
    }
}

/// Everything.
#[derive(Clone, Hash)]
pub struct World {
    left: Limits,
    memory: Memory,
    guest: Guest,
    /// Another guest with the same uuid. It has no transfers.
    copy: Option<Guest>,
    hosts: [Host; 2],
    nodes: BTreeMap<u16, Nodes>,
    exporter: Exporter,
    connections: BTreeMap<u8, Connection>,
    phase: Phase,
    next_dom: u16,
    history: History,
    now_ms: u64,
    /// Domains whose controller has heard that the guest was asked to suspend, which was not cancelled.
    suspends_heard: BTreeSet<u16>,
}

impl World {
    /// A VM that is being started on host 0, with a device leased.
    pub fn new(limits: Limits) -> Self {
        let mut world = Self {
            memory: Memory::default(),
            guest: Guest::new(&limits),
            copy: None,
            hosts: Default::default(),
            nodes: BTreeMap::new(),
            exporter: Exporter::new(&limits),
            connections: BTreeMap::new(),
            phase: Phase::Calm,
            next_dom: 1,
            history: History::default(),
            now_ms: 0,
            suspends_heard: BTreeSet::new(),
            left: limits,
        };
        let planted = world.left.planted_late_journal;
        world.with_memory(|world| {
            memory::plant_late_journal(planted);
            let dom = world.make_domain(0);
            world.phase = Phase::Starting { dom };
        });
        world
    }

    fn with_memory<R>(&mut self, run: impl FnOnce(&mut Self) -> R) -> R {
        self.memory.exchange();
        let result = run(self);
        self.memory.exchange();
        result
    }

    /// Two worlds with the same number will go on in the same way (but for one in 2^64).
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }

    /// What must not have happened.
    pub fn violation(&self) -> Option<&str> {
        self.history.violation.as_deref()
    }

    /// Transfers that the guest has asked for so far.
    pub fn transfers(&self) -> usize {
        self.history.operations.len()
    }

    /// Where everything is, for people.
    pub fn describe(&self) -> String {
        let mut text = format!("{:?}: {}", self.phase, self.guest.describe());
        if let Some(lease) = self.exporter.lease() {
            let Holder { host, domid } = &lease.holder;
            text += &format!("; epoch {} {host}/{domid} {:?}", lease.epoch, lease.phase);
        }
        for (host, dom, controller) in self
            .hosts
            .iter()
            .enumerate()
            .flat_map(|(at, h)| h.controllers.iter().map(move |(dom, c)| (at, dom, c)))
        {
            text += &format!("; {}/{dom} {}", host_name(host), controller.describe());
        }
        text
    }

    /// Time goes on.
    pub fn advance(&mut self, ms: u64) {
        self.now_ms += ms;
    }

    /// Whether every part is where it is to be when nothing more happens.
    pub fn judge_end(&self) -> Result<(), String> {
        if self.history.released && self.exporter.lease().is_none() {
            return self.judge_released();
        }
        let lease = self.exporter.lease().ok_or("the lease has ended")?;
        let controllers: Vec<_> = self
            .hosts
            .iter()
            .flat_map(|h| h.controllers.values())
            .collect();
        let [controller] = controllers.as_slice() else {
            return Err(format!("{} controllers are left", controllers.len()));
        };
        let open = controller
            .task
            .as_ref()
            .is_some_and(|t| t.stage == Stage::Open);
        let checks = [
            (self.guest.mode == Mode::Running, "the guest does not run"),
            (self.guest.is_connected(), "the frontend is not connected"),
            (self.guest.left == 0, "transfers were not sent"),
            (self.guest.is_idle(), "a transfer has no answer"),
            (self.history.is_complete(), "a transfer was forgotten"),
            (self.phase == Phase::Calm, "the toolstack waits"),
            (self.left.migrations == 0, "a migration has not begun"),
            (open, "the session is not open"),
            (
                controller.serving.core.is_idle(),
                "the backend has a request",
            ),
            (
                matches!(controller.state, State::Serving | State::Frozen),
                "the controller does not serve",
            ),
            (
                lease.holder.domid == self.guest.dom,
                "another domain holds the lease",
            ),
        ];
        match checks.iter().find(|(good, _)| !good) {
            Some((_, what)) => Err(format!(
                "{what} (controller {:?}, {})",
                controller.state,
                self.guest.describe()
            )),
            None => Ok(()),
        }
    }

    /// The same where the guest has lost its device.
    fn judge_released(&self) -> Result<(), String> {
        let served = |c: &Controller| c.task.is_some() || !c.serving.core.is_idle();
        let mut controllers = self.hosts.iter().flat_map(|h| h.controllers.values());
        let checks = [
            (self.guest.mode == Mode::Running, "the guest does not run"),
            (self.guest.is_idle(), "a transfer has no answer"),
            (self.history.is_complete(), "a transfer was forgotten"),
            (self.phase == Phase::Calm, "the toolstack waits"),
            (!controllers.any(served), "a controller has the device"),
        ];
        match checks.iter().find(|(good, _)| !good) {
            Some((_, what)) => Err(format!("{what}, after the lease has ended")),
            None => Ok(()),
        }
    }

    /// What may happen next. The first that is no fault is always one that brings the end nearer.
    pub fn enabled(&mut self) -> Vec<Step> {
        self.with_memory(|world| world.list())
    }

    fn list(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut may = |step, when| {
            if when {
                steps.push(step);
            }
        };
        let guest = &self.guest;
        let running = guest.mode == Mode::Running;
        let nodes = self.nodes.get(&guest.dom);
        let channel = memory::channel(guest.dom, |c| *c);
        let awake = running || guest.mode == Mode::Suspending;
        may(
            Step::GuestWake,
            awake && guest.is_connected() && channel.to_frontend,
        );
        may(Step::GuestSuspend, guest.may_suspend());
        may(
            Step::GuestFreeze,
            running && nodes.is_some_and(|n| n.shutdown == Shutdown::Suspend),
        );
        may(Step::GuestConnect, self.may_connect());
        may(Step::GuestReinitialise, self.may_reinitialise());
        may(Step::Save, self.exporter.must_save());
        for (&id, connection) in &self.connections {
            let Connection {
                up,
                down,
                cut,
                backend,
                exporter,
                ..
            } = connection;
            may(
                Step::Up(id),
                *exporter && self.exporter.up && !up.is_empty(),
            );
            may(Step::Down(id), *backend && !down.is_empty());
            let ended = *cut || (!exporter && down.is_empty());
            may(Step::BackendSeesEnd(id), *backend && ended);
            let ended = *cut || (!backend && up.is_empty());
            may(Step::ExporterSeesEnd(id), *exporter && ended);
        }
        for (at, host) in self.hosts.iter().enumerate() {
            may(Step::StartVusbd(at), !host.up);
            may(Step::FindStore(at), !host.has_store);
            may(Step::Watch(at), !host.watches.is_empty());
            for (&dom, gone) in &host.gone {
                let down = gone.connection.is_none();
                may(Step::Connect(at, dom), down && self.exporter.up);
            }
            for (&dom, controller) in &host.controllers {
                let task = controller.task.as_ref();
                // One that was refused is refused until something has happened.
                let down = task.is_some_and(|t| {
                    let decided = t.undecided && self.is_decided();
                    t.stage == Stage::Down && (!t.refused || decided || self.would_admit(at, dom))
                });
                let signalled = memory::channel(dom, |c| c.to_backend);
                may(
                    Step::Service(at, dom),
                    controller.state.has_rings() && signalled,
                );
                let answers = self.exporter.up && self.exporter.is_saved();
                let waits = controller.again && self.waits_for_freeze(dom);
                may(Step::Ask(at, dom), controller.asking && answers && !waits);
                may(Step::Decide(at, dom), controller.gathered.is_some());
                may(Step::Connect(at, dom), down && self.exporter.up);
            }
        }
        may(Step::RestartExporter, !self.exporter.up);
        may(Step::Execute, self.exporter.can_execute());
        may(Step::GuestSubmit, guest.can_submit(self.left.window));
        may(Step::Toolstack, self.toolstack_may_go_on());
        for (at, host) in self.hosts.iter().enumerate() {
            for (&dom, controller) in &host.controllers {
                let idle = controller.serving.core.is_idle();
                may(
                    Step::Idle(at, dom),
                    controller.state == State::Quiescing && idle,
                );
                // As long as the exporter answers, it does so in less time. What is to finish while
                // the guest suspends has less.
                let open = controller
                    .task
                    .as_ref()
                    .is_some_and(|t| t.stage == Stage::Open);
                let due = controller.unlinked.front().is_some_and(|u| u.1 || !open);
                may(Step::UnlinkedDue(at, dom), due);
                if self.left.acknowledgements {
                    may(Step::Acknowledge(at, dom), controller.owes());
                }
            }
        }
        may(Step::Silence, self.may_be_silent());
        may(Step::CopyConnect, self.copy_may_connect());
        may(Step::EndCopy, self.copy.is_some());
        self.faults(&mut may);
        steps
    }

    /// Lets one of [`World::enabled`] happen.
    pub fn apply(&mut self, step: Step) {
        self.with_memory(|world| {
            world.happen(step);
            world.connections.retain(|_, c| c.backend || c.exporter);
        });
    }

    fn happen(&mut self, step: Step) {
        match step {
            Step::Watch(host) => self.watch(host),
            Step::Ask(host, dom) => {
                let leases = self
                    .exporter
                    .table
                    .visible_leases(Some(vm()), host_name(host));
                if let Some(controller) = self.hosts[host].controllers.get_mut(&dom) {
                    (controller.asking, controller.gathered) = (false, Some(leases));
                }
            }
            Step::Decide(host, dom) => self.at(host, dom, Controller::decide),
            Step::Service(host, dom) => {
                let fault = self.at(host, dom, Controller::service);
                self.blame(fault, "the ring");
            }
            Step::Idle(host, dom) => self.at(host, dom, |c, nodes| c.event(Event::Idle, nodes)),
            Step::Connect(host, dom) => self.connect(host, dom),
            Step::Acknowledge(host, dom) => self.at(host, dom, |c, _| c.acknowledge()),
            Step::UnlinkedDue(host, dom) => self.at(host, dom, |c, _| c.unlinked_is_due()),
            Step::Up(id) => self.up(id),
            Step::Down(id) => self.down(id),
            Step::BackendSeesEnd(id) => self.backend_end(id),
            Step::ExporterSeesEnd(id) => {
                self.exporter.disconnected(id, self.now_ms);
                self.end_of(id, |c| c.exporter = false);
            }
            Step::Save => {
                let said = self.exporter.save();
                self.say(said);
            }
            Step::Execute => {
                let said = self.exporter.execute(&mut self.history);
                self.say(said);
            }
            Step::RestartExporter => self.exporter.restart(self.now_ms),
            Step::StartVusbd(host) => self.vusbd_starts(host),
            Step::FindStore(host) => self.store_is_back(host),
            Step::GuestConnect => self.guest_connects(),
            Step::GuestSubmit => {
                self.guest.submit(&mut self.history);
                if std::mem::take(&mut self.left.planted_lost_signal) {
                    memory::channel(self.guest.dom, |c| c.to_backend = false);
                }
            }
            Step::GuestWake => {
                memory::channel(self.guest.dom, |c| c.to_frontend = false);
                self.guest.wake(&mut self.history);
            }
            Step::GuestFreeze => {
                // The guest takes the request by clearing the node.
                let dom = self.guest.dom;
                if let Some(nodes) = self.nodes.get_mut(&dom) {
                    nodes.shutdown = Shutdown::Empty;
                    let at = nodes.host;
                    self.hosts[at].tell(Watch::Shutdown(dom));
                }
                self.guest.freeze(&mut self.history);
            }
            Step::GuestSuspend => self.guest.mode = Mode::Suspended,
            Step::GuestReinitialise => self.set_frontend(XenbusState::Initialising, None),
            Step::Toolstack => self.toolstack(),
            Step::Silence => self.now_ms += TAKEOVER_MS,
            Step::CopyConnect => self.copy_connects(),
            Step::EndCopy => self.end_copy(),
            fault => self.fault(fault),
        }
    }

    fn blame(&mut self, fault: Option<String>, whom: &str) {
        if let Some(e) = fault {
            self.history.violate(format!("{whom}: {e}"));
        }
    }

    // ---- connections

    fn end_of(&mut self, id: u8, end: impl FnOnce(&mut Connection)) {
        if let Some(connection) = self.connections.get_mut(&id) {
            end(connection);
        }
    }

    fn up(&mut self, id: u8) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let host = connection.host;
        let said = match connection.up.pop_front() {
            Some(Message::Open(open)) => {
                let before = self.exporter.lease().cloned();
                let was_silent = self.is_silent();
                let said = self.exporter.open(id, &open, host, self.now_ms);
                self.judge_claim(before, was_silent);
                said
            }
            Some(Message::Frames(bytes)) => match self.exporter.frames(id, &bytes, self.now_ms) {
                Ok(said) => said,
                Err(e) => return self.history.violate(format!("the exporter: {e}")),
            },
            _ => Vec::new(),
        };
        self.say(said);
        self.judge_hold();
    }

    /// A VM that was suspended before its domain went is on its way, or saved. Its lease must not have the
    /// short hold time of a VM that was destroyed.
    fn judge_hold(&mut self) {
        let Some(lease) = self.exporter.lease() else {
            return;
        };
        let domid = lease.holder.domid;
        let orphaned = lease.phase == LeasePhase::Orphaned;
        if orphaned && self.suspends_heard.contains(&domid) && self.guest.dom != domid {
            self.history.violate(
                "the exporter takes a guest that was suspended for one that was destroyed",
            );
        }
    }

    fn say(&mut self, said: Vec<Say>) {
        for say in said {
            let (id, message) = match say {
                Say::Opened(id, opened) => (id, Some(Message::Opened(Box::new(opened)))),
                Say::Frames(id, bytes) => {
                    if let Some(connection) = self.connections.get_mut(&id)
                        && !connection.cut
                        && connection.backend
                    {
                        Connection::send(&mut connection.down, &bytes);
                    }
                    continue;
                }
                Say::Close(id) => {
                    self.end_of(id, |c| c.exporter = false);
                    self.exporter.disconnected(id, self.now_ms);
                    continue;
                }
            };
            if let Some(connection) = self.connections.get_mut(&id)
                && !connection.cut
                && connection.backend
            {
                connection.down.extend(message);
            }
        }
    }

    fn down(&mut self, id: u8) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let (host, dom) = (connection.host, connection.dom);
        let message = connection.down.pop_front();
        if self.hosts[host].gone.contains_key(&dom) {
            return self.gone_hears(host, dom, id, message);
        }
        match message {
            Some(Message::Opened(opened)) => {
                let controller = self.hosts[host].controllers.get(&dom);
                let claims = controller.is_some_and(Controller::claims);
                let claimed = claims && matches!(*opened, Opened::Ready { .. });
                let gone = self.holder_gone(host, &opened);
                let refused = matches!(&*opened, Opened::Refused(Refusal::HeldElsewhere { .. }));
                let is_copy = self.copy.as_ref().is_some_and(|c| c.dom == dom);
                self.history.waited |= refused && !is_copy;
                let over = self.at(host, dom, |c, nodes| c.opened(*opened, gone, nodes));
                // Whoever has not lived to know it claims again.
                if claimed && self.hosts[host].up {
                    self.history.excuse_claim();
                }
                if over {
                    self.backend_end(id);
                }
            }
            Some(Message::Frames(bytes)) => {
                let over = self.at(host, dom, |c, nodes| Some(c.frames(&bytes, nodes)));
                match over {
                    None | Some(Ok(false)) => {}
                    Some(Ok(true)) => self.backend_end(id),
                    Some(Err(e)) => self.blame(Some(e), "the backend"),
                }
            }
            _ => {}
        }
    }

    /// The holder that the exporter names, where that was a domain of this host and is no more.
    fn holder_gone(&self, host: usize, opened: &Opened) -> Option<u16> {
        let Opened::Refused(
            Refusal::HeldElsewhere { holder, .. } | Refusal::SuspendedElsewhere { holder, .. },
        ) = opened
        else {
            return None;
        };
        let was_here = holder.host == host_name(host);
        (was_here && !self.nodes.contains_key(&holder.domid)).then_some(holder.domid)
    }

    // ---- guest

    fn may_connect(&self) -> bool {
        let nodes = self.nodes.get(&self.guest.dom);
        self.guest.mode == Mode::Running
            && !self.guest.is_connected()
            && nodes.is_some_and(|n| {
                n.backend == Some(XenbusState::InitWait) && n.frontend == XenbusState::Initialising
            })
    }

    fn may_reinitialise(&self) -> bool {
        let nodes = self.nodes.get(&self.guest.dom);
        self.guest.mode == Mode::Running
            && nodes.is_some_and(|n| {
                n.frontend == XenbusState::Closing
                    && matches!(
                        n.backend,
                        Some(XenbusState::Closing | XenbusState::InitWait)
                    )
            })
    }

    fn guest_connects(&mut self) {
        let rings = self.guest.connect();
        self.set_frontend(XenbusState::Connected, Some(rings));
    }

    fn set_frontend(&mut self, state: XenbusState, rings: Option<(u32, u32)>) {
        let dom = self.guest.dom;
        if let Some(nodes) = self.nodes.get_mut(&dom) {
            (nodes.frontend, nodes.rings) = (state, rings);
            let host = nodes.host;
            self.hosts[host].tell(Watch::Frontend(dom));
        }
    }
}

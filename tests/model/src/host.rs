// SPDX-License-Identifier: GPL-3.0-or-later
//! A host's `vusbd`: its controllers are the shipping ones ([`backend::controller::Serving`],
//! [`handoff::step`]). What moves them is written after `controller/actor.rs` and
//! `controller/device.rs`, without their runtime.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;

use backend::controller::{RingDetails, Serving};
use backend::totals::Totals;
use backend::xenbus::XenbusState;
use handoff::{Action, Cookie, Event, Incoming, State, step, verdict};
use session::client::{Client, Event as News};
use session::control::Refusal;
use session::frame::Kind;
use session::open::{How, Open, Opened};
use session::{Epoch, Holder, Lease};
use tokio::sync::Notify;
use usbif::{DeviceAddress, PortNumber, Speed};
use vusb_core::PortState;
use xen::{DomId, EvtchnPort, GrantRef};

use crate::exporter::{device, host_name, vm};
use crate::memory::{self, Xen};

/// What a controller's directories in xenstore say.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Nodes {
    pub(crate) host: usize,
    /// The backend's `state`; `None` where it was removed.
    pub(crate) backend: Option<XenbusState>,
    pub(crate) frontend: XenbusState,
    pub(crate) rings: Option<(u32, u32)>,
    /// `control/shutdown` is `suspend`.
    pub(crate) suspend: bool,
    /// The domain's name ends in `--incoming`.
    pub(crate) incoming: bool,
    /// It ends in `--migratedaway`.
    pub(crate) away: bool,
}

/// What `vusbd` will hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Watch {
    Backend(u16),
    Frontend(u16),
    Shutdown(u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    Down,
    /// Connected, and waiting for the guest to run here.
    Standing,
    Opening(How),
    Open,
}

/// The task of the device.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Task {
    seen: Epoch,
    epoch: Option<Epoch>,
    held: bool,
    pub(crate) connection: Option<u8>,
    pub(crate) stage: Stage,
}

/// One controller.
#[derive(Clone)]
pub(crate) struct Controller {
    dom: u16,
    host: usize,
    pub(crate) state: State,
    pub(crate) serving: Serving<Xen>,
    pub(crate) task: Option<Task>,
    may_claim: bool,
    claimed: bool,
    decided: bool,
    frontend: XenbusState,
    rings: Option<(u32, u32)>,
    pub(crate) asking: bool,
    pub(crate) gathered: Option<Vec<Lease>>,
    /// Unlinked transfers, and whether they still have their moment to finish.
    pub(crate) unlinked: VecDeque<(u64, bool, Option<Epoch>)>,
    resumes: bool,
    recalls: bool,
    /// It has claimed since this was looked at.
    has_claimed: bool,
}

impl Hash for Controller {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.dom, self.host, self.state, &self.task).hash(state);
        (
            self.may_claim,
            self.claimed,
            self.decided,
            self.frontend as u8,
        )
            .hash(state);
        (self.rings, self.asking, &self.gathered, &self.unlinked).hash(state);
        self.serving.hash(state);
    }
}

/// A host.
#[derive(Clone, Default, Hash)]
pub(crate) struct Host {
    pub(crate) watches: VecDeque<Watch>,
    pub(crate) controllers: BTreeMap<u16, Controller>,
}

fn port() -> PortNumber {
    PortNumber::first(1)
        .next()
        .unwrap_or_else(|| unreachable!("ports begin at 1"))
}

impl Controller {
    pub(crate) fn new(host: usize, dom: u16, resumes: bool, recalls: bool) -> Self {
        let log = slog::Logger::root(slog::Discard, slog::o!());
        let totals = Arc::new(Totals::default());
        Self {
            dom,
            host,
            state: State::Expecting,
            serving: Serving::new(Xen, DomId(dom), 1, totals, log),
            task: None,
            may_claim: false,
            claimed: false,
            decided: false,
            frontend: XenbusState::Unknown,
            rings: None,
            asking: true,
            gathered: None,
            unlinked: VecDeque::new(),
            resumes,
            recalls,
            has_claimed: false,
        }
    }

    // ---- daemon/controllers

    /// The leases are known: may the guest come?
    pub(crate) fn decide(&mut self, nodes: &mut Nodes) {
        let me = Holder {
            host: host_name(self.host).into(),
            domid: self.dom,
        };
        let leases = self.gathered.take().unwrap_or_default();
        let arrives = nodes.incoming;
        let verdicts: Vec<_> = leases.iter().map(|l| verdict(l, &me, arrives)).collect();
        if verdicts.contains(&Incoming::Refuse) {
            self.event(Event::MoveForbidden, nodes);
        } else {
            for (lease, incoming) in leases.into_iter().zip(verdicts) {
                self.plug(&lease, incoming);
            }
            self.event(Event::LeasesKnown, nodes);
        }
        self.decided = true;
        self.frontend = XenbusState::Unknown;
        self.frontend_changed(nodes);
    }

    pub(crate) fn frontend_changed(&mut self, nodes: &mut Nodes) {
        let before = std::mem::replace(&mut self.frontend, nodes.frontend);
        if before == nodes.frontend {
            return;
        }
        match nodes.frontend {
            XenbusState::Connected => {
                self.rings = nodes.rings;
                self.event(Event::FrontendConnected, nodes);
            }
            state @ (XenbusState::Closing | XenbusState::Closed) => {
                self.event(Event::FrontendClosed, nodes);
                if self.state == State::Closed {
                    nodes.backend = Some(state);
                }
            }
            XenbusState::Initialising if self.state == State::Closed => {
                nodes.backend = Some(XenbusState::InitWait);
            }
            _ => {}
        }
    }

    // ---- actor

    pub(crate) fn event(&mut self, event: Event, nodes: &mut Nodes) {
        let (next, actions) = step(self.state, event);
        self.state = next;
        for action in actions {
            self.act(*action, nodes);
        }
        if event == Event::FrontendConnected {
            self.look_claimed(nodes);
        }
    }

    fn act(&mut self, action: Action, nodes: &mut Nodes) {
        match action {
            Action::AnswerInitWait => nodes.backend = Some(XenbusState::InitWait),
            Action::RemoveStateNode => nodes.backend = None,
            Action::MapRings => {
                if let Some((urb, conn)) = self.rings {
                    let details = RingDetails {
                        urb: GrantRef(urb),
                        conn: GrantRef(conn),
                        channel: EvtchnPort(1),
                        recalls: self.recalls,
                    };
                    if self.serving.connect(details).is_err() {
                        nodes.backend = Some(XenbusState::Closing);
                    }
                }
            }
            Action::Claim => self.may_claim = true,
            Action::SwitchToConnected => nodes.backend = Some(XenbusState::Connected),
            Action::StartQuiescing => self.serving.set_quiescing(true),
            Action::StopQuiescing => {
                self.serving.set_quiescing(false);
                self.say(Kind::Thaw);
            }
            Action::Freeze => {
                self.serving.acknowledge_all();
                self.say(Kind::Freeze);
            }
            Action::Thaw => self.say(Kind::Thaw),
            Action::UnmapRings => {
                self.serving.disconnect();
                self.serving.set_quiescing(false);
                self.unlinked.clear();
            }
            Action::Orphan => self.say(Kind::Orphan),
            Action::Close => nodes.backend = Some(XenbusState::Closed),
        }
    }

    fn say(&mut self, kind: Kind) {
        if let Some(client) = self.serving.client(port()) {
            client.say(kind);
        }
    }

    /// The event channel has fired.
    pub(crate) fn service(&mut self, nodes: &mut Nodes) -> Option<String> {
        memory::channel(self.dom, |c| c.to_backend = false);
        loop {
            let outcome = match self.serving.service() {
                Ok(outcome) => outcome,
                Err(e) => return Some(e.to_string()),
            };
            if self.serving.take_activity()
                && matches!(self.state, State::Frozen | State::Quiescing)
            {
                self.event(Event::Request, nodes);
            }
            let finishing = self.serving.is_quiescing();
            let epoch = self.serving.epoch(port());
            let unlinked = outcome
                .unlinked
                .iter()
                .map(|&(_, number)| (number, finishing, epoch));
            self.unlinked.extend(unlinked);
            if !outcome.more {
                return None;
            }
        }
    }

    /// The oldest unlinked transfer has had its moment, or its whole time.
    pub(crate) fn unlinked_is_due(&mut self) {
        match self.unlinked.pop_front() {
            Some((_, _, epoch)) if epoch != self.serving.epoch(port()) => {}
            Some((number, true, epoch)) => {
                self.serving.cancel(port(), number);
                self.unlinked.push_back((number, false, epoch));
            }
            Some((number, false, _)) => self.serving.give_up(port(), number),
            None => {}
        }
    }

    /// Forgets unlinked transfers that are over.
    fn tidy(&mut self) {
        let core = &self.serving.core;
        self.unlinked
            .retain(|&(number, ..)| core.by_number(port(), number).is_some());
    }

    fn plug(&mut self, lease: &Lease, incoming: Incoming) {
        let carried = match (incoming, Cookie::decode(&lease.cookie)) {
            (Incoming::Seamless, Ok(cookie)) => cookie,
            _ => None,
        };
        let state = carried.map(|c| PortState {
            speed: Speed::from_wire(c.speed).unwrap_or_default(),
            address: DeviceAddress::new(c.address).filter(|a| !a.is_default()),
        });
        if self.serving.core.plug(port(), Speed::High, state).is_err() {
            return;
        }
        self.serving.attach(port(), Rc::new(Notify::new()));
        self.task = Some(Task {
            seen: lease.epoch,
            epoch: None,
            held: false,
            connection: None,
            stage: Stage::Down,
        });
        if carried.is_none() {
            self.serving.core.replug(port());
        }
    }

    fn look_claimed(&mut self, nodes: &mut Nodes) {
        if self.state == State::Claiming && (self.task.is_none() || self.claimed) {
            self.event(Event::Claimed, nodes);
        }
    }

    fn device_lost(&mut self, nodes: &mut Nodes) {
        self.task = None;
        self.serving.detach(port());
        self.look_claimed(nodes);
    }

    // ---- device

    /// What the standing connection opens with, once the guest runs here.
    pub(crate) fn opening(&mut self) -> Option<Open> {
        let task = self.task.as_mut()?;
        if !self.may_claim || task.stage != Stage::Standing {
            return None;
        }
        let how = match self.serving.client(port()) {
            Some(client) if task.epoch == Some(client.epoch()) => client.resume(),
            _ => How::Claim { seen: task.seen },
        };
        task.stage = Stage::Opening(how);
        Some(Open {
            device: device(),
            vm: vm(),
            domid: self.dom,
            frontend_resumes: self.resumes,
            how,
        })
    }

    /// The exporter's answer. True: the connection is of no more use.
    pub(crate) fn opened(&mut self, opened: Opened, nodes: &mut Nodes) -> bool {
        let Some(task) = &mut self.task else {
            return true;
        };
        let Stage::Opening(how) = task.stage else {
            return true;
        };
        let claims = matches!(how, How::Claim { .. });
        match opened {
            // Who holds it now has read the lease before us, or the guest has gone there.
            Opened::Refused(Refusal::Fenced { current, .. })
                if claims && !task.held && current > task.seen && !nodes.away =>
            {
                task.seen = current;
                true
            }
            Opened::Refused(Refusal::Fenced { .. }) if !claims => {
                task.seen = task.epoch.take().unwrap_or(task.seen);
                true
            }
            Opened::Refused(Refusal::Limit(_)) => true,
            Opened::Refused(_) => {
                self.device_lost(nodes);
                true
            }
            Opened::Ready { epoch, .. } if claims => {
                (task.epoch, task.held, task.stage) = (Some(epoch), true, Stage::Open);
                (self.claimed, self.has_claimed) = (true, true);
                self.serving.fail_submitted(port());
                self.serving.open(port(), Client::new(epoch));
                self.serving.flush();
                self.look_claimed(nodes);
                false
            }
            Opened::Ready {
                requests_received, ..
            } => {
                task.stage = Stage::Open;
                if let Some(client) = self.serving.client(port())
                    && client.resumed(requests_received).is_err()
                {
                    return true;
                }
                self.serving.resume(port(), requests_received);
                false
            }
        }
    }

    /// Frames of the exporter.
    pub(crate) fn frames(&mut self, input: &[u8], nodes: &mut Nodes) -> Option<String> {
        let mut taken = 0;
        loop {
            let client = self.serving.client(port())?;
            let (event, len) = match client.next_event(&input[taken..]) {
                Ok(Some(next)) => next,
                Ok(None) => break,
                Err(e) => return Some(e.to_string()),
            };
            taken += len;
            match event {
                News::Completed { completion, body } => {
                    self.serving.completed(port(), &completion, body);
                }
                News::Gone | News::Fenced => {
                    self.device_lost(nodes);
                    return None;
                }
                News::Ping | News::Pong => {}
            }
        }
        self.serving.flush();
        self.tidy();
        None
    }

    pub(crate) fn acknowledge(&mut self) {
        if let Some(client) = self.serving.client(port()) {
            client.acknowledge();
        }
    }

    /// Whether completions are not acknowledged.
    pub(crate) fn owes(&self) -> bool {
        let open = self.task.as_ref().is_some_and(|t| t.stage == Stage::Open);
        let client = self.serving.at(port()).and_then(|a| a.client.as_ref());
        open && client.is_some_and(|c| c.unacknowledged() > 0)
    }

    /// Whether it has claimed the lease since the last call.
    pub(crate) fn take_claim(&mut self) -> bool {
        std::mem::take(&mut self.has_claimed)
    }

    /// The connection is lost.
    pub(crate) fn lost(&mut self) {
        if let Some(client) = self.serving.client(port()) {
            client.lost();
        }
        if let Some(task) = &mut self.task {
            (task.stage, task.connection) = (Stage::Down, None);
        }
    }

    /// What the session has to send.
    pub(crate) fn output(&mut self) -> Vec<u8> {
        match &self.task {
            Some(task) if task.stage == Stage::Open => {}
            _ => return Vec::new(),
        }
        self.serving
            .client(port())
            .map(|client| std::mem::take(client.output()))
            .unwrap_or_default()
    }
}

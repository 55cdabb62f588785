// SPDX-License-Identifier: GPL-3.0-or-later
//! One controller: after `controller/actor.rs` and `controller/device.rs`.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;

use backend::controller::{Next, Outcome, Place, RingDetails, Serving, Tenure, carried};
use backend::totals::Totals;
use backend::watched::{Heard, adopted, heard};
use backend::xenbus::XenbusState;
use handoff::{Action, Event, Incoming, State, may_change, step, verdict};
use journal::{Journal, Words};
use session::open::{Evidence, How, Open, Opened};
use session::{Epoch, Holder, Lease};
use tokio::sync::Notify;
use usbif::{PortNumber, Speed};
use xen::{DomId, EvtchnPort, GrantRef};

use super::Nodes;
use crate::Limits;
use crate::exporter::{device, host_name, vm};
use crate::memory::{self, Kept, Xen};

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
    tenure: Tenure,
    lease: Lease,
    pub(crate) connection: Option<u8>,
    pub(crate) stage: Stage,
    /// Another domain with the VM's uuid holds it; the guest is not shown it.
    pub(crate) elsewhere: bool,
    /// The exporter has said so: until something has happened, it says it again.
    pub(crate) refused: bool,
    /// So, because it is not known whether our guest is the VM, which is suspended.
    pub(crate) undecided: bool,
}

/// One controller.
pub(crate) struct Controller {
    dom: u16,
    host: usize,
    pub(crate) state: State,
    pub(crate) serving: Serving<Xen>,
    /// Whether it keeps a journal.
    keeps: bool,
    pub(crate) task: Option<Task>,
    may_claim: bool,
    claimed: bool,
    /// The toolstack said that the VM arrives here.
    arrives: bool,
    /// The frontend has not connected yet.
    first_connect: bool,
    backend: XenbusState,
    frontend: XenbusState,
    rings: Option<(u32, u32)>,
    /// The event channel is bound.
    signal: bool,
    pub(crate) asking: bool,
    pub(crate) gathered: Option<Vec<Lease>>,
    /// The leases are asked for once more at the frontend's first connection.
    look_again: bool,
    /// `vusbd` has made it, so nobody waits for it.
    own: bool,
    /// They are now.
    pub(crate) again: bool,
    /// Unlinked transfers, and whether they still have their moment to finish.
    pub(crate) unlinked: VecDeque<(u64, bool, Option<Epoch>)>,
    /// States that wait for xenstored; `None` where it is connected.
    unwritten: Option<VecDeque<Option<XenbusState>>>,
    resumes: bool,
    recalls: bool,
}

impl Clone for Controller {
    fn clone(&self) -> Self {
        let words = || Box::new(Kept(self.dom)) as Box<dyn Words + Send>;
        Self {
            serving: self.serving.copy(self.keeps.then(words)),
            task: self.task.clone(),
            gathered: self.gathered.clone(),
            unlinked: self.unlinked.clone(),
            unwritten: self.unwritten.clone(),
            ..*self
        }
    }
}

impl Hash for Controller {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.dom, self.host, self.state, &self.task).hash(state);
        (self.may_claim, self.claimed, self.signal).hash(state);
        (self.arrives, self.first_connect).hash(state);
        (self.look_again, self.again).hash(state);
        (self.backend, self.frontend, self.rings).hash(state);
        (self.asking, &self.gathered, &self.unlinked).hash(state);
        self.unwritten.hash(state);
        self.serving.hash(state);
        if self.keeps {
            self.serving.hash_kept(state);
        }
    }
}

fn port() -> PortNumber {
    PortNumber::first(1)
        .next()
        .unwrap_or_else(|| unreachable!("ports begin at 1"))
}

impl Controller {
    fn over(
        host: usize,
        dom: u16,
        limits: &Limits,
        words: Option<Journal<Box<dyn Words + Send>>>,
    ) -> Self {
        let log = slog::Logger::root(slog::Discard, slog::o!());
        let totals = Arc::new(Totals::default());
        let keeps = words.is_some();
        let serving = match words {
            None => Serving::new(Xen, DomId(dom), 1, totals, log),
            Some(journal) => {
                let place = Place {
                    platform: Xen,
                    domid: DomId(dom),
                    devid: 0,
                    vm: vm(),
                    totals,
                    log,
                };
                Serving::keeping(place, 1, journal)
            }
        };
        Self {
            dom,
            host,
            state: State::Expecting,
            serving,
            keeps,
            task: None,
            may_claim: false,
            claimed: false,
            arrives: false,
            first_connect: true,
            backend: XenbusState::Initialising,
            frontend: XenbusState::Unknown,
            rings: None,
            signal: false,
            asking: true,
            gathered: None,
            look_again: false,
            own: limits.dialect.has_own_controllers(),
            again: false,
            unlinked: VecDeque::new(),
            unwritten: None,
            resumes: limits.resumes,
            recalls: limits.recalls,
        }
    }

    /// One that was just made.
    pub(crate) fn new(host: usize, dom: u16, limits: &Limits, arrives: bool) -> Self {
        Kept(dom).remove();
        let words = || Journal::create(Box::new(Kept(dom)) as Box<dyn Words + Send>, dom.into());
        let mut controller = Self::over(host, dom, limits, limits.keeps.then(words));
        controller.arrives = arrives;
        controller.keep_devices();
        controller
    }

    /// One that an earlier process served, with what that left: its devices, where there is a journal.
    pub(crate) fn adopt(host: usize, dom: u16, limits: &Limits, nodes: &mut Nodes) -> Self {
        let journal = Journal::open(Box::new(Kept(dom)) as Box<dyn Words + Send>).ok();
        let found = Kept(dom).devices().zip(journal);
        let backend = nodes.backend.unwrap_or(XenbusState::Unknown);
        let Some((devices, journal)) = found else {
            let mut controller = Self::new(host, dom, limits, nodes.incoming);
            controller.taken_over(backend);
            return controller;
        };
        let mut controller = Self::over(host, dom, limits, Some(journal));
        controller.asking = false;
        // Kept with the devices.
        controller.arrives = nodes.incoming;
        controller.taken_over(backend);
        let me = controller.me();
        let elsewhere_none = devices.iter().all(|(_, elsewhere)| !elsewhere);
        let of_others = !devices.is_empty() && devices.iter().all(|(l, _)| l.holder != me);
        for (lease, elsewhere) in devices {
            controller.first_connect = !elsewhere;
            controller.plug_again(&lease, elsewhere, limits.planted_claims);
        }
        controller.first_connect = backend == XenbusState::InitWait && elsewhere_none;
        controller.look_again = controller.first_connect && of_others;
        if backend == XenbusState::Closing {
            // Its ring was corrupt. It is looked at again when the frontend closes.
            controller.frontend = XenbusState::Connected;
        }
        controller.frontend_changed(nodes);
        controller
    }

    fn taken_over(&mut self, backend: XenbusState) {
        self.backend = backend;
        self.state = adopted(backend);
        self.first_connect = false;
        self.serving.adopt();
    }

    fn plug_again(&mut self, lease: &Lease, elsewhere: bool, planted_claims: bool) {
        let known = self.serving.core.snapshot(port()).speed != Speed::None;
        if elsewhere && !known {
            self.plug_elsewhere(lease);
        } else if known {
            self.start(lease, planted_claims);
        } else if self.serving.core.plug(port(), Speed::High, None).is_ok() {
            self.start(lease, planted_claims);
            self.keep_devices();
        }
    }

    /// For people.
    pub(crate) fn describe(&self) -> String {
        let task = self.task.as_ref().map(|t| (t.stage, t.tenure));
        let Self { state, backend, .. } = self;
        format!("{state}, backend {backend}, device {task:?}")
    }

    // ---- daemon/controllers

    fn me(&self) -> Holder {
        Holder {
            host: host_name(self.host).into(),
            domid: self.dom,
        }
    }

    /// The leases are known: may the guest come?
    pub(crate) fn decide(&mut self, nodes: &mut Nodes) {
        let me = self.me();
        let leases = self.gathered.take().unwrap_or_default();
        let arrives = self.arrives;
        let verdicts: Vec<_> = leases.iter().map(|l| verdict(l, &me, arrives)).collect();
        if std::mem::take(&mut self.again) {
            self.plan_again(&leases, &verdicts);
        } else if verdicts.contains(&Incoming::Refuse) && !self.own {
            self.event(Event::MoveForbidden, nodes);
        } else {
            let suspended = arrives && !self.own;
            self.look_again = leases.iter().any(|l| may_change(l, &me, suspended));
            for (lease, incoming) in leases.into_iter().zip(verdicts) {
                let incoming = match incoming {
                    Incoming::Refuse => Incoming::Replug,
                    incoming => incoming,
                };
                self.plug(&lease, incoming);
            }
            self.event(Event::LeasesKnown, nodes);
        }
        self.frontend = XenbusState::Unknown;
        if self.unwritten.is_none() {
            self.frontend_changed(nodes);
        }
    }

    fn plan_again(&mut self, leases: &[Lease], verdicts: &[Incoming]) {
        if self.state != State::WaitingForFrontend {
            return;
        }
        let planned = self.task.take();
        // The model's VM has one device.
        if let Some((lease, &incoming)) = leases.iter().zip(verdicts).next() {
            let as_before = planned.as_ref().is_some_and(|t| {
                (t.lease.epoch, &t.lease.cookie) == (lease.epoch, &lease.cookie)
                    && t.elsewhere == (incoming == Incoming::Elsewhere)
            });
            if as_before {
                self.task = planned;
                return;
            }
            self.serving.forget_planned(port());
            // Too late to keep it from coming.
            match incoming {
                Incoming::Refuse => self.plug(lease, Incoming::Replug),
                incoming => self.plug(lease, incoming),
            }
            return;
        }
        self.serving.forget_planned(port());
    }

    pub(crate) fn frontend_changed(&mut self, nodes: &mut Nodes) {
        let before = std::mem::replace(&mut self.frontend, nodes.frontend);
        let others = self.rings.is_some() && nodes.rings.is_some() && self.rings != nodes.rings;
        match heard(before, nodes.frontend, others) {
            Heard::Nothing => {}
            Heard::Connected if std::mem::take(&mut self.look_again) => {
                (self.asking, self.again) = (true, true);
            }
            Heard::Connected => {
                if self.state.has_rings() && others {
                    self.event(Event::FrontendClosed, nodes);
                }
                self.rings = nodes.rings;
                self.first_connect = false;
                let was_quiescing = self.serving.was_quiescing();
                self.event(Event::FrontendConnected, nodes);
                if was_quiescing {
                    self.event(Event::SuspendRequested, nodes);
                }
            }
            Heard::Closed(state) => {
                self.event(Event::FrontendClosed, nodes);
                if self.state == State::Closed {
                    self.switch(Some(state), nodes);
                }
            }
            Heard::Initialising => {
                if self.state == State::Closed {
                    self.switch(Some(XenbusState::InitWait), nodes);
                }
            }
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
            Action::AnswerInitWait => self.switch(Some(XenbusState::InitWait), nodes),
            Action::RemoveStateNode => self.write(None, nodes),
            Action::MapRings => self.map_rings(nodes),
            Action::Claim => self.may_claim = true,
            Action::SwitchToConnected if self.signal && self.backend != XenbusState::Connected => {
                self.switch(Some(XenbusState::Connected), nodes);
            }
            Action::SwitchToConnected => {}
            Action::StartQuiescing => self.serving.set_quiescing(true),
            Action::StopQuiescing => {
                self.serving.set_quiescing(false);
                self.serving.thaw();
            }
            Action::Freeze => self.serving.freeze(),
            Action::Thaw => self.serving.thaw(),
            Action::UnmapRings => {
                self.signal = false;
                self.serving.disconnect();
                self.serving.set_quiescing(false);
                self.unlinked.clear();
            }
            Action::Orphan => self.serving.orphan(),
            Action::Close => self.switch(Some(XenbusState::Closed), nodes),
        }
    }

    fn map_rings(&mut self, nodes: &mut Nodes) {
        let Some((urb, conn)) = self.rings else {
            return;
        };
        let details = RingDetails {
            urb: GrantRef(urb),
            conn: GrantRef(conn),
            channel: EvtchnPort(1),
            recalls: self.recalls,
        };
        if self.serving.connect(details).is_err() {
            self.switch(Some(XenbusState::Closing), nodes);
            return;
        }
        self.signal = true;
        let outcome = self.serving.take_recovered();
        self.watch_unlinked(&outcome);
        self.claimed |= self.serving.client(port()).is_some();
    }

    // ---- node

    fn switch(&mut self, state: Option<XenbusState>, nodes: &mut Nodes) {
        self.backend = state.unwrap_or(self.backend);
        self.write(state, nodes);
    }

    fn write(&mut self, state: Option<XenbusState>, nodes: &mut Nodes) {
        match &mut self.unwritten {
            Some(unwritten) => unwritten.push_back(state),
            // It is never made again where the toolstack has removed it.
            None if nodes.backend.is_some() && memory::take_power() => nodes.backend = state,
            None => {}
        }
    }

    /// The connection to xenstored broke.
    pub(crate) fn lose_store(&mut self) {
        self.unwritten.get_or_insert_default();
    }

    /// It is back.
    pub(crate) fn has_store(&mut self, nodes: &mut Nodes) {
        for state in self.unwritten.take().unwrap_or_default() {
            self.write(state, nodes);
        }
    }

    // ---- actor

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
            self.watch_unlinked(&outcome);
            if !outcome.more {
                return None;
            }
        }
    }

    fn watch_unlinked(&mut self, outcome: &Outcome) {
        let finishing = self.serving.is_quiescing();
        let epoch = self.serving.epoch(port());
        let unlinked = outcome.unlinked.iter();
        self.unlinked
            .extend(unlinked.map(|&(_, number)| (number, finishing, epoch)));
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

    fn plug_elsewhere(&mut self, lease: &Lease) {
        self.start(lease, false);
        if let Some(task) = &mut self.task {
            task.elsewhere = true;
        }
        self.keep_devices();
    }

    /// The exporter has refused the claim because another domain holds the lease, or has held it since.
    fn held_elsewhere(&mut self, nodes: &mut Nodes) {
        let before = self.task.as_mut().map(|t| {
            (t.refused, t.undecided) = (true, false);
            std::mem::replace(&mut t.elsewhere, true)
        });
        if before == Some(false) {
            self.serving.withdraw(port());
            self.keep_devices();
        }
        self.look_claimed(nodes);
    }

    fn plug(&mut self, lease: &Lease, incoming: Incoming) {
        if incoming == Incoming::Elsewhere {
            return self.plug_elsewhere(lease);
        }
        let carried = carried(lease, incoming).ok().flatten();
        let plugged = self.serving.core.plug(port(), Speed::High, carried);
        if plugged.is_err() {
            return;
        }
        self.start(lease, false);
        self.keep_devices();
        if carried.is_none() {
            self.serving.core.replug(port());
            self.serving.core.expect_stale();
            self.serving.note_ports();
        }
    }

    /// What says that the guest here is the VM.
    fn evidence(&self) -> Evidence {
        match (self.arrives, self.first_connect) {
            (true, _) => Evidence::Arrival,
            (false, true) => Evidence::FirstConnect,
            (false, false) => Evidence::Uuid,
        }
    }

    fn start(&mut self, lease: &Lease, planted_claims: bool) {
        self.serving.attach(port(), Rc::new(Notify::new()));
        let session = self.serving.session_before(port());
        self.task = Some(Task {
            tenure: Tenure::new(lease.epoch, session.filter(|_| !planted_claims))
                .with(self.evidence()),
            lease: lease.clone(),
            connection: None,
            stage: Stage::Down,
            elsewhere: false,
            refused: false,
            undecided: false,
        });
    }

    fn keep_devices(&self) {
        if self.keeps {
            let devices = self.task.iter().map(|t| {
                let lease = Lease {
                    frontend_resumes: self.resumes,
                    ..t.lease.clone()
                };
                (lease, t.elsewhere)
            });
            Kept(self.dom).save_devices(devices.collect());
        }
    }

    fn look_claimed(&mut self, nodes: &mut Nodes) {
        let waits = self.task.as_ref().is_none_or(|t| t.elsewhere);
        if self.state == State::Claiming && (waits || self.claimed) {
            self.event(Event::Claimed, nodes);
        }
    }

    fn device_lost(&mut self, nodes: &mut Nodes) {
        self.task = None;
        self.serving.detach(port());
        self.keep_devices();
        self.look_claimed(nodes);
    }

    /// Whether the exporter hears the last words.
    pub(crate) fn is_heard(&self) -> bool {
        self.state == State::Abandoned || self.task.as_ref().is_none_or(|t| t.stage == Stage::Open)
    }

    // ---- device

    /// What the standing connection opens with, once the guest runs here.
    pub(crate) fn opening(&mut self) -> Option<Open> {
        let task = self.task.as_mut()?;
        if !self.may_claim || task.stage != Stage::Standing {
            return None;
        }
        let how = task.tenure.how(self.serving.client(port()).as_deref());
        task.stage = Stage::Opening(how);
        Some(Open {
            device: device(),
            vm: vm(),
            domid: self.dom,
            attempt: self.serving.next_attempt(port()),
            frontend_resumes: self.resumes,
            evidence: task.tenure.evidence(),
            how,
        })
    }

    /// Whether it waits for the answer to a claim.
    pub(crate) fn claims(&self) -> bool {
        let task = self.task.as_ref();
        task.is_some_and(|t| matches!(t.stage, Stage::Opening(How::Claim { .. })))
    }

    /// The exporter's answer; `gone` is the holder that it names, where that was a domain of this host and is
    /// no more. True: the connection is of no more use.
    pub(crate) fn opened(&mut self, opened: Opened, gone: Option<u16>, nodes: &mut Nodes) -> bool {
        let Some(task) = &mut self.task else {
            return true;
        };
        let Stage::Opening(how) = task.stage else {
            return true;
        };
        match task.tenure.answered(how, opened) {
            Next::Elsewhere(_) if self.unwritten.is_some() => true,
            Next::Elsewhere(current) if !nodes.away => {
                task.tenure.stays(current);
                if task.tenure.waits() {
                    self.held_elsewhere(nodes);
                }
                true
            }
            Next::HeldElsewhere { .. } => {
                match gone {
                    Some(domid) => task.tenure.holder_is_gone(domid),
                    None => self.held_elsewhere(nodes),
                }
                true
            }
            Next::Undecided(_) => {
                match gone {
                    Some(domid) => task.tenure.holder_is_gone(domid),
                    None => (task.refused, task.undecided) = (true, true),
                }
                true
            }
            Next::Again(_) => true,
            Next::Refused(refusal) if !Tenure::is_final(&refusal) => true,
            Next::Elsewhere(_) | Next::Refused(_) => {
                self.device_lost(nodes);
                true
            }
            Next::Claimed(epoch) => {
                task.stage = Stage::Open;
                self.claimed = true;
                let elsewhere = std::mem::take(&mut task.elsewhere);
                self.serving.claimed(port(), epoch);
                if elsewhere {
                    self.serving.give_again(port(), Speed::High);
                    self.serving.start_over(port());
                    self.keep_devices();
                }
                self.look_claimed(nodes);
                false
            }
            Next::Resumed(requests_received) => {
                task.stage = Stage::Open;
                let contradicts = self.serving.resumed(port(), requests_received).is_err();
                if contradicts {
                    task.tenure.lose_session();
                }
                contradicts
            }
        }
    }

    /// Frames of the exporter. True: the connection is of no more use.
    pub(crate) fn frames(&mut self, input: &[u8], nodes: &mut Nodes) -> Result<bool, String> {
        let received = self.serving.receive(port(), input);
        let (_, end) = received.map_err(|e| e.to_string())?;
        match end {
            None => self.tidy(),
            Some(_) => self.device_lost(nodes),
        }
        Ok(end.is_some())
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

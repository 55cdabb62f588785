// SPDX-License-Identifier: GPL-3.0-or-later
//! A guest that reads reports from an interrupt endpoint, as a keyboard's driver does.

use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use frontend_shim::{
    BufferId, Frontend, FrontendOptions, HostOptions, ResumeMode, Resumed, Target, TransferError,
    Urb, UrbHandle, UsbHost, Violation,
};
use sim_scenarios::rig::Rig;
use usbif::{PortNumber, Speed, UrbKind};
use xen::DomId;
use xen::xenstore::Endpoint;
use xen_sim::SimGuest;
use xen_sim::toolstack::{DomainConfig, MigrateError, MigrateOptions, Store};

const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of a boot keyboard's report.
const REPORT: usize = 8;

/// What happens to a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The device was enumerated, and is read from.
    Opened,
    /// It was pulled out.
    Unplugged,
    /// A report.
    Report(Vec<u8>),
    /// The guest was asked to suspend, and waits to be told to go on. A kernel stops its processes
    /// before its devices, and needs a while for that.
    Suspending,
    /// Everything was given back; the guest is about to be suspended, and waits to be told.
    Frozen,
    /// It goes on.
    Resumed {
        /// Where it was.
        cancelled: bool,
    },
    /// The backend broke the protocol.
    Violation(String),
}

/// A guest, in this process.
pub struct Reader {
    pub domid: DomId,
    pub host: usize,
    seen: Receiver<Seen>,
    told: Sender<Told>,
    thread: JoinHandle<()>,
    /// All that was seen and not waited for.
    pub skipped: Vec<Seen>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    GoOn,
    Stop,
}

impl Reader {
    /// Makes a domain and boots in it. With `urbs` transfers in flight at a time.
    pub fn start(rig: &Rig, name: &str, mode: ResumeMode, urbs: usize) -> Self {
        let host = &rig.hosts[0];
        let domid = host.xl.create(&DomainConfig::new(name)).unwrap();
        host.xl.unpause(domid).unwrap();
        let dir = host.dir().to_owned();
        let (seen_by, seen) = mpsc::channel();
        let (told, orders) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            Machine::boot(dir, domid, mode, urbs, seen_by, orders).run();
        });
        Self {
            domid,
            host: 0,
            seen,
            told,
            thread,
            skipped: Vec::new(),
        }
    }

    pub fn wait(&mut self, wanted: impl Fn(&Seen) -> bool) -> Seen {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let seen = self.seen.recv_timeout(left);
            let seen = seen.unwrap_or_else(|e| panic!("{e}; seen so far: {:?}", self.skipped));
            if let Seen::Violation(text) = &seen {
                panic!("{text}");
            }
            if wanted(&seen) {
                return seen;
            }
            self.skipped.push(seen);
        }
    }

    /// The usages of the next `count` keys that go down.
    pub fn keys(&mut self, count: usize) -> Vec<u8> {
        let mut keys = Vec::new();
        while keys.len() < count {
            match self.wait(|s| matches!(s, Seen::Report(_))) {
                Seen::Report(report) if report.len() == REPORT => {
                    if report[2] != 0 {
                        keys.push(report[2]);
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        keys
    }

    /// Migrates it; `meanwhile` happens when it has given everything back.
    pub fn migrate(
        &mut self,
        rig: &Rig,
        to: usize,
        options: &MigrateOptions,
        meanwhile: impl FnOnce(),
    ) -> Result<(), MigrateError> {
        let (source, target) = (&rig.hosts[self.host].xl, &rig.hosts[to].xl);
        let domid = self.domid;
        let migration = std::thread::scope(|scope| {
            let migration = scope.spawn(|| source.migrate(domid, target, options));
            self.wait(|s| *s == Seen::Suspending);
            self.wait_until_known(rig);
            self.told.send(Told::GoOn).unwrap();
            self.wait(|s| *s == Seen::Frozen);
            meanwhile();
            self.told.send(Told::GoOn).unwrap();
            migration.join().unwrap()
        })?;
        self.host = to;
        self.domid = migration.domid;
        Ok(())
    }

    /// Waits until the backend has noticed that the guest is being suspended.
    fn wait_until_known(&self, rig: &Rig) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = rig.status(self.host).unwrap();
            let ours = |c: &&control::Controller| c.domid == self.domid.0;
            let controller = status.controllers.iter().find(ours).unwrap();
            if ["Quiescing", "Frozen"].contains(&controller.hand_off.as_str()) {
                return;
            }
            assert!(Instant::now() < deadline, "{controller:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A migration that fails before the guest is asked to suspend, with something that happens
    /// while it is under way.
    pub fn fails_to_migrate(
        &mut self,
        rig: &Rig,
        to: usize,
        options: &MigrateOptions,
        meanwhile: impl FnOnce(&mut Self),
    ) {
        let (source, target) = (&rig.hosts[self.host].xl, &rig.hosts[to].xl);
        let domid = self.domid;
        std::thread::scope(|scope| {
            let migration = scope.spawn(|| source.migrate(domid, target, options));
            meanwhile(self);
            migration.join().unwrap().unwrap_err();
        });
    }

    pub fn stop(self, rig: &Rig) {
        self.told.send(Told::Stop).unwrap();
        self.thread.join().unwrap();
        rig.hosts[self.host].xl.destroy(self.domid).unwrap();
    }
}

struct Open {
    target: Target,
    endpoint: u8,
    buffer: BufferId,
    in_flight: Vec<Option<UrbHandle>>,
}

impl Open {
    fn submit(&mut self, host: &mut UsbHost<SimGuest>) {
        for (at, slot) in self.in_flight.iter_mut().enumerate() {
            if slot.is_none() {
                let urb = Urb {
                    target: self.target,
                    endpoint: self.endpoint,
                    kind: UrbKind::Interrupt { interval: 8 },
                    data: Some(self.buffer.slice(at * REPORT, REPORT)),
                    short_not_ok: false,
                    tag: at as u64,
                };
                *slot = host.submit(&urb).ok();
            }
        }
    }
}

struct Machine {
    guest: SimGuest,
    store: Store,
    frontend: Frontend<SimGuest>,
    open: Option<Open>,
    urbs: usize,
    seen: Sender<Seen>,
    orders: Receiver<Told>,
}

impl Machine {
    fn boot(
        dir: PathBuf,
        domid: DomId,
        mode: ResumeMode,
        urbs: usize,
        seen: Sender<Seen>,
        orders: Receiver<Told>,
    ) -> Self {
        let guest = SimGuest::boot(&dir, domid).unwrap();
        let store = watch_shutdown(&guest);
        let violations = seen.clone();
        let hook = move |violation: &Violation| {
            let _ = violations.send(Seen::Violation(violation.to_string()));
        };
        let options = FrontendOptions {
            mode,
            host: HostOptions {
                on_violation: Some(Box::new(hook)),
                check_grants: true,
            },
            ..FrontendOptions::default()
        };
        let endpoint = Endpoint::Socket(guest.xenstore_path());
        let frontend = Frontend::connect(guest.clone(), &endpoint, options).unwrap();
        Self {
            guest,
            store,
            frontend,
            open: None,
            urbs,
            seen,
            orders,
        }
    }

    fn run(mut self) {
        let port = PortNumber::new(1).unwrap();
        loop {
            if self.orders.try_recv() == Ok(Told::Stop) {
                break;
            }
            let plugged = self.frontend.host().front().speed(port) != Speed::None;
            if self.open.is_none() && plugged {
                self.enumerate(port);
            }
            if let Some(open) = &mut self.open {
                open.submit(self.frontend.host());
            }
            self.frontend.host().step().unwrap();
            if self.suspend_requested() {
                self.suspend();
            }
            self.frontend.host().wait(Duration::from_millis(2)).unwrap();
            self.take_completions();
            while let Some(change) = self.frontend.host().next_port_change() {
                if change.was != Speed::None {
                    self.say(Seen::Unplugged);
                    self.close();
                }
            }
        }
        self.close();
        self.frontend.close().unwrap();
    }

    fn say(&self, seen: Seen) {
        let _ = self.seen.send(seen);
    }

    fn enumerate(&mut self, port: PortNumber) {
        let host = self.frontend.host();
        // It may be pulled out at any moment.
        let Ok(device) = host.enumerate(port) else {
            return;
        };
        let mut endpoints = device.interfaces.iter().flat_map(|i| &i.endpoints);
        let endpoint = endpoints.find(|e| e.is_interrupt() && e.is_in()).unwrap();
        self.open = Some(Open {
            target: device.target,
            endpoint: endpoint.address,
            buffer: host.alloc_buffer(xen::PAGE_SIZE).unwrap(),
            in_flight: vec![None; self.urbs],
        });
        self.say(Seen::Opened);
    }

    /// The device is gone: as the USB core does, takes everything back and waits for it.
    fn close(&mut self) {
        let Some(open) = &self.open else { return };
        for urb in open.in_flight.iter().rev().flatten() {
            self.frontend.host().unlink(*urb);
        }
        let deadline = Instant::now() + PATIENCE;
        while self
            .open
            .as_ref()
            .is_some_and(|o| o.in_flight.iter().any(Option::is_some))
        {
            assert!(Instant::now() < deadline, "a URB is never given back");
            self.frontend.host().wait(Duration::from_millis(2)).unwrap();
            self.take_completions();
        }
        if let Some(open) = self.open.take() {
            self.frontend.host().free_buffer(open.buffer);
        }
    }

    fn take_completions(&mut self) {
        while let Some(completion) = self.frontend.host().next_completion() {
            let Some(open) = &mut self.open else { continue };
            let at = completion.tag as usize;
            if open.in_flight[at] != Some(completion.urb) {
                continue;
            }
            open.in_flight[at] = None;
            match completion.result {
                Ok(()) => {
                    let mut report = vec![0; completion.actual_length];
                    let host = self.frontend.host();
                    host.read_buffer(open.buffer, at * REPORT, &mut report)
                        .unwrap();
                    self.say(Seen::Report(report));
                }
                // As a driver does: what an unlinked URB brought is not looked at.
                Err(TransferError::Unlinked | TransferError::NoDevice) => (),
                Err(e) => panic!("{e}"),
            }
        }
    }

    fn suspend_requested(&mut self) -> bool {
        let event = self.store.next_event(Instant::now()).unwrap();
        event.is_some()
            && self.store.read("control/shutdown").unwrap().as_deref() == Some("suspend")
    }

    fn suspend(&mut self) {
        self.store.write("control/shutdown", "").unwrap();
        self.say(Seen::Suspending);
        assert_eq!(self.orders.recv().unwrap(), Told::GoOn);
        // It was not idle meanwhile.
        self.frontend.host().step().unwrap();
        self.take_completions();
        if let Some(open) = &mut self.open {
            open.submit(self.frontend.host());
        }
        self.frontend.host().step().unwrap();
        let notices = !self.frontend.mode().is_unnoticed();
        if let Some(open) = self.open.as_ref().filter(|_| notices) {
            for urb in open.in_flight.iter().rev().flatten() {
                self.frontend.host().unlink(*urb);
            }
        }
        self.frontend.freeze(PATIENCE).unwrap();
        self.take_completions();
        self.say(Seen::Frozen);
        assert_eq!(self.orders.recv().unwrap(), Told::GoOn);
        // What was told while it was frozen is taken note of, as an interrupt handler would.
        self.frontend.host().step().unwrap();
        let gone = self
            .frontend
            .host()
            .front()
            .speed(PortNumber::new(1).unwrap())
            == Speed::None;
        let cancelled = self.guest.suspend().unwrap() == xen_sim::Resumed::Cancelled;
        if cancelled {
            self.frontend.resume_cancelled();
        } else {
            self.store = watch_shutdown(&self.guest);
            let place = Resumed {
                guest: self.guest.clone(),
                store: Endpoint::Socket(self.guest.xenstore_path()),
            };
            // A device that is not there any more is not resumed (`hub_activate`).
            let open = self.open.as_mut().filter(|_| !gone);
            self.frontend
                .resume(place, |host| {
                    if let Some(open) = open {
                        open.submit(host);
                    }
                })
                .unwrap();
        }
        self.say(Seen::Resumed { cancelled });
    }
}

fn watch_shutdown(guest: &SimGuest) -> Store {
    let mut store = Store::connect(&guest.xenstore_path()).unwrap();
    store.watch("control/shutdown", "shutdown").unwrap();
    store
}

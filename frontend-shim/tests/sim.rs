// SPDX-License-Identifier: GPL-3.0-or-later
//! The frontend in a simulated domain: xenstore handshake, migrations, cancelled suspends.

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::backend::{FakeBackend, Order, Remains};
use common::disk::DiskDevice;
use frontend_shim::storage::Disk;
use frontend_shim::{
    BusEvent, Counters, Frontend, FrontendError, FrontendOptions, HostOptions, ResumeMode, Resumed,
    RingGrants, UsbHost,
};
use usbif::{PortNumber, Speed};
use xen::xenstore::Endpoint;
use xen::{DomId, EvtchnPort, GrantRef};
use xen_sim::toolstack::{DomainConfig, Failure, MigrateError, MigrateOptions, Store, Toolstack};
use xen_sim::{SimGuest, SimHost, SimXen};

/// Long enough for the slowest machine; only what has failed waits for it.
const LONG: Duration = Duration::from_secs(20);
const ROOT: &str = "/local/domain/0/backend/vusb";

/// The one device, and who has it.
#[derive(Default)]
enum Device {
    #[default]
    New,
    /// Served to the domain with this backend directory, on the host with this directory.
    Served(PathBuf, String, FakeBackend),
    /// Its last backend has ended.
    Parked(Remains),
}

impl Device {
    /// Ends the backend that serves it. It has given everything back by then.
    fn park(&mut self) {
        *self = match std::mem::take(self) {
            Device::Served(_, _, backend) => {
                let remains = backend.stop();
                assert!(
                    remains.held.is_empty(),
                    "requests in flight across the migration"
                );
                Device::Parked(remains)
            }
            other => other,
        };
    }
}

type Serving = Arc<Mutex<Device>>;

/// A host with a backend that follows xenstore.
struct Machine {
    host: Option<SimHost>,
    dir: PathBuf,
    xl: Toolstack,
    stop: Arc<AtomicBool>,
    dom0: Option<JoinHandle<()>>,
    /// Values of `feature-resume` that frontends connected with.
    announced: Arc<Mutex<Vec<Option<String>>>>,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Machine {
    fn start(first_domid: u16, serving: &Serving) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("fe-{}-{number}", std::process::id()));
        let mut options = xen_sim::HostOptions::new("test");
        options.first_domid = first_domid;
        let host = SimHost::start(&dir, &options).unwrap();
        let dir = host.dir().to_owned();
        let stop = Arc::new(AtomicBool::new(false));
        let announced = Arc::default();
        let dom0 = Dom0 {
            dir: dir.clone(),
            store: Store::connect(&dir.join("xenstored.sock")).unwrap(),
            xen: SimXen::connect(&dir).unwrap(),
            serving: serving.clone(),
            announced: Arc::clone(&announced),
            watched: HashMap::new(),
        };
        let stopping = stop.clone();
        Self {
            xl: Toolstack::connect(&dir).unwrap(),
            host: Some(host),
            dir,
            stop,
            dom0: Some(std::thread::spawn(move || dom0.run(&stopping))),
            announced,
        }
    }

    /// Ends the host; gives what the simulator observed.
    fn stop(mut self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.dom0.take().unwrap().join().unwrap();
        self.host.take().unwrap().stop()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

struct Dom0 {
    dir: PathBuf,
    store: Store,
    xen: SimXen,
    serving: Serving,
    announced: Arc<Mutex<Vec<Option<String>>>>,
    /// Frontend directory of each backend directory.
    watched: HashMap<String, String>,
}

impl Dom0 {
    fn run(mut self, stop: &AtomicBool) {
        self.store.watch(ROOT, "backend").unwrap();
        while !stop.load(Ordering::Relaxed) {
            let until = Instant::now() + Duration::from_millis(20);
            if self.store.next_event(until).unwrap().is_some() {
                for domid in self.store.directory(ROOT).unwrap_or_default() {
                    self.follow(&domid);
                }
            }
        }
    }

    fn follow(&mut self, domid: &str) {
        let back = format!("{ROOT}/{domid}/0");
        let read = |store: &mut Store, path: &str| store.read(path).unwrap();
        let state = read(&mut self.store, &format!("{back}/state"));
        let Some(front) = read(&mut self.store, &format!("{back}/frontend")) else {
            return;
        };
        if self.watched.insert(back.clone(), front.clone()).is_none() {
            self.store
                .watch(&format!("{front}/state"), "frontend")
                .unwrap();
        }
        let front_state = read(&mut self.store, &format!("{front}/state"));
        match (state.as_deref(), front_state.as_deref()) {
            (Some("1"), _) => self.store.write(&format!("{back}/state"), "2").unwrap(),
            (Some("2"), Some("4")) => {
                self.connect(domid.parse().unwrap(), &back, &front);
                self.store.write(&format!("{back}/state"), "4").unwrap();
            }
            (Some("5"), _) | (Some("4"), Some("5" | "6")) => {
                let mut serving = self.serving.lock().unwrap();
                if matches!(&*serving, Device::Served(dir, path, _) if *dir == self.dir && *path == back)
                {
                    serving.park();
                }
                self.store.write(&format!("{back}/state"), "6").unwrap();
            }
            _ => {}
        }
    }

    fn connect(&mut self, domid: u16, back: &str, front: &str) {
        let mut number = |node: &str| -> u32 {
            self.store
                .read(&format!("{front}/{node}"))
                .unwrap()
                .unwrap()
                .parse()
                .unwrap()
        };
        let grants = RingGrants {
            urb_ring: GrantRef(number("urb-ring-ref")),
            conn_ring: GrantRef(number("conn-ring-ref")),
            event_channel: EvtchnPort(number("event-channel")),
        };
        let feature = self.store.read(&format!("{front}/feature-resume")).unwrap();
        self.announced.lock().unwrap().push(feature);
        // Only now: until its frontend is here the guest may still go back.
        let mut serving = self.serving.lock().unwrap();
        serving.park();
        let (device, addresses) = match std::mem::take(&mut *serving) {
            Device::Parked(remains) => (remains.device, remains.addresses),
            _ => (DiskDevice::new(), HashMap::new()),
        };
        let xen = self.xen.clone();
        let backend = FakeBackend::start(xen, DomId(domid), grants, device, addresses);
        backend.order(Order::Plug(2, Speed::High));
        *serving = Device::Served(self.dir.clone(), back.to_owned(), backend);
    }
}

/// What a guest has seen when it ends.
struct Report {
    counters: Counters,
    rounds: u64,
    resumed: u32,
    cancelled: u32,
}

/// Writes, reads back and compares until it is told to stop.
fn guest(dir: PathBuf, domid: DomId, mode: ResumeMode, stop: Arc<AtomicBool>) -> Report {
    let sim = SimGuest::boot(&dir, domid).unwrap();
    let reporter = sim.clone();
    let options = FrontendOptions {
        mode,
        host: HostOptions {
            on_violation: Some(Box::new(move |violation| {
                reporter.report_violation(&violation.to_string());
            })),
            check_grants: false,
        },
        ..FrontendOptions::default()
    };
    let endpoint = Endpoint::Socket(sim.xenstore_path());
    let mut frontend = Frontend::connect(sim.clone(), &endpoint, options).unwrap();
    register_rings(frontend.host());
    let port = PortNumber::new(2).unwrap();
    frontend.host().wait_for_device(port, LONG).unwrap();
    let device = frontend.host().enumerate(port).unwrap();
    let mut disk = Disk::open(frontend.host(), &device).unwrap();
    let mut report = Report {
        counters: Counters::default(),
        rounds: 0,
        resumed: 0,
        cancelled: 0,
    };
    while !stop.load(Ordering::Relaxed) {
        report.rounds += 1;
        let data: Vec<u8> = (0..65_536u32)
            .map(|n| ((u64::from(n) * report.rounds) >> 3) as u8)
            .collect();
        let block = report.rounds % 16 * 128;
        disk.write(frontend.host(), block, &data).unwrap();
        suspend_if_told(&sim, &mut frontend, &mut report);
        let mut back = vec![0; data.len()];
        disk.read(frontend.host(), block, &mut back).unwrap();
        assert!(back == data, "round {}", report.rounds);
    }
    report.counters = frontend.host().counters();
    frontend.close().unwrap();
    report
}

fn suspend_if_told(sim: &SimGuest, frontend: &mut Frontend<SimGuest>, report: &mut Report) {
    match frontend.next_bus_event().unwrap() {
        Some(BusEvent::Suspend) => {}
        None => return,
        Some(event) => panic!("{event:?}"),
    }
    frontend.acknowledge_shutdown().unwrap();
    frontend.freeze(LONG).unwrap();
    match sim.suspend().unwrap() {
        xen_sim::Resumed::Cancelled => {
            report.cancelled += 1;
            frontend.resume_cancelled();
        }
        xen_sim::Resumed::NewDomain => {
            report.resumed += 1;
            let store = Endpoint::Socket(sim.xenstore_path());
            frontend
                .resume(
                    Resumed {
                        guest: sim.clone(),
                        store,
                    },
                    |_| {},
                )
                .unwrap();
            register_rings(frontend.host());
        }
    }
}

fn register_rings(host: &UsbHost<SimGuest>) {
    let (urb, conn) = host.ring_pages().unwrap();
    host.guest().register_rings(urb).unwrap();
    host.guest().register_rings(conn).unwrap();
}

fn boot(machine: &Machine, mode: ResumeMode) -> (DomId, Arc<AtomicBool>, JoinHandle<Report>) {
    let domid = machine.xl.create(&DomainConfig::new("vm")).unwrap();
    machine.xl.unpause(domid).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let dir: &Path = &machine.dir;
    let (dir, stopping) = (dir.to_owned(), stop.clone());
    (
        domid,
        stop,
        std::thread::spawn(move || guest(dir, domid, mode, stopping)),
    )
}

fn migrate_back_and_forth(mode: ResumeMode, announced: Option<&str>) {
    let serving = Serving::default();
    let machines = [Machine::start(1, &serving), Machine::start(100, &serving)];
    let (mut domid, stop, guest) = boot(&machines[0], mode);
    for n in 0..6 {
        let (from, to) = (&machines[n % 2], &machines[(n + 1) % 2]);
        let migration = from
            .xl
            .migrate(domid, &to.xl, &MigrateOptions::default())
            .unwrap();
        domid = migration.domid;
    }
    stop.store(true, Ordering::Relaxed);
    let report = guest.join().unwrap();
    assert_eq!((report.resumed, report.cancelled), (6, 0));
    assert_eq!(
        (report.counters.connects, report.counters.disconnects),
        (1, 0)
    );
    assert_eq!((report.counters.failed, report.counters.violations), (0, 0));
    serving.lock().unwrap().park();
    let announced = announced.map(str::to_owned);
    for (machine, connections) in machines.into_iter().zip([4, 3]) {
        let seen = machine.announced.lock().unwrap().clone();
        assert_eq!(seen, vec![announced.clone(); connections]);
        assert_eq!(machine.stop(), Vec::<String>::new());
    }
}

#[test]
fn a_disk_goes_back_and_forth_with_a_resume_callback() {
    migrate_back_and_forth(ResumeMode::Callback, Some("1"));
}

/// Nothing submits while it resumes, so the stock driver gets through too.
#[test]
fn a_disk_goes_back_and_forth_with_a_quiet_stock_driver() {
    migrate_back_and_forth(ResumeMode::Stock, None);
}

#[test]
fn a_migration_that_fails_leaves_the_disk_where_it_was() {
    let serving = Serving::default();
    let machines = [Machine::start(1, &serving), Machine::start(100, &serving)];
    let (domid, stop, guest) = boot(&machines[0], ResumeMode::Callback);
    for _ in 0..3 {
        let options = MigrateOptions {
            failure: Some(Failure::BeforeGo),
            ..MigrateOptions::default()
        };
        let error = machines[0]
            .xl
            .migrate(domid, &machines[1].xl, &options)
            .unwrap_err();
        assert!(
            matches!(error, MigrateError::ResumedAtSource { .. }),
            "{error}"
        );
    }
    stop.store(true, Ordering::Relaxed);
    let report = guest.join().unwrap();
    assert_eq!((report.resumed, report.cancelled), (0, 3));
    assert_eq!(report.counters.disconnects, 0);
    serving.lock().unwrap().park();
    for machine in machines {
        assert_eq!(machine.stop(), Vec::<String>::new());
    }
}

/// A new domain, as its kernel sees it before it has a driver.
fn bare(machine: &Machine) -> (DomId, SimGuest, Endpoint) {
    let domid = machine.xl.create(&DomainConfig::new("vm")).unwrap();
    machine.xl.unpause(domid).unwrap();
    let sim = SimGuest::boot(&machine.dir, domid).unwrap();
    let endpoint = Endpoint::Socket(sim.xenstore_path());
    (domid, sim, endpoint)
}

#[test]
fn a_frontend_follows_a_controller_that_is_taken_away() {
    let serving = Serving::default();
    let machine = Machine::start(1, &serving);
    let (domid, sim, endpoint) = bare(&machine);
    let mut frontend = Frontend::connect(sim, &endpoint, FrontendOptions::default()).unwrap();
    let port = PortNumber::new(2).unwrap();
    frontend.host().wait_for_device(port, LONG).unwrap();
    assert!(!frontend.follow_backend().unwrap(), "it is not closing");
    machine.xl.usbctrl_detach(domid, 0).unwrap();
    let until = Instant::now() + LONG;
    while frontend.next_bus_event().unwrap() != Some(BusEvent::BackendClosing) {
        assert!(Instant::now() < until, "the detach was not noticed");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(frontend.follow_backend().unwrap());
    assert!(frontend.host().front().is_dead());
    machine.xl.destroy(domid).unwrap();
    assert_eq!(machine.stop(), Vec::<String>::new());
}

#[test]
fn a_controller_that_is_not_there_is_an_error() {
    let serving = Serving::default();
    let machine = Machine::start(1, &serving);
    let (_, sim, endpoint) = bare(&machine);
    let options = FrontendOptions {
        devid: 3,
        ..FrontendOptions::default()
    };
    match Frontend::connect(sim, &endpoint, options) {
        Err(FrontendError::Node { path, value: None }) => {
            assert_eq!(path, "device/vusb/3/backend");
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("connected"),
    }
}

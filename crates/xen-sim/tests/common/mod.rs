// SPDX-License-Identifier: GPL-3.0-or-later
//! Hosts, guests and a minimal backend for the tests.
#![allow(dead_code, unreachable_pub, reason = "each test file uses some of it")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use xen::DomId;
use xen_sim::toolstack::{DomainConfig, Store, Toolstack};
use xen_sim::{HostOptions, Resumed, SimGuest, SimHost};

/// A host in a directory of its own, without spurious events.
pub struct TestHost {
    pub host: Option<SimHost>,
    pub dir: PathBuf,
    pub xl: Toolstack,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

pub fn temporary_dir() -> PathBuf {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("xen-sim-{}-{number}", std::process::id()))
}

impl TestHost {
    pub fn start() -> TestHost {
        TestHost::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut HostOptions)) -> TestHost {
        let mut options = HostOptions::new("test");
        options.spurious_per_s = 0;
        change(&mut options);
        let host = SimHost::start(&temporary_dir(), &options).unwrap();
        let dir = host.dir().to_owned();
        let xl = Toolstack::connect(&dir).unwrap();
        TestHost {
            host: Some(host),
            dir,
            xl,
        }
    }

    pub fn store(&self) -> Store {
        self.xl.store().unwrap()
    }

    pub fn guest_store(&self, domid: DomId) -> Store {
        Store::connect(&self.dir.join(format!("dom-{domid}.sock"))).unwrap()
    }

    /// A domain without devices, unpaused.
    pub fn domain(&self, name: &str) -> DomId {
        let domid = self.xl.create(&without_devices(name)).unwrap();
        self.xl.unpause(domid).unwrap();
        domid
    }

    /// The same, with a guest in it.
    pub fn guest(&self, name: &str) -> SimGuest {
        SimGuest::boot(&self.dir, self.domain(name)).unwrap()
    }

    /// Ends the host; gives its violations.
    pub fn stop(mut self) -> Vec<String> {
        self.host.take().unwrap().stop()
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        self.host.take();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

pub fn without_devices(name: &str) -> DomainConfig {
    DomainConfig {
        usbctrl: Vec::new(),
        pages: 64,
        ..DomainConfig::new(name)
    }
}

pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Events until there are `count`, or time is up.
pub fn events(store: &mut Store, count: usize) -> Vec<(String, String)> {
    let mut seen = Vec::new();
    while seen.len() < count {
        let event = store.next_event(soon()).unwrap().expect("an event");
        seen.push((event.path, event.token));
    }
    seen
}

/// What must already be there.
pub fn no_event(store: &mut Store) {
    let event = store.next_event(Instant::now()).unwrap();
    assert_eq!(event, None);
}

/// Takes devices from state 1 to 2 and from 5 to 6, and does nothing else. It can refuse.
pub struct ToyBackend {
    /// Taken while it closes a device: a test that holds it still has something mapped.
    pub closing: Arc<Mutex<()>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ToyBackend {
    pub fn start(dir: &Path, refuse: bool) -> ToyBackend {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let closing = Arc::new(Mutex::new(()));
        let may_close = closing.clone();
        let mut store = Store::connect(&dir.join("xenstored.sock")).unwrap();
        let root = "/local/domain/0/backend/vusb";
        store.watch(root, "backend").unwrap();
        let thread = std::thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                let until = Instant::now() + Duration::from_millis(20);
                let Some(event) = store.next_event(until).unwrap() else {
                    continue;
                };
                if !event.path.ends_with("/state") {
                    continue;
                }
                match store.read(&event.path).unwrap().as_deref() {
                    Some("1") if refuse => store.rm(&event.path).unwrap(),
                    Some("1") => store.write(&event.path, "2").unwrap(),
                    Some("5") => {
                        let _closing = may_close.lock().unwrap();
                        store.write(&event.path, "6").unwrap();
                    }
                    _ => {}
                }
            }
        });
        ToyBackend {
            closing,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for ToyBackend {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let joined = self.thread.take().unwrap().join();
        assert!(joined.is_ok() || std::thread::panicking());
    }
}

/// A guest's thread that suspends once when it is told to, and tells how that ended.
pub fn suspend_when_told(guest: &SimGuest) -> JoinHandle<Resumed> {
    let guest = guest.clone();
    let mut store = Store::connect(&guest.xenstore_path()).unwrap();
    store.watch("control/shutdown", "shutdown").unwrap();
    std::thread::spawn(move || {
        while store.read("control/shutdown").unwrap().as_deref() != Some("suspend") {
            store.next_event(soon()).unwrap().expect("a request");
        }
        store.write("control/shutdown", "").unwrap();
        drop(store);
        guest.suspend().unwrap()
    })
}

/// A host in a process of its own, once it is ready.
pub fn start_process(dir: &Path) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_xen-sim"))
        .args(["--name", "host-a", "--spurious", "0", "--dir"])
        .arg(dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(line.starts_with("ready "), "{line}");
    child
}

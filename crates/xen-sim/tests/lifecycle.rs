// SPDX-License-Identifier: GPL-3.0-or-later
//! Domains: made, suspended, migrated, saved, rebooted, and ended.

mod common;

use std::time::{Duration, Instant};

use common::{TestHost, ToyBackend, soon, suspend_when_told, without_devices};
use xen::{Access, Backend, DomId, EventChannel, Guest, Mapping, PAGE_SIZE};
use xen_sim::toolstack::{
    DomainConfig, Failure, MigrateError, MigrateOptions, Timeouts, Toolstack, ToolstackError,
    UsbController,
};
use xen_sim::{Resumed, ShutdownReason, SimGuest, SimXen};

fn quick() -> MigrateOptions {
    MigrateOptions {
        round_interval: Duration::ZERO,
        ..MigrateOptions::default()
    }
}

fn failing(failure: Failure) -> MigrateOptions {
    MigrateOptions {
        failure: Some(failure),
        ..quick()
    }
}

fn read(pages: &impl Mapping, offset: usize) -> [u8; 5] {
    let mut bytes = [0; 5];
    pages.read(offset, &mut bytes);
    bytes
}

#[test]
fn a_controller_s_nodes_are_those_of_libxl() {
    let host = TestHost::start();
    let _backend = ToyBackend::start(&host.dir, false);
    let config = DomainConfig::new("vm");
    let domid = host.xl.create(&config).unwrap();
    let mut store = host.store();
    let back = format!("/local/domain/0/backend/vusb/{domid}/0");
    let front = format!("/local/domain/{domid}/device/vusb/0");
    for (path, value) in [
        (format!("{back}/frontend"), front.as_str()),
        (format!("{back}/frontend-id"), &domid.to_string()),
        (format!("{back}/online"), "1"),
        (format!("{back}/state"), "2"),
        (format!("{back}/type"), "pv"),
        (format!("{back}/usb-ver"), "2"),
        (format!("{back}/num-ports"), "4"),
        (format!("{back}/port/4"), ""),
        (format!("{front}/backend"), &back),
        (format!("{front}/backend-id"), "0"),
        (format!("{front}/state"), "1"),
        (format!("/local/domain/{domid}/name"), "vm"),
        (
            format!("/local/domain/{domid}/vm"),
            &format!("/vm/{}", config.uuid),
        ),
        (
            format!("/vm/{}/uuid", config.uuid),
            &config.uuid.to_string(),
        ),
    ] {
        assert_eq!(store.read(&path).unwrap().as_deref(), Some(value), "{path}");
    }
    assert_eq!(
        store.perms(&back).unwrap(),
        ["n0".to_owned(), format!("r{domid}")]
    );
    assert_eq!(
        store.perms(&front).unwrap(),
        [format!("n{domid}"), "r0".to_owned()]
    );
    assert_eq!(host.xl.config(domid).unwrap(), config);
    let taken = host.xl.create(&DomainConfig::new("vm")).unwrap_err();
    assert!(matches!(taken, ToolstackError::NameTaken(_)));
    host.xl.unpause(domid).unwrap();
    let devid = host
        .xl
        .usbctrl_attach(domid, UsbController::default())
        .unwrap();
    assert_eq!(devid, 1);
    host.xl.usbctrl_detach(domid, 1).unwrap();
    host.xl.destroy(domid).unwrap();
    for gone in [
        "/local/domain/0/backend",
        &front,
        "/libxl/1",
        &format!("/vm/{}", config.uuid),
    ] {
        assert_eq!(store.read(gone).unwrap(), None, "{gone}");
    }
    assert!(host.xl.list().unwrap().is_empty());
}

#[test]
fn no_backend_no_domain() {
    let host = TestHost::start();
    let timeouts = Timeouts {
        backend: Duration::from_millis(50),
        ..Timeouts::default()
    };
    let xl = Toolstack::connect(&host.dir)
        .unwrap()
        .with_timeouts(timeouts);
    let err = xl.create(&DomainConfig::new("vm")).unwrap_err();
    assert!(
        matches!(err, ToolstackError::BackendTimeout { wanted: 2, .. }),
        "{err}"
    );
    assert!(xl.list().unwrap().is_empty());
    assert_eq!(host.store().read("/local/domain/0/backend").unwrap(), None);
}

#[test]
fn a_backend_refuses_by_removing_its_state() {
    let host = TestHost::start();
    let _backend = ToyBackend::start(&host.dir, true);
    let err = host.xl.create(&DomainConfig::new("vm")).unwrap_err();
    assert!(
        matches!(err, ToolstackError::BackendRemoved { .. }),
        "{err}"
    );
    assert!(host.xl.list().unwrap().is_empty());
}

#[test]
fn memory_survives_a_migration_and_nothing_else_does() {
    let source = TestHost::start();
    let target = TestHost::with(|options| options.first_domid = 40);
    let backends = [&source, &target].map(|host| ToyBackend::start(&host.dir, false));
    let domid = source.xl.create(&DomainConfig::new("vm")).unwrap();
    source.xl.unpause(domid).unwrap();
    let guest = SimGuest::boot(&source.dir, domid).unwrap();
    let xen = SimXen::connect(&source.dir).unwrap();
    let (pages, refs) = guest.grant_pages(DomId(0), 2, Access::ReadWrite).unwrap();
    let ring = xen.map(domid, &refs, Access::ReadWrite).unwrap();
    let front = guest.alloc_unbound(DomId(0)).unwrap();
    let back = xen.bind_interdomain(domid, front.local_port()).unwrap();
    pages.write(PAGE_SIZE + 100, b"moved");

    let in_use = backends[0].closing.lock().unwrap();
    // The backend lets go when it is told to: after the guest runs elsewhere.
    let mut watcher = source.store();
    let told = std::thread::spawn(move || {
        let path = format!("/local/domain/0/backend/vusb/{domid}/0/online");
        watcher.watch(&path, "online").unwrap();
        while watcher.read(&path).unwrap().as_deref() == Some("1") {
            watcher
                .next_event(soon())
                .unwrap()
                .expect("the end of the device");
        }
    });
    let suspended = suspend_when_told(&guest);
    let observed = std::thread::scope(|scope| {
        let migration = scope.spawn(|| source.xl.migrate(domid, &target.xl, &quick()));
        assert_eq!(suspended.join().unwrap(), Resumed::NewDomain);
        let new_domid = guest.domid();
        assert_eq!(new_domid, DomId(40));
        assert_eq!(guest.host_dir(), target.dir);
        assert_eq!(&read(&pages, PAGE_SIZE + 100), b"moved");
        told.join().unwrap();
        // A copy, not an alias.
        pages.write(PAGE_SIZE + 100, b"after");
        let on_source = read(&ring, PAGE_SIZE + 100);
        ring.write(PAGE_SIZE + 100, b"stale");
        // The old event channel is dead, in both directions.
        back.take_event().unwrap();
        front.take_event().unwrap();
        front.notify().unwrap();
        assert!(!back.take_event().unwrap());
        drop((ring, back, in_use));
        (migration.join().unwrap().unwrap(), on_source)
    });
    let (migration, on_source) = observed;
    assert_eq!(&on_source, b"moved");
    assert_eq!(&read(&pages, PAGE_SIZE + 100), b"after");
    assert_eq!(migration.domid, DomId(40));
    assert!(migration.attach <= migration.pause);
    assert_eq!(migration.source_leftover, None);

    // Old grants and ports do not exist in the new domain; new ones work.
    let there = SimXen::connect(&target.dir).unwrap();
    assert!(there.map(DomId(40), &refs, Access::ReadOnly).is_err());
    assert!(
        there
            .bind_interdomain(DomId(40), front.local_port())
            .is_err()
    );
    assert!(guest.end_access(pages));
    drop(front);
    let (again, refs) = guest.grant_pages(DomId(0), 1, Access::ReadWrite).unwrap();
    again.write(0, b"fresh");
    let mapping = there.map(DomId(40), &refs, Access::ReadOnly).unwrap();
    assert_eq!(&read(&mapping, 0), b"fresh");
    let mut store = target.guest_store(guest.domid());
    assert_eq!(store.read("name").unwrap().unwrap(), "vm");
    assert_eq!(guest.xenstore_path(), target.dir.join("dom-40.sock"));
    assert!(source.xl.list().unwrap().is_empty());
    drop(mapping);
    for host in [&source, &target] {
        assert_eq!(host.xl.violations().unwrap(), Vec::<String>::new());
    }
}

#[test]
fn back_and_forth_and_on_one_host() {
    let hosts = [
        TestHost::start(),
        TestHost::with(|options| options.first_domid = 100),
    ];
    let _backends = [0, 1].map(|i| ToyBackend::start(&hosts[i].dir, false));
    let mut domid = hosts[0].xl.create(&DomainConfig::new("vm")).unwrap();
    hosts[0].xl.unpause(domid).unwrap();
    let guest = SimGuest::boot(&hosts[0].dir, domid).unwrap();
    let (pages, _) = guest.grant_pages(DomId(0), 1, Access::ReadWrite).unwrap();
    let route = [0, 1, 0, 0, 1, 1, 0];
    for (step, hop) in route.windows(2).enumerate() {
        pages.store_release(0, step as u32);
        let suspended = suspend_when_told(&guest);
        let migration = hosts[hop[0]]
            .xl
            .migrate(domid, &hosts[hop[1]].xl, &quick())
            .unwrap();
        assert_eq!(migration.source_leftover, None);
        domid = migration.domid;
        assert_eq!(suspended.join().unwrap(), Resumed::NewDomain);
        assert_eq!(guest.domid(), domid);
        assert_eq!(pages.load_acquire(0), step as u32);
        assert_eq!(hosts[hop[1]].xl.domain_named("vm").unwrap(), Some(domid));
    }
    let running: usize = hosts.iter().map(|host| host.xl.list().unwrap().len()).sum();
    assert_eq!(running, 1);
}

#[test]
fn a_failure_before_go_cancels_the_suspend() {
    let source = TestHost::start();
    let target = TestHost::with(|options| options.first_domid = 40);
    let _backends = [&source, &target].map(|host| ToyBackend::start(&host.dir, false));
    let domid = source.xl.create(&DomainConfig::new("vm")).unwrap();
    source.xl.unpause(domid).unwrap();
    let guest = SimGuest::boot(&source.dir, domid).unwrap();
    let xen = SimXen::connect(&source.dir).unwrap();
    let (pages, refs) = guest.grant_pages(DomId(0), 1, Access::ReadWrite).unwrap();
    let ring = xen.map(domid, &refs, Access::ReadWrite).unwrap();
    let front = guest.alloc_unbound(DomId(0)).unwrap();
    let back = xen.bind_interdomain(domid, front.local_port()).unwrap();
    back.take_event().unwrap();

    let suspended = suspend_when_told(&guest);
    let err = source
        .xl
        .migrate(domid, &target.xl, &failing(Failure::BeforeGo))
        .unwrap_err();
    assert!(matches!(err, MigrateError::ResumedAtSource { .. }), "{err}");
    assert_eq!(suspended.join().unwrap(), Resumed::Cancelled);
    // Everything goes on as it was.
    assert_eq!(guest.domid(), domid);
    pages.write(0, b"alive");
    assert_eq!(&read(&ring, 0), b"alive");
    front.notify().unwrap();
    assert!(back.take_event().unwrap());
    assert!(target.xl.list().unwrap().is_empty());

    // Before the suspend the guest does not even notice.
    let err = source
        .xl
        .migrate(domid, &target.xl, &failing(Failure::DuringPrecopy))
        .unwrap_err();
    assert!(matches!(err, MigrateError::NotSuspended(_)), "{err}");
    assert!(target.xl.list().unwrap().is_empty());

    // And it can still be migrated.
    drop((ring, back));
    let suspended = suspend_when_told(&guest);
    source.xl.migrate(domid, &target.xl, &quick()).unwrap();
    assert_eq!(suspended.join().unwrap(), Resumed::NewDomain);
    assert_eq!(&read(&pages, 0), b"alive");
}

#[test]
fn after_go_the_guest_is_on_one_side_only() {
    for target_runs in [true, false] {
        let source = TestHost::start();
        let target = TestHost::with(|options| options.first_domid = 40);
        let domid = source.domain("vm");
        let guest = SimGuest::boot(&source.dir, domid).unwrap();
        let (pages, _) = guest.grant_pages(DomId(0), 1, Access::ReadWrite).unwrap();
        pages.write(0, b"whole");
        let suspended = suspend_when_told(&guest);
        let err = source
            .xl
            .migrate(
                domid,
                &target.xl,
                &failing(Failure::AfterGo { target_runs }),
            )
            .unwrap_err();
        let MigrateError::Undefined { target: there } = err else {
            panic!("{err}");
        };
        assert_eq!(there.is_some(), target_runs);
        assert_eq!(
            source.xl.domain_named("vm--migratedaway").unwrap(),
            Some(domid)
        );
        assert_eq!(
            source.xl.info(domid).unwrap().shutdown,
            Some(ShutdownReason::Suspend)
        );
        if target_runs {
            assert_eq!(suspended.join().unwrap(), Resumed::NewDomain);
            source.xl.destroy(domid).unwrap();
        } else {
            source.xl.resume_source(domid).unwrap();
            assert_eq!(suspended.join().unwrap(), Resumed::Cancelled);
            assert_eq!(source.xl.domain_named("vm").unwrap(), Some(domid));
        }
        assert_eq!(&read(&pages, 0), b"whole");
        guest.alloc_unbound(DomId(0)).unwrap();
    }
}

#[test]
fn a_refused_migration_leaves_the_guest_at_the_source() {
    let source = TestHost::start();
    let target = TestHost::with(|options| options.first_domid = 40);
    let _at_source = ToyBackend::start(&source.dir, false);
    let _at_target = ToyBackend::start(&target.dir, true);
    let domid = source.xl.create(&DomainConfig::new("vm")).unwrap();
    source.xl.unpause(domid).unwrap();
    let guest = SimGuest::boot(&source.dir, domid).unwrap();
    let suspended = suspend_when_told(&guest);
    let err = source.xl.migrate(domid, &target.xl, &quick()).unwrap_err();
    let MigrateError::ResumedAtSource { cause, .. } = err else {
        panic!("{err}");
    };
    assert!(matches!(cause, ToolstackError::BackendRemoved { .. }));
    assert_eq!(suspended.join().unwrap(), Resumed::Cancelled);
    assert!(target.xl.list().unwrap().is_empty());
}

#[test]
fn saved_checkpointed_restored() {
    let host = TestHost::start();
    let domid = host.domain("vm");
    let guest = SimGuest::boot(&host.dir, domid).unwrap();
    let (pages, _) = guest.grant_pages(DomId(0), 1, Access::ReadWrite).unwrap();
    pages.write(0, b"saved");
    let suspended = suspend_when_told(&guest);
    host.xl.checkpoint(domid).unwrap();
    assert_eq!(suspended.join().unwrap(), Resumed::Cancelled);
    let suspended = suspend_when_told(&guest);
    let saved = host.xl.save(domid).unwrap();
    assert!(host.xl.list().unwrap().is_empty());
    let restored = host.xl.restore(saved).unwrap();
    assert_ne!(restored, domid);
    assert_eq!(suspended.join().unwrap(), Resumed::NewDomain);
    assert_eq!(guest.domid(), restored);
    assert_eq!(&read(&pages, 0), b"saved");
}

#[test]
fn a_suspended_guest_stands_still() {
    let host = TestHost::start();
    let domid = host.domain("vm");
    let guest = SimGuest::boot(&host.dir, domid).unwrap();
    let (pages, _) = guest.grant_pages(DomId(0), 1, Access::ReadWrite).unwrap();
    let suspended = suspend_when_told(&guest);
    let saved = host.xl.save(domid).unwrap();
    let counter = std::thread::spawn(move || {
        pages.store_release(0, 1);
        Instant::now()
    });
    // Not a proof, but a store that does not wait would be done by now.
    std::thread::sleep(Duration::from_millis(50));
    let restored_at = Instant::now();
    host.xl.restore(saved).unwrap();
    suspended.join().unwrap();
    assert!(counter.join().unwrap() >= restored_at);
}

#[test]
fn a_lost_save_is_the_end_of_the_guest() {
    let host = TestHost::start();
    let domid = host.domain("vm");
    let guest = SimGuest::boot(&host.dir, domid).unwrap();
    let mut store = host.guest_store(domid);
    let suspended = std::thread::spawn(move || {
        store.watch("control/shutdown", "s").unwrap();
        while store.read("control/shutdown").unwrap().as_deref() != Some("suspend") {
            store.next_event(soon()).unwrap().expect("a request");
        }
        store.write("control/shutdown", "").unwrap();
        guest.suspend()
    });
    drop(host.xl.save(domid).unwrap());
    assert!(suspended.join().unwrap().is_err());
}

#[test]
fn reboot_and_crash() {
    let host = TestHost::start();
    let config = without_devices("vm");
    let domid = host.xl.create(&config).unwrap();
    // A guest boots when its domain is unpaused, not before.
    let dir = host.dir.clone();
    let booting = std::thread::spawn(move || SimGuest::boot(&dir, domid).unwrap());
    host.xl.unpause(domid).unwrap();
    let guest = booting.join().unwrap();
    let mut store = host.guest_store(domid);
    let rebooting = std::thread::spawn(move || {
        store.watch("control/shutdown", "s").unwrap();
        while store.read("control/shutdown").unwrap().as_deref() != Some("reboot") {
            store.next_event(soon()).unwrap().expect("a request");
        }
        store.write("control/shutdown", "").unwrap();
        guest.shut_down(ShutdownReason::Reboot).unwrap();
        guest
    });
    let again = host.xl.reboot(domid).unwrap();
    assert_ne!(again, domid);
    let dead = rebooting.join().unwrap();
    assert!(dead.alloc_unbound(DomId(0)).is_err());
    assert_eq!(host.xl.config(again).unwrap(), config);
    // A guest whose process dies is a crashed domain.
    let guest = SimGuest::boot(&host.dir, again).unwrap();
    drop(guest);
    let reason = host
        .xl
        .wait_shutdown(again, Duration::from_secs(20))
        .unwrap();
    assert_eq!(reason, Some(ShutdownReason::Crash));
    host.xl.destroy(again).unwrap();
}

#[test]
fn an_unresponsive_guest_is_not_migrated() {
    let host = TestHost::start();
    let domid = host.domain("vm");
    let guest = SimGuest::boot(&host.dir, domid).unwrap();
    let timeouts = Timeouts {
        guest: Duration::from_millis(50),
        ..Timeouts::default()
    };
    let xl = Toolstack::connect(&host.dir)
        .unwrap()
        .with_timeouts(timeouts);
    let err = xl.migrate(domid, &host.xl, &quick()).unwrap_err();
    assert!(
        matches!(
            err,
            MigrateError::NotSuspended(ToolstackError::GuestUnresponsive(_))
        ),
        "{err}"
    );
    let mut store = host.guest_store(domid);
    assert_eq!(store.read("control/shutdown").unwrap().unwrap(), "");
    guest.alloc_unbound(DomId(0)).unwrap();
    assert_eq!(host.xl.list().unwrap().len(), 1);
}

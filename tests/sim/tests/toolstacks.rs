// SPDX-License-Identifier: GPL-3.0-or-later
//! Guests of each toolstack. xenopsd and libvirt make no USB controllers: `vusbd` makes them, at the target as soon
//! as its domain is there. Which VM that is, and whether it arrives, `vusbd` has to find out.

use std::time::{Duration, Instant};

use sim_scenarios::programs;
use sim_scenarios::rig::{Guest, GuestOptions, Rig, RigOptions};
use xen_sim::toolstack::{
    Dialect, DomainConfig, Failure, MigrateError, MigrateOptions, Step, Store,
};

fn rig(dialect: Dialect) -> Rig {
    programs::build().unwrap();
    let options = RigOptions {
        dialect,
        ..RigOptions::default()
    };
    Rig::start(&options).unwrap()
}

fn working(rig: &Rig) -> Guest {
    Guest::start_working(rig, &GuestOptions::new("guest"))
        .unwrap_or_else(|e| panic!("{e:#}\n{}", rig.log_tails()))
}

/// The guest goes on, and has seen nothing but pauses.
fn goes_on(rig: &Rig, guest: &mut Guest, when: &str) {
    let worked = guest.wait_commands(10);
    worked.unwrap_or_else(|e| panic!("{when}: {e:#}\n{}", rig.log_tails()));
    let report = guest.report().unwrap();
    assert_eq!(
        (report.disconnects, report.errors, report.lost),
        (0, 0, 0),
        "{when}: {report:?}\n{}",
        rig.log_tails()
    );
}

/// There and back, and where the toolstack can, within the host.
fn moves_unnoticed(dialect: Dialect) {
    let rig = rig(dialect);
    let mut guest = working(&rig);
    let moves: &[usize] = match dialect {
        Dialect::Libvirt => &[1, 0],
        Dialect::Xl | Dialect::Xenopsd => &[1, 0, 0],
    };
    for to in moves {
        let moved = rig.migrate(&mut guest, *to, &MigrateOptions::default());
        moved.unwrap_or_else(|e| panic!("{e:?}\n{}", rig.log_tails()));
        let (cancelled, _) = guest.wait_resumed().unwrap();
        assert!(!cancelled);
        goes_on(&rig, &mut guest, "moved");
    }
    rig.end_unnoticed(guest);
}

#[test]
fn a_guest_of_xenopsd_moves_unnoticed() {
    moves_unnoticed(Dialect::Xenopsd);
}

#[test]
fn a_guest_of_libvirt_moves_unnoticed() {
    moves_unnoticed(Dialect::Libvirt);
}

/// `vusbd` is killed after a step of the migration and starts again in its middle, at one end or the other.
fn restarts_in_the_middle(dialect: Dialect, steps: &[(Step, usize)]) {
    let rig = rig(dialect);
    let mut guest = working(&rig);
    for (step, end) in steps {
        let (from, to) = (guest.host, 1 - guest.host);
        let host = if *end == 0 { from } else { to };
        let mut restarted = false;
        let moved = rig.migrate_by_steps(&mut guest, to, &MigrateOptions::default(), |at| {
            if at == *step {
                rig.hosts[host].restart_vusbd().unwrap();
                restarted = true;
                // It comes to look at the nodes as they are now.
                std::thread::sleep(Duration::from_millis(300));
            }
        });
        moved.unwrap_or_else(|e| panic!("{step:?}: {e:?}\n{}", rig.log_tails()));
        assert!(restarted, "{step:?} is no step of {dialect:?}");
        guest.wait_resumed().unwrap();
        goes_on(&rig, &mut guest, &format!("{step:?} of end {end}"));
    }
    rig.end_unnoticed(guest);
}

const SOURCE: usize = 0;
const TARGET: usize = 1;

#[test]
fn vusbd_starts_in_the_middle_of_a_migration_by_xenopsd() {
    restarts_in_the_middle(
        Dialect::Xenopsd,
        &[
            (Step::TargetMade, TARGET),
            (Step::FinalUuidRemoved, TARGET),
            (Step::DomainMoved, TARGET),
            (Step::TargetRenamed, TARGET),
            (Step::SourceRenamed, SOURCE),
        ],
    );
}

#[test]
fn vusbd_starts_in_the_middle_of_a_migration_by_libvirt() {
    restarts_in_the_middle(
        Dialect::Libvirt,
        &[(Step::Received, TARGET), (Step::Received, SOURCE)],
    );
}

/// What fails before the suspend is not noticed; what fails in it is cancelled, where the toolstack does that.
fn fails(dialect: Dialect) {
    let rig = rig(dialect);
    let mut guest = working(&rig);
    let failing = MigrateOptions::failing(Failure::DuringPrecopy);
    let failed = rig.migrate(&mut guest, 1, &failing);
    assert!(
        matches!(failed, Err(MigrateError::NotSuspended(_))),
        "{failed:?}"
    );
    goes_on(&rig, &mut guest, "failed before the suspend");
    if dialect.resumes_at_source() {
        let failing = MigrateOptions::failing(Failure::BeforeGo);
        let failed = rig.migrate(&mut guest, 1, &failing);
        let cancelled = matches!(failed, Err(MigrateError::ResumedAtSource { .. }));
        assert!(cancelled, "{failed:?}");
        assert!(guest.wait_resumed().unwrap().0);
        goes_on(&rig, &mut guest, "failed in the suspend");
    }
    // The target runs, and the source's domain is still there.
    let source = guest.domid;
    let failing = MigrateOptions::failing(Failure::AfterGo { target_runs: true });
    let undefined = rig.migrate(&mut guest, 1, &failing);
    let Err(MigrateError::Undefined {
        target: Some(domid),
    }) = undefined
    else {
        panic!("{undefined:?}");
    };
    (guest.host, guest.domid) = (1, domid);
    let shows_arrival = dialect != Dialect::Libvirt;
    if shows_arrival {
        assert!(!guest.wait_resumed().unwrap().0);
        goes_on(&rig, &mut guest, "after go");
    }
    // Without a sign the guest waits until this says that it is no copy.
    rig.hosts[0].xl.destroy(source).unwrap();
    if !shows_arrival {
        assert!(!guest.wait_resumed().unwrap().0);
    }
    goes_on(&rig, &mut guest, "the source is gone");
    rig.end_unnoticed(guest);
}

#[test]
fn a_migration_by_xenopsd_fails() {
    fails(Dialect::Xenopsd);
}

#[test]
fn a_migration_by_libvirt_fails() {
    fails(Dialect::Libvirt);
}

/// The nodes that say which VM a domain is, and that it arrives or has left.
fn identity_nodes(store: &mut Store, domid: xen::DomId) -> Vec<String> {
    let domain = format!("/local/domain/{domid}");
    let vm = store.read(&format!("{domain}/vm")).unwrap().unwrap();
    ["vm", "name"]
        .map(|node| format!("{domain}/{node}"))
        .into_iter()
        .chain(["final-uuid", "origin-uuid", "uuid", "name"].map(|node| format!("{vm}/{node}")))
        .chain([
            vm.clone(),
            domain.clone(),
            format!("/libxl/{domid}/type"),
            format!("/xenops/domain/{domid}"),
        ])
        .collect()
}

/// Under each toolstack, and for a domain that xenopsd has renamed.
#[test]
fn a_guest_may_not_say_which_vm_it_is() {
    for dialect in Dialect::ALL {
        let rig = rig(dialect);
        let (source, target) = (&rig.hosts[0].xl, &rig.hosts[1].xl);
        let mut tried = 0;
        let mut try_all = |host: usize, domid: xen::DomId| {
            let socket = rig.hosts[host].dir().join(format!("dom-{domid}.sock"));
            let mut guest = Store::connect(&socket).unwrap();
            // The connection is a guest's, and works: what is its own it may write.
            let own = format!("/local/domain/{domid}/data/own");
            guest.write(&own, "1").unwrap();
            for path in identity_nodes(&mut rig.hosts[host].xl.store().unwrap(), domid) {
                let written = guest.write(&path, "nonsense");
                let kind = written.map_err(|e| e.raw_os_error());
                assert_eq!(kind, Err(Some(13)), "{dialect:?}: {path}");
                assert!(guest.rm(&path).is_err(), "{dialect:?}: {path}");
                tried += 1;
            }
        };
        let config = DomainConfig {
            usbctrl: Vec::new(),
            ..DomainConfig::new("guest")
        };
        let domid = source.create(&config).unwrap();
        try_all(0, domid);
        let mut guest = None;
        // Nobody runs in it: it is not suspended, but its target is made.
        let failing = MigrateOptions::failing(Failure::DuringPrecopy);
        let _ = source.migrate_by_steps(domid, target, &failing, &mut |_, incoming| {
            guest = Some(incoming);
        });
        assert!(guest.is_some());
        assert!(tried > 0);
    }
}

/// A toolstack, or somebody who may write as one, gives a domain the uuid of a VM that runs.
#[test]
fn nonsense_in_final_uuid_takes_nothing() {
    let rig = rig(Dialect::Xenopsd);
    let mut guest = working(&rig);
    let running = rig.hosts[0].xl.config(guest.domid).unwrap().uuid;
    let other = Guest::start(&rig, 1, &GuestOptions::new("other")).unwrap();
    let mut store = rig.hosts[1].xl.store().unwrap();
    let domain = format!("/local/domain/{}", other.domid);
    let vm = store.read(&format!("{domain}/vm")).unwrap().unwrap();
    for nonsense in [running.to_string(), "a name".into(), uuid_of_dom0()] {
        store.write(&format!("{vm}/final-uuid"), &nonsense).unwrap();
        wait_for_log(&rig, 1, &format!("value: {nonsense}"));
        rig.hosts[1].restart_vusbd().unwrap();
        goes_on(&rig, &mut guest, &nonsense);
        let listed = rig.status(1).unwrap();
        assert!(listed.attachments.is_empty(), "{listed:?}");
    }
    other.stop(&rig).unwrap();
    rig.end_unnoticed(guest);
}

fn uuid_of_dom0() -> String {
    "00000000-0000-0000-0000-000000000000".into()
}

fn wait_for_log(rig: &Rig, host: usize, text: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !rig.hosts[host].vusbd_log().contains(text) {
        assert!(Instant::now() < deadline, "{text}\n{}", rig.log_tails());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Names are not unique under XAPI.
#[test]
fn a_name_that_two_domains_have_means_neither() {
    let rig = rig(Dialect::Xenopsd);
    let options = GuestOptions::new("guest");
    let first = Guest::start(&rig, 0, &options).unwrap();
    let second = Guest::start(&rig, 0, &GuestOptions::new("guest")).unwrap();
    let refused = rig.attach_disk(&first).unwrap_err().to_string();
    for guest in [&first, &second] {
        let number = format!("domain {} (", guest.domid);
        assert!(refused.contains(&number), "{refused}");
    }
    let domid = second.domid.to_string();
    let attached = rig.xl_vusb(0, &["attach", &domid, "exporter/0-1"]).unwrap();
    assert!(attached.status.success(), "{attached:?}");
    first.stop(&rig).unwrap();
    second.stop(&rig).unwrap();
}

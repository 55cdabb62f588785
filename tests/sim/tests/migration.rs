// SPDX-License-Identifier: GPL-3.0-or-later
//! A guest with a disk under load is migrated, or not.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sim_scenarios::guest::Said;
use sim_scenarios::process::Process;
use sim_scenarios::programs;
use sim_scenarios::rig::{Guest, GuestOptions, Rig, RigOptions};
use sim_scenarios::scratch::ScratchDir;
use xen_sim::toolstack::{Failure, MigrateError, MigrateOptions};

fn rig() -> Rig {
    programs::build().unwrap();
    Rig::start(&RigOptions::default()).unwrap()
}

/// A guest whose workload is under way.
fn working(rig: &Rig, options: &GuestOptions) -> Guest {
    Guest::start_working(rig, options).unwrap()
}

#[test]
fn the_demo_in_short() {
    programs::build().unwrap();
    let output = Command::new(programs::path("sim-demo").unwrap())
        .args(["--migrations", "3", "--seed", "7", "--json"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{stderr}");
    let result: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(result["result"], "ok");
    assert_eq!(result["migrations"], 3);
    assert_eq!(result["localhost_migrations"], 1);
    assert_eq!(result["failed_migrations"], 2);
    assert_eq!(result["sha256"], "match");
    assert!(
        result["unlinked"].as_u64().unwrap() > 0,
        "no suspend came in the middle of a command: {text}"
    );
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind() {
    programs::build().unwrap();
    let scratch = ScratchDir::new().unwrap();
    let temporary = scratch.path().join("t");
    std::fs::create_dir(&temporary).unwrap();
    let mut command = Command::new(programs::path("sim-demo").unwrap());
    command.args(["--migrations", "1000"]);
    command.env("TMPDIR", &temporary).stdout(Stdio::null());
    let mut demo = Process::start("sim-demo", command, &scratch.path().join("log")).unwrap();
    let marker = temporary.display().to_string();
    demo.wait_until("at work", || processes_with(&marker).len() >= 6)
        .unwrap();
    demo.signal(libc::SIGINT);
    let status = demo.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    let deadline = Instant::now() + Duration::from_secs(10);
    while !processes_with(&marker).is_empty() {
        assert!(Instant::now() < deadline, "{:?}", processes_with(&marker));
        std::thread::sleep(Duration::from_millis(10));
    }
    let left: Vec<_> = std::fs::read_dir(&temporary).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The command lines of running processes that mention `marker`.
fn processes_with(marker: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap();
    processes
        .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(marker))
        .collect()
}

#[test]
fn a_cancelled_suspend_goes_on_at_the_source() {
    let rig = rig();
    let mut guest = working(&rig, &GuestOptions::new("guest"));
    for round in 0..3 {
        let options = MigrateOptions::failing(Failure::BeforeGo);
        let failed = rig.migrate(&mut guest, 1, &options);
        assert!(
            matches!(failed, Err(MigrateError::ResumedAtSource { .. })),
            "{failed:?}"
        );
        let (cancelled, _) = guest.wait_resumed().unwrap();
        assert!(cancelled, "round {round}");
        guest.wait_commands(20).unwrap();
        assert!(rig.status(1).unwrap().attachments.is_empty());
        assert_eq!(rig.status(0).unwrap().attachments.len(), 1);
    }
    // And now in earnest.
    let options = MigrateOptions::default();
    rig.migrate(&mut guest, 1, &options).unwrap();
    assert!(!guest.wait_resumed().unwrap().0);
    guest.wait_commands(20).unwrap();
    rig.end_unnoticed(guest);
}

#[test]
fn a_migration_that_breaks_before_the_suspend_is_not_noticed() {
    let rig = rig();
    let mut guest = working(&rig, &GuestOptions::new("guest"));
    let failed = rig.migrate(
        &mut guest,
        1,
        &MigrateOptions::failing(Failure::DuringPrecopy),
    );
    assert!(
        matches!(failed, Err(MigrateError::NotSuspended(_))),
        "{failed:?}"
    );
    guest.wait_commands(20).unwrap();
    rig.end_unnoticed(guest);
}

#[test]
fn a_migration_to_localhost() {
    let rig = rig();
    let mut guest = working(&rig, &GuestOptions::new("guest"));
    for _ in 0..3 {
        let before = guest.domid;
        rig.migrate(&mut guest, 0, &MigrateOptions::default())
            .unwrap();
        assert_ne!(guest.domid, before);
        assert!(!guest.wait_resumed().unwrap().0);
        guest.wait_commands(20).unwrap();
    }
    rig.end_unnoticed(guest);
}

/// "Domain state is now undefined": the target runs, and the source's toolstack does not know it.
/// The epoch is what keeps the source from using the disk.
#[test]
fn a_connection_that_breaks_after_go() {
    let rig = rig();
    let mut guest = working(&rig, &GuestOptions::new("guest"));
    let source = guest.domid;
    let options = MigrateOptions::failing(Failure::AfterGo { target_runs: true });
    let undefined = rig.migrate(&mut guest, 1, &options);
    let Err(MigrateError::Undefined {
        target: Some(domid),
    }) = undefined
    else {
        panic!("{undefined:?}");
    };
    (guest.host, guest.domid) = (1, domid);
    assert!(!guest.wait_resumed().unwrap().0);
    guest.wait_commands(20).unwrap();
    // The administrator destroys the remains at the source; the guest notices nothing.
    rig.hosts[0].xl.destroy(source).unwrap();
    guest.wait_commands(20).unwrap();
    rig.end_unnoticed(guest);
}

#[test]
fn a_stock_guest_with_storage_is_refused_and_goes_on() {
    let rig = rig();
    let mut guest = working(
        &rig,
        &GuestOptions {
            stock: true,
            ..GuestOptions::new("stock")
        },
    );
    let check = rig.xl_vusb(0, &["check", "stock"]).unwrap();
    let text = String::from_utf8_lossy(&check.stdout);
    assert_eq!(check.status.code(), Some(1), "{text}");
    assert!(text.contains("xl-vusb detach stock 1"), "{text}");

    let failed = rig.migrate(&mut guest, 1, &MigrateOptions::default());
    // At once, because the node was removed: a time-out would mean ten seconds of pause.
    let refused = failed.as_ref().is_err_and(MigrateError::is_refusal);
    assert!(refused, "{failed:?}");
    assert!(guest.wait_resumed().unwrap().0);
    guest.wait_commands(20).unwrap();
    let status = rig.status(0).unwrap();
    let note = status.attachments[0].note.clone().unwrap();
    for part in [
        "exporter/0-1",
        "xl-vusb detach stock 1",
        "xen-vusb-hcd module",
    ] {
        assert!(note.contains(part), "{note}");
    }
    rig.end_unnoticed(guest);
}

/// A controller that libxl did not make is not made again at the target, whatever the guest's driver can.
#[test]
fn a_check_promises_nothing_for_a_domain_that_xl_did_not_make() {
    let rig = rig();
    let guest = working(&rig, &GuestOptions::new("guest"));
    let check = |arguments: &[&str]| {
        let check = rig.xl_vusb(0, arguments).unwrap();
        let text = String::from_utf8(check.stdout).unwrap();
        (check.status.code(), text)
    };
    let (status, text) = check(&["check", "guest"]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("seamless"), "{text}");
    for (toolstack, name) in [("xapi", "XAPI"), ("libvirt", "libvirt")] {
        let (status, text) = check(&["check", "guest", "--toolstack", toolstack]);
        assert_eq!(status, Some(1), "{text}");
        for part in [
            "exporter/0-1",
            " lost ",
            name,
            "`xl-vusb detach guest 1` on host-a first",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    // The controller's nodes as they are where something else made them.
    let mut store = rig.hosts[0].xl.store().unwrap();
    store.rm(&format!("/libxl/{}", guest.domid)).unwrap();
    for arguments in [
        vec!["check", "guest"],
        vec!["check", "guest", "--toolstack", "xl"],
    ] {
        let (status, text) = check(&arguments);
        assert_eq!(status, Some(1), "{text}");
        assert!(text.contains("not made by libxl"), "{text}");
        assert!(!text.contains("seamless"), "{text}");
    }
    let xenopsd = format!("/xenops/domain/{}/device", guest.domid);
    store.write(&xenopsd, "").unwrap();
    let (status, text) = check(&["check", "guest"]);
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("XAPI"), "{text}");
    let (_, text) = check(&["list"]);
    assert!(text.contains(" lost "), "{text}");
}

#[test]
fn detached_while_in_use_and_attached_again() {
    let rig = rig();
    let mut guest = working(&rig, &GuestOptions::new("guest"));
    rig.xl_vusb_json(0, &["detach", "guest", "1"]).unwrap();
    let unplugged = |said: &Said| *said == Said::Unplugged;
    guest
        .wait_for("sees its disk go", Duration::from_secs(20), unplugged)
        .unwrap();
    let devices = rig.xl_vusb(0, &["devices"]).unwrap();
    let text = String::from_utf8_lossy(&devices.stdout);
    assert!(text.contains("free"), "{text}");
    rig.attach_disk(&guest).unwrap();
    guest.wait_commands(20).unwrap();
    let report = guest.stop(&rig).unwrap();
    assert_eq!(report.disconnects, 1);
    assert_eq!(
        (report.lost, report.duplicated, report.mismatches),
        (0, 0, 0),
        "{report:?}"
    );
    assert_eq!(rig.stop().unwrap(), Vec::<String>::new());
}

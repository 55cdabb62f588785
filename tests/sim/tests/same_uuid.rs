// SPDX-License-Identifier: GPL-3.0-or-later
//! A second domain with the uuid of a VM that runs: a clone, or a restored copy. It never takes a device
//! of the one that runs, however often it tries, and gets it when that one is gone.

use std::time::{Duration, Instant};

use sim_scenarios::programs;
use sim_scenarios::rig::{Guest, GuestOptions, Rig, RigOptions};
use xen_sim::toolstack::MigrateOptions;

fn rig() -> Rig {
    programs::build().unwrap();
    Rig::start(&RigOptions::default()).unwrap()
}

/// What `xl-vusb list` of a host says, once it says `text`.
fn wait_for_note(rig: &Rig, host: usize, text: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let listed = rig.xl_vusb(host, &["list"]).unwrap().stdout;
        let listed = String::from_utf8_lossy(&listed).into_owned();
        if listed.contains(text) {
            return listed;
        }
        assert!(Instant::now() < deadline, "{listed}\n{}", rig.log_tails());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The VM works on its disk, and nothing has happened to it.
fn works_on(rig: &Rig, guest: &mut Guest) {
    let worked = guest.wait_commands(10);
    worked.unwrap_or_else(|e| panic!("{e}\n{}", rig.log_tails()));
    let report = guest.report().unwrap();
    assert_eq!(
        (report.disconnects, report.errors),
        (0, 0),
        "{report:?}\n{}",
        rig.log_tails()
    );
}

/// On the other host. The copy's `vusbd` tries again and again, also while the `vusbd` of the VM is started
/// again, and while the exporter is.
#[test]
fn a_copy_never_takes_the_device_of_a_vm_that_runs() {
    let mut rig = rig();
    let options = GuestOptions::new("guest");
    let mut guest = Guest::start_working(&rig, &options).unwrap();
    let mut copy = Guest::start(&rig, 1, &options).unwrap();
    works_on(&rig, &mut guest);
    let listed = wait_for_note(&rig, 1, "host-a");
    assert!(listed.contains("same uuid"), "{listed}");
    for _ in 0..2 {
        rig.hosts[0].kill_vusbd().unwrap();
        // Longer than the pauses of a backend that tries again.
        std::thread::sleep(Duration::from_secs(3));
        rig.hosts[0].start_vusbd().unwrap();
        works_on(&rig, &mut guest);
    }
    // The copy's own is no other.
    rig.hosts[1].restart_vusbd().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    works_on(&rig, &mut guest);
    wait_for_note(&rig, 1, "host-a");
    // What is at the port of the copy is not the copy's to give back.
    let detached = rig.xl_vusb(1, &["detach", "guest", "1"]).unwrap();
    assert!(detached.status.success(), "{detached:?}");
    works_on(&rig, &mut guest);
    // Nor can it be attached to it.
    let refused = rig.attach_disk(&copy).unwrap_err().to_string();
    assert!(refused.contains("host-a"), "{refused}");
    works_on(&rig, &mut guest);
    // A restart of its vusbd asks for the leases again.
    rig.exporter.restart().unwrap();
    rig.wait_for_exporter().unwrap();
    guest.wait_commands(10).unwrap();
    let _ = copy.report().unwrap();
    copy.stop(&rig).unwrap();
    rig.end(guest);
}

/// The copy waits, and has the device when the VM is gone.
#[test]
fn a_copy_gets_the_device_when_the_vm_is_gone() {
    let rig = rig();
    let options = GuestOptions::new("guest");
    let mut guest = Guest::start_working(&rig, &options).unwrap();
    let mut copy = Guest::start(&rig, 1, &options).unwrap();
    wait_for_note(&rig, 1, "host-a");
    works_on(&rig, &mut guest);
    let report = guest.stop(&rig).unwrap();
    assert_eq!((report.lost, report.disconnects), (0, 0), "{report:?}");
    copy.wait_working()
        .unwrap_or_else(|e| panic!("{e}\n{}", rig.log_tails()));
    rig.end_unnoticed(copy);
}

/// On the same host, where only the domids differ.
#[test]
fn a_copy_on_the_same_host() {
    let rig = rig();
    let options = GuestOptions::new("guest");
    let mut guest = Guest::start_working(&rig, &options).unwrap();
    let mut clone = options.clone();
    clone.config.name = "clone".into();
    let mut copy = Guest::start(&rig, 0, &clone).unwrap();
    works_on(&rig, &mut guest);
    wait_for_note(&rig, 0, "same uuid");
    rig.hosts[0].restart_vusbd().unwrap();
    works_on(&rig, &mut guest);
    guest.stop(&rig).unwrap();
    copy.wait_working()
        .unwrap_or_else(|e| panic!("{e}\n{}", rig.log_tails()));
    rig.end_unnoticed(copy);
}

/// Saved, restored on the other host, and the same file restored once more where it was saved.
#[test]
fn a_file_that_is_restored_twice() {
    let rig = rig();
    let options = GuestOptions::new("guest");
    let mut guest = Guest::start_working(&rig, &options).unwrap();
    let saved = rig.hosts[0].xl.save(guest.domid).unwrap();
    (guest.host, guest.domid) = (1, rig.hosts[1].xl.restore(saved).unwrap());
    assert!(!guest.wait_resumed().unwrap().0);
    works_on(&rig, &mut guest);
    let copy = Guest::start(&rig, 0, &options).unwrap();
    wait_for_note(&rig, 0, "host-b");
    works_on(&rig, &mut guest);
    copy.stop(&rig).unwrap();
    works_on(&rig, &mut guest);
    rig.end_unnoticed(guest);
}

/// The copy is migrated: it arrives, with a sign of the toolstack, but not from where the VM runs.
#[test]
fn a_copy_that_is_migrated() {
    let rig = rig();
    let options = GuestOptions::new("guest");
    let mut guest = Guest::start_working(&rig, &options).unwrap();
    let mut clone = options.clone();
    clone.config.name = "clone".into();
    let mut copy = Guest::start(&rig, 1, &clone).unwrap();
    wait_for_note(&rig, 1, "host-a");
    let moved = rig.migrate(&mut copy, 0, &MigrateOptions::default());
    moved.unwrap_or_else(|e| panic!("{e:?}\n{}", rig.log_tails()));
    // It sees the device come and go, which its driver takes for a failure.
    wait_for_note(&rig, 0, "same uuid");
    works_on(&rig, &mut guest);
    // The VM itself still moves, and has its device where it comes to.
    rig.migrate(&mut guest, 1, &MigrateOptions::default())
        .unwrap_or_else(|e| panic!("{e:?}\n{}", rig.log_tails()));
    assert!(!guest.wait_resumed().unwrap().0);
    works_on(&rig, &mut guest);
    let domid = copy.domid;
    drop(copy);
    rig.hosts[0].xl.destroy(domid).unwrap();
    works_on(&rig, &mut guest);
    rig.end_unnoticed(guest);
}

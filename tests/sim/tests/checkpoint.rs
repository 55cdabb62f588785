// SPDX-License-Identifier: GPL-3.0-or-later
//! `xl save -c`: the guest is saved and goes on, and keeps its device. A domain that is restored from
//! such a file beside it is a copy, whenever it is restored.

use std::time::{Duration, Instant};

use sim_scenarios::guest::Said;
use sim_scenarios::programs;
use sim_scenarios::rig::{Guest, GuestOptions, Rig, RigOptions};
use xen_sim::toolstack::SavedDomain;

fn rig() -> Rig {
    programs::build().unwrap();
    Rig::start(&RigOptions::default()).unwrap()
}

/// The VM goes on, and has noticed nothing.
fn works_on(rig: &Rig, guest: &mut Guest) {
    let worked = guest.wait_commands(10);
    worked.unwrap_or_else(|e| panic!("{e}\n{}", rig.log_tails()));
    let report = guest.report().unwrap();
    let noticed = (report.disconnects, report.errors);
    assert_eq!(noticed, (0, 0), "{report:?}\n{}", rig.log_tails());
}

/// Waits until `xl-vusb list` of a host says so.
fn wait_for_listed(rig: &Rig, host: usize, wanted: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let listed = rig.xl_vusb(host, &["list"]).unwrap().stdout;
        let listed = String::from_utf8_lossy(&listed).into_owned();
        if listed.contains(wanted) {
            return;
        }
        assert!(Instant::now() < deadline, "{listed}\n{}", rig.log_tails());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn ten_in_a_row_go_unnoticed() {
    let rig = rig();
    let options = GuestOptions::new("guest");
    let mut guest = Guest::start_working(&rig, &options).unwrap();
    for _ in 0..10 {
        let suspended = rig.hosts[0].xl.checkpoint(guest.domid);
        suspended.unwrap_or_else(|e| panic!("{e}\n{}", rig.log_tails()));
        assert!(guest.wait_resumed().unwrap().0, "in the same domain");
        works_on(&rig, &mut guest);
    }
    rig.end_unnoticed(guest);
}

/// A copy whose frontend connects for the first time while the VM is suspended for a checkpoint looks
/// like a guest that has been moved. It is not: the VM goes on where it was.
#[test]
fn a_copy_that_is_started_during_a_checkpoint_is_given_nothing() {
    let rig = rig();
    let options = GuestOptions::new("guest");
    let mut guest = Guest::start_working(&rig, &options).unwrap();
    let mut copy = None;
    let checkpoint = rig.hosts[0].xl.checkpoint_while(guest.domid, || {
        wait_for_listed(&rig, 0, "frozen");
        copy = Some(Guest::start(&rig, 1, &options).unwrap());
        // Longer than the first tries of its claim.
        std::thread::sleep(Duration::from_secs(2));
    });
    checkpoint.unwrap_or_else(|e| panic!("{e}\n{}", rig.log_tails()));
    assert!(guest.wait_resumed().unwrap().0, "in the same domain");
    works_on(&rig, &mut guest);
    wait_for_listed(&rig, 1, "same uuid");
    works_on(&rig, &mut guest);
    // The copy saw a device come and go, which its driver takes for a failure.
    let domid = copy.unwrap().domid;
    rig.hosts[1].xl.destroy(domid).unwrap();
    works_on(&rig, &mut guest);
    rig.end_unnoticed(guest);
}

/// What the guest saw of its device after it was restored: it must have gone, once.
fn wait_disconnected(rig: &Rig, guest: &mut Guest) {
    let seen = |said: &Said| matches!(said, Said::Progress(r) | Said::Failed { report: r, .. } if r.disconnects > 0);
    let seen = guest.wait_for("sees its device go", Duration::from_secs(20), seen);
    seen.unwrap_or_else(|e| panic!("{e}\n{}", rig.log_tails()));
    assert_eq!(guest.last_report().disconnects, 1, "{}", rig.log_tails());
}

/// A checkpoint's file: the VM has run on since, and has written to its disk.
fn older_file(rig: &Rig, options: &GuestOptions) -> (Guest, SavedDomain, Guest) {
    let guest = Guest::start_working(rig, options).unwrap();
    let saved = rig.hosts[0].xl.save(guest.domid).unwrap();
    let mut vm = Guest::start(rig, 0, options).unwrap();
    let works = vm.wait_working();
    works.unwrap_or_else(|e| panic!("{e}\n{}", rig.log_tails()));
    (guest, saved, vm)
}

/// Its guest remembers the disk as it was. The VM was shut down meanwhile, and nobody holds the device: the
/// guest gets it, but as a new one.
#[test]
fn a_file_that_is_restored_after_the_vm_has_ended_gets_a_new_device() {
    let rig = rig();
    let options = GuestOptions::new("guest");
    let (mut copy, saved, vm) = older_file(&rig, &options);
    vm.stop(&rig).unwrap();
    (copy.host, copy.domid) = (1, rig.hosts[1].xl.restore(saved).unwrap());
    wait_disconnected(&rig, &mut copy);
    wait_for_listed(&rig, 1, "serving");
    rig.hosts[1].xl.destroy(copy.domid).unwrap();
    assert_eq!(rig.stop().unwrap(), Vec::<String>::new());
}

/// The same beside the VM that runs on: it sees an empty port, `list` names the VM's domain and says what to do,
/// and the VM notices nothing, from its next checkpoints neither.
#[test]
fn a_file_that_is_restored_beside_the_vm_sees_an_empty_port() {
    let rig = rig();
    let options = GuestOptions::new("guest");
    let (mut copy, saved, mut vm) = older_file(&rig, &options);
    (copy.host, copy.domid) = (1, rig.hosts[1].xl.restore(saved).unwrap());
    wait_disconnected(&rig, &mut copy);
    wait_for_listed(&rig, 1, "host-a");
    wait_for_listed(&rig, 1, "same uuid");
    for _ in 0..3 {
        rig.hosts[0].xl.checkpoint(vm.domid).unwrap();
        assert!(vm.wait_resumed().unwrap().0);
        works_on(&rig, &mut vm);
    }
    assert_eq!(copy.last_report().disconnects, 1);
    rig.hosts[1].xl.destroy(copy.domid).unwrap();
    works_on(&rig, &mut vm);
    rig.end_unnoticed(vm);
}

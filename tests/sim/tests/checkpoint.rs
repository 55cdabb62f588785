// SPDX-License-Identifier: GPL-3.0-or-later
//! `xl save -c`: the guest is saved and goes on, and keeps its device. A domain that is restored from
//! such a file beside it is a copy, whenever it is restored.

use std::time::{Duration, Instant};

use sim_scenarios::programs;
use sim_scenarios::rig::{Guest, GuestOptions, Rig, RigOptions};

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

/// The phase of the disk's lease, as a host's `vusbd` lists it, once it is one of `wanted`.
fn wait_for_phase(rig: &Rig, host: usize, wanted: &str) {
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
        wait_for_phase(&rig, 0, "frozen");
        copy = Some(Guest::start(&rig, 1, &options).unwrap());
        // Longer than the first tries of its claim.
        std::thread::sleep(Duration::from_secs(2));
    });
    checkpoint.unwrap_or_else(|e| panic!("{e}\n{}", rig.log_tails()));
    assert!(guest.wait_resumed().unwrap().0, "in the same domain");
    works_on(&rig, &mut guest);
    wait_for_phase(&rig, 1, "same uuid");
    works_on(&rig, &mut guest);
    // The copy saw a device come and go, which its driver takes for a failure.
    let domid = copy.unwrap().domid;
    rig.hosts[1].xl.destroy(domid).unwrap();
    works_on(&rig, &mut guest);
    rig.end_unnoticed(guest);
}

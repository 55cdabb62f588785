// SPDX-License-Identifier: GPL-3.0-or-later
//! VMs are saved, restored, rebooted, destroyed, and lose their host. Their devices wait for them as
//! long as the exporter was told to keep them.

use std::time::{Duration, Instant};

use sim_scenarios::guest::{Report, Said};
use sim_scenarios::programs;
use sim_scenarios::rig::{EXPORTER, Guest, GuestOptions, Rig, RigOptions};

/// The exporter's `hold_seconds` where it is to run out.
const HOLD: Duration = Duration::from_secs(1);

fn rig(hold_seconds: Option<u64>) -> Rig {
    programs::build().unwrap();
    let options = RigOptions {
        hold_seconds,
        saved_hold_seconds: hold_seconds.map(|s| s.to_string()),
        ..RigOptions::default()
    };
    Rig::start(&options).unwrap()
}

fn working(rig: &Rig, options: &GuestOptions) -> Guest {
    Guest::start_working(rig, options).unwrap()
}

/// The same VM, started anew: its disk is there without anybody's doing.
fn started_again(rig: &Rig, host: usize, options: &GuestOptions) -> Guest {
    let mut guest =
        Guest::start(rig, host, options).unwrap_or_else(|e| panic!("{e:?}\n{}", rig.log_tails()));
    let ready = guest.wait_ready();
    ready.unwrap_or_else(|e| panic!("{e}\n{}", rig.log_tails()));
    guest.wait_commands(10).unwrap();
    assert_eq!(rig.status(host).unwrap().attachments.len(), 1);
    guest
}

fn check(report: &Report) {
    assert_eq!(
        (report.lost, report.duplicated, report.mismatches),
        (0, 0, 0),
        "{report:?}"
    );
    assert!(report.violations.is_empty(), "{report:?}");
}

/// Whoever looks from outside sees silence: nothing closes the connections of a machine without
/// power. The VM's new domain elsewhere has the device when the exporter has heard nothing for long enough, and
/// the old epoch is fenced off.
#[test]
fn a_host_loses_power_and_its_vm_starts_elsewhere() {
    programs::build().unwrap();
    let mut options = RigOptions {
        takeover_seconds: Some(2),
        ..RigOptions::default()
    };
    let first = options.cuttable().unwrap();
    let _second = options.second_host_cuttable().unwrap();
    let mut rig = Rig::start(&options).unwrap();
    let options = GuestOptions::new("guest");
    let guest = working(&rig, &options);
    first.set_swallowing(true);
    rig.hosts[0].lose_power().unwrap();
    drop(guest);
    let guest = started_again(&rig, 1, &options);
    rig.end_unnoticed(guest);
}

#[test]
fn saved_and_restored_on_the_other_host() {
    let rig = rig(None);
    let mut guest = working(&rig, &GuestOptions::new("guest"));
    let saved = rig.hosts[0].xl.save(guest.domid).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(rig.status(0).unwrap().attachments.is_empty());
    (guest.host, guest.domid) = (1, rig.hosts[1].xl.restore(saved).unwrap());
    assert!(!guest.wait_resumed().unwrap().0);
    guest.wait_commands(10).unwrap();
    rig.end_unnoticed(guest);
}

/// What a saved guest holds is held for another time than what one holds that was destroyed, here
/// without end, and across the exporter's death.
#[test]
fn a_saved_guest_is_waited_for_and_a_destroyed_one_is_not() {
    programs::build().unwrap();
    let mut rig = Rig::start(&RigOptions {
        hold_seconds: Some(HOLD.as_secs()),
        saved_hold_seconds: Some("\"forever\"".into()),
        ..RigOptions::default()
    })
    .unwrap();
    let mut guest = working(&rig, &GuestOptions::new("guest"));
    let saved = rig.hosts[0].xl.save(guest.domid).unwrap();
    std::thread::sleep(HOLD * 2);
    rig.exporter.restart().unwrap();
    rig.wait_for_exporter().unwrap();
    std::thread::sleep(HOLD * 2);
    let mut other = Guest::start(&rig, 0, &GuestOptions::new("other")).unwrap();
    let refused = rig.attach_disk(&other).unwrap_err().to_string();
    assert!(refused.contains("guest"), "{refused}");
    (guest.host, guest.domid) = (1, rig.hosts[1].xl.restore(saved).unwrap());
    assert!(!guest.wait_resumed().unwrap().0);
    guest.wait_commands(10).unwrap();
    // As if it had never been away; and now it is destroyed.
    let report = guest.report().unwrap();
    check(&report);
    assert_eq!((report.errors, report.disconnects), (0, 0), "{report:?}");
    let domid = guest.domid;
    drop(guest);
    rig.hosts[1].xl.destroy(domid).unwrap();
    rig.wait_until_free().unwrap();
    rig.attach_disk(&other).unwrap();
    other.wait_ready().unwrap();
    rig.end_unnoticed(other);
}

/// Nobody will restore the guest: its device is had back by hand.
#[test]
fn what_a_saved_guest_holds_is_taken_away() {
    programs::build().unwrap();
    let rig = Rig::start(&RigOptions {
        saved_hold_seconds: Some("\"forever\"".into()),
        ..RigOptions::default()
    })
    .unwrap();
    let device = format!("{EXPORTER}/0-1");
    let guest = working(&rig, &GuestOptions::new("guest"));
    // Not while its guest runs, on any host.
    for host in [0, 1] {
        let refused = rig.xl_vusb(host, &["release", &device]).unwrap();
        let text = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{text}");
        assert!(text.contains("host-a"), "{text}");
    }
    let saved = rig.hosts[0].xl.save(guest.domid).unwrap();
    drop((saved, guest));
    let released = |rig: &Rig| rig.xl_vusb(1, &["release", &device]).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !released(&rig).status.success() {
        assert!(Instant::now() < deadline, "{}", rig.log_tails());
        std::thread::sleep(Duration::from_millis(50));
    }
    rig.wait_until_free().unwrap();
    let text = released(&rig).stderr;
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("nobody holds"), "{text}");
    let guest = working(&rig, &GuestOptions::new("other"));
    rig.end_unnoticed(guest);
}

/// Its host has lost power, and nobody starts the VM again: its device is had back by hand.
#[test]
fn what_a_vm_of_a_host_that_died_holds_is_taken_away() {
    programs::build().unwrap();
    let mut rig = Rig::start(&RigOptions::default()).unwrap();
    let device = format!("{EXPORTER}/0-1");
    let guest = working(&rig, &GuestOptions::new("guest"));
    let release = |rig: &Rig, more: &[&str]| {
        let output = rig
            .xl_vusb(1, &[&["release", &device], more].concat())
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), text)
    };
    let (released, text) = release(&rig, &["--force", "1"]);
    assert!(!released && text.contains("is not gone"), "{text}");
    rig.hosts[0].lose_power().unwrap();
    drop(guest);
    let deadline = Instant::now() + Duration::from_secs(20);
    let text = loop {
        let (released, text) = release(&rig, &[]);
        assert!(!released, "{text}");
        if text.contains("not been connected for") {
            break text;
        }
        assert!(Instant::now() < deadline, "{text}\n{}", rig.log_tails());
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(text.contains("held by host-a (domain 1)"), "{text}");
    let (_, epoch) = text.split_once("--force ").unwrap();
    let epoch = epoch.trim_end().trim_end_matches('`');
    let (released, text) = release(&rig, &["--force", "1"]);
    assert!(!released && text.contains("not its current one"), "{text}");
    let (released, text) = release(&rig, &["--force", epoch]);
    assert!(released, "{text}");
    let devices = rig.xl_vusb(1, &["devices"]).unwrap().stdout;
    let devices = String::from_utf8_lossy(&devices);
    assert!(devices.contains("free"), "{devices}");
    rig.stop().unwrap();
}

#[test]
fn restored_after_the_device_was_given_to_somebody_else() {
    let rig = rig(Some(HOLD.as_secs()));
    let mut guest = working(&rig, &GuestOptions::new("guest"));
    let saved = rig.hosts[0].xl.save(guest.domid).unwrap();
    rig.wait_until_free().unwrap();
    let mut other = Guest::start(&rig, 0, &GuestOptions::new("other")).unwrap();
    rig.attach_disk(&other).unwrap();
    other.wait_ready().unwrap();
    (guest.host, guest.domid) = (1, rig.hosts[1].xl.restore(saved).unwrap());
    let unplugged = |said: &Said| *said == Said::Unplugged;
    guest
        .wait_for("sees its disk go", Duration::from_secs(20), unplugged)
        .unwrap_or_else(|e| panic!("{e}\n{}", rig.log_tails()));
    assert!(rig.status(1).unwrap().attachments.is_empty());
    other.wait_commands(10).unwrap();
    let report = other.stop(&rig).unwrap();
    check(&report);
    assert_eq!((report.errors, report.disconnects), (0, 0), "{report:?}");
    assert_eq!(rig.end(guest).disconnects, 1);
}

/// `xl reboot` and `on_crash="restart"`: the domain is destroyed and made anew with the same uuid.
#[test]
fn rebooted_in_order_and_after_a_crash() {
    let rig = rig(None);
    let options = GuestOptions::new("guest");
    let guest = working(&rig, &options);
    check(&guest.stop(&rig).unwrap());
    let guest = started_again(&rig, 0, &options);
    // The process ends in the middle of a command, as a kernel does that crashes.
    let domid = guest.domid;
    drop(guest);
    rig.hosts[0].xl.destroy(domid).unwrap();
    let guest = started_again(&rig, 0, &options);
    rig.end_unnoticed(guest);
}

/// `on_crash="preserve"`: the domain stays, and keeps its device until it is destroyed.
#[test]
fn crashed_and_kept_then_destroyed() {
    let rig = rig(Some(HOLD.as_secs()));
    let guest = working(&rig, &GuestOptions::new("guest"));
    let domid = guest.domid;
    drop(guest);
    std::thread::sleep(HOLD * 2);
    assert_eq!(rig.status(0).unwrap().attachments.len(), 1);
    rig.hosts[0].xl.destroy(domid).unwrap();
    rig.wait_until_free().unwrap();
    let guest = working(&rig, &GuestOptions::new("other"));
    rig.end_unnoticed(guest);
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! The exporter is away for longer than it keeps a device for a VM that is gone, or it is there and
//! cannot be heard.

use std::time::{Duration, Instant};

use sim_scenarios::guest::Said;
use sim_scenarios::programs;
use sim_scenarios::rig::{EXPORTER, Guest, GuestOptions, Proxy, Rig, RigOptions};
use xen_sim::toolstack::MigrateOptions;

/// The exporter's `hold_seconds`.
const HOLD: Duration = Duration::from_secs(1);
/// Longest wait for what is to happen "in seconds".
const SOON: Duration = Duration::from_secs(60);

fn rig_with_proxy() -> (Rig, Proxy) {
    rig_with_proxy_and("")
}

/// With these keys in the hosts' `[[exporter]]` section.
fn rig_with_proxy_and(on_unreachable: &str) -> (Rig, Proxy) {
    programs::build().unwrap();
    let mut options = RigOptions {
        hold_seconds: Some(HOLD.as_secs()),
        on_unreachable: on_unreachable.into(),
        ..RigOptions::default()
    };
    let proxy = options.cuttable().unwrap();
    (Rig::start(&options).unwrap(), proxy)
}

fn working(rig: &Rig, name: &str) -> Guest {
    Guest::start_working(rig, &GuestOptions::new(name)).unwrap()
}

fn wait_until(rig: &Rig, what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !so() {
        assert!(Instant::now() < deadline, "not {what}\n{}", rig.log_tails());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A VM that lives keeps its devices, however long its host is away: the hold time is for those
/// that are gone. The guest waits.
#[test]
fn a_network_that_is_away_for_longer_than_the_hold_time() {
    let (rig, proxy) = rig_with_proxy();
    let mut guest = working(&rig, "guest");
    proxy.take_down();
    guest.stands_still(HOLD * 2).unwrap();
    proxy.set_down(false);
    guest.wait_commands(20).unwrap();
    rig.end_unnoticed(guest);
}

/// The policy says that the guest does not wait: its disk goes, and comes back with the exporter.
#[test]
fn a_network_that_is_away_for_longer_than_the_guest_waits() {
    let keys = "on-unreachable = \"disconnect\"\nunreachable-seconds = 3\n";
    let (rig, proxy) = rig_with_proxy_and(keys);
    let mut guest = working(&rig, "guest");
    let unplugged = |said: &Said| *said == Said::Unplugged;
    for round in 1..=3 {
        proxy.take_down();
        guest.wait_for("sees its disk go", SOON, unplugged).unwrap();
        // Still the guest's: nobody else gets it meanwhile.
        assert_eq!(rig.status(0).unwrap().attachments.len(), 1, "round {round}");
        proxy.set_down(false);
        guest.wait_commands(10).unwrap();
    }
    let log = rig.hosts[0].vusbd_log();
    assert!(log.contains("out of reach for too long"), "{log}");
    let report = rig.end(guest);
    // More where the machine is so busy that a connection takes longer than the guest waits.
    assert!(report.disconnects >= 3, "{report:?}");
}

/// A guest that suspends while its disk is disconnected for that reason has it where it goes on.
#[test]
fn migrated_while_its_disk_is_disconnected() {
    let keys = "on-unreachable = \"disconnect\"\nunreachable-seconds = 3\n";
    programs::build().unwrap();
    let mut options = RigOptions {
        on_unreachable: keys.into(),
        ..RigOptions::default()
    };
    let first = options.cuttable().unwrap();
    let _second = options.second_host_cuttable().unwrap();
    let rig = Rig::start(&options).unwrap();
    let mut guest = working(&rig, "guest");
    first.take_down();
    let unplugged = |said: &Said| *said == Said::Unplugged;
    guest.wait_for("sees its disk go", SOON, unplugged).unwrap();
    rig.migrate(&mut guest, 1, &MigrateOptions::default())
        .unwrap();
    assert!(!guest.wait_resumed().unwrap().0);
    guest.wait_commands(10).unwrap();
    // The first host hears of it when it can.
    first.set_down(false);
    wait_until(&rig, "forgotten", || {
        rig.status(0).unwrap().attachments.is_empty()
    });
    guest.wait_commands(10).unwrap();
    assert!(rig.end(guest).disconnects >= 1);
}

/// The guest sees its disk go at once. That the exporter does not know is said; the device is the
/// guest's again when it is heard of, and can be taken away then.
#[test]
fn detached_while_the_exporter_is_away() {
    let (rig, proxy) = rig_with_proxy();
    let mut guest = working(&rig, "guest");
    proxy.take_down();
    let output = rig.xl_vusb(0, &["detach", "guest", "1"]).unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("it was not given back"), "{text}");
    let unplugged = |said: &Said| *said == Said::Unplugged;
    guest.wait_for("sees its disk go", SOON, unplugged).unwrap();
    proxy.set_down(false);
    guest.wait_commands(10).unwrap();
    rig.xl_vusb_json(0, &["detach", "guest", "1"]).unwrap();
    guest.wait_for("sees its disk go", SOON, unplugged).unwrap();
    rig.attach_disk(&guest).unwrap();
    guest.wait_commands(10).unwrap();
    assert_eq!(rig.end(guest).disconnects, 2);
}

/// Nobody can tell the exporter that the domain is gone. It is told when it is back.
#[test]
fn destroyed_while_the_exporter_is_away() {
    let (rig, proxy) = rig_with_proxy();
    let guest = working(&rig, "first");
    proxy.take_down();
    let domid = guest.domid;
    drop(guest);
    rig.hosts[0].xl.destroy(domid).unwrap();
    wait_until(&rig, "forgotten", || {
        rig.status(0).unwrap().controllers.is_empty()
    });
    proxy.set_down(false);
    rig.wait_for_exporter().unwrap();
    wait_until(&rig, "free", || {
        let devices = rig.xl_vusb(0, &["devices"]).unwrap();
        String::from_utf8_lossy(&devices.stdout).contains("free")
    });
    let guest = working(&rig, "second");
    rig.end_unnoticed(guest);
}

/// Connections that stand and carry nothing: noticed in seconds, on both kinds of connection.
#[test]
fn a_peer_that_is_there_and_not_heard() {
    let (rig, proxy) = rig_with_proxy();
    let mut guest = working(&rig, "guest");
    proxy.set_swallowing(true);
    wait_until(&rig, "noticed", || {
        rig.status(0).unwrap().exporters[0].error.is_some()
            // By either end: the exporter, too, closes a connection on which it hears nothing.
            && rig.hosts[0]
                .vusbd_log()
                .contains("connection to the exporter lost")
    });
    proxy.set_swallowing(false);
    guest.wait_commands(20).unwrap();
    rig.wait_for_exporter().unwrap();
    let devices = rig.xl_vusb(0, &["devices"]).unwrap();
    let text = String::from_utf8_lossy(&devices.stdout);
    assert!(text.contains(&format!("{EXPORTER}/0-1")), "{text}");
    rig.end_unnoticed(guest);
}

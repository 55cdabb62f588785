// SPDX-License-Identifier: GPL-3.0-or-later
//! The network between host and exporter is cut, and daemons are restarted, under load.

use std::time::Duration;

use sim_scenarios::programs;
use sim_scenarios::rig::{Guest, GuestOptions, Proxy, Rig, RigOptions};
use xen_sim::toolstack::MigrateOptions;

fn rig_with_proxy() -> (Rig, Proxy) {
    programs::build().unwrap();
    let mut options = RigOptions::default();
    let proxy = options.cuttable().unwrap();
    (Rig::start(&options).unwrap(), proxy)
}

fn working(rig: &Rig) -> Guest {
    Guest::start_working(rig, &GuestOptions::new("guest")).unwrap()
}

#[test]
fn a_cut_connection_is_resumed_and_nothing_is_executed_twice() {
    let (rig, proxy) = rig_with_proxy();
    let mut guest = working(&rig);
    for _ in 0..10 {
        proxy.cut();
        guest.wait_commands(10).unwrap();
    }
    let attachments = rig.status(0).unwrap().attachments;
    let reconnects = attachments[0].counters.reconnects;
    assert!(reconnects >= 5, "{reconnects} reconnects");
    rig.end_unnoticed(guest);
}

/// A device that cannot be opened when its connection is made again is asked for until it can.
#[test]
fn a_device_that_is_not_ready_is_waited_for() {
    let (rig, proxy) = rig_with_proxy();
    let mut guest = working(&rig);
    let mut devices = rig.exporter.devices().unwrap();
    devices.tell("0-1", "fail-open 4").unwrap();
    proxy.cut();
    guest.wait_commands(20).unwrap();
    let log = rig.hosts[0].vusbd_log();
    assert!(log.contains("not ready"), "{}", rig.log_tails());
    rig.end_unnoticed(guest);
}

#[test]
fn a_network_that_is_away_for_a_while() {
    let (rig, proxy) = rig_with_proxy();
    let mut guest = working(&rig);
    proxy.set_down(true);
    proxy.cut();
    // The guest waits; its URBs are neither answered nor lost.
    guest.stands_still(Duration::from_millis(700)).unwrap();
    proxy.set_down(false);
    guest.wait_commands(20).unwrap();
    rig.end_unnoticed(guest);
}

#[test]
fn a_migration_with_the_network_cut_in_the_middle() {
    let (rig, proxy) = rig_with_proxy();
    let mut guest = working(&rig);
    for round in 0..4 {
        let there = 1 - guest.host;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(20 * round));
                proxy.cut();
            });
            rig.migrate(&mut guest, there, &MigrateOptions::default())
                .unwrap();
        });
        assert!(!guest.wait_resumed().unwrap().0);
        guest.wait_commands(10).unwrap();
    }
    rig.end_unnoticed(guest);
}

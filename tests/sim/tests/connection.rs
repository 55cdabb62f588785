// SPDX-License-Identifier: GPL-3.0-or-later
//! The network between host and exporter is cut, and daemons are restarted, under load.

use sim_scenarios::programs;
use sim_scenarios::rig::{Guest, GuestOptions, Proxy, Rig, RigOptions, free_port};
use xen_sim::toolstack::MigrateOptions;

fn rig_with_proxy() -> (Rig, Proxy) {
    programs::build().unwrap();
    let port = free_port().unwrap();
    let proxy = Proxy::start(port).unwrap();
    let options = RigOptions {
        exporter_port: Some(port),
        exporter_address: Some(proxy.address()),
        ..RigOptions::default()
    };
    (Rig::start(&options).unwrap(), proxy)
}

fn working(rig: &Rig) -> Guest {
    let mut guest = Guest::start(rig, 0, &GuestOptions::new("guest")).unwrap();
    rig.attach_disk(&guest).unwrap();
    guest.wait_ready().unwrap();
    guest.wait_commands(5).unwrap();
    guest
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

#[test]
fn a_network_that_is_away_for_a_while() {
    let (rig, proxy) = rig_with_proxy();
    let mut guest = working(&rig);
    proxy.set_down(true);
    proxy.cut();
    // The guest waits; its URBs are neither answered nor lost.
    let before = guest.report().unwrap().commands;
    std::thread::sleep(std::time::Duration::from_millis(700));
    let stalled = guest.report().unwrap().commands;
    assert!(stalled <= before + 1, "{before} {stalled}");
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
                std::thread::sleep(std::time::Duration::from_millis(20 * round));
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

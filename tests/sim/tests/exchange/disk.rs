// SPDX-License-Identifier: GPL-3.0-or-later
//! A disk in the middle of its guest's commands: what was written is there, whatever happened to its plug.

use std::time::Duration;

use sim_scenarios::guest::{Report, Said};
use sim_scenarios::random::Seed;
use sim_scenarios::rig::{EXPORTER, Guest, GuestOptions, Rig, RigOptions, SECOND_EXPORTER};
use sim_scenarios::{demo, programs};
use xen_sim::toolstack::MigrateOptions;

use super::{tell, unplugged, wait_until_at, wait_until_waiting};

/// The same disk, with its default serial number, at 0-1 of the first exporter and at 0-1 and 0-2 of the second.
const DISK: &str = "[[simulated]]\nkind = \"disk\"\nfile = \"{disk}\"\nserial = \"000000000001\"\n";
const NAME: &str = "exporter/1209:0001:000000000001";

fn rig() -> Rig {
    programs::build().unwrap();
    Rig::start(&RigOptions {
        second_exporter: Some(unplugged(&DISK.repeat(2))),
        ..RigOptions::default()
    })
    .unwrap()
}

fn working(rig: &Rig, on_exchange: &str) -> Guest {
    let mut guest = Guest::start(rig, 0, &GuestOptions::new("guest")).unwrap();
    let attach = ["attach", "guest", NAME, "--on-exchange", on_exchange];
    rig.xl_vusb_json(0, &attach).unwrap();
    guest.wait_working().unwrap();
    guest
}

/// The guest has seen nothing wrong, and the disk has what it wrote.
fn end(rig: Rig, guest: Guest) -> Report {
    let report = guest.stop(&rig).unwrap();
    assert_eq!(
        (report.lost, report.duplicated, report.mismatches),
        (0, 0, 0),
        "{report:?}"
    );
    assert_eq!(report.violations, Vec::<String>::new());
    assert_eq!(
        report.sha256,
        Some(demo::sha256(rig.exporter.disk()).unwrap())
    );
    assert_eq!(rig.stop().unwrap(), Vec::<String>::new());
    report
}

#[test]
fn paused_it_goes_on_at_another_exporter_and_back() {
    let rig = rig();
    let mut guest = working(&rig, "pause");
    let mut from = (EXPORTER, "0-1");
    for to in [
        (SECOND_EXPORTER, "0-1"),
        (SECOND_EXPORTER, "0-2"),
        (EXPORTER, "0-1"),
    ] {
        tell(&rig, from.0, from.1, "unplug");
        tell(&rig, to.0, to.1, "plug");
        let now = wait_until_at(&rig, 0, to.0, to.1);
        assert_eq!((now.controller, now.port), (0, 1));
        guest.wait_commands(20).unwrap();
        from = to;
    }
    assert_eq!(end(rig, guest).disconnects, 0);
}

#[test]
fn replugged_it_is_disconnected_and_connected_once() {
    let rig = rig();
    let mut guest = working(&rig, "replug");
    tell(&rig, EXPORTER, "0-1", "unplug");
    let gone = |said: &Said| *said == Said::Unplugged;
    guest
        .wait_for("sees its disk go", Duration::from_secs(20), gone)
        .unwrap();
    wait_until_waiting(&rig, 0);
    tell(&rig, SECOND_EXPORTER, "0-1", "plug");
    wait_until_at(&rig, 0, SECOND_EXPORTER, "0-1");
    guest.wait_commands(20).unwrap();
    assert_eq!(end(rig, guest).disconnects, 1);
}

/// The guest goes to the other host; so many milliseconds later the disk is pulled out, and after so many more it
/// is plugged in elsewhere.
fn migrate_while_moved(
    rig: &Rig,
    guest: &mut Guest,
    [from, to]: [(&str, &str); 2],
    (before, between): (u64, u64),
) {
    let target = 1 - guest.host;
    std::thread::scope(|scope| {
        let migration = scope.spawn(move || rig.migrate(guest, target, &MigrateOptions::default()));
        std::thread::sleep(Duration::from_millis(before));
        tell(rig, from.0, from.1, "unplug");
        std::thread::sleep(Duration::from_millis(between));
        tell(rig, to.0, to.1, "plug");
        migration.join().unwrap().unwrap();
    });
}

/// At any moment the disk is somewhere else, the guest is elsewhere, or a daemon is another.
#[test]
fn whatever_happens_while_it_is_moved() {
    let seed = Seed::new();
    let mut random = seed.random(13);
    let mut rig = rig();
    let mut guest = working(&rig, "pause");
    let places = [
        (EXPORTER, "0-1"),
        (SECOND_EXPORTER, "0-1"),
        (SECOND_EXPORTER, "0-2"),
    ];
    let mut at = 0;
    for round in 0..10 {
        let to = random.below(places.len() as u64) as usize;
        let (from, next) = (places[at], places[to]);
        let what = random.below(4);
        if what == 0 {
            let target = 1 - guest.host;
            let (before, between) = (random.below(60), random.below(200));
            println!(
                "round {round}: on its way to host {target}, moved after {before} ms for {between} ms"
            );
            migrate_while_moved(&rig, &mut guest, [from, next], (before, between));
        } else {
            tell(&rig, from.0, from.1, "unplug");
        }
        match what {
            0 => (),
            1 => {
                println!("round {round}: vusbd is killed while it is moved");
                rig.hosts[guest.host].restart_vusbd().unwrap();
            }
            2 => {
                println!("round {round}: the exporter that has it no more is killed");
                // It would start with its disk plugged in.
                if from.0 == SECOND_EXPORTER {
                    rig.second.as_mut().unwrap().restart().unwrap();
                }
            }
            _ => println!("round {round}: only moved"),
        }
        if what != 0 {
            tell(&rig, next.0, next.1, "plug");
        }
        wait_until_at(&rig, guest.host, next.0, next.1);
        guest.wait_commands(10).unwrap();
        at = to;
    }
    assert_eq!(end(rig, guest).disconnects, 0);
}

/// The host that the guest is about to leave may have fetched the disk when the other one has just learnt that it
/// is waited for: it is neither lost nor waited for in vain.
#[test]
fn it_is_moved_in_the_instant_in_which_the_guest_moves() {
    let seed = Seed::new();
    let mut random = seed.random(14);
    let rig = rig();
    let mut guest = working(&rig, "pause");
    let mut places = [(EXPORTER, "0-1"), (SECOND_EXPORTER, "0-1")];
    for round in 0..12 {
        let (before, between) = (random.below(60), random.below(10));
        println!("round {round}: moved after {before} ms for {between} ms");
        let [from, to] = places;
        migrate_while_moved(&rig, &mut guest, [from, to], (before, between));
        wait_until_at(&rig, guest.host, to.0, to.1);
        guest.wait_commands(10).unwrap();
        places.reverse();
    }
    assert_eq!(end(rig, guest).disconnects, 0);
}

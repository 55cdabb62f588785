// SPDX-License-Identifier: GPL-3.0-or-later
//! Daemons are killed at any moment and started again. The guest notices a pause.

use std::time::{Duration, Instant};

use sim_scenarios::programs;
use sim_scenarios::random::Random;
use sim_scenarios::rig::{Guest, GuestOptions, Rig, RigOptions};
use xen_sim::toolstack::MigrateOptions;

/// What a scenario's moments are drawn from; `XEN_VUSB_SEED` overrides it.
fn seed(default: u64) -> u64 {
    let seed = std::env::var("XEN_VUSB_SEED").ok();
    let seed = seed.and_then(|s| s.parse().ok()).unwrap_or(default);
    eprintln!("XEN_VUSB_SEED={seed}");
    seed
}

fn rig(seed: u64) -> Rig {
    rig_with(seed, RigOptions::default())
}

fn rig_with(seed: u64, options: RigOptions) -> Rig {
    programs::build().unwrap();
    Rig::start(&RigOptions { seed, ..options }).unwrap()
}

fn working(rig: &Rig, seed: u64) -> Guest {
    let options = GuestOptions {
        seed,
        ..GuestOptions::new("guest")
    };
    Guest::start_working(rig, &options).unwrap()
}

/// Until a moment that nothing knows of.
fn pause(random: &mut Random, most_us: u64) {
    std::thread::sleep(Duration::from_micros(random.next_u64() % most_us));
}

#[test]
fn vusbd_is_killed_again_and_again_under_load() {
    let seed = seed(41);
    let mut random = Random::new(seed);
    let rig = rig(seed);
    let mut guest = working(&rig, seed);
    for round in 0..24 {
        pause(&mut random, 60_000);
        rig.hosts[0].restart_vusbd().unwrap();
        // Every other time it is killed again before it has come far.
        if round % 2 == 1 {
            guest.wait_commands(3).unwrap();
        }
    }
    guest.wait_commands(30).unwrap();
    let log = rig.hosts[0].vusbd_log();
    let taken_up = log.matches("frontend taken up again").count();
    assert!(taken_up >= 12, "taken up {taken_up} times");
    let status = rig.status(0).unwrap();
    assert_eq!(status.attachments.len(), 1);
    assert_eq!(status.controllers[0].hand_off, "Serving");
    rig.end_unnoticed(guest);
}

#[test]
fn vusbd_is_restarted_in_order_and_told_of_at_once() {
    let seed = seed(42);
    let rig = rig(seed);
    let mut guest = working(&rig, seed);
    for _ in 0..3 {
        rig.hosts[0].terminate_vusbd().unwrap();
        for arguments in [
            &["attach", "guest", "exporter/0-1"],
            &["detach", "guest", "1"],
        ] as [&[&str]; 2]
        {
            let output = rig.xl_vusb(0, arguments).unwrap();
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{text}");
            assert!(text.contains("vusbd is not running"), "{text}");
        }
        rig.hosts[0].start_vusbd().unwrap();
        guest.wait_commands(5).unwrap();
    }
    // And everything can still be asked for.
    assert_eq!(rig.status(0).unwrap().attachments.len(), 1);
    rig.end_unnoticed(guest);
}

/// Migrates there and back while `disturb` runs, so many times.
fn migrate_disturbed(seed: u64, rounds: u32, disturb: impl Fn(&Rig, usize, usize)) {
    migrate_disturbed_in(rig(seed), seed, rounds, disturb);
}

fn migrate_disturbed_in(rig: Rig, seed: u64, rounds: u32, disturb: impl Fn(&Rig, usize, usize)) {
    let mut random = Random::new(seed);
    let mut guest = working(&rig, seed);
    for _ in 0..rounds {
        let (from, to) = (guest.host, 1 - guest.host);
        let wait = Duration::from_micros(random.below(250_000));
        std::thread::scope(|scope| {
            let (rig, guest) = (&rig, &mut guest);
            let migration = scope.spawn(move || rig.migrate(guest, to, &MigrateOptions::default()));
            std::thread::sleep(wait);
            // Not in a thread: what that starts ends with it.
            disturb(rig, from, to);
            let migrated = migration.join().unwrap();
            migrated.unwrap_or_else(|e| panic!("{e}\n{}", rig.log_tails()));
        });
        assert!(!guest.wait_resumed().unwrap().0);
        guest.wait_commands(5).unwrap();
        let here = rig.status(guest.host).unwrap();
        assert_eq!(here.attachments.len(), 1, "{here:?}");
    }
    rig.end_unnoticed(guest);
}

#[test]
fn the_source_is_killed_in_the_middle_of_a_migration() {
    migrate_disturbed(seed(43), 6, |rig, from, _| {
        rig.hosts[from].restart_vusbd().unwrap();
    });
}

#[test]
fn the_target_is_killed_in_the_middle_of_a_migration() {
    migrate_disturbed(seed(44), 6, |rig, _, to| {
        rig.hosts[to].restart_vusbd().unwrap();
    });
}

#[test]
fn source_and_target_are_killed_in_the_middle_of_a_migration() {
    migrate_disturbed(seed(45), 4, |rig, from, to| {
        rig.hosts[from].restart_vusbd().unwrap();
        rig.hosts[to].restart_vusbd().unwrap();
    });
}

/// Watches are lost with xenstored, and what they would have said; the states that the toolstack and the
/// guest wait for are not.
#[test]
fn xenstored_is_lost_in_the_middle_of_a_migration() {
    let seed = seed(49);
    let options = RigOptions {
        lose_store: true,
        ..RigOptions::default()
    };
    let rig = rig_with(seed, options);
    migrate_disturbed_in(rig, seed, 6, |rig, from, to| {
        std::thread::scope(|scope| {
            for host in [from, to] {
                scope.spawn(move || rig.hosts[host].lose_store(Duration::from_millis(150)));
            }
        });
        // Soon; on a busy machine not within the time that it was away.
        let lost = || {
            rig.hosts[to]
                .vusbd_log()
                .contains("connection to xenstored lost")
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !lost() {
            assert!(Instant::now() < deadline, "{}", rig.log_tails());
            std::thread::sleep(Duration::from_millis(5));
        }
    });
}

/// What was in flight at the exporter may fail, since nobody knows whether the device saw it. The
/// guest stays connected, resets its device and repeats the command.
#[test]
fn the_exporter_is_killed_under_load() {
    let seed = seed(46);
    let mut random = Random::new(seed);
    let mut rig = rig(seed);
    let mut guest = working(&rig, seed);
    for _ in 0..5 {
        pause(&mut random, 100_000);
        rig.exporter.restart().unwrap();
        guest.wait_commands(10).unwrap();
    }
    let report = rig.end(guest);
    // A command of this guest is at most six URBs.
    assert!(report.errors <= 5 * 6, "{report:?}");
    assert_eq!(report.disconnects, 0, "{report:?}");
}

#[test]
fn vusbd_and_the_exporter_are_killed_together() {
    let seed = seed(47);
    let mut random = Random::new(seed);
    let mut rig = rig(seed);
    let mut guest = working(&rig, seed);
    for _ in 0..5 {
        pause(&mut random, 50_000);
        rig.hosts[0].kill_vusbd().unwrap();
        rig.exporter.restart().unwrap();
        rig.hosts[0].start_vusbd().unwrap();
        guest.wait_commands(10).unwrap();
    }
    let report = rig.end(guest);
    assert!(report.errors <= 5 * 6, "{report:?}");
    assert_eq!(report.disconnects, 0, "{report:?}");
}

/// A rig whose exporter does not hold for long what a destroyed guest had.
fn rig_that_releases(seed: u64) -> Rig {
    let options = RigOptions {
        hold_seconds: Some(1),
        ..RigOptions::default()
    };
    rig_with(seed, options)
}

/// The toolstack's side of a destroyed domain, and the exporter's, are put right by whoever comes
/// after the vusbd that did not see it.
#[test]
fn a_domain_that_goes_away_while_nobody_looks() {
    let seed = seed(48);
    let rig = rig_that_releases(seed);
    let guest = working(&rig, seed);
    rig.hosts[0].kill_vusbd().unwrap();
    let (domid, xl) = (guest.domid, &rig.hosts[0].xl);
    drop(guest);
    std::thread::scope(|scope| {
        // It waits for the backend to be closed.
        let destroyed = scope.spawn(|| xl.destroy(domid));
        std::thread::sleep(Duration::from_millis(300));
        rig.hosts[0].start_vusbd().unwrap();
        destroyed.join().unwrap().unwrap();
    });
    // By what the exporter does, not by the words of the vusbd that told it: where something else starts
    // one at once (systemd), that one has seen the domain go itself.
    rig.wait_until_free().unwrap();
    assert!(rig.status(0).unwrap().controllers.is_empty());
    assert_eq!(rig.stop().unwrap(), Vec::<String>::new());
}

/// The same at any moment of both: killed as the domain goes, and again while the next one puts it right.
#[test]
fn a_domain_that_goes_away_while_vusbd_is_started_again() {
    let seed = seed(50);
    let mut random = Random::new(seed);
    let rig = rig_that_releases(seed);
    for _ in 0..8 {
        let guest = working(&rig, seed);
        let (domid, xl) = (guest.domid, &rig.hosts[0].xl);
        drop(guest);
        std::thread::scope(|scope| {
            let destroyed = scope.spawn(|| xl.destroy(domid));
            for _ in 0..2 {
                pause(&mut random, 40_000);
                rig.hosts[0].restart_vusbd().unwrap();
            }
            let destroyed = destroyed.join().unwrap();
            destroyed.unwrap_or_else(|e| panic!("{e}\n{}", rig.log_tails()));
        });
        rig.wait_until_free().unwrap();
        rig.wait_for_exporter().unwrap();
        assert!(rig.status(0).unwrap().controllers.is_empty());
    }
    assert_eq!(rig.stop().unwrap(), Vec::<String>::new());
}

/// vusbd is started again and cannot serve a controller.
fn not_served(rig: &Rig, guest: &Guest) {
    rig.hosts[0].kill_vusbd().unwrap();
    set_num_ports(rig, guest, "none");
    rig.hosts[0].start_vusbd().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let log = || rig.hosts[0].vusbd_log();
    while !log().contains("num-ports is not 1 to 31") {
        assert!(Instant::now() < deadline, "{}", log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn set_num_ports(rig: &Rig, guest: &Guest, text: &str) {
    let path = format!("/local/domain/0/backend/vusb/{}/0/num-ports", guest.domid);
    let mut store = rig.hosts[0].xl.store().unwrap();
    store.write(&path, text).unwrap();
}

fn short_hold() -> RigOptions {
    RigOptions {
        hold_seconds: Some(1),
        ..RigOptions::default()
    }
}

/// Its guest runs: no other gets its devices.
#[test]
fn a_controller_that_vusbd_cannot_serve_keeps_its_devices() {
    let seed = seed(48);
    let rig = rig_with(seed, short_hold());
    let mut guest = working(&rig, seed);
    not_served(&rig, &guest);
    std::thread::sleep(Duration::from_secs(3));
    let other = Guest::start(&rig, 0, &GuestOptions::new("other")).unwrap();
    let refused = rig.attach_disk(&other).unwrap_err().to_string();
    assert!(refused.contains("guest"), "{refused}\n{}", rig.log_tails());
    rig.hosts[0].xl.destroy(other.domid).unwrap();
    drop(other);
    rig.hosts[0].kill_vusbd().unwrap();
    set_num_ports(&rig, &guest, "4");
    rig.hosts[0].start_vusbd().unwrap();
    guest.wait_commands(10).unwrap();
    rig.end_unnoticed(guest);
}

#[test]
fn a_controller_that_vusbd_did_not_serve_is_gone_with_its_domain() {
    let seed = seed(49);
    let rig = rig_with(seed, short_hold());
    let guest = working(&rig, seed);
    not_served(&rig, &guest);
    rig.hosts[0].xl.destroy(guest.domid).unwrap();
    drop(guest);
    rig.wait_until_free().unwrap();
    assert_eq!(rig.stop().unwrap(), Vec::<String>::new());
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! Migrations in which a party is missing, or the device goes. The guest runs on one side with its
//! devices, and a later migration works.

use std::time::{Duration, Instant};

use sim_scenarios::guest::Said;
use sim_scenarios::programs;
use sim_scenarios::rig::{Guest, GuestOptions, Rig, RigOptions};
use xen_sim::toolstack::{Failure, MigrateError, MigrateOptions, Timeouts, Toolstack};

fn rig() -> Rig {
    programs::build().unwrap();
    let mut rig = Rig::start(&RigOptions::default()).unwrap();
    be_impatient(&mut rig);
    rig
}

/// libxl waits ten seconds for a backend; here it is known when none is there.
fn be_impatient(rig: &mut Rig) {
    for host in &mut rig.hosts {
        let timeouts = Timeouts {
            backend: Duration::from_secs(2),
            ..Timeouts::default()
        };
        host.xl = Toolstack::connect(host.dir())
            .unwrap()
            .with_timeouts(timeouts);
    }
}

fn working(rig: &Rig) -> Guest {
    Guest::start_working(rig, &GuestOptions::new("guest")).unwrap()
}

/// Moves it to the other host, where it must go on.
fn move_on(rig: &Rig, guest: &mut Guest) {
    let there = 1 - guest.host;
    rig.migrate(guest, there, &MigrateOptions::default())
        .unwrap_or_else(|e| panic!("{e:?}\n{}", rig.log_tails()));
    assert!(!guest.wait_resumed().unwrap().0);
    guest.wait_commands(10).unwrap();
    assert_eq!(rig.status(there).unwrap().attachments.len(), 1);
}

/// Until a host's vusbd has logged this.
fn wait_for_log(rig: &Rig, host: usize, text: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !rig.hosts[host].vusbd_log().contains(text) {
        assert!(Instant::now() < deadline, "{text}\n{}", rig.log_tails());
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn assert_resumed_at_source<T: std::fmt::Debug>(result: &Result<T, MigrateError>) {
    assert!(
        matches!(result, Err(MigrateError::ResumedAtSource { .. })),
        "{result:?}"
    );
}

#[test]
fn the_target_dies_while_the_guest_is_on_its_way() {
    let rig = rig();
    let mut guest = working(&rig);
    let failed = std::thread::scope(|scope| {
        let (rig, guest) = (&rig, &mut guest);
        let options = MigrateOptions {
            round_interval: Duration::from_millis(200),
            ..MigrateOptions::default()
        };
        let migration = scope.spawn(move || rig.migrate(guest, 1, &options));
        // The domain is being built there, and its memory is being copied.
        std::thread::sleep(Duration::from_millis(200));
        rig.hosts[1].kill_vusbd().unwrap();
        migration.join().unwrap()
    });
    assert_resumed_at_source(&failed);
    assert!(guest.wait_resumed().unwrap().0);
    guest.wait_commands(10).unwrap();
    rig.hosts[1].start_vusbd().unwrap();
    rig.wait_for_exporter().unwrap();
    move_on(&rig, &mut guest);
    rig.end_unnoticed(guest);
}

#[test]
fn the_target_dies_after_go() {
    let rig = rig();
    let mut guest = working(&rig);
    rig.migrate(&mut guest, 1, &MigrateOptions::default())
        .unwrap();
    rig.hosts[1].kill_vusbd().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    rig.hosts[1].start_vusbd().unwrap();
    assert!(!guest.wait_resumed().unwrap().0);
    guest.wait_commands(10).unwrap();
    move_on(&rig, &mut guest);
    rig.end_unnoticed(guest);
}

/// Migrates with the source's vusbd killed once the guest is suspended; it stays away.
fn migrate_without_source(
    rig: &Rig,
    guest: &mut Guest,
    failure: Option<Failure>,
) -> Result<(), MigrateError> {
    std::thread::scope(|scope| {
        let options = MigrateOptions {
            failure,
            ..MigrateOptions::default()
        };
        let migration = scope.spawn(move || rig.migrate(guest, 1, &options));
        // libxl makes the target's controller in the pause.
        wait_for_log(rig, 1, "controller appeared");
        rig.hosts[0].kill_vusbd().unwrap();
        migration.join().unwrap().map(drop)
    })
}

#[test]
fn the_source_dies_after_the_suspend() {
    let rig = rig();
    let mut guest = working(&rig);
    migrate_without_source(&rig, &mut guest, None).unwrap();
    assert!(!guest.wait_resumed().unwrap().0);
    guest.wait_commands(10).unwrap();
    // Back again, it must not take back what is no longer its own.
    rig.hosts[0].start_vusbd().unwrap();
    rig.wait_for_exporter().unwrap();
    guest.wait_commands(10).unwrap();
    move_on(&rig, &mut guest);
    rig.end_unnoticed(guest);
}

#[test]
fn the_source_dies_after_the_suspend_and_has_the_guest_back() {
    let rig = rig();
    let mut guest = working(&rig);
    let failed = migrate_without_source(&rig, &mut guest, Some(Failure::BeforeGo));
    assert_resumed_at_source(&failed);
    rig.hosts[0].start_vusbd().unwrap();
    assert!(guest.wait_resumed().unwrap().0);
    guest.wait_commands(10).unwrap();
    rig.wait_for_exporter().unwrap();
    move_on(&rig, &mut guest);
    rig.end_unnoticed(guest);
}

#[test]
fn the_exporter_is_out_of_the_targets_reach() {
    programs::build().unwrap();
    let mut options = RigOptions::default();
    let proxy = options.second_host_cuttable().unwrap();
    let rig = Rig::start(&options).unwrap();
    let mut guest = working(&rig);
    proxy.take_down();
    let failed = rig.migrate(&mut guest, 1, &MigrateOptions::default());
    // By the target, not because it was silent.
    let refused = failed.as_ref().is_err_and(MigrateError::is_refusal);
    assert!(refused, "{failed:?}");
    assert!(guest.wait_resumed().unwrap().0);
    guest.wait_commands(10).unwrap();
    let log = rig.hosts[1].vusbd_log();
    assert!(log.contains("an exporter is out of reach"), "{log}");
    proxy.set_down(false);
    rig.wait_for_exporter().unwrap();
    move_on(&rig, &mut guest);
    rig.end_unnoticed(guest);
}

/// The target was told to take guests all the same: the guest comes, sees its disk go, and has it back
/// when the exporter is heard of.
#[test]
fn the_exporter_is_out_of_the_targets_reach_and_the_guest_comes_all_the_same() {
    programs::build().unwrap();
    let mut options = RigOptions {
        hand_off: "unreachable = \"go-on\"\n".into(),
        ..RigOptions::default()
    };
    let proxy = options.second_host_cuttable().unwrap();
    let rig = Rig::start(&options).unwrap();
    let mut guest = working(&rig);
    proxy.take_down();
    rig.migrate(&mut guest, 1, &MigrateOptions::default())
        .unwrap_or_else(|e| panic!("{e:?}\n{}", rig.log_tails()));
    let unplugged = |said: &Said| *said == Said::Unplugged;
    guest
        .wait_for("sees its disk go", Duration::from_secs(20), unplugged)
        .unwrap_or_else(|e| panic!("{e}\n{}", rig.log_tails()));
    assert!(rig.status(1).unwrap().attachments.is_empty());
    proxy.set_down(false);
    rig.wait_for_exporter().unwrap();
    guest
        .wait_commands(10)
        .unwrap_or_else(|e| panic!("{e}\n{}", rig.log_tails()));
    move_on(&rig, &mut guest);
    assert_eq!(rig.end(guest).disconnects, 1);
}

/// The next one is asked for before the guest has done anything at the target.
#[test]
fn migrations_back_to_back() {
    let rig = rig();
    let mut guest = working(&rig);
    for _ in 0..6 {
        let there = 1 - guest.host;
        rig.migrate(&mut guest, there, &MigrateOptions::default())
            .unwrap_or_else(|e| panic!("{e:?}\n{}", rig.log_tails()));
    }
    guest.wait_commands(20).unwrap();
    assert_eq!(rig.status(guest.host).unwrap().attachments.len(), 1);
    assert!(rig.status(1 - guest.host).unwrap().attachments.is_empty());
    rig.end_unnoticed(guest);
}

/// Wherever it was then, the guest sees that its disk is gone, once, and has it again when it is plugged in again.
#[test]
fn the_device_is_unplugged_in_the_middle() {
    let rig = rig();
    let mut devices = rig.exporter.devices().unwrap();
    let mut guest = working(&rig);
    for round in 0..4 {
        let there = 1 - guest.host;
        std::thread::scope(|scope| {
            let (rig, guest) = (&rig, &mut guest);
            let migration =
                scope.spawn(move || rig.migrate(guest, there, &MigrateOptions::default()));
            // From the copying of memory to the time after "go".
            std::thread::sleep(Duration::from_millis(30 * (round + 1)));
            devices.tell("0-1", "unplug").unwrap();
            let migrated = migration.join().unwrap();
            migrated.unwrap_or_else(|e| panic!("{e:?}\n{}", rig.log_tails()));
        });
        let unplugged = |said: &Said| *said == Said::Unplugged;
        guest
            .wait_for("sees its disk go", Duration::from_secs(20), unplugged)
            .unwrap_or_else(|e| panic!("{e}\n{}", rig.log_tails()));
        devices.tell("0-1", "plug").unwrap();
        guest.wait_commands(10).unwrap();
    }
    assert_eq!(rig.end(guest).disconnects, 4);
}

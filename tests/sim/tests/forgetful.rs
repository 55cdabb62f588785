// SPDX-License-Identifier: GPL-3.0-or-later
//! The exporter is killed while a guest is on its way, and started again: it does not know any more that
//! the guest is suspended, nor what was in flight.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sim_scenarios::programs;
use sim_scenarios::random::Seed;
use sim_scenarios::rig::{Guest, GuestOptions, Rig, RigOptions};
use xen_sim::toolstack::{MigrateError, MigrateOptions};

/// The exporter's `hold_seconds`, for guests that were destroyed. Those that were saved it holds for ever.
const HOLD: Duration = Duration::from_secs(1);
/// URBs of the guest's driver that can be in flight: what may come back with an error.
const IN_FLIGHT: u64 = 6;
/// The simulated disk dies with its exporter, and forgets the command that it was in the middle of. Nobody
/// tells its driver, which finds out as on hardware.
const PATIENCE: Duration = Duration::from_secs(5);

fn rig() -> Rig {
    programs::build().unwrap();
    Rig::start(&RigOptions {
        hold_seconds: Some(HOLD.as_secs()),
        saved_hold_seconds: Some("\"forever\"".into()),
        ..RigOptions::default()
    })
    .unwrap()
}

fn working(rig: &Rig) -> Guest {
    let options = GuestOptions {
        patience: Some(PATIENCE),
        ..GuestOptions::new("guest")
    };
    Guest::start_working(rig, &options).unwrap()
}

fn wait_until(rig: &Rig, what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !so() {
        assert!(Instant::now() < deadline, "{what}\n{}", rig.log_tails());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn claims(rig: &Rig) -> usize {
    rig.hosts[0].vusbd_log().matches("lease claimed").count()
}

/// Its device is still its own after the time for which one is held whose guest was destroyed.
fn restore(rig: Rig, mut guest: Guest, saved: xen_sim::toolstack::SavedDomain) {
    std::thread::sleep(HOLD * 2);
    let other = Guest::start(&rig, 0, &GuestOptions::new("other")).unwrap();
    let refused = rig.attach_disk(&other).unwrap_err().to_string();
    assert!(refused.contains("guest"), "{refused}");
    rig.hosts[0].xl.destroy(other.domid).unwrap();
    drop(other);
    (guest.host, guest.domid) = (1, rig.hosts[1].xl.restore(saved).unwrap());
    assert!(!guest.wait_resumed().unwrap().0);
    guest.wait_commands(10).unwrap();
    let report = rig.end(guest);
    assert!(report.errors <= IN_FLIGHT, "{report:?}");
    assert_eq!(report.disconnects, 0, "{report:?}");
}

/// It hears again that the guest is suspended, before it hears that the domain is gone.
#[test]
fn restarted_while_the_guests_memory_is_saved() {
    let mut rig = rig();
    let guest = working(&rig);
    let before = claims(&rig);
    let Rig {
        hosts, exporter, ..
    } = &mut rig;
    let suspended = AtomicBool::new(false);
    let during = || {
        let frozen = || hosts[0].vusbd_log().contains("-> Frozen");
        let deadline = Instant::now() + Duration::from_secs(20);
        while !frozen() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        suspended.store(frozen(), Ordering::SeqCst);
        exporter.restart().unwrap();
        let again = || hosts[0].vusbd_log().matches("lease claimed").count() > before;
        while !again() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let saved = hosts[0].xl.save_while(guest.domid, during).unwrap();
    assert!(suspended.load(Ordering::SeqCst), "{}", rig.log_tails());
    assert!(claims(&rig) > before, "{}", rig.log_tails());
    restore(rig, guest, saved);
}

/// It is told both when it is there again, by whoever is left to tell it.
#[test]
fn away_when_the_saved_guests_domain_goes() {
    for vusbd_too in [false, true] {
        let mut rig = rig();
        let guest = working(&rig);
        let Rig {
            hosts, exporter, ..
        } = &mut rig;
        let during = || exporter.kill().unwrap();
        let saved = hosts[0].xl.save_while(guest.domid, during).unwrap();
        if vusbd_too {
            // With all that it was about to say.
            hosts[0].restart_vusbd().unwrap();
        }
        std::thread::sleep(Duration::from_secs(1));
        exporter.start_again().unwrap();
        let told = |rig: &Rig| {
            let log = rig.hosts[0].vusbd_log();
            log.contains("told that the domain is gone")
        };
        wait_until(&rig, "the exporter is not told", || told(&rig));
        restore(rig, guest, saved);
    }
}

/// At any moment of a migration, again and again. The guest is on one side or the other, and has its disk.
#[test]
fn restarted_in_the_middle_of_a_migration() {
    let mut random = Seed::new().random(50);
    let mut rig = rig();
    let mut guest = working(&rig);
    let (mut moved, mut failed) = (0, 0);
    for _ in 0..10 {
        let to = 1 - guest.host;
        let wait = Duration::from_micros(random.below(150_000));
        let Rig {
            hosts, exporter, ..
        } = &mut rig;
        let hosts = &*hosts;
        let (from, domid) = (guest.host, guest.domid);
        let migrated = std::thread::scope(|scope| {
            let migration = scope.spawn(move || {
                let options = MigrateOptions::default();
                hosts[from].xl.migrate(domid, &hosts[to].xl, &options)
            });
            std::thread::sleep(wait);
            exporter.restart().unwrap();
            migration.join().unwrap()
        });
        let stays = match migrated {
            Ok(migration) => {
                (guest.host, guest.domid) = (to, migration.domid);
                moved += 1;
                false
            }
            // The target could not ask the exporter, and said so in time.
            Err(MigrateError::ResumedAtSource { .. }) => {
                failed += 1;
                true
            }
            Err(e) => panic!("{e:?}\n{}", rig.log_tails()),
        };
        let resumed = guest.wait_resumed();
        let resumed = resumed.unwrap_or_else(|e| {
            let status = rig.status(guest.host);
            panic!(
                "{e}\n{:?}\n{status:?}\n{}",
                guest.last_report(),
                rig.log_tails()
            )
        });
        assert_eq!(resumed.0, stays);
        let went_on = guest.wait_commands(10);
        went_on.unwrap_or_else(|e| panic!("{e}\n{}", rig.log_tails()));
        rig.wait_for_exporter().unwrap();
        let here = rig.status(guest.host).unwrap();
        assert_eq!(here.attachments.len(), 1, "{here:?}");
    }
    println!("{moved} moved, {failed} stayed");
    assert!(moved > 0);
    let report = rig.end(guest);
    assert!(report.errors <= 10 * IN_FLIGHT, "{report:?}");
    assert_eq!(report.disconnects, 0, "{report:?}");
}

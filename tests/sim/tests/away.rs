// SPDX-License-Identifier: GPL-3.0-or-later
//! What is typed while a guest is away.

#[path = "away/reader.rs"]
mod reader;

use frontend_shim::ResumeMode;
use reader::{Reader, Seen};
use session::StashCounters;
use sim_scenarios::programs;
use sim_scenarios::rig::{Rig, RigOptions};
use xen_sim::toolstack::{Failure, MigrateOptions};

/// The keyboard's place: after the disk.
const KEYBOARD: &str = "0-2";

fn rig() -> Rig {
    programs::build().unwrap();
    Rig::start(&RigOptions {
        devices: "[[simulated]]\nkind = \"keyboard\"\n".into(),
        ..RigOptions::default()
    })
    .unwrap()
}

fn attach(rig: &Rig, guest: &mut Reader, name: &str) {
    let device = format!("exporter/{KEYBOARD}");
    rig.xl_vusb_json(guest.host, &["attach", name, &device])
        .unwrap();
    guest.wait(|s| *s == Seen::Opened);
}

fn press(rig: &Rig, keys: &[u8]) {
    let keys: String = keys.iter().map(|k| format!(" {k:02x}")).collect();
    let mut devices = rig.exporter.devices().unwrap();
    devices.tell(KEYBOARD, &format!("stroke{keys}")).unwrap();
}

fn stash(rig: &Rig, host: usize) -> StashCounters {
    rig.status(host).unwrap().attachments[0].stash
}

#[test]
fn keys_pressed_in_the_blackout_arrive() {
    let rig = rig();
    let (callback, recall) = (ResumeMode::Callback, ResumeMode::Recall);
    for (urbs, mode) in [(1, callback), (3, callback), (1, recall), (3, recall)] {
        let name = format!("guest{urbs}{mode:?}");
        let mut guest = Reader::start(&rig, &name, mode, urbs);
        attach(&rig, &mut guest, &name);
        press(&rig, &[4, 5]);
        assert_eq!(guest.keys(2), [4, 5]);
        for to in [1, 0, 0, 1] {
            // Before anything, in the blackout, and after.
            press(&rig, &[6]);
            guest
                .migrate(&rig, to, &MigrateOptions::default(), || {
                    press(&rig, &[7, 8, 9]);
                })
                .unwrap();
            guest.wait(|s| *s == Seen::Resumed { cancelled: false });
            press(&rig, &[10]);
            let mut keys: Vec<u8> = pressed(&guest.skipped);
            keys.extend(guest.keys(5 - keys.len()));
            assert_eq!(keys, [6, 7, 8, 9, 10], "to host {to}");
            assert!(!guest.skipped.contains(&Seen::Unplugged));
            guest.skipped.clear();
        }
        let counters = stash(&rig, guest.host);
        assert!(counters.kept >= 4 * 6, "{counters:?}");
        assert_eq!(
            (counters.delivered, counters.overflowed, counters.discarded),
            (counters.kept, 0, 0)
        );
        rig.xl_vusb_json(guest.host, &["detach", &name, "1"])
            .unwrap();
        guest.wait(|s| *s == Seen::Unplugged);
        guest.stop(&rig);
    }
    assert_eq!(rig.stop().unwrap(), Vec::<String>::new());
}

/// The keys that went down among what was seen.
fn pressed(seen: &[Seen]) -> Vec<u8> {
    let reports = seen.iter().filter_map(|s| match s {
        Seen::Report(report) => Some(report[2]),
        _ => None,
    });
    reports.filter(|&key| key != 0).collect()
}

#[test]
fn keys_pressed_before_a_suspend_is_cancelled_arrive() {
    before_a_suspend_is_cancelled(ResumeMode::Callback);
    before_a_suspend_is_cancelled(ResumeMode::Recall);
}

fn before_a_suspend_is_cancelled(mode: ResumeMode) {
    let rig = rig();
    let mut guest = Reader::start(&rig, "guest", mode, 2);
    attach(&rig, &mut guest, "guest");
    let failing = MigrateOptions::failing(Failure::BeforeGo);
    for _ in 0..3 {
        guest
            .migrate(&rig, 1, &failing, || press(&rig, &[7, 8]))
            .unwrap_err();
        guest.wait(|s| *s == Seen::Resumed { cancelled: true });
        assert_eq!(guest.keys(2), [7, 8]);
    }
    press(&rig, &[9]);
    assert_eq!(guest.keys(1), [9]);
    guest.stop(&rig);
    assert_eq!(rig.stop().unwrap(), Vec::<String>::new());
}

/// What was typed for one guest is never given to another.
#[test]
fn a_guest_that_does_not_come_back_leaves_nothing_to_the_next() {
    let rig = rig();
    let mut guest = Reader::start(&rig, "first", ResumeMode::Callback, 1);
    attach(&rig, &mut guest, "first");
    let failing = MigrateOptions::failing(Failure::BeforeGo);
    guest
        .migrate(&rig, 1, &failing, || {
            press(&rig, &[7, 8]);
            rig.xl_vusb_json(0, &["detach", "first", "1"]).unwrap();
        })
        .unwrap_err();
    let mut other = Reader::start(&rig, "second", ResumeMode::Callback, 1);
    attach(&rig, &mut other, "second");
    press(&rig, &[9]);
    assert_eq!(other.keys(1), [9]);
    assert_eq!(stash(&rig, 0), StashCounters::default());
    assert!(pressed(&guest.skipped).is_empty());
    guest.stop(&rig);
    other.stop(&rig);
    assert_eq!(rig.stop().unwrap(), Vec::<String>::new());
}

fn slowly(failure: Option<Failure>) -> MigrateOptions {
    MigrateOptions {
        round_interval: std::time::Duration::from_millis(400),
        failure,
        ..MigrateOptions::default()
    }
}

/// A stock guest's driver never uses the device while it resumes: it is gone by then.
#[test]
fn a_stock_guest_is_replugged_before_it_is_suspended() {
    let rig = rig();
    let mut guest = Reader::start(&rig, "stock", ResumeMode::Stock, 2);
    attach(&rig, &mut guest, "stock");
    for (round, to) in [1, 0, 0, 1].into_iter().enumerate() {
        press(&rig, &[4]);
        assert_eq!(guest.keys(1), [4]);
        guest.skipped.clear();
        guest.migrate(&rig, to, &slowly(None), || ()).unwrap();
        guest.wait(|s| *s == Seen::Resumed { cancelled: false });
        assert!(
            guest.skipped.contains(&Seen::Unplugged),
            "round {round}: disconnected too late: {:?}",
            guest.skipped
        );
        guest.wait(|s| *s == Seen::Opened);
    }
    press(&rig, &[5]);
    assert_eq!(guest.keys(1), [5]);
    // Nothing is lost: the driver has all its request ids.
    guest.stop(&rig);
    assert_eq!(rig.stop().unwrap(), Vec::<String>::new());
}

#[test]
fn a_stock_guest_whose_migration_fails_gets_its_device_back() {
    let rig = rig();
    let mut guest = Reader::start(&rig, "stock", ResumeMode::Stock, 1);
    attach(&rig, &mut guest, "stock");
    // Before it is suspended.
    let options = MigrateOptions {
        round_interval: std::time::Duration::from_secs(5),
        ..slowly(Some(Failure::DuringPrecopy))
    };
    guest.fails_to_migrate(&rig, 1, &options, |guest| {
        guest.wait(|s| *s == Seen::Unplugged);
    });
    guest.wait(|s| *s == Seen::Opened);
    press(&rig, &[4]);
    assert_eq!(guest.keys(1), [4]);
    // And after.
    guest
        .migrate(&rig, 1, &slowly(Some(Failure::BeforeGo)), || ())
        .unwrap_err();
    guest.wait(|s| *s == Seen::Resumed { cancelled: true });
    guest.wait(|s| *s == Seen::Opened);
    press(&rig, &[5]);
    assert_eq!(guest.keys(1), [5]);
    guest.stop(&rig);
    assert_eq!(rig.stop().unwrap(), Vec::<String>::new());
}

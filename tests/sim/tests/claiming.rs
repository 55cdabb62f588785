// SPDX-License-Identifier: GPL-3.0-or-later
//! A guest with devices of two exporters is saved while one of them has not answered yet: the other is to
//! know that it was saved.

use std::time::{Duration, Instant};

use sim_scenarios::programs;
use sim_scenarios::rig::{EXPORTER, Guest, GuestOptions, Rig, RigOptions, SECOND_EXPORTER};

/// The exporters' `hold_seconds`, for guests that were destroyed. Those that were saved they hold for ever.
const HOLD: Duration = Duration::from_secs(1);

fn wait_until(rig: &Rig, what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !so() {
        assert!(Instant::now() < deadline, "{what}\n{}", rig.log_tails());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn hand_off(rig: &Rig) -> String {
    let status = rig.status(0).unwrap();
    status.controllers[0].hand_off.clone()
}

/// A guest that works on its disk, and whose other device's exporter has stopped before it could be
/// claimed.
fn half_claimed(rig: &Rig) -> Guest {
    let options = GuestOptions::new("guest");
    let domid = rig.hosts[0].xl.create(&options.config).unwrap();
    for device in [format!("{EXPORTER}/0-1"), format!("{SECOND_EXPORTER}/0-1")] {
        let attached = rig.xl_vusb(0, &["attach", "guest", &device]).unwrap();
        let error = String::from_utf8_lossy(&attached.stderr);
        assert!(attached.status.success(), "{device}: {error}");
    }
    // Its device is connected by now, and waits for the guest to run.
    rig.second.as_ref().unwrap().pause(true);
    let mut guest = Guest::boot(rig, 0, domid, &options).unwrap();
    guest.wait_working().unwrap();
    assert_eq!(hand_off(rig), "Claiming", "{}", rig.log_tails());
    guest
}

/// When the silent exporter answers.
#[derive(Clone, Copy, PartialEq)]
enum Answers {
    /// While the guest's memory is saved.
    WhileSuspended,
    /// When it is restored.
    WhenRestored,
}

fn saved_while_an_exporter_is_silent(answers: Answers, vusbd_ends: bool) {
    programs::build().unwrap();
    let rig = Rig::start(&RigOptions {
        hold_seconds: Some(HOLD.as_secs()),
        saved_hold_seconds: Some("\"forever\"".into()),
        second_exporter: Some("[[simulated]]\nkind = \"keyboard\"\n".into()),
        ..RigOptions::default()
    })
    .unwrap();
    let mut guest = half_claimed(&rig);
    let second = rig.second.as_ref().unwrap();
    let while_suspended = || {
        if vusbd_ends {
            rig.hosts[0].restart_vusbd().unwrap();
            let taken_over = || rig.status(0).is_ok_and(|s| !s.controllers.is_empty());
            wait_until(&rig, "the controller is not taken over", taken_over);
        }
        wait_until(&rig, "the suspend is not heard", || {
            hand_off(&rig) == "Frozen"
        });
        if answers == Answers::WhileSuspended {
            second.pause(false);
            let claimed = || rig.hosts[0].vusbd_log().matches("lease claimed").count() == 2;
            wait_until(&rig, "the keyboard is not claimed", claimed);
        }
    };
    let xl = &rig.hosts[0].xl;
    let saved = xl.save_while(guest.domid, while_suspended).unwrap();
    // After the time for which a device is held whose guest was destroyed, it is still the guest's own.
    std::thread::sleep(HOLD * 2);
    let other = Guest::start(&rig, 0, &GuestOptions::new("other")).unwrap();
    let refused = rig.attach_disk(&other).unwrap_err().to_string();
    assert!(refused.contains("guest"), "{refused}\n{}", rig.log_tails());
    xl.destroy(other.domid).unwrap();
    drop(other);
    second.pause(false);
    rig.wait_for_exporter().unwrap();
    (guest.host, guest.domid) = (1, rig.hosts[1].xl.restore(saved).unwrap());
    assert!(!guest.wait_resumed().unwrap().0);
    guest.wait_commands(10).unwrap();
    let report = rig.end(guest);
    // A device that was never claimed was given back with its domain, and the keyboard is one.
    let most = u64::from(answers == Answers::WhenRestored);
    assert!(
        report.errors == 0 && report.disconnects <= most,
        "{report:?}"
    );
}

#[test]
fn a_guest_is_saved_while_one_of_its_exporters_is_silent() {
    saved_while_an_exporter_is_silent(Answers::WhenRestored, false);
}

#[test]
fn vusbd_is_started_again_while_such_a_guest_is_being_saved() {
    saved_while_an_exporter_is_silent(Answers::WhenRestored, true);
}

#[test]
fn the_silent_exporter_answers_while_the_guest_is_suspended() {
    saved_while_an_exporter_is_silent(Answers::WhileSuspended, false);
}

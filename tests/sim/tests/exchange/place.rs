// SPDX-License-Identifier: GPL-3.0-or-later
//! A device that comes back at the same place, as itself or as another one: a glitch, a mode switch.

use std::time::Duration;

use control::Attachment;
use session::LeasePhase;
use sim_scenarios::rig::{EXPORTER, RigOptions};
use sim_scenarios::scene::Scene;
use usbif::{Speed, UrbKind};

use super::{attachments, is_free, tell, unplugged, wait_for, wait_until_at};

/// At 0-2, and what it comes back as: the keyboard of 0-3, which is plugged into nothing.
const DEVICES: &str = "[[simulated]]\nkind = \"source-sink\"\nserial = \"EX1\"\n";
const OTHER: &str = "[[simulated]]\nkind = \"keyboard\"\n";

fn scene(policy: Option<&str>) -> Scene {
    let mut options = RigOptions {
        devices: format!("{DEVICES}{}", unplugged(OTHER)),
        ..RigOptions::default()
    };
    if let Some(policy) = policy {
        options.policy = policy.to_owned();
    }
    Scene::with(&options).unwrap()
}

fn attach(scene: &Scene, name: &str, more: &[&str]) {
    let arguments = [&["attach", "guest", name, "--port", "3"], more].concat();
    scene.rig.xl_vusb_json(0, &arguments).unwrap();
}

/// Until the guest sees a device of this speed at its port.
fn enumerate(scene: &mut Scene, speed: Speed) -> frontend_shim::Device {
    let port = usbif::PortNumber::new(3).unwrap();
    for _ in 0..2000 {
        scene.kernel.host().wait(Duration::from_millis(10)).unwrap();
        if scene.kernel.host().front().speed(port) == speed {
            return scene.enumerate(3).unwrap();
        }
    }
    panic!("never at {speed:?}\n{}", scene.rig.log_tails());
}

#[test]
fn what_is_plugged_in_at_an_attached_place_is_attached() {
    let mut scene = scene(None);
    attach(&scene, "exporter/0-2", &[]);
    scene.enumerate(3).unwrap();
    for _ in 0..2 {
        // Its mode is switched, as a modem's is by its guest, and switched back.
        tell(&scene.rig, EXPORTER, "0-2", "unplug");
        tell(&scene.rig, EXPORTER, "0-2", "plug as 0-3");
        let is_keyboard = |a: &Attachment| {
            a.phase == LeasePhase::Serving && a.device.classes == [3] && a.device.id.0 == "0-2"
        };
        let now = wait_for(&scene.rig, 0, "is the other device", is_keyboard);
        assert_eq!((now.controller, now.port), (0, 3));
        assert_eq!(now.on_migrate, session::OnMigrate::Replug);
        enumerate(&mut scene, Speed::Low);
        tell(&scene.rig, EXPORTER, "0-2", "unplug");
        tell(&scene.rig, EXPORTER, "0-2", "plug");
        let is_back = |a: &Attachment| {
            a.phase == LeasePhase::Serving && a.device.serial.as_deref() == Some("EX1")
        };
        wait_for(&scene.rig, 0, "is back", is_back);
        let device = enumerate(&mut scene, Speed::High);
        let read = scene.read(device.target, 0x81, UrbKind::Bulk, 512).unwrap();
        assert!(read.is_ok(), "{read:?}");
    }
    scene.end().unwrap();
}

/// A glitch of the contacts: with a pause its guest notices an error at most.
#[test]
fn the_same_device_at_an_attached_place_goes_on() {
    let mut scene = scene(None);
    attach(&scene, "exporter/0-2", &["--on-exchange", "pause"]);
    let target = scene.enumerate(3).unwrap().target;
    for _ in 0..3 {
        tell(&scene.rig, EXPORTER, "0-2", "unplug");
        tell(&scene.rig, EXPORTER, "0-2", "plug");
        wait_until_at(&scene.rig, 0, EXPORTER, "0-2");
    }
    let read = scene.read(target, 0x81, UrbKind::Bulk, 512).unwrap();
    assert!(read.is_ok(), "{read:?}");
    assert_eq!(scene.kernel.host().counters().disconnects, 0);
    scene.end().unwrap();
}

#[test]
fn another_device_is_not_taken_for_one_that_was_attached_by_what_it_is() {
    let scene = scene(None);
    attach(&scene, "exporter/0525:a4a0", &[]);
    tell(&scene.rig, EXPORTER, "0-2", "unplug");
    tell(&scene.rig, EXPORTER, "0-2", "plug as 0-3");
    let waits = |a: &Attachment| a.phase == LeasePhase::Absent;
    wait_for(&scene.rig, 0, "waits", waits);
    // As often as it is looked for in this time.
    std::thread::sleep(Duration::from_secs(2));
    assert!(is_free(&scene.rig, EXPORTER, "0-2"));
    tell(&scene.rig, EXPORTER, "0-2", "unplug");
    tell(&scene.rig, EXPORTER, "0-2", "plug");
    wait_until_at(&scene.rig, 0, EXPORTER, "0-2");
    scene.end().unwrap();
}

#[test]
fn what_the_policy_does_not_allow_is_not_attached_by_its_place() {
    let allow =
        |device: &str| format!("[[allow]]\ndevice = \"{device}\"\nvm = \"*\"\nhost = \"*\"\n");
    let policy = allow("0525:a4a0") + &allow("0-1");
    let scene = scene(Some(&policy));
    attach(&scene, "exporter/0-2", &[]);
    tell(&scene.rig, EXPORTER, "0-2", "unplug");
    tell(&scene.rig, EXPORTER, "0-2", "plug as 0-3");
    wait_for(&scene.rig, 0, "waits", |a| a.phase == LeasePhase::Absent);
    std::thread::sleep(Duration::from_secs(2));
    let [attachment] = &attachments(&scene.rig, 0)[..] else {
        panic!("not one attachment");
    };
    assert_eq!(attachment.phase, LeasePhase::Absent);
    scene.end().unwrap();
}

#[test]
fn without_an_exchange_the_attachment_ends() {
    let scene = scene(None);
    attach(&scene, "exporter/0-2", &["--on-exchange", "none"]);
    tell(&scene.rig, EXPORTER, "0-2", "unplug");
    tell(&scene.rig, EXPORTER, "0-2", "plug");
    while !attachments(&scene.rig, 0).is_empty() {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(is_free(&scene.rig, EXPORTER, "0-2"));
    scene.end().unwrap();
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! What is not followed, and what is not taken.

use std::process::Output;
use std::time::Duration;

use sim_scenarios::rig::{EXPORTER, RigOptions, SECOND_EXPORTER};
use sim_scenarios::scene::Scene;
use usbif::UrbKind;

use super::{is_free, options, tell, unplugged, wait_for, wait_until_at, wait_until_waiting};

const TWIN: &str = "[[simulated]]\nkind = \"source-sink\"\nserial = \"EX1\"\n";
const NAME: &str = "exporter/0525:a4a0:EX1";

fn refused(output: &Output, parts: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in parts {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
}

fn attach(scene: &Scene, name: &str, more: &[&str]) -> Output {
    let arguments = [&["attach", "guest", name, "--port", "3"], more].concat();
    scene.rig.xl_vusb(0, &arguments).unwrap()
}

#[test]
fn what_is_ambiguous_is_refused_at_attach() {
    let scene = Scene::with(&RigOptions {
        second_exporter: Some(TWIN.to_owned()),
        ..options(TWIN)
    })
    .unwrap();
    for more in [&[][..], &["--on-exchange", "pause"]] {
        let output = attach(&scene, NAME, more);
        let both = [
            "ambiguous",
            "exporter/0-2",
            "exporter-b/0-1",
            "--on-exchange none",
        ];
        refused(&output, &both);
    }
    let output = attach(&scene, NAME, &["--on-exchange", "none"]);
    assert!(output.status.success(), "{output:?}");
    scene.end().unwrap();
}

#[test]
fn of_two_that_appear_none_is_taken() {
    let mut scene = Scene::with(&RigOptions {
        second_exporter: Some(unplugged(&TWIN.repeat(2))),
        ..options(TWIN)
    })
    .unwrap();
    assert!(
        attach(&scene, NAME, &["--on-exchange", "pause"])
            .status
            .success()
    );
    let target = scene.enumerate(3).unwrap().target;
    tell(&scene.rig, EXPORTER, "0-2", "unplug");
    wait_until_waiting(&scene.rig, 0);
    // Both, before anybody looks at the first.
    scene.rig.hosts[0].kill_vusbd().unwrap();
    tell(&scene.rig, SECOND_EXPORTER, "0-1", "plug");
    tell(&scene.rig, SECOND_EXPORTER, "0-2", "plug");
    scene.rig.hosts[0].start_vusbd().unwrap();
    scene.rig.wait_for_exporter().unwrap();
    let noted = |note: &str| note.contains("exporter-b/0-1, exporter-b/0-2");
    let ambiguous = |a: &control::Attachment| a.note.as_deref().is_some_and(noted);
    wait_for(&scene.rig, 0, "says so", ambiguous);
    assert!(is_free(&scene.rig, SECOND_EXPORTER, "0-1"));
    assert!(is_free(&scene.rig, SECOND_EXPORTER, "0-2"));
    tell(&scene.rig, SECOND_EXPORTER, "0-1", "unplug");
    wait_until_at(&scene.rig, 0, SECOND_EXPORTER, "0-2");
    let read = scene.read(target, 0x81, UrbKind::Bulk, 512).unwrap();
    assert!(read.is_ok());
    scene.end().unwrap();
}

#[test]
fn a_twin_that_was_there_before_is_not_what_comes_back() {
    let scene = Scene::with(&options(TWIN)).unwrap();
    assert!(
        attach(&scene, NAME, &["--on-exchange", "pause"])
            .status
            .success()
    );
    tell(&scene.rig, SECOND_EXPORTER, "0-1", "plug");
    // Longer than a device takes that is only being moved.
    std::thread::sleep(Duration::from_secs(4));
    tell(&scene.rig, EXPORTER, "0-2", "unplug");
    let other = |a: &control::Attachment| {
        let note = a.note.as_deref();
        note.is_some_and(|n| n.contains("it is not known which"))
    };
    wait_for(&scene.rig, 0, "is refused", other);
    assert!(is_free(&scene.rig, SECOND_EXPORTER, "0-1"));
    scene.end().unwrap();
}

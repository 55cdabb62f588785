// SPDX-License-Identifier: GPL-3.0-or-later
//! Transfer by transfer: what a guest gets, while its device is away and after.

use std::time::{Duration, Instant};

use frontend_shim::{Device, TransferError};
use sim_scenarios::guest::{Keyboard, UnlinkedData, Workload};
use sim_scenarios::rig::{EXPORTER, RigOptions, SECOND_EXPORTER};
use sim_scenarios::scene::{LIMIT, Scene};
use usbif::{Setup, Speed, UrbKind};
use xen_sim::toolstack::MigrateOptions;

use super::{
    attachments, is_free, options, tell, unplugged, wait_for, wait_until_at, wait_until_waiting,
};

const SOURCE_SINK: &str = "[[simulated]]\nkind = \"source-sink\"\nserial = \"EX1\"\n";
const SOURCE_SINK_NAME: &str = "exporter/0525:a4a0:EX1";
const BULK_IN: u8 = 0x81;
const BULK_OUT: u8 = 0x01;
const LOOP: u8 = 2;

fn attach(scene: &mut Scene, name: &str, more: &[&str]) -> Device {
    let arguments = [&["attach", "guest", name, "--port", "3"], more].concat();
    scene.rig.xl_vusb_json(0, &arguments).unwrap();
    scene.enumerate(3).unwrap()
}

fn paused(scene: &mut Scene, name: &str) -> Device {
    attach(scene, name, &["--on-exchange", "pause"])
}

fn disconnects(scene: &mut Scene) -> u64 {
    scene.kernel.host().step().unwrap();
    scene.kernel.host().counters().disconnects
}

/// Until the guest sees its port so.
fn wait_for_speed(scene: &mut Scene, device: &Device, is_so: impl Fn(Speed) -> bool) {
    let port = device.target.port;
    for _ in 0..2000 {
        if is_so(scene.kernel.host().front().speed(port)) {
            return;
        }
        scene.kernel.host().wait(Duration::from_millis(10)).unwrap();
    }
    panic!("the port never changed\n{}", scene.rig.log_tails());
}

/// Until the first exporter has on its disk that interface 0 has setting 3. A guest is not kept waiting for that.
fn wait_until_saved(scene: &Scene) {
    let path = scene.rig.dir().join("exporter-state/leases.json");
    let deadline = Instant::now() + LIMIT;
    let is_saved = || {
        let saved: session::lease::Saved =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let mut alternates = saved.leases.iter().map(|l| &l.configured.alternates);
        alternates.any(|a| a[..] == [(0, 3)])
    };
    while !is_saved() {
        assert!(Instant::now() < deadline, "never saved");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn wait_for_log(scene: &Scene, text: &str) {
    let deadline = Instant::now() + LIMIT;
    while !scene.rig.hosts[0].vusbd_log().contains(text) {
        assert!(
            Instant::now() < deadline,
            "never {text}\n{}",
            scene.rig.log_tails()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_the_guest_had_set_is_set_again_before_anything_else() {
    let mut scene = Scene::with(&options(SOURCE_SINK)).unwrap();
    let target = paused(&mut scene, SOURCE_SINK_NAME).target;
    let set_interface = Setup::new(0x01, Setup::SET_INTERFACE, 3, 0, 0);
    assert_eq!(scene.control(target, set_interface).unwrap(), Ok(0));
    let interrupt = UrbKind::Interrupt { interval: 8 };
    // Only the third setting has this endpoint.
    assert!(scene.read(target, 0x83, interrupt, 8).unwrap().is_ok());
    // A halt does not travel.
    let halt = Setup::new(0x02, 3, 0, BULK_IN.into(), 0);
    assert_eq!(scene.control(target, halt).unwrap(), Ok(0));

    tell(&scene.rig, EXPORTER, "0-2", "unplug");
    wait_until_waiting(&scene.rig, 0);
    // These wait, in their order.
    let buffer = scene.kernel.host().alloc_buffer(4096).unwrap();
    let first = scene
        .submit(target, 0x83, interrupt, buffer.slice(0, 8))
        .unwrap();
    let second = scene
        .submit(target, BULK_IN, UrbKind::Bulk, buffer.slice(512, 512))
        .unwrap();
    scene.kernel.host().step().unwrap();
    tell(&scene.rig, SECOND_EXPORTER, "0-1", "plug");
    for _ in 0..2 {
        let done = scene.kernel.completion(LIMIT).unwrap();
        assert!([first, second].contains(&done.urb));
        assert_eq!(done.result, Ok(()), "{}", scene.rig.log_tails());
    }
    let now = wait_until_at(&scene.rig, 0, SECOND_EXPORTER, "0-1");
    assert_eq!((now.controller, now.port), (0, 3));
    let setting = Setup::new(0x81, 10, 0, 0, 0);
    assert_eq!(scene.control_in(target, setting, 1).unwrap(), Ok(vec![3]));
    let configuration = Setup::new(0x80, 8, 0, 0, 0);
    assert_eq!(
        scene.control_in(target, configuration, 1).unwrap(),
        Ok(vec![3])
    );
    assert_eq!(disconnects(&mut scene), 0);
    scene.kernel.host().free_buffer(buffer);
    scene.end().unwrap();
}

#[test]
fn what_was_in_flight_is_an_error_once() {
    let mut scene = Scene::with(&options(SOURCE_SINK)).unwrap();
    let target = paused(&mut scene, SOURCE_SINK_NAME).target;
    let set_loop = Setup::new(0, Setup::SET_CONFIGURATION, LOOP.into(), 0, 0);
    assert_eq!(scene.control(target, set_loop).unwrap(), Ok(0));
    let buffer = scene.kernel.host().alloc_buffer(4096).unwrap();
    for n in 0..4 {
        let slice = buffer.slice(512 * n, 512);
        scene.submit(target, BULK_IN, UrbKind::Bulk, slice).unwrap();
    }
    scene.wait_for_waiting("0-2", BULK_IN, 4).unwrap();
    tell(&scene.rig, EXPORTER, "0-2", "unplug");
    for _ in 0..4 {
        let done = scene.kernel.completion(LIMIT).unwrap();
        assert_eq!(
            (done.result, done.actual_length),
            (Err(TransferError::Io), 0)
        );
    }
    tell(&scene.rig, SECOND_EXPORTER, "0-1", "plug");
    // As if nothing had been: the loop is configured, and empty.
    let written = scene.write(target, BULK_OUT, UrbKind::Bulk, b"hello");
    assert_eq!(written.unwrap(), Ok(5));
    let read = scene.read(target, BULK_IN, UrbKind::Bulk, 512).unwrap();
    assert_eq!(read.unwrap(), b"hello");
    assert_eq!(disconnects(&mut scene), 0);
    scene.kernel.host().free_buffer(buffer);
    scene.end().unwrap();
}

#[test]
fn an_unlink_is_answered_while_the_device_is_away() {
    let mut scene = Scene::with(&options(SOURCE_SINK)).unwrap();
    let target = paused(&mut scene, SOURCE_SINK_NAME).target;
    tell(&scene.rig, EXPORTER, "0-2", "unplug");
    wait_until_waiting(&scene.rig, 0);
    let buffer = scene.kernel.host().alloc_buffer(4096).unwrap();
    let urb = scene
        .submit(target, BULK_IN, UrbKind::Bulk, buffer.slice(0, 512))
        .unwrap();
    scene.kernel.host().step().unwrap();
    assert!(scene.kernel.host().unlink(urb));
    let done = scene.kernel.completion(LIMIT).unwrap();
    assert_eq!((done.urb, done.result), (urb, Err(TransferError::Unlinked)));
    scene.kernel.host().free_buffer(buffer);
    // Detached while it is waited for: nobody holds anything.
    scene
        .rig
        .xl_vusb_json(0, &["detach", "guest", "3"])
        .unwrap();
    assert!(attachments(&scene.rig, 0).is_empty());
    tell(&scene.rig, EXPORTER, "0-2", "plug");
    assert!(is_free(&scene.rig, EXPORTER, "0-2"));
    scene.end().unwrap();
}

#[test]
fn other_descriptors_are_another_device_for_the_guest() {
    let mut scene = Scene::with(&RigOptions {
        devices: SOURCE_SINK.to_owned(),
        second_exporter: Some(unplugged(&SOURCE_SINK.replace("sink\"", "sink-full\""))),
        ..RigOptions::default()
    })
    .unwrap();
    let device = paused(&mut scene, SOURCE_SINK_NAME);
    tell(&scene.rig, EXPORTER, "0-2", "unplug");
    wait_until_waiting(&scene.rig, 0);
    assert_eq!(disconnects(&mut scene), 0);
    let buffer = scene.kernel.host().alloc_buffer(4096).unwrap();
    scene
        .submit(device.target, BULK_IN, UrbKind::Bulk, buffer.slice(0, 512))
        .unwrap();
    scene.kernel.host().step().unwrap();
    tell(&scene.rig, SECOND_EXPORTER, "0-1", "plug");
    let done = scene.kernel.completion(LIMIT).unwrap();
    assert!(done.result.is_err(), "{done:?}");
    wait_for_speed(&mut scene, &device, |speed| speed == Speed::Full);
    assert_eq!(disconnects(&mut scene), 1);
    let device = scene.enumerate(3).unwrap();
    let read = scene.read(device.target, BULK_IN, UrbKind::Bulk, 64);
    assert!(read.unwrap().is_ok());
    scene.kernel.host().free_buffer(buffer);
    scene.end().unwrap();
}

#[test]
fn time_runs_out() {
    let mut scene = Scene::with(&options(SOURCE_SINK)).unwrap();
    let more = ["--on-exchange", "pause", "--exchange-seconds", "2"];
    let device = attach(&mut scene, SOURCE_SINK_NAME, &more);
    let buffer = scene.kernel.host().alloc_buffer(4096).unwrap();
    tell(&scene.rig, EXPORTER, "0-2", "unplug");
    wait_until_waiting(&scene.rig, 0);
    scene
        .submit(device.target, BULK_IN, UrbKind::Bulk, buffer.slice(0, 512))
        .unwrap();
    wait_for_speed(&mut scene, &device, |speed| speed == Speed::None);
    let done = scene.kernel.completion(LIMIT).unwrap();
    assert!(done.result.is_err(), "{done:?}");
    assert_eq!(disconnects(&mut scene), 1);
    assert!(attachments(&scene.rig, 0).is_empty());
    // Too late: it is anybody's.
    tell(&scene.rig, SECOND_EXPORTER, "0-1", "plug");
    std::thread::sleep(Duration::from_secs(2));
    assert!(is_free(&scene.rig, SECOND_EXPORTER, "0-1"));
    scene.kernel.host().free_buffer(buffer);
    scene.end().unwrap();
}

#[test]
fn an_exporter_comes_back_without_it() {
    // Plugged in by hand, so that it is not there after a restart.
    let mut scene = Scene::with(&RigOptions {
        devices: unplugged(SOURCE_SINK),
        ..options(SOURCE_SINK)
    })
    .unwrap();
    scene.devices.tell("0-2", "plug").unwrap();
    let target = paused(&mut scene, SOURCE_SINK_NAME).target;
    let set_interface = Setup::new(0x01, Setup::SET_INTERFACE, 3, 0, 0);
    assert_eq!(scene.control(target, set_interface).unwrap(), Ok(0));
    wait_until_saved(&scene);
    // An exporter that says nothing may have it still.
    scene.rig.exporter.pause(true);
    tell(&scene.rig, SECOND_EXPORTER, "0-1", "plug");
    std::thread::sleep(Duration::from_secs(2));
    assert!(is_free(&scene.rig, SECOND_EXPORTER, "0-1"));
    tell(&scene.rig, SECOND_EXPORTER, "0-1", "unplug");
    scene.rig.exporter.pause(false);
    scene.rig.exporter.restart().unwrap();
    scene.devices = scene.rig.exporter.devices().unwrap();
    wait_until_waiting(&scene.rig, 0);
    tell(&scene.rig, SECOND_EXPORTER, "0-1", "plug");
    wait_until_at(&scene.rig, 0, SECOND_EXPORTER, "0-1");
    let interrupt = UrbKind::Interrupt { interval: 8 };
    assert!(scene.read(target, 0x83, interrupt, 8).unwrap().is_ok());
    assert_eq!(disconnects(&mut scene), 0);
    scene.end().unwrap();
}

/// Its device loses power, and comes back as it was when it was plugged in.
#[test]
fn an_exporters_machine_is_restarted() {
    for (on_exchange, seen) in [("pause", 0), ("replug", 1)] {
        let mut scene = Scene::with(&options(SOURCE_SINK)).unwrap();
        let more = ["--on-exchange", on_exchange];
        let device = attach(&mut scene, SOURCE_SINK_NAME, &more);
        let mut target = device.target;
        let set_interface = Setup::new(0x01, Setup::SET_INTERFACE, 3, 0, 0);
        assert_eq!(scene.control(target, set_interface).unwrap(), Ok(0));
        wait_until_saved(&scene);
        scene.rig.exporter.reboot().unwrap();
        scene.devices = scene.rig.exporter.devices().unwrap();
        wait_for_log(&scene, "attachment follows its device");
        wait_until_at(&scene.rig, 0, EXPORTER, "0-2");
        if seen > 0 {
            // It is told of both at once, or one after the other.
            while disconnects(&mut scene) == 0 {
                scene.kernel.host().wait(Duration::from_millis(10)).unwrap();
            }
            wait_for_speed(&mut scene, &device, |speed| speed == Speed::High);
            target = scene.enumerate(3).unwrap().target;
            assert_eq!(scene.control(target, set_interface).unwrap(), Ok(0));
        }
        let interrupt = UrbKind::Interrupt { interval: 8 };
        let read = scene.read(target, 0x83, interrupt, 8).unwrap();
        assert!(read.is_ok(), "{on_exchange}: {read:?}");
        assert_eq!(disconnects(&mut scene), seen, "{on_exchange}");
        scene.end().unwrap();
    }
}

#[test]
fn vusbd_is_restarted_while_a_device_is_away() {
    for (on_exchange, seen) in [("pause", 0), ("replug", 1)] {
        let mut scene = Scene::with(&options(SOURCE_SINK)).unwrap();
        let more = ["--on-exchange", on_exchange];
        let device = attach(&mut scene, SOURCE_SINK_NAME, &more);
        tell(&scene.rig, EXPORTER, "0-2", "unplug");
        wait_until_waiting(&scene.rig, 0);
        scene.rig.hosts[0].restart_vusbd().unwrap();
        scene.rig.wait_for_exporter().unwrap();
        wait_until_waiting(&scene.rig, 0);
        assert_eq!(disconnects(&mut scene), seen, "{on_exchange}");
        tell(&scene.rig, SECOND_EXPORTER, "0-1", "plug");
        wait_until_at(&scene.rig, 0, SECOND_EXPORTER, "0-1");
        let target = match seen {
            0 => device.target,
            _ => scene.enumerate(3).unwrap().target,
        };
        let read = scene.read(target, BULK_IN, UrbKind::Bulk, 512);
        assert!(read.unwrap().is_ok(), "{on_exchange}");
        assert_eq!(disconnects(&mut scene), seen, "{on_exchange}");
        scene.end().unwrap();
    }
}

/// A key that is pressed at the new place is the next thing that the guest's driver hears, with no error before.
#[test]
fn a_keyboard_is_moved_while_its_guest_is_moved() {
    const KEYBOARD: &str = "[[simulated]]\nkind = \"keyboard\"\nserial = \"EX2\"\n";
    let mut scene = Scene::with(&options(KEYBOARD)).unwrap();
    let listed = scene.rig.xl_vusb_json(0, &["devices"]).unwrap();
    let control::Response::Devices { devices, .. } = listed else {
        panic!("{listed:?}");
    };
    let found = devices.iter().find(|d| d.device.id.0 == "0-2").unwrap();
    let name = format!("exporter/{}", found.device.identity().unwrap());
    let device = paused(&mut scene, &name);
    let host = scene.kernel.host();
    let keyboard = Keyboard::open(host, &device, UnlinkedData::Dropped).unwrap();
    let typed = keyboard.typed();
    let Scene {
        rig,
        mut domain,
        kernel,
        ..
    } = scene;
    let workload = Workload::start(kernel, vec![Box::new(keyboard)]);
    let keys = || typed.lock().unwrap().keys.clone();
    tell(&rig, EXPORTER, "0-2", "stroke 04");
    workload.wait_until("typed", || keys() == [4]).unwrap();

    tell(&rig, EXPORTER, "0-2", "unplug");
    wait_until_waiting(&rig, 0);
    domain.migrate(&rig, 1, &MigrateOptions::default()).unwrap();
    let suspends = workload.shared().clone();
    workload
        .wait_until("moved", || suspends.suspends() == 1)
        .unwrap();
    wait_until_waiting(&rig, 1);
    tell(&rig, SECOND_EXPORTER, "0-1", "plug");
    wait_until_at(&rig, 1, SECOND_EXPORTER, "0-1");
    tell(&rig, SECOND_EXPORTER, "0-1", "stroke 05");
    workload.wait_until("typed", || keys() == [4, 5]).unwrap();
    // And back, both.
    tell(&rig, SECOND_EXPORTER, "0-1", "unplug");
    domain.migrate(&rig, 0, &MigrateOptions::default()).unwrap();
    tell(&rig, EXPORTER, "0-2", "plug");
    wait_until_at(&rig, 0, EXPORTER, "0-2");
    tell(&rig, EXPORTER, "0-2", "stroke 06");
    workload
        .wait_until("typed", || keys() == [4, 5, 6])
        .unwrap();
    assert_eq!(workload.shared().disconnects(), 0);
    wait_for(&rig, 0, "is the only one", |a| a.port == 3);
    let kernel = workload.finish().unwrap();
    domain.end(&rig, kernel).unwrap();
    assert_eq!(rig.stop().unwrap(), Vec::<String>::new());
}

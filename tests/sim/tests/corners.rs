// SPDX-License-Identifier: GPL-3.0-or-later
//! The corners of USB: what a guest asks for and takes back at awkward moments.

use std::collections::HashMap;
use std::time::Duration;

use frontend_shim::{BufferId, Device, Target, TransferError, UrbHandle};
use sim_scenarios::random::Seed;
use sim_scenarios::scene::{LIMIT, Scene};
use usbif::{DeviceAddress, Setup, Speed, UrbKind};

const SOURCE_SINK: &str = "[[simulated]]\nkind = \"source-sink\"\npattern = \"mod63\"\n";
const BULK_OUT: u8 = 0x01;
const BULK_IN: u8 = 0x81;
const SOURCE: u8 = 3;
const LOOP: u8 = 2;
const STALL: TransferError = TransferError::Stall;

fn set_configuration(scene: &mut Scene, target: Target, value: u8) {
    let setup = Setup::new(0, Setup::SET_CONFIGURATION, value.into(), 0, 0);
    assert_eq!(scene.control(target, setup).unwrap(), Ok(0));
}

/// Three transfers that nothing comes for.
fn three_reads_wait(scene: &mut Scene, target: Target) -> BufferId {
    set_configuration(scene, target, LOOP);
    let buffer = scene.kernel.host().alloc_buffer(4096).unwrap();
    for n in 0..3 {
        let slice = buffer.slice(512 * n, 512);
        scene.submit(target, BULK_IN, UrbKind::Bulk, slice).unwrap();
    }
    scene.wait_for_waiting("0-2", BULK_IN, 3).unwrap();
    buffer
}

fn configuration(scene: &mut Scene, target: Target) -> u8 {
    let setup = Setup::new(0x80, 8, 0, 0, 0);
    scene.control_in(target, setup, 1).unwrap().unwrap()[0]
}

/// The status of an endpoint: whether it is halted.
fn is_halted(scene: &mut Scene, target: Target, endpoint: u8) -> bool {
    let setup = Setup::new(0x82, 0, 0, endpoint.into(), 0);
    let status = scene.control_in(target, setup, 2).unwrap().unwrap();
    status[0] & 1 != 0
}

fn endpoint_feature(set: bool, endpoint: u8) -> Setup {
    let request = if set { 3 } else { Setup::CLEAR_FEATURE };
    Setup::new(0x02, request, 0, endpoint.into(), 0)
}

fn reads(scene: &mut Scene, target: Target) -> bool {
    match scene.read(target, BULK_IN, UrbKind::Bulk, 512).unwrap() {
        Ok(data) => data.len() == 512,
        Err(error) => {
            assert_eq!(error, STALL);
            false
        }
    }
}

#[test]
fn halts_and_what_ends_them() {
    let mut scene = Scene::start(SOURCE_SINK).unwrap();
    let target = scene.plug("0-2", 1).unwrap().target;
    let enders: [(&str, Setup); 3] = [
        ("CLEAR_FEATURE", endpoint_feature(false, BULK_IN)),
        (
            "SET_INTERFACE",
            Setup::new(0x01, Setup::SET_INTERFACE, 0, 0, 0),
        ),
        (
            "SET_CONFIGURATION",
            Setup::new(0, Setup::SET_CONFIGURATION, SOURCE.into(), 0, 0),
        ),
    ];
    for (name, ender) in enders {
        let halt = endpoint_feature(true, BULK_IN);
        assert_eq!(scene.control(target, halt).unwrap(), Ok(0));
        assert!(is_halted(&mut scene, target, BULK_IN));
        // However often it is tried; the other endpoint goes on.
        for _ in 0..3 {
            assert!(!reads(&mut scene, target), "{name}");
        }
        let written = scene.write(target, BULK_OUT, UrbKind::Bulk, &[0, 1, 2]);
        assert_eq!(written.unwrap(), Ok(3));
        assert_eq!(scene.control(target, ender).unwrap(), Ok(0));
        assert!(!is_halted(&mut scene, target, BULK_IN));
        assert!(reads(&mut scene, target), "{name}");
    }
    // The device itself halts an endpoint that gets what it does not want.
    let written = scene.write(target, BULK_OUT, UrbKind::Bulk, &[9]);
    assert_eq!(written.unwrap(), Ok(1));
    let written = scene.write(target, BULK_OUT, UrbKind::Bulk, &[0]);
    assert_eq!(written.unwrap(), Err(STALL));
    let clear = endpoint_feature(false, BULK_OUT);
    assert_eq!(scene.control(target, clear).unwrap(), Ok(0));
    let written = scene.write(target, BULK_OUT, UrbKind::Bulk, &[0]);
    assert_eq!(written.unwrap(), Ok(1));

    // Transfers that waited when the endpoint was halted are answered, too.
    let buffer = three_reads_wait(&mut scene, target);
    let halt = endpoint_feature(true, BULK_IN);
    assert_eq!(scene.control(target, halt).unwrap(), Ok(0));
    for _ in 0..3 {
        assert_eq!(scene.kernel.completion(LIMIT).unwrap().result, Err(STALL));
    }

    // Errors on the bus are errors of one transfer.
    set_configuration(&mut scene, target, SOURCE);
    scene.devices.tell("0-2", "fail 81 2").unwrap();
    for _ in 0..2 {
        let failed = scene.read(target, BULK_IN, UrbKind::Bulk, 512).unwrap();
        assert_eq!(failed, Err(TransferError::Io));
    }
    assert!(reads(&mut scene, target));
    scene.kernel.host().free_buffer(buffer);
    scene.end().unwrap();
}

#[test]
fn configurations_settings_and_a_port_reset() {
    let mut scene = Scene::start(SOURCE_SINK).unwrap();
    let target = scene.plug("0-2", 1).unwrap().target;
    let invalid = Err(TransferError::Invalid);
    // The true result, and nothing has changed.
    let wrong = Setup::new(0, Setup::SET_CONFIGURATION, 7, 0, 0);
    assert_eq!(scene.control(target, wrong).unwrap(), Err(STALL));
    assert_eq!(configuration(&mut scene, target), SOURCE);
    assert!(reads(&mut scene, target));
    let wrong = Setup::new(0x01, Setup::SET_INTERFACE, 0, 5, 0);
    assert_eq!(scene.control(target, wrong).unwrap(), Err(STALL));
    // Not configured: there are no endpoints.
    set_configuration(&mut scene, target, 0);
    let read = scene.read(target, BULK_IN, UrbKind::Bulk, 512).unwrap();
    assert_eq!(read, invalid);
    set_configuration(&mut scene, target, SOURCE);
    // An endpoint that only another setting has.
    let interrupt = UrbKind::Interrupt { interval: 8 };
    assert_eq!(scene.read(target, 0x83, interrupt, 8).unwrap(), invalid);
    let set_interface = Setup::new(0x01, Setup::SET_INTERFACE, 3, 0, 0);
    assert_eq!(scene.control(target, set_interface).unwrap(), Ok(0));
    assert!(scene.read(target, 0x83, interrupt, 8).unwrap().is_ok());

    // A port reset is seen by its first request to address 0: the device has no address and no
    // configuration then, and it is reset for true. What waits at the device is answered.
    let buffer = three_reads_wait(&mut scene, target);
    let unaddressed = Target {
        address: DeviceAddress::DEFAULT,
        ..target
    };
    let descriptor = Setup::new(0x80, 6, 0x0100, 0, 0);
    let answer = scene.control_in(unaddressed, descriptor, 64).unwrap();
    assert_eq!(answer.map(|d| d.len()), Ok(18));
    for _ in 0..3 {
        let done = scene.kernel.completion(LIMIT).unwrap();
        assert_eq!(done.result, Err(TransferError::Io));
    }
    scene.kernel.host().free_buffer(buffer);
    let gone = scene.control_in(target, descriptor, 64).unwrap();
    assert_eq!(gone, Err(TransferError::NoDevice));
    let address = u16::from(target.address.get());
    let set_address = Setup::new(0, Setup::SET_ADDRESS, address, 0, 0);
    assert_eq!(scene.control(unaddressed, set_address).unwrap(), Ok(0));
    assert_eq!(configuration(&mut scene, target), 0);
    set_configuration(&mut scene, target, SOURCE);
    assert!(reads(&mut scene, target));
    assert_eq!(scene.read(target, 0x83, interrupt, 8).unwrap(), invalid);
    scene.end().unwrap();
}

/// What is in flight in [`unlinks_that_cross_completions`].
enum InFlight {
    In { slot: usize },
    Out { number: usize, slot: usize },
}

/// Transfers are taken back at random moments, also such that are just completing. Each is answered
/// once, and what it says of its bytes is true: all that the device took comes back, in order, and
/// nothing else.
#[test]
fn unlinks_that_cross_completions() {
    const SLOTS: usize = 5;
    const LEN: usize = 512;
    let seed = Seed::new();
    let mut random = seed.random(4);
    let mut scene = Scene::start(SOURCE_SINK).unwrap();
    let target = scene.plug("0-2", 1).unwrap().target;
    set_configuration(&mut scene, target, LOOP);
    let ins = scene.kernel.host().alloc_buffer(SLOTS * LEN).unwrap();
    let outs = scene.kernel.host().alloc_buffer(SLOTS * LEN).unwrap();
    let mut idle_ins: Vec<usize> = (0..SLOTS).collect();
    let mut idle_outs = idle_ins.clone();
    let mut in_flight: HashMap<UrbHandle, InFlight> = HashMap::new();
    // Data of each OUT transfer, and whether the device took it.
    let mut sent: Vec<(Vec<u8>, bool)> = Vec::new();
    let mut received = Vec::new();
    let (mut unlinked, mut crossed) = (0, 0);
    for round in 0..4000 {
        let draining = round >= 3600;
        match random.below(8) {
            0..3 if let Some(slot) = idle_ins.pop() => {
                let slice = ins.slice(slot * LEN, LEN);
                let urb = scene.submit(target, BULK_IN, UrbKind::Bulk, slice).unwrap();
                in_flight.insert(urb, InFlight::In { slot });
            }
            3..5 if !draining && let Some(slot) = idle_outs.pop() => {
                let mut data = vec![0; 1 + random.below(LEN as u64) as usize];
                random.fill(&mut data);
                let host = scene.kernel.host();
                host.write_buffer(outs, slot * LEN, &data).unwrap();
                let slice = outs.slice(slot * LEN, data.len());
                let urb = scene
                    .submit(target, BULK_OUT, UrbKind::Bulk, slice)
                    .unwrap();
                let number = sent.len();
                in_flight.insert(urb, InFlight::Out { number, slot });
                sent.push((data, false));
            }
            5 if !draining => {
                // Any of them, in no particular order.
                let at = random.below(in_flight.len().max(1) as u64) as usize;
                if let Some(urb) = in_flight.keys().nth(at).copied() {
                    unlinked += u64::from(scene.kernel.host().unlink(urb));
                }
            }
            6 => scene.kernel.host().step().unwrap(),
            _ => {
                let wait = Duration::from_micros(random.below(1500));
                scene.kernel.host().wait(wait).unwrap();
            }
        }
        while let Some(done) = scene.kernel.host().next_completion() {
            let was = in_flight.remove(&done.urb).expect("answered once");
            match done.result {
                Ok(()) => (),
                Err(TransferError::Unlinked) => crossed += u64::from(done.actual_length > 0),
                Err(error) => panic!("{error}"),
            }
            match was {
                InFlight::In { slot } => {
                    let mut data = vec![0; done.actual_length];
                    let host = scene.kernel.host();
                    host.read_buffer(ins, slot * LEN, &mut data).unwrap();
                    received.extend(data);
                    idle_ins.push(slot);
                }
                InFlight::Out { number, slot } => {
                    let (data, taken) = &mut sent[number];
                    *taken = done.actual_length == data.len();
                    assert!(*taken || done.actual_length == 0, "{done:?}");
                    assert!(*taken || done.result.is_err(), "{done:?}");
                    idle_outs.push(slot);
                }
            }
        }
    }
    let taken = sent.iter().filter(|(_, taken)| *taken);
    let expected: Vec<u8> = taken.flat_map(|(data, _)| data.iter().copied()).collect();
    assert_eq!(received.len(), expected.len());
    assert!(
        received == expected,
        "other bytes came back than were taken"
    );
    assert!(!received.is_empty() && unlinked > 50, "{unlinked} unlinked");
    println!(
        "{unlinked} unlinked, {crossed} of them complete; {} bytes",
        received.len()
    );
    // What still waits is given back.
    scene.kernel.freeze().unwrap();
    scene.kernel.host().thaw();
    while scene.kernel.host().next_completion().is_some() {}
    scene.end().unwrap();
}

/// Queues IN transfers that wait for data.
fn queue(scene: &mut Scene, device: &Device, place: &str, count: usize) {
    let buffer = scene.kernel.host().alloc_buffer(count * 64).unwrap();
    for n in 0..count {
        let slice = buffer.slice(64 * n, 64);
        scene
            .submit(device.target, BULK_IN, UrbKind::Bulk, slice)
            .unwrap();
    }
    scene.wait_for_waiting(place, BULK_IN, count).unwrap();
}

#[test]
fn a_device_that_is_pulled_out_in_the_middle_of_transfers() {
    let mut scene = Scene::start("[[simulated]]\nkind = \"serial\"\n").unwrap();
    let mut device = scene.plug("0-2", 1).unwrap();
    for round in 0..3 {
        let port = device.target.port;
        queue(&mut scene, &device, "0-2", 5);
        scene.devices.tell("0-2", "unplug").unwrap();
        for _ in 0..5 {
            let done = scene.kernel.completion(LIMIT).unwrap();
            let gone = [TransferError::NoDevice, TransferError::Unlinked];
            assert!(
                done.result.is_err_and(|e| gone.contains(&e)),
                "round {round}: {done:?}"
            );
        }
        while scene.kernel.host().front().speed(port) != Speed::None {
            scene.kernel.host().wait(LIMIT).unwrap();
        }
        assert_eq!(scene.kernel.host().counters().disconnects, round + 1);
        while scene.kernel.host().next_port_change().is_some() {}
        // It is attached by its place, so it is the guest's again when it is plugged in again.
        scene.devices.tell("0-2", "plug").unwrap();
        while scene.kernel.host().front().speed(port) == Speed::None {
            scene.kernel.host().wait(LIMIT).unwrap();
        }
        device = scene.enumerate(1).unwrap();
    }
    let written = scene.write(device.target, BULK_OUT, UrbKind::Bulk, b"as good as new");
    assert_eq!(written.unwrap(), Ok(14));
    let read = scene
        .read(device.target, BULK_IN, UrbKind::Bulk, 64)
        .unwrap();
    assert_eq!(read.unwrap(), b"as good as new");
    scene.end().unwrap();
}

/// What the device may have seen or not is an error, once; the guest stays connected.
#[test]
fn an_exporter_that_crashes_in_the_middle_of_transfers() {
    let mut scene = Scene::start("[[simulated]]\nkind = \"serial\"\n").unwrap();
    let device = scene.plug("0-2", 1).unwrap();
    for round in 0..2 {
        queue(&mut scene, &device, "0-2", 4);
        scene.rig.exporter.restart().unwrap();
        scene.devices = scene.rig.exporter.devices().unwrap();
        for _ in 0..4 {
            let done = scene.kernel.completion(LIMIT).unwrap();
            assert_eq!(done.result, Err(TransferError::Io), "round {round}");
            assert_eq!(done.actual_length, 0);
        }
        let written = scene.write(device.target, BULK_OUT, UrbKind::Bulk, b"still there");
        assert_eq!(written.unwrap(), Ok(11));
        let read = scene
            .read(device.target, BULK_IN, UrbKind::Bulk, 64)
            .unwrap();
        assert_eq!(read.unwrap(), b"still there");
    }
    assert_eq!(scene.kernel.host().counters().disconnects, 0);
    scene.end().unwrap();
}

#[test]
fn a_hub_is_refused_with_the_reason() {
    let scene = Scene::start("[[simulated]]\nkind = \"hub\"\n").unwrap();
    let devices = scene.rig.xl_vusb(0, &["devices"]).unwrap();
    let text = String::from_utf8_lossy(&devices.stdout).into_owned();
    assert!(
        text.contains("0-2") && text.contains("it is a hub"),
        "{text}"
    );
    let arguments = ["attach", "guest", "exporter/0-2"];
    let refused = scene.rig.xl_vusb(0, &arguments).unwrap();
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success());
    assert!(text.contains("it is a hub"), "{text}");
    scene.end().unwrap();
}

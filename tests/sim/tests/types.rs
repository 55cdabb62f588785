// SPDX-License-Identifier: GPL-3.0-or-later
//! Every type of transfer, and every speed, from a guest to a simulated device and back.

use frontend_shim::storage::Disk;
use frontend_shim::{Target, TransferError, Urb};
use sim_scenarios::guest::{Player, Recorder, Workload};
use sim_scenarios::random::Seed;
use sim_scenarios::scene::{LIMIT, Scene, succeeded};
use usbif::{PortNumber, Setup, Speed, UrbKind, UrbStatus};

const SOURCE_SINK: &str = "[[simulated]]\nkind = \"source-sink\"\npattern = \"mod63\"\n";
const BULK_OUT: u8 = 0x01;
const BULK_IN: u8 = 0x81;
const ISO_OUT: u8 = 0x02;
const ISO_IN: u8 = 0x82;
const INTERRUPT_OUT: u8 = 0x03;
const INTERRUPT_IN: u8 = 0x83;
const LOOP: u16 = 2;
const STALL: TransferError = TransferError::Stall;

/// What the source gives in packets of `max_packet` bytes, and the sink wants.
fn mod63(len: usize, max_packet: usize) -> Vec<u8> {
    (0..len).map(|at| (at % max_packet % 63) as u8).collect()
}

fn set_interface(scene: &mut Scene, target: Target, setting: u16) {
    let setup = Setup::new(0x01, Setup::SET_INTERFACE, setting, 0, 0);
    assert_eq!(scene.control(target, setup).unwrap(), Ok(0));
}

#[test]
fn control_transfers_with_every_stage_in_both_directions() {
    let seed = Seed::new();
    let mut random = seed.random(1);
    let mut scene = Scene::start(SOURCE_SINK).unwrap();
    let target = scene.plug("0-2", 1).unwrap().target;

    // Data stages of every size, to the device and back.
    let mut lengths = vec![0, 1, 8, 63, 64, 65, 512, 4095, 4096, 4097, 65_535];
    lengths.extend((0..8).map(|_| random.below(65_536) as usize));
    for len in lengths {
        let mut data = vec![0; len];
        random.fill(&mut data);
        let write = Setup::new(0x40, 0x5b, 0, 0, 0);
        assert_eq!(scene.control_out(target, write, &data).unwrap(), Ok(len));
        let read = Setup::new(0xc0, 0x5c, 0, 0, 0);
        assert_eq!(scene.control_in(target, read, len).unwrap(), Ok(data));
    }
    // No data stage, in either direction.
    for setup in [
        Setup::new(0x02, 1, 0, 0, 0),
        Setup::new(0xc0, 0x5c, 0, 0, 0),
    ] {
        assert_eq!(scene.control(target, setup).unwrap(), Ok(0));
    }
    // A short answer, which is an error only for who says so.
    let descriptor = Setup::new(0x80, 6, 0x0100, 0, 255);
    let short = scene.control_in(target, descriptor, 255).unwrap().unwrap();
    assert_eq!(short.len(), 18);
    let buffer = scene.kernel.host().alloc_buffer(255).unwrap();
    let urb = Urb {
        target,
        endpoint: 0x80,
        kind: UrbKind::Control { setup: descriptor },
        data: Some(buffer.slice(0, 255)),
        short_not_ok: true,
        tag: 7,
    };
    scene.kernel.host().submit(&urb).unwrap();
    let done = scene.kernel.completion(LIMIT).unwrap();
    assert_eq!(
        (done.result, done.actual_length),
        (Err(TransferError::Short), 18)
    );
    assert_eq!(done.tag, 7);
    // A stall is over with its transfer.
    for setup in [
        Setup::new(0xc0, 0x5c, 1, 0, 0),
        Setup::new(0x80, 6, 0x0f00, 0, 0),
        Setup::new(0x01, Setup::SET_INTERFACE, 9, 0, 0),
        Setup::new(0x00, Setup::SET_CONFIGURATION, 9, 0, 0),
    ] {
        let answer = match setup.request_type() & 0x80 {
            0 => scene.control(target, setup).unwrap(),
            _ => scene.control_in(target, setup, 5).unwrap().map(|d| d.len()),
        };
        assert_eq!(answer, Err(STALL), "{setup:?}");
        let status = scene.control_in(target, Setup::new(0x80, 0, 0, 0, 0), 2);
        assert_eq!(status.unwrap(), Ok(vec![0, 0]));
    }
    scene.kernel.host().free_buffer(buffer);
    scene.end().unwrap();
}

/// What the loop is sent comes back transfer by transfer: short, empty and of 64 KiB; asked for
/// before it was sent, or after.
#[test]
fn bulk_transfers_come_back_as_they_went() {
    const QUEUED: usize = 4;
    const MOST: usize = 65_536;
    let seed = Seed::new();
    let mut random = seed.random(2);
    let mut scene = Scene::start(SOURCE_SINK).unwrap();
    let target = scene.plug("0-2", 1).unwrap().target;
    let set_loop = Setup::new(0, Setup::SET_CONFIGURATION, LOOP, 0, 0);
    assert_eq!(scene.control(target, set_loop).unwrap(), Ok(0));
    let mut buffers = Vec::new();
    for _ in 0..2 * QUEUED {
        buffers.push(scene.kernel.host().alloc_buffer(MOST).unwrap());
    }
    let (outs, ins) = buffers.split_at(QUEUED);
    for _ in 0..40 {
        let count = 1 + random.below(QUEUED as u64) as usize;
        let ask_first = random.below(2) == 0;
        let mut sent = Vec::new();
        for _ in 0..count {
            let len = match random.below(8) {
                0 => 0,
                1 => 512,
                2 => 513,
                3 => MOST,
                4 => MOST - 1,
                _ => random.below(5000) as usize,
            };
            let mut data = vec![0; len];
            random.fill(&mut data);
            let short_not_ok = random.below(2) == 0;
            sent.push((data, short_not_ok));
        }
        let mut urbs = Vec::new();
        for is_in in [ask_first, !ask_first] {
            for (n, (data, short_not_ok)) in sent.iter().enumerate() {
                if !is_in {
                    scene.kernel.host().write_buffer(outs[n], 0, data).unwrap();
                }
                let urb = Urb {
                    target,
                    endpoint: if is_in { BULK_IN } else { BULK_OUT },
                    kind: UrbKind::Bulk,
                    data: Some(match is_in {
                        true => ins[n].slice(0, MOST),
                        false => outs[n].slice(0, data.len()),
                    }),
                    short_not_ok: is_in && *short_not_ok,
                    tag: 0,
                };
                urbs.push((scene.kernel.host().submit(&urb).unwrap(), is_in, n));
            }
            scene.kernel.host().step().unwrap();
        }
        while !urbs.is_empty() {
            let done = scene.kernel.completion(LIMIT).unwrap();
            let at = urbs.iter().position(|(urb, ..)| *urb == done.urb).unwrap();
            let (_, is_in, n) = urbs.remove(at);
            let (data, short_not_ok) = &sent[n];
            assert_eq!(done.actual_length, data.len());
            let expected = match is_in && *short_not_ok && data.len() < MOST {
                true => Err(TransferError::Short),
                false => Ok(()),
            };
            assert_eq!(done.result, expected);
            if is_in {
                let mut got = vec![0; data.len()];
                scene
                    .kernel
                    .host()
                    .read_buffer(ins[n], 0, &mut got)
                    .unwrap();
                assert!(got == *data, "{} bytes came back otherwise", data.len());
            }
        }
    }
    for buffer in buffers {
        assert!(scene.kernel.host().free_buffer(buffer));
    }
    scene.end().unwrap();
}

#[test]
fn interrupt_transfers_and_the_keys_of_a_keyboard() {
    let devices = format!("{SOURCE_SINK}[[simulated]]\nkind = \"keyboard\"\n");
    let mut scene = Scene::start(&devices).unwrap();
    let target = scene.plug("0-2", 1).unwrap().target;
    let kind = UrbKind::Interrupt { interval: 8 };
    // Only setting 2 has the endpoints.
    let invalid = Err(TransferError::Invalid);
    assert_eq!(scene.read(target, INTERRUPT_IN, kind, 64).unwrap(), invalid);
    set_interface(&mut scene, target, 2);
    for len in [1, 63, 64] {
        let read = scene.read(target, INTERRUPT_IN, kind, len).unwrap();
        assert_eq!(read, Ok(mod63(len, 64)));
        let written = scene.write(target, INTERRUPT_OUT, kind, &mod63(len, 64));
        assert_eq!(written.unwrap(), Ok(len));
    }

    let keyboard = scene.plug("0-3", 2).unwrap().target;
    let port = PortNumber::new(2).unwrap();
    assert_eq!(scene.kernel.host().front().speed(port), Speed::Low);
    let set_idle = Setup::new(0x21, 0x0a, 0, 0, 0);
    assert_eq!(scene.control(keyboard, set_idle).unwrap(), Ok(0));
    let leds = scene.control_out(keyboard, Setup::new(0x21, 9, 0x0200, 0, 0), &[0b10]);
    assert_eq!(leds.unwrap(), Ok(1));
    assert_eq!(scene.devices.counters("0-3").unwrap()["leds"], 2);
    // It waits for a key: NAK is no answer.
    let buffer = scene.kernel.host().alloc_buffer(64).unwrap();
    let kind = UrbKind::Interrupt { interval: 10 };
    for n in 0..3 {
        let slice = buffer.slice(8 * n, 8);
        scene.submit(keyboard, 0x81, kind, slice).unwrap();
    }
    scene.wait_for_waiting("0-3", 0x81, 3).unwrap();
    scene.devices.tell("0-3", "stroke 04 05").unwrap();
    for n in 0..3 {
        let done = scene.kernel.completion(LIMIT).unwrap();
        succeeded(&done).unwrap();
        let mut report = [0; 8];
        let host = scene.kernel.host();
        host.read_buffer(buffer, 8 * n, &mut report).unwrap();
        assert_eq!(report, [0, 0, [4, 0, 5][n], 0, 0, 0, 0, 0]);
    }
    // The last report does not fit: babble.
    let babble = scene.read(keyboard, 0x81, kind, 4).unwrap();
    assert_eq!(babble, Err(TransferError::Babble));
    scene.kernel.host().free_buffer(buffer);
    scene.end().unwrap();
}

#[test]
fn isochronous_packets_at_high_speed() {
    isochronous_packets("source-sink", 1024);
}

#[test]
fn isochronous_packets_at_full_speed() {
    isochronous_packets("source-sink-full", 1023);
}

/// Lengths, statuses and frames of packets of a millisecond each, of at most `most` bytes. Time on
/// the bus stands still but for `advance`, so that every frame is foreseen.
fn isochronous_packets(kind: &str, most: usize) {
    let devices =
        format!("[[simulated]]\nkind = \"{kind}\"\npattern = \"mod63\"\nclock = \"manual\"\n");
    let mut scene = Scene::start(&devices).unwrap();
    let target = scene.plug("0-2", 1).unwrap().target;
    set_interface(&mut scene, target, 1);

    // IN: three URBs in a row, begun where the one before ends. Packets are as long as the
    // device's, or as asked for.
    let lengths = [most, 1, 0, 500, 2000, most, 3, 64];
    let mut urbs = Vec::new();
    for _ in 0..3 {
        urbs.push(scene.stream(target, ISO_IN, &lengths).unwrap());
    }
    for urb in &urbs {
        urb.submit(&mut scene.kernel).unwrap();
    }
    scene.wait_for_waiting("0-2", ISO_IN, 3).unwrap();
    scene.devices.tell("0-2", "advance 24000").unwrap();
    let mut first = None;
    for (n, urb) in urbs.iter().enumerate() {
        let done = scene.kernel.completion(LIMIT).unwrap();
        succeeded(&done).unwrap();
        let start = *first.get_or_insert(done.start_frame);
        assert_eq!(done.start_frame, start + 8 * n as u16);
        assert_eq!(done.error_count, 0);
        let mut total = 0;
        for (at, (packet, data)) in urb.take(&mut scene.kernel).unwrap().iter().enumerate() {
            let expected = lengths[at].min(most);
            let got = (packet.status, packet.actual_length as usize);
            assert_eq!(got, (0, expected), "packet {at}");
            assert_eq!(packet.length, urb.packets[at].length);
            assert_eq!(packet.offset, urb.packets[at].offset);
            assert_eq!(*data, mod63(expected, most));
            total += expected;
        }
        assert_eq!(done.actual_length, total);
    }

    // OUT, with packets that fail on the bus.
    let out = scene.stream(target, ISO_OUT, &[100; 20]).unwrap();
    out.fill(&mut scene.kernel, &mod63(100, most).repeat(20))
        .unwrap();
    scene.devices.tell("0-2", "fail 02 3").unwrap();
    out.submit(&mut scene.kernel).unwrap();
    scene.wait_for_waiting("0-2", ISO_OUT, 1).unwrap();
    scene.devices.tell("0-2", "advance 20000").unwrap();
    let done = scene.kernel.completion(LIMIT).unwrap();
    succeeded(&done).unwrap();
    assert_eq!((done.error_count, done.actual_length), (3, 1700));
    for (at, (packet, _)) in out.take(&mut scene.kernel).unwrap().iter().enumerate() {
        let expected = match at {
            0..3 => (UrbStatus::IOERROR.0, 0),
            _ => (0, 100),
        };
        assert_eq!(
            (packet.status, packet.actual_length),
            expected,
            "packet {at}"
        );
    }
    let counters = scene.devices.counters("0-2").unwrap();
    assert_eq!(counters["wrong-packets"], 0);
    assert_eq!((counters["taken"], counters["missed-packets"]), (1700, 3));

    // The most that a request carries: 15 pages of data and one of descriptors, 120 packets.
    let long = scene.stream(target, ISO_IN, &[512; 120]).unwrap();
    long.submit(&mut scene.kernel).unwrap();
    scene.wait_for_waiting("0-2", ISO_IN, 1).unwrap();
    scene.devices.tell("0-2", "advance 200000").unwrap();
    let done = scene.kernel.completion(LIMIT).unwrap();
    succeeded(&done).unwrap();
    assert_eq!(done.actual_length, 120 * 512);

    // What makes no sense: packets outside of the buffer, and no such endpoint.
    let mut outside = scene.stream(target, ISO_IN, &[64; 4]).unwrap();
    outside.packets[3].offset += 1;
    let nowhere = scene.stream(target, 0x85, &[64; 4]).unwrap();
    for urb in [&outside, &nowhere] {
        urb.submit(&mut scene.kernel).unwrap();
        let done = scene.kernel.completion(LIMIT).unwrap();
        assert_eq!(done.result, Err(TransferError::Invalid));
    }

    // Unlinked on the way; and a stream that begins anew, later.
    let handles =
        [urbs[0].clone(), urbs[1].clone()].map(|urb| urb.submit(&mut scene.kernel).unwrap());
    scene.wait_for_waiting("0-2", ISO_IN, 2).unwrap();
    for handle in handles.into_iter().rev() {
        assert!(scene.kernel.host().unlink(handle));
    }
    for _ in handles {
        let done = scene.kernel.completion(LIMIT).unwrap();
        assert_eq!(done.result, Err(TransferError::Unlinked));
    }
    urbs[2].submit(&mut scene.kernel).unwrap();
    scene.wait_for_waiting("0-2", ISO_IN, 1).unwrap();
    scene.devices.tell("0-2", "advance 8000").unwrap();
    succeeded(&scene.kernel.completion(LIMIT).unwrap()).unwrap();
    scene.end().unwrap();
}

/// Both streams of a headset in real time. On a machine that is too busy frames may be dropped, but
/// each of them is accounted for, and none is doubled.
#[test]
fn isochronous_streams_in_real_time() {
    let mut scene = Scene::start("[[simulated]]\nkind = \"audio\"\n").unwrap();
    let device = scene.plug("0-2", 1).unwrap();
    assert_eq!(device.descriptor.class, 0xef);
    let host = scene.kernel.host();
    let recorder = Recorder::open(host, &device).unwrap();
    let player = Player::open(host, &device).unwrap();
    let (recorded, played) = (recorder.recorded(), player.played());
    let Scene {
        rig,
        domain,
        kernel,
        mut devices,
        ..
    } = scene;
    let workload = Workload::start(kernel, vec![Box::new(recorder), Box::new(player)]);
    let both = || recorded.lock().unwrap().urbs >= 20 && played.lock().unwrap().urbs >= 20;
    let waited = workload.wait_until("recorded and played 20 URBs", both);
    let kernel = workload.finish().unwrap();
    waited.unwrap();
    let (recorded, played) = (recorded.lock().unwrap(), played.lock().unwrap());
    let frames = recorded.frames;
    assert_eq!((frames.doubled, frames.malformed, frames.silent), (0, 0, 0));
    assert_eq!((frames.started, frames.dropped % 48), (1, 0), "{frames:?}");
    assert_eq!(recorded.gaps == 0, frames.dropped == 0, "{recorded:?}");
    let heard = devices.counters("0-2").unwrap();
    assert!(heard["recorded"] >= frames.good + frames.dropped);
    assert_eq!(heard["good"], played.frames, "{heard:?}");
    for fault in ["dropped", "doubled", "malformed", "silent"] {
        assert_eq!(heard[fault], 0, "{fault}: {heard:?}");
    }
    if heard["playback-missed-packets"] == 0 {
        assert_eq!(played.gaps, 0);
    }
    domain.end(&rig, kernel).unwrap();
    assert_eq!(rig.stop().unwrap(), Vec::<String>::new());
}

/// Low, full and high speed as they are, SuperSpeed as the high speed that it would be on a USB 2.0
/// port; devices of several interfaces.
#[test]
fn every_speed_as_a_guest_sees_it() {
    let devices = |dir: &std::path::Path| {
        format!(
            "[[simulated]]\nkind = \"keyboard\"\n[[simulated]]\nkind = \"serial\"\n\
             [[simulated]]\nkind = \"super-disk\"\nfile = \"{}\"\nsize_mib = 8\n",
            dir.join("super.img").display()
        )
    };
    let scratch = sim_scenarios::scratch::ScratchDir::new().unwrap();
    let mut scene = Scene::start(&devices(scratch.path())).unwrap();
    let expected = [
        ("0-1", Speed::High, 64),
        ("0-2", Speed::Low, 8),
        ("0-3", Speed::Full, 64),
        ("0-4", Speed::High, 64),
    ];
    let mut plugged = Vec::new();
    for (n, (place, speed, max_packet_0)) in (1..).zip(expected) {
        let device = scene.plug(place, n).unwrap();
        let port = PortNumber::new(n).unwrap();
        assert_eq!(scene.kernel.host().front().speed(port), speed, "{place}");
        assert_eq!(device.descriptor.max_packet_0, max_packet_0, "{place}");
        assert!(device.descriptor.usb_version <= 0x0200, "{place}");
        plugged.push(device);
    }
    // The serial adapter is two interfaces with three endpoints.
    let serial = &plugged[2];
    assert_eq!(serial.interfaces.len(), 2);
    let get_interface = Setup::new(0x81, 10, 0, 1, 0);
    let setting = scene.control_in(serial.target, get_interface, 1).unwrap();
    assert_eq!(setting, Ok(vec![0]));

    // Of the SuperSpeed disk only the bulk-only setting is shown, with packets of 512 bytes; it
    // has no BOS, and there is nothing for full speed.
    let disk = &plugged[3];
    let [interface] = &disk.interfaces[..] else {
        panic!("{:?}", disk.interfaces);
    };
    assert_eq!((interface.alternate, interface.protocol), (0, 0x50));
    assert!(
        interface
            .endpoints
            .iter()
            .all(|e| e.is_bulk() && e.max_packet == 512)
    );
    for (value, expected) in [(0x0f00, Err(STALL)), (0x0700, Err(STALL)), (0x0600, Ok(10))] {
        let setup = Setup::new(0x80, 6, value, 0, 0);
        let answer = scene.control_in(disk.target, setup, 64).unwrap();
        assert_eq!(answer.map(|d| d.len()), expected, "descriptor {value:04x}");
    }
    let set_sel = Setup::new(0x00, 48, 0, 0, 0);
    let answer = scene.control_out(disk.target, set_sel, &[0; 6]).unwrap();
    assert_eq!(answer, Err(STALL));
    // And it works, block for block.
    let seed = Seed::new();
    let mut random = seed.random(3);
    let mut data = vec![0; 200 * 512];
    random.fill(&mut data);
    let host = scene.kernel.host();
    let mut opened = Disk::open(host, disk).unwrap();
    assert_eq!(opened.capacity().len_bytes(), 8 << 20);
    opened.write(host, 37, &data).unwrap();
    opened.sync(host).unwrap();
    let mut back = vec![0; data.len()];
    opened.read(host, 37, &mut back).unwrap();
    assert!(back == data);
    opened.close(host);
    scene.end().unwrap();
}

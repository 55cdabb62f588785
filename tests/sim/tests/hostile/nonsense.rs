// SPDX-License-Identifier: GPL-3.0-or-later
//! A guest that writes nonsense into its ring, with another guest at work beside it: each piece of
//! nonsense costs the hostile guest a request or its ring, and the other nothing.

use crate::frontend::{Answer, CONTROL, GET_DEVICE_DESCRIPTOR, IN, Raw, RawFrontend};
use crate::scene::Scene;

const OK: i32 = 0;
const NODEV: i32 = -19;
const INVAL: i32 = -22;
const STALL: i32 = -32;

const BULK: u32 = 3 << 30;
const UNLINK: u32 = 0x20;

/// SET_ADDRESS or SET_CONFIGURATION.
fn set(request: u8, value: u8) -> [u8; 8] {
    [0, request, value, 0, 0, 0, 0, 0]
}

#[test]
fn requests_that_make_no_sense() {
    let mut scene = Scene::new();
    let hostile = &mut scene.hostile;
    let (_page, gref) = hostile.page();
    let descriptor = |pipe, segments: Vec<(u32, u16, u16)>, count| Raw {
        id: 7,
        segment_count: count,
        pipe: CONTROL | IN | pipe,
        buffer_length: 18,
        special: GET_DEVICE_DESCRIPTOR,
        segments,
        ..Raw::default()
    };
    let whole = || vec![(gref, 0, 18)];
    // Port 0 and a port beyond the last one; an empty port; an address that nobody has.
    for pipe in [0, 5, 31, 1, 99 << 8] {
        let answer = hostile.ask(descriptor(pipe, whole(), 1));
        assert_eq!(answer, (NODEV, 0), "pipe {pipe:#x}");
    }
    // Segments that leave their page, more segments than there are, and a length that differs
    // from theirs.
    for (segments, count) in [
        (vec![(gref, 4090, 18)], 1),
        (vec![(gref, 0xffff, 1)], 1),
        (vec![(gref, 0, 18)], 17),
        (vec![(gref, 0, 18)], 0xffff),
        (vec![(gref, 0, 4)], 1),
    ] {
        let (status, _) = hostile.ask(descriptor(1, segments.clone(), count));
        assert!(
            [INVAL, NODEV].contains(&status),
            "{segments:?} x {count}: {status}"
        );
    }
    // Unlinks of what was never sent, and of themselves.
    for unlinked in [3u16, 900, 0xffff, 7] {
        let mut special = [0; 8];
        special[..2].copy_from_slice(&unlinked.to_le_bytes());
        let (status, _) = hostile.ask(Raw {
            id: 7,
            pipe: BULK | UNLINK,
            special,
            ..Raw::default()
        });
        assert!(
            [OK, INVAL].contains(&status),
            "unlink of {unlinked}: {status}"
        );
    }
    // Sixteen at once, all with the same id.
    let same: Vec<Raw> = (0..16).map(|_| descriptor(0, whole(), 1)).collect();
    hostile.push(&same);
    for _ in 0..16 {
        assert_eq!(hostile.answer().id, 7);
    }
    // Pure noise.
    let mut random = sim_scenarios::random::Random::new(99);
    for _ in 0..300 {
        let mut noise = [0; 8];
        random.fill(&mut noise);
        let number = random.next_u64();
        let segments = (0..16)
            .map(|_| {
                let n = random.next_u64();
                ((n >> 32) as u32 % 64, (n >> 16) as u16, n as u16)
            })
            .collect();
        hostile.push(&[Raw {
            id: number as u16,
            segment_count: (number >> 16) as u16 % 20,
            pipe: (number >> 32) as u32,
            flags: noise[0].into(),
            buffer_length: u16::from_le_bytes([noise[1], noise[2]]),
            special: noise,
            segments,
        }]);
        assert_eq!(hostile.answer().id, number as u16);
    }
    assert!(!hostile.has_answer());
    scene.end();
}

/// Everything that needs a device: the neighbour gives the disk up for it.
#[test]
fn requests_to_a_device_that_make_no_sense() {
    let mut scene = Scene::new();
    scene.neighbour_is_well();
    // The hostile guest gets the disk, the neighbour sees it go and come back afterwards.
    scene
        .rig
        .xl_vusb_json(0, &["detach", "neighbour", "1"])
        .unwrap();
    scene
        .rig
        .xl_vusb_json(0, &["attach", "hostile", "exporter/0-1"])
        .unwrap();
    let hostile = &mut scene.hostile;
    let (page, gref) = hostile.page();
    let control = |pipe: u32, special: [u8; 8], segments: Vec<(u32, u16, u16)>| Raw {
        id: 1,
        segment_count: segments.len() as u16,
        pipe: CONTROL | pipe,
        buffer_length: segments.iter().map(|s| s.2).sum(),
        special,
        segments,
        ..Raw::default()
    };
    // The device is there: its descriptor, through the default address.
    let at_port = 1;
    let whole = vec![(gref, 0, 18)];
    let first = control(IN | at_port, GET_DEVICE_DESCRIPTOR, whole.clone());
    assert_eq!(hostile.ask(first), (OK, 18));
    let mut bytes = [0; 2];
    xen::Mapping::read(&page, 0, &mut bytes);
    assert_eq!(bytes, [18, 1]);
    // Address 200 does not exist, 9 does.
    assert_eq!(hostile.ask(control(at_port, set(5, 200), vec![])).0, STALL);
    assert_eq!(hostile.ask(control(at_port, set(5, 9), vec![])).0, OK);
    let device = 9 << 8;
    assert_eq!(hostile.ask(control(device, set(9, 1), vec![])).0, OK);
    // A page that is not granted (any more).
    let (gone, dead) = hostile.page();
    assert!(hostile.revoke(gone));
    for gref in [dead, 0, 0xffff_ffff] {
        let segments = vec![(gref, 0, 18)];
        let request = control(IN | device, GET_DEVICE_DESCRIPTOR, segments);
        assert_eq!(hostile.ask(request), (INVAL, 0), "grant {gref}");
    }
    // Beyond the page.
    let outside = vec![(gref, 4090, 18)];
    let request = control(IN | device, GET_DEVICE_DESCRIPTOR, outside);
    assert_eq!(hostile.ask(request).0, INVAL);
    // An endpoint that the device does not have.
    let nowhere = Raw {
        id: 1,
        segment_count: 1,
        pipe: BULK | IN | device | 9 << 15,
        buffer_length: 18,
        segments: whole.clone(),
        ..Raw::default()
    };
    assert_ne!(hostile.ask(nowhere).0, OK);
    read_64_kib_in_one_urb(hostile, &page, gref, device);
    // And it still works.
    let again = control(IN | device, GET_DEVICE_DESCRIPTOR, whole);
    assert_eq!(hostile.ask(again), (OK, 18));

    scene
        .rig
        .xl_vusb_json(0, &["detach", "hostile", "1"])
        .unwrap();
    scene
        .rig
        .xl_vusb_json(0, &["attach", "neighbour", "exporter/0-1"])
        .unwrap();
    scene.neighbour_is_well();
    let hostile = scene.hostile.domid;
    scene.rig.hosts[0].xl.destroy(hostile).unwrap();
    drop(scene.hostile);
    let report = scene.neighbour.stop(&scene.rig).unwrap();
    assert_eq!(
        (report.lost, report.duplicated, report.disconnects),
        (0, 0, 1),
        "{report:?}"
    );
    assert_eq!(report.mismatches, 0);
    assert_eq!(scene.rig.stop().unwrap(), Vec::<String>::new());
}

/// 65,536 bytes do not fit into the 16 bits of `buffer_length`: it reads 0, and the segments tell.
fn read_64_kib_in_one_urb(
    hostile: &mut RawFrontend,
    page: &xen_sim::GuestPages,
    gref: u32,
    device: u32,
) {
    let (_data, refs) = hostile.pages(16);
    let mut wrapper = [0; 31];
    wrapper[..4].copy_from_slice(b"USBC");
    wrapper[4] = 0x55;
    wrapper[8..12].copy_from_slice(&65_536u32.to_le_bytes());
    wrapper[12] = 0x80;
    wrapper[14] = 10;
    // READ (10), 128 blocks at 0.
    wrapper[15..25].copy_from_slice(&[0x28, 0, 0, 0, 0, 0, 0, 0, 128, 0]);
    xen::Mapping::write(page, 1024, &wrapper);
    let bulk = |pipe: u32, buffer_length, segments: Vec<(u32, u16, u16)>| Raw {
        id: 2,
        segment_count: segments.len() as u16,
        pipe: BULK | device | pipe,
        buffer_length,
        segments,
        ..Raw::default()
    };
    let (out, into) = bulk_endpoints(hostile, page, gref, device);
    let command = bulk(out, 31, vec![(gref, 1024, 31)]);
    assert_eq!(hostile.ask(command), (OK, 31));
    let pages = refs.iter().map(|gref| (*gref, 0, 4096)).collect();
    assert_eq!(hostile.ask(bulk(into, 0, pages)), (OK, 65_536));
    let status = bulk(into, 13, vec![(gref, 2048, 13)]);
    assert_eq!(hostile.ask(status), (OK, 13));
    let mut bytes = [0; 13];
    xen::Mapping::read(page, 2048, &mut bytes);
    assert_eq!(&bytes[..5], b"USBS\x55");
    assert_eq!(bytes[12], 0);
}

/// The pipe bits of the disk's two bulk endpoints, out of its configuration.
fn bulk_endpoints(
    hostile: &mut RawFrontend,
    page: &xen_sim::GuestPages,
    gref: u32,
    device: u32,
) -> (u32, u32) {
    let (status, len) = hostile.ask(Raw {
        id: 3,
        segment_count: 1,
        pipe: CONTROL | IN | device,
        buffer_length: 255,
        special: [0x80, 6, 0, 2, 0, 0, 255, 0],
        segments: vec![(gref, 0, 255)],
        ..Raw::default()
    });
    assert_eq!(status, OK);
    let mut bytes = vec![0; len as usize];
    xen::Mapping::read(page, 0, &mut bytes);
    let mut found = (0, 0);
    let mut rest = &bytes[..];
    while let [length, kind, address, ..] = *rest {
        if kind == 5 {
            let pipe = u32::from(address & 0x0f) << 15;
            match address & 0x80 {
                0 => found.0 = pipe,
                _ => found.1 = pipe | IN,
            }
        }
        rest = &rest[usize::from(length).max(1).min(rest.len())..];
    }
    found
}

#[test]
fn indices_that_cannot_be() {
    for index in [17, 1000, 0x8000_0000, u32::MAX] {
        let mut scene = Scene::new();
        scene.hostile.show(index);
        let state = scene.hostile.wait_for_state(&["5", "6"]);
        assert!(["5", "6"].contains(&state.as_str()), "index {index:#x}");
        assert!(!scene.hostile.has_answer(), "index {index:#x}");
        scene.end();
    }
}

#[test]
fn answers_carry_what_was_asked() {
    // The harness itself: an id is given back as it was, whatever it is.
    let mut scene = Scene::new();
    for id in [0, 1, 0x7fff, 0xffff] {
        scene.hostile.push(&[Raw {
            id,
            pipe: BULK | 1,
            ..Raw::default()
        }]);
        let answer: Answer = scene.hostile.answer();
        assert_eq!((answer.id, answer.status), (id, NODEV));
    }
    scene.end();
}

#[test]
fn rings_that_are_replaced_without_closing() {
    let mut scene = Scene::new();
    let hostile = &mut scene.hostile;
    let (_page, gref) = hostile.page();
    // Nothing is plugged in: any answer is one.
    assert_eq!(hostile.ask(Raw::descriptor(gref)), (NODEV, 0));
    for _ in 0..3 {
        let old = hostile.replace_rings();
        assert_eq!(hostile.ask(Raw::descriptor(gref)), (NODEV, 0));
        for page in old {
            assert!(
                hostile.revoke(page),
                "the backend has let go of the old rings"
            );
        }
        // The backend did not ask the frontend to close.
        assert_eq!(hostile.wait_for_state(&["4", "5", "6"]), "4");
    }
    scene.end();
}

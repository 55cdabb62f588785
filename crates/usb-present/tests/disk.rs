// SPDX-License-Identifier: GPL-3.0-or-later
//! The simulated disk at SuperSpeed is presented as the simulated disk at high speed.

use usb_present::{Intercept, intercept, present};
use usb_sim::{Answer, Disk, Function, MemoryStorage};

/// What a guest gets that asks for a descriptor: of the device, of a configuration.
fn ask(disk: &Disk<MemoryStorage>, kind: u8, length: u16) -> Vec<u8> {
    let [low, high] = length.to_le_bytes();
    let guest = [0x80, 6, 0, kind, 0, 0, low, high];
    let Intercept::Ask(asked) = intercept(guest) else {
        panic!("descriptor {kind}");
    };
    let descriptors = disk.descriptors();
    let all = match asked[3] {
        1 => &descriptors.device,
        2 => &descriptors.configurations[0],
        other => panic!("descriptor {other}"),
    };
    let asked_len = usize::from(u16::from_le_bytes([asked[6], asked[7]]));
    let mut bytes = all[..all.len().min(asked_len)].to_vec();
    let len = present(guest, &mut bytes);
    bytes.truncate(len);
    bytes
}

#[test]
fn super_speed_becomes_high_speed() {
    for with_uas in [false, true] {
        let storage = || MemoryStorage::new(4096);
        let super_speed = Disk::super_speed(storage(), "1", with_uas);
        let high_speed = Disk::new(storage(), "1");
        let expected = high_speed.descriptors();
        assert_eq!(ask(&super_speed, 1, 64), expected.device);
        // They differ in bMaxPower: 896 mA is more than high speed allows.
        let mut configuration = expected.configurations[0].clone();
        configuration[8] = 250;
        assert_eq!(ask(&super_speed, 2, 512), configuration);
        assert_eq!(ask(&super_speed, 2, 9), configuration[..9]);
        let mut qualifier = expected.qualifier.clone();
        qualifier[8] = 0;
        assert_eq!(ask(&super_speed, 6, 10), qualifier);
    }
}

/// What the disk does with its data does not depend on its speed.
#[test]
fn transfers_stay_what_they_are() {
    let mut command = [0; 31];
    command[..4].copy_from_slice(b"USBC");
    command[4] = 7;
    command[8] = 36;
    command[12] = 0x80;
    command[14] = 6;
    command[15..20].copy_from_slice(&[0x12, 0, 0, 0, 36]);
    let storage = || MemoryStorage::new(4096);
    let mut answers = Vec::new();
    for mut disk in [
        Disk::super_speed(storage(), "1", true),
        Disk::new(storage(), "1"),
    ] {
        disk.configured(1);
        assert_eq!(disk.transfer_out(0x02, &command), Answer::Done(31));
        let mut out = Vec::new();
        assert_eq!(disk.transfer_in(0x81, 36, &mut out), Answer::Done(36));
        assert_eq!(disk.transfer_in(0x81, 13, &mut out), Answer::Done(13));
        answers.push(out);
    }
    assert_eq!(answers[0], answers[1]);
}

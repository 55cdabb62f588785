// SPDX-License-Identifier: GPL-3.0-or-later
//! Descriptors of SuperSpeed devices, as they are presented to guests.

use usb_present::{Intercept, MAX_ASKED, configuration, intercept, present, uas_only_interface};
use usb_sim::{Disk, MemoryStorage, Port};

use crate::{Input, Target};

/// See the module's documentation.
pub const TARGET: Target = Target {
    name: "descriptor",
    seeds,
    run,
};

const GET_CONFIGURATION: [u8; 8] = [0x80, 6, 0, 2, 0, 0, 0xff, 0xff];

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for with_uas in [false, true] {
        let disk = Disk::super_speed(MemoryStorage::new(1 << 20), "0123", with_uas);
        let bytes = super::disk::configuration_of(&mut Port::new(disk));
        seeds.push([&[0][..], &bytes].concat());
        seeds.push([&[1][..], &GET_CONFIGURATION, &bytes].concat());
    }
    let device = [18, 1, 0x20, 3, 0, 0, 0, 9, 9, 0x12, 1, 0, 0, 1, 0, 0, 0, 1];
    seeds.push([&[1, 0x80, 6, 0, 1, 0, 0, 64, 0][..], &device].concat());
    seeds.push([&[1, 0x80, 6, 0, 6, 0, 0, 10, 0][..], &device].concat());
    seeds.push(vec![
        2, 3, 9, 4, 0, 0, 2, 8, 6, 0x50, 0, 7, 5, 0x81, 2, 0, 4, 0, 6, 0x30, 15,
    ]);
    seeds
}

fn run(input: &mut Input<'_>) {
    match input.below(3) {
        0 => {
            let bytes = input.rest().to_vec();
            presented(bytes, input);
        }
        1 => {
            let setup = input.array();
            let mut bytes = input.rest().to_vec();
            let asked = intercept(setup);
            if let Intercept::Ask(instead) = asked {
                assert!(instead[0] & 0x80 != 0, "with an IN data stage");
                let length = u16::from_le_bytes([instead[6], instead[7]]);
                assert!(length <= MAX_ASKED || instead == setup);
            }
            let len = present(setup, &mut bytes);
            assert!(len <= bytes.len());
            assert!(len <= usize::from(u16::from_le_bytes([setup[6], setup[7]])));
            input.did((setup[1], setup[3] & 15, std::mem::discriminant(&asked)));
        }
        _ => {
            // A configuration of whole descriptors, whatever is in them.
            let mut bytes = vec![9, 2, 0, 0, 1, 1, 0, 0x80, 100];
            while !input.is_empty() {
                let len = 2 + input.below(12);
                let kind = [4, 5, 0x30, 0x31, 11, 0x21, 0x24][input.below(7)];
                bytes.extend([len as u8, kind]);
                let body = input.take(len - 2);
                bytes.extend_from_slice(body);
                bytes.resize(bytes.len() + len - 2 - body.len(), 0);
            }
            let total = (bytes.len() as u16).to_le_bytes();
            bytes[2..4].copy_from_slice(&total);
            presented(bytes, input);
        }
    }
}

fn presented(mut bytes: Vec<u8>, input: &mut Input<'_>) {
    let uas = uas_only_interface(&bytes);
    let before = bytes.len();
    let len = configuration(&mut bytes);
    assert!(len <= before);
    let result = &bytes[..len];
    input.did((uas.is_some(), len.min(64), before - len));
    if len < 9 {
        return;
    }
    assert_eq!(
        usize::from(u16::from_le_bytes([result[2], result[3]])),
        len & 0xffff
    );
    let mut rest = &result[usize::from(result[0]).clamp(9, len)..];
    while let [descriptor_len, kind, ..] = *rest {
        let descriptor_len = usize::from(descriptor_len);
        assert!(
            (2..=rest.len()).contains(&descriptor_len),
            "whole descriptors"
        );
        assert!(!matches!(kind, 0x30 | 0x31), "no companions");
        // Shorter ones are no endpoints, and stay as they are.
        if kind == 5 && descriptor_len >= 7 {
            let size = u16::from_le_bytes([rest[4], rest[5]]);
            match rest[3] & 3 {
                2 => assert_eq!(size, 512, "bulk at high speed"),
                0 => assert_eq!(size, 64, "control at high speed"),
                _ => assert!(size & 0x7ff <= 1024 && size >> 11 <= 2, "{size:#x}"),
            }
        }
        rest = &rest[descriptor_len..];
    }
    assert!(rest.is_empty());
    assert_eq!(uas_only_interface(result), None, "nothing to hide twice");
}

// SPDX-License-Identifier: GPL-3.0-or-later
extern crate std;

use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

/// A stick's device descriptor: USB 3.20, bMaxPacketSize0 2^9.
const DEVICE: [u8; 18] = [
    18, 1, 0x20, 3, 0, 0, 0, 9, 0x51, 0x09, 0x66, 0x16, 0, 1, 1, 2, 3, 1,
];

/// A disk with bulk-only and UAS settings, as its descriptors are laid out by real ones.
#[rustfmt::skip]
const UAS_DISK: &[u8] = &[
    9, 2, 121, 0, 1, 1, 0, 0x80, 112,
    9, 4, 0, 0, 2, 8, 6, 0x50, 0,
        7, 5, 0x81, 2, 0, 4, 0,     6, 0x30, 15, 0, 0, 0,
        7, 5, 0x02, 2, 0, 4, 0,     6, 0x30, 15, 0, 0, 0,
    9, 4, 0, 1, 4, 8, 6, 0x62, 0,
        7, 5, 0x81, 2, 0, 4, 0,     6, 0x30, 15, 5, 0, 0,   4, 0x24, 3, 0,
        7, 5, 0x02, 2, 0, 4, 0,     6, 0x30, 15, 5, 0, 0,   4, 0x24, 4, 0,
        7, 5, 0x83, 2, 0, 4, 0,     6, 0x30, 15, 5, 0, 0,   4, 0x24, 2, 0,
        7, 5, 0x04, 2, 0, 4, 0,     6, 0x30, 0, 0, 0, 0,    4, 0x24, 1, 0,
];

fn presented(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let len = configuration(&mut bytes);
    bytes.truncate(len);
    bytes
}

/// A configuration of one interface with one endpoint and, perhaps, its companion.
fn with_endpoint(endpoint: [u8; 7], companion: Option<[u8; 6]>) -> Vec<u8> {
    let mut bytes = vec![9, 2, 0, 0, 1, 1, 0, 0x80, 0, 9, 4, 0, 0, 1, 255, 0, 0, 0];
    bytes.extend(endpoint);
    bytes.extend(companion.into_iter().flatten());
    bytes[2] = bytes.len() as u8;
    bytes
}

/// wMaxPacketSize and bInterval of an endpoint, given bmAttributes, wMaxPacketSize, bInterval and
/// the companion's bMaxBurst, bmAttributes and wBytesPerInterval.
fn translated(attributes: u8, size: u16, interval: u8, companion: (u8, u8, u16)) -> (u16, u8) {
    let [low, high] = size.to_le_bytes();
    let (burst, companion_attributes, bytes) = companion;
    let [bytes_low, bytes_high] = bytes.to_le_bytes();
    let companion = [6, 0x30, burst, companion_attributes, bytes_low, bytes_high];
    let configuration = with_endpoint(
        [7, 5, 0x81, attributes, low, high, interval],
        Some(companion),
    );
    let result = presented(&configuration);
    assert_eq!(result.len(), 25);
    (u16::from_le_bytes([result[22], result[23]]), result[24])
}

#[test]
fn the_device_is_usb_2() {
    let mut bytes = DEVICE;
    assert_eq!(device(&mut bytes), 18);
    let mut expected = DEVICE;
    expected[2..4].copy_from_slice(&[0, 2]);
    expected[7] = 64;
    assert_eq!(bytes, expected);
}

#[test]
fn the_guest_asks_for_the_device_descriptor() {
    for length in [8_u8, 18, 64] {
        let guest = [0x80, 6, 0, 1, 0, 0, length, 0];
        assert_eq!(
            intercept(guest),
            Intercept::Ask([0x80, 6, 0, 1, 0, 0, 18, 0])
        );
        let mut bytes = DEVICE;
        assert_eq!(present(guest, &mut bytes), usize::from(length.min(18)));
        assert_eq!(bytes[7], 64);
    }
}

#[test]
fn the_qualifier_is_made_up() {
    let guest = [0x80, 6, 0, 6, 0, 0, 10, 0];
    assert_eq!(
        intercept(guest),
        Intercept::Ask([0x80, 6, 0, 1, 0, 0, 18, 0])
    );
    let mut bytes = DEVICE;
    bytes[4..7].copy_from_slice(&[0xef, 2, 1]);
    assert_eq!(present(guest, &mut bytes), 10);
    assert_eq!(bytes[..10], [10, 6, 0, 2, 0xef, 2, 1, 64, 0, 0]);
    // A broken device gives a broken descriptor: then there is none.
    assert_eq!(present(guest, &mut { DEVICE }[..17]), 0);
}

#[test]
fn a_uas_disk_is_bulk_only() {
    assert_eq!(UAS_DISK.len(), 121);
    #[rustfmt::skip]
    let expected = [
        9, 2, 32, 0, 1, 1, 0, 0x80, 250,
        9, 4, 0, 0, 2, 8, 6, 0x50, 0,
            7, 5, 0x81, 2, 0, 2, 0,
            7, 5, 0x02, 2, 0, 2, 0,
    ];
    assert_eq!(presented(UAS_DISK), expected);
    assert_eq!(uas_only_interface(UAS_DISK), None);
}

#[test]
fn the_guest_asks_for_a_configuration() {
    for (length, answered) in [(9_u16, 9), (31, 31), (32, 32), (255, 32), (4096, 32)] {
        let [low, high] = length.to_le_bytes();
        let guest = [0x80, 6, 3, 2, 0, 0, low, high];
        let asked = [0x80, 6, 3, 2, 0, 0, 0, 0x10];
        assert_eq!(intercept(guest), Intercept::Ask(asked));
        let mut bytes = UAS_DISK.to_vec();
        assert_eq!(present(guest, &mut bytes), answered);
        // The length that the guest learns is that of what it can have.
        assert_eq!(bytes[2..4], [32, 0]);
    }
}

#[test]
fn a_disk_with_nothing_but_uas() {
    let mut bytes = UAS_DISK.to_vec();
    // Interface 0 becomes bulk-only and UAS on two interfaces; the second has nothing else.
    bytes[4] = 2;
    bytes[9 + 9 + 26 + 2] = 1;
    assert_eq!(uas_only_interface(&bytes), Some(1));
    let result = presented(&bytes);
    assert_eq!((result.len(), result[4]), (32, 1));
}

#[test]
fn power() {
    for (superspeed, high_speed) in [(0, 0), (1, 4), (12, 48), (62, 248), (63, 250), (112, 250)] {
        let mut bytes = UAS_DISK.to_vec();
        bytes[8] = superspeed;
        assert_eq!(presented(&bytes)[8], high_speed);
    }
}

#[test]
fn bulk_and_control_endpoints() {
    assert_eq!(translated(2, 1024, 0, (15, 0, 0)), (512, 0));
    assert_eq!(translated(0, 512, 0, (0, 0, 0)), (64, 0));
}

#[test]
fn interrupt_endpoints() {
    assert_eq!(translated(3, 8, 11, (0, 0, 8)), (8, 11));
    assert_eq!(translated(3, 64, 4, (0, 0, 64)), (64, 4));
    assert_eq!(translated(3, 1024, 1, (0, 0, 1024)), (1024, 1));
    // Two and three transactions
    assert_eq!(translated(3, 1024, 1, (1, 0, 2048)), (0x0c00, 1));
    assert_eq!(translated(3, 1024, 1, (2, 0, 3072)), (0x1400, 1));
    // Intervals out of range
    assert_eq!(translated(3, 8, 0, (0, 0, 8)).1, 1);
    assert_eq!(translated(3, 8, 255, (0, 0, 8)).1, 16);
    // Bits of USB 3 (usage: notification) are not for a USB 2.0 host.
    let result = presented(&with_endpoint([7, 5, 0x81, 0x13, 8, 0, 8], None));
    assert_eq!(result[18..], [7, 5, 0x81, 3, 8, 0, 8]);
}

#[test]
fn isochronous_endpoints() {
    // A microphone of 192 bytes
    assert_eq!(translated(5, 192, 4, (0, 0, 192)), (192, 4));
    // wBytesPerInterval says how much of the bursts is used.
    assert_eq!(translated(5, 1024, 1, (3, 0, 1500)), (750 | 1 << 11, 1));
    assert_eq!(translated(5, 1024, 1, (3, 0, 3000)), (1000 | 2 << 11, 1));
    // More than high speed carries
    assert_eq!(translated(5, 1024, 1, (15, 2, 0xc000)), (0x1400, 1));
    assert_eq!(translated(5, 1024, 1, (15, 0x80, 1)), (0x1400, 1));
    // Unknown: all that the bursts hold
    assert_eq!(translated(5, 512, 1, (1, 0, 0)), (1024, 1));
    // Synchronisation and usage stay.
    let result = presented(&with_endpoint([7, 5, 0x81, 0x25, 8, 0, 8], None));
    assert_eq!(result[21], 0x25);
}

#[test]
fn class_descriptors_stay() {
    // An audio endpoint of nine bytes, its companion, its class descriptor
    let mut bytes = vec![9, 2, 50, 0, 1, 1, 0, 0x80, 0, 9, 4, 0, 0, 1, 1, 2, 0, 0];
    bytes.extend([9, 4, 0, 1, 1, 1, 2, 0, 0]);
    bytes.extend([9, 5, 0x81, 5, 0, 4, 1, 0, 0]);
    bytes.extend([6, 0x30, 1, 0, 0, 8]);
    bytes.extend([8, 0x25, 1, 0, 0, 0, 0, 0]);
    let result = presented(&bytes);
    assert_eq!(result.len(), 44);
    assert_eq!(result[27..36], [9, 5, 0x81, 5, 0, 0x0c, 1, 0, 0]);
    assert_eq!(result[36..], [8, 0x25, 1, 0, 0, 0, 0, 0]);
}

#[test]
fn a_companion_belongs_to_one_endpoint() {
    let mut bytes = vec![9, 2, 38, 0, 1, 1, 0, 0x80, 0, 9, 4, 0, 0, 2, 255, 0, 0, 0];
    bytes.extend([7, 5, 0x81, 3, 0, 4, 1]);
    bytes.extend([7, 5, 0x82, 3, 0, 4, 1]);
    bytes.extend([6, 0x30, 2, 0, 0, 12]);
    let result = presented(&bytes);
    assert_eq!(result[22..24], [0, 4]);
    assert_eq!(result[29..31], [0, 0x14]);
}

#[test]
fn malformed_configurations() {
    // Too short for anything
    for len in 0..9 {
        assert_eq!(presented(&UAS_DISK[..len]), UAS_DISK[..len]);
    }
    // Cut in the middle of a descriptor: it goes.
    let result = presented(&UAS_DISK[..20]);
    assert_eq!(result.len(), 18);
    assert_eq!(result[2], 18);
    // A descriptor of length 0 or 1 ends it.
    for len in [0, 1] {
        let mut bytes = UAS_DISK.to_vec();
        bytes[18] = len;
        assert_eq!(presented(&bytes).len(), 18);
    }
    // Bytes beyond wTotalLength do not belong to it.
    let mut bytes = UAS_DISK.to_vec();
    bytes[2] = 31;
    assert_eq!(presented(&bytes).len(), 25);
}

#[test]
fn requests_of_superspeed_are_refused() {
    for setup in [
        [0x80, 6, 0, 15, 0, 0, 5, 0],  // BOS
        [0x80, 6, 0, 7, 0, 0, 9, 0],   // other speed
        [0x00, 48, 0, 0, 0, 0, 6, 0],  // SET_SEL
        [0x00, 49, 40, 0, 0, 0, 0, 0], // SET_ISOCH_DELAY
        [0x00, 3, 48, 0, 0, 0, 0, 0],  // U1_ENABLE
        [0x00, 1, 50, 0, 0, 0, 0, 0],  // LTM_ENABLE
        [0x01, 3, 0, 0, 0, 3, 0, 0],   // FUNCTION_SUSPEND
    ] {
        assert_eq!(intercept(setup), Intercept::Stall, "{setup:?}");
    }
}

#[test]
fn other_requests_pass() {
    for setup in [
        [0x80, 6, 1, 3, 9, 4, 255, 0],   // a string
        [0x81, 6, 0, 0x22, 0, 0, 64, 0], // a report descriptor
        [0x00, 9, 1, 0, 0, 0, 0, 0],     // SET_CONFIGURATION
        [0x00, 3, 1, 0, 0, 0, 0, 0],     // remote wakeup
        [0x02, 1, 0, 0, 0x81, 0, 0, 0],  // CLEAR_FEATURE(ENDPOINT_HALT)
        [0x82, 0, 0, 0, 0x81, 0, 2, 0],  // an endpoint's status
        [0xc0, 6, 0, 1, 0, 0, 18, 0],    // a vendor's
    ] {
        assert_eq!(intercept(setup), Intercept::Pass, "{setup:?}");
    }
}

#[test]
fn status_has_the_bits_of_usb_2() {
    let device = [0x80, 0, 0, 0, 0, 0, 2, 0];
    let interface = [0x81, 0, 0, 0, 1, 0, 2, 0];
    assert_eq!(intercept(device), Intercept::Ask(device));
    let mut bytes = [0x1f, 0x01];
    assert_eq!(present(device, &mut bytes), 2);
    assert_eq!(bytes, [3, 0]);
    let mut bytes = [0x03, 0];
    assert_eq!(present(interface, &mut bytes), 2);
    assert_eq!(bytes, [0, 0]);
}

/// Something like descriptors: right lengths mostly, types that matter.
fn descriptors() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![
        Just(2_u8),
        Just(4),
        Just(5),
        Just(0x30),
        Just(0x31),
        Just(0x24),
        any::<u8>()
    ];
    let part = (kind, prop::collection::vec(any::<u8>(), 0..10), 0_u8..12).prop_map(
        |(kind, mut body, fault)| {
            if kind == 4 && body.len() >= 6 && fault < 6 {
                body[3..6].copy_from_slice(&[8, 6, 0x62]);
            }
            let mut len = body.len() as u8 + 2;
            if fault == 0 {
                len = body.first().copied().unwrap_or(0);
            }
            let mut part = vec![len, kind];
            part.extend(body);
            part
        },
    );
    let total = prop_oneof![4 => Just(None), 1 => any::<u16>().prop_map(Some)];
    (prop::collection::vec(part, 0..30), total).prop_map(|(parts, total)| {
        let mut bytes = vec![9, 2, 0, 0, 1, 1, 0, 0x80, 50];
        bytes.extend(parts.concat());
        let total = total.unwrap_or(bytes.len() as u16);
        bytes[2..4].copy_from_slice(&total.to_le_bytes());
        bytes
    })
}

fn check(result: &[u8]) -> Result<(), TestCaseError> {
    if result.len() < 9 {
        return Ok(());
    }
    let total = u16::from_le_bytes([result[2], result[3]]);
    prop_assert_eq!(usize::from(total), result.len());
    let mut rest = &result[usize::from(result[0]).clamp(9, result.len())..];
    while !rest.is_empty() {
        let len = usize::from(rest[0]);
        prop_assert!((2..=rest.len()).contains(&len));
        let part = &rest[..len];
        prop_assert!(!matches!(part[1], 0x30 | 0x31));
        if part[1] == 4 {
            prop_assert_ne!(part.get(5..8), Some(&[8, 6, 0x62][..]));
        }
        if part[1] == 5 && len >= 7 {
            let size = u16::from_le_bytes([part[4], part[5]]);
            let transactions = (size >> 11) + 1;
            let bytes = size & 0x7ff;
            match part[3] & 3 {
                0 => prop_assert_eq!(size, 64),
                2 => prop_assert_eq!(size, 512),
                _ => {
                    // USB 2.0 table 9-14
                    let least = [0, 0, 513, 683][usize::from(transactions)];
                    prop_assert!(transactions <= 3 && (least..=1024).contains(&bytes));
                    prop_assert!((1..=16).contains(&part[6]));
                }
            }
        }
        rest = &rest[len..];
    }
    Ok(())
}

proptest! {
    #[test]
    fn what_is_presented_is_well_formed(bytes in descriptors()) {
        let result = presented(&bytes);
        prop_assert!(result.len() <= bytes.len());
        check(&result)?;
        // Nothing is there to hide a second time.
        prop_assert_eq!(uas_only_interface(&result), None);
    }

    #[test]
    fn any_bytes(
        setup in prop_oneof![
            any::<[u8; 8]>(),
            (0_u8..9, any::<[u8; 2]>()).prop_map(|(k, l)| [0x80, 6, 0, k, 0, 0, l[0], l[1]]),
        ],
        mut bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let _ = intercept(setup);
        let _ = uas_only_interface(&bytes);
        let len = present(setup, &mut bytes);
        prop_assert!(len <= bytes.len());
        prop_assert!(len <= usize::from(u16::from_le_bytes([setup[6], setup[7]])));
    }

    /// A prefix of what is presented is the prefix of it, whatever length the guest asks for.
    #[test]
    fn short_requests_are_prefixes(bytes in descriptors(), length in any::<u16>()) {
        let [low, high] = length.to_le_bytes();
        let mut all = bytes.clone();
        let all_len = present([0x80, 6, 0, 2, 0, 0, 0xff, 0xff], &mut all);
        let mut some = bytes;
        let len = present([0x80, 6, 0, 2, 0, 0, low, high], &mut some);
        prop_assert_eq!(len, all_len.min(length.into()));
        prop_assert_eq!(&some[..len], &all[..len]);
    }
}

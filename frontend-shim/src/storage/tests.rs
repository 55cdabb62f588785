// SPDX-License-Identifier: GPL-3.0-or-later
use super::scsi::{self, Capacity, Inquiry, Sense, SenseKey};
use super::wrapper::{CommandStatus, StatusWrapper, command_wrapper};

#[test]
fn a_command_wrapper_is_that_of_the_specification() {
    let cbw = command_wrapper(0x0102_0304, 0x2000, true, &scsi::read(0x0506_0708, 16));
    assert_eq!(&cbw[..4], b"USBC");
    assert_eq!(&cbw[4..8], &[4, 3, 2, 1]);
    assert_eq!(&cbw[8..12], &[0, 0x20, 0, 0]);
    assert_eq!(&cbw[12..15], &[0x80, 0, 10]);
    assert_eq!(&cbw[15..25], &[0x28, 0, 5, 6, 7, 8, 0, 0, 16, 0]);
    assert_eq!(&cbw[25..], &[0; 6]);
}

fn csw(signature: &[u8; 4], tag: u32, residue: u32, status: u8) -> Vec<u8> {
    let mut bytes = signature.to_vec();
    bytes.extend(tag.to_le_bytes());
    bytes.extend(residue.to_le_bytes());
    bytes.push(status);
    bytes
}

#[test]
fn a_status_wrapper_must_be_valid_and_meaningful() {
    let parse = |bytes: &[u8]| StatusWrapper::parse(bytes, 7, 512);
    let passed = parse(&csw(b"USBS", 7, 512, 0)).unwrap();
    assert_eq!(
        (passed.status, passed.residue),
        (CommandStatus::Passed, 512)
    );
    assert_eq!(
        parse(&csw(b"USBS", 7, 0, 1)).unwrap().status,
        CommandStatus::Failed
    );
    assert_eq!(parse(&csw(b"USBC", 7, 0, 0)), None, "signature");
    assert_eq!(parse(&csw(b"USBS", 6, 0, 0)), None, "tag");
    assert_eq!(parse(&csw(b"USBS", 7, 513, 0)), None, "residue");
    assert_eq!(parse(&csw(b"USBS", 7, 0, 3)), None, "status");
    assert_eq!(parse(&csw(b"USBS", 7, 0, 0)[..12]), None, "length");
    let phase = parse(&csw(b"USBS", 7, 600, 2)).unwrap();
    assert_eq!(
        phase.status,
        CommandStatus::PhaseError,
        "whatever the residue"
    );
}

#[test]
fn capacity_counts_from_the_last_block() {
    let capacity = Capacity::parse(&[0, 1, 0xff, 0xff, 0, 0, 2, 0]);
    assert_eq!(
        capacity,
        Capacity {
            blocks: 0x20000,
            block_bytes: 512
        }
    );
    assert_eq!(capacity.len_bytes(), 64 << 20);
    assert_eq!(Capacity::parse(&[0xff; 8]).blocks, 1 << 32);
}

#[test]
fn inquiry_text_is_trimmed() {
    let mut bytes = [b' '; 36];
    bytes[0] = 0;
    bytes[1] = 0x80;
    bytes[8..12].copy_from_slice(b"ACME");
    bytes[16..20].copy_from_slice(b"Disk");
    let inquiry = Inquiry::parse(&bytes);
    assert_eq!(
        (inquiry.vendor.as_str(), inquiry.product.as_str()),
        ("ACME", "Disk")
    );
    assert!(inquiry.removable);
}

#[test]
fn sense_is_read_from_its_fixed_format() {
    let mut bytes = [0; 18];
    bytes[2] = 6;
    bytes[12] = 0x29;
    let sense = Sense::parse(&bytes);
    assert_eq!(
        sense,
        Sense {
            key: SenseKey::UnitAttention,
            code: 0x29,
            qualifier: 0
        }
    );
    assert_eq!(sense.to_string(), "UnitAttention (29/00)");
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! Messages byte by byte, against the tables and the captured example of Linux's
//! `Documentation/usb/usbip_protocol.rst`.

use usb_sim::{Audio, Keyboard, Port};
use usbip::op::{self, Request, Status};
use usbip::urb::{self, Command, IsoPacket, Reply};
use usbip::{DeviceRecord, ProtocolError};

/// Bytes of hexadecimal digits, white space apart.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

const CMD_INTR_IN: &str = "00000001 00000d05 0001000f 00000001 00000001 00000200 00000040
    ffffffff 00000000 00000004 00000000 00000000";
const CMD_INTR_OUT: &str = "00000001 00000d06 0001000f 00000000 00000001 00000000 00000040
    ffffffff 00000000 00000004 00000000 00000000
    ffffffff860008a784ce5ae21237630000000000000000000000000000000000
    0000000000000000000000000000000000000000000000000000000000000000";
const RET_INTR_OUT: &str = "00000003 00000d06 00000000 00000000 00000000 00000000 00000040
    ffffffff 00000000 00000000 00000000 00000000";
const RET_INTR_IN: &str = "00000003 00000d05 00000000 00000000 00000000 00000000 00000040
    ffffffff 00000000 00000000 00000000 00000000
    ffffffff860011a784ce5ae2123763612891b102010000040000000000000000
    0000000000000000000000000000000000000000000000000000000000000000";

#[test]
fn captured_commands() {
    // As captured, start_frame is all ones and number_of_packets zero.
    let bytes = hex(CMD_INTR_IN);
    assert_eq!(bytes.len(), urb::HEADER_LEN);
    let (command, len) = urb::decode(&bytes).unwrap().unwrap();
    assert_eq!(len, bytes.len());
    let Command::Submit(submit) = command else {
        panic!("{command:?}");
    };
    assert_eq!((submit.sequence, submit.device), (0xd05, 0x0001_000f));
    assert_eq!((submit.is_in, submit.endpoint), (true, 1));
    assert_eq!((submit.flags, submit.length), (0x200, 64));
    assert_eq!((submit.raw_packets, submit.interval), (0, 4));
    assert!(submit.data.is_empty() && submit.packets.is_empty());

    let bytes = hex(CMD_INTR_OUT);
    for len in 0..bytes.len() {
        assert_eq!(urb::decode(&bytes[..len]), Ok(None));
    }
    let (command, len) = urb::decode(&bytes).unwrap().unwrap();
    assert_eq!(len, bytes.len());
    let Command::Submit(submit) = command else {
        panic!("{command:?}");
    };
    assert_eq!((submit.sequence, submit.is_in), (0xd06, false));
    assert_eq!(submit.data, &bytes[48..]);
    assert_eq!(submit.data.len(), 64);
}

#[test]
fn captured_replies() {
    let mut reply = Reply {
        sequence: 0xd06,
        status: 0,
        actual_length: 64,
        start_frame: 0xffff_ffff,
        raw_packets: 0,
        error_count: 0,
        data: &[],
        packets: &[],
    };
    let mut out = Vec::new();
    urb::encode_reply(&mut out, &reply);
    assert_eq!(out, hex(RET_INTR_OUT));

    let expected = hex(RET_INTR_IN);
    reply.sequence = 0xd05;
    reply.data = &expected[48..];
    let mut out = Vec::new();
    urb::encode_reply(&mut out, &reply);
    assert_eq!(out, expected);
}

#[test]
fn unlink() {
    let bytes = hex("00000002 00000d08 0001000f 00000000 00000000 00000d07
        000000000000000000000000000000000000000000000000");
    let expected = Command::Unlink {
        sequence: 0xd08,
        victim: 0xd07,
    };
    assert_eq!(urb::decode(&bytes), Ok(Some((expected, 48))));
    let mut out = Vec::new();
    urb::encode_unlinked(&mut out, 0xd08, -104);
    let expected = hex("00000004 00000d08 00000000 00000000 00000000 ffffff98
        000000000000000000000000000000000000000000000000");
    assert_eq!(out, expected);
}

#[test]
fn isochronous_packets() {
    let bytes = hex(
        "00000001 00000001 00010002 00000000 00000002 00000002 00000006
        00000000 00000002 00000008 0000000000000000
        010203040506
        00000000 00000004 00000000 ffffffee
        00000004 00000002 00000000 ffffffee",
    );
    let (command, len) = urb::decode(&bytes).unwrap().unwrap();
    assert_eq!(len, bytes.len());
    let Command::Submit(submit) = command else {
        panic!("{command:?}");
    };
    assert_eq!(submit.data, [1, 2, 3, 4, 5, 6]);
    let packet = |offset, length| IsoPacket {
        offset,
        length,
        actual_length: 0,
        status: -18,
    };
    assert_eq!(submit.packets, [packet(0, 4), packet(4, 2)]);

    let reply = Reply {
        sequence: 1,
        status: 0,
        actual_length: 3,
        start_frame: 77,
        raw_packets: 1,
        error_count: 0,
        data: &[7, 8, 9],
        packets: &[IsoPacket {
            offset: 0x10,
            length: 0x20,
            actual_length: 3,
            status: 0,
        }],
    };
    let mut out = Vec::new();
    urb::encode_reply(&mut out, &reply);
    let expected = hex(
        "00000003 00000001 00000000 00000000 00000000 00000000 00000003
        0000004d 00000001 00000000 0000000000000000
        070809 00000010 00000020 00000003 00000000",
    );
    assert_eq!(out, expected);
}

#[test]
fn requests() {
    let list = hex("0111 8005 00000000");
    assert_eq!(op::decode(&list), Ok(Some((Request::DeviceList, 8))));
    let mut import = hex("0111 8003 00000000");
    import.extend_from_slice(b"3-2");
    import.resize(40, 0);
    assert_eq!(op::decode(&import[..39]), Ok(None));
    let expected = Request::Import("3-2".to_owned());
    assert_eq!(op::decode(&import), Ok(Some((expected, 40))));
    // A bus id without a zero at its end, another version, another command
    import[8..].fill(b'9');
    let expected = Request::Import("9".repeat(32));
    assert_eq!(op::decode(&import), Ok(Some((expected, 40))));
    let old = hex("0106 8005 00000000");
    assert_eq!(op::decode(&old), Err(ProtocolError::Version(0x0106)));
    let unknown = hex("0111 8004 00000000");
    assert_eq!(op::decode(&unknown), Err(ProtocolError::Command(0x8004)));
}

/// Offsets of the tables of OP_REP_DEVLIST.
#[test]
fn device_list() {
    let keyboard = DeviceRecord::new(1, &Port::new(Keyboard::new("1")));
    let audio = DeviceRecord::new(2, &Port::new(Audio::new("2")));
    let bytes = op::device_list(&[keyboard, audio]);
    assert_eq!(bytes[..12], hex("0111 0005 00000000 00000002"));
    // The second device starts at 0xc + 0x138 + 4 * m_0.
    let second = 0xc + 0x138 + 4;
    assert_eq!(bytes.len(), second + 0x138 + 3 * 4);
    assert!(bytes[0xc..].starts_with(b"/sys/devices/"));
    assert!(bytes[0x10c..].starts_with(b"1-1\0"));
    // Bus 1, device 2, low speed; 1209:0002 1.00; class of the interface
    let fields = hex("00000001 00000002 00000001 1209 0002 0100 000000 00 01 01");
    assert_eq!(bytes[0x12c..0x144], fields);
    assert_eq!(bytes[0x144..0x148], [3, 1, 1, 0]);
    assert!(bytes[second + 0x100..].starts_with(b"1-2\0"));
    let fields = hex("00000001 00000003 00000003 1209 0004 0100 ef0201 00 01 03");
    assert_eq!(bytes[second + 0x120..second + 0x138], fields);
    let interfaces = hex("01012000 01022000 01022000");
    assert_eq!(bytes[second + 0x138..], interfaces);

    assert_eq!(op::device_list(&[]), hex("0111 0005 00000000 00000000"));
}

/// Offsets of the table of OP_REP_IMPORT.
#[test]
fn import() {
    let record = DeviceRecord::new(1, &Port::new(Keyboard::new("1")));
    assert_eq!(record.id(), 0x0001_0002);
    let bytes = op::imported(&record);
    assert_eq!(bytes.len(), 0x140);
    assert_eq!(bytes[..8], hex("0111 0003 00000000"));
    assert!(bytes[0x108..].starts_with(b"1-1\0"));
    let fields = hex("00000001 00000002 00000001 1209 0002 0100 000000 00 01 01");
    assert_eq!(bytes[0x128..], fields);
    assert_eq!(op::refused(Status::DeviceBusy), hex("0111 0003 00000002"));
    assert_eq!(op::refused(Status::NoDevice), hex("0111 0003 00000004"));
}

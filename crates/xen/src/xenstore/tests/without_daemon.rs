// SPDX-License-Identifier: GPL-3.0-or-later
//! What needs no daemon: messages, paths, permissions, and the kernel's device.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;

use super::unhung;
use crate::DomId;
use crate::xenstore::path::is_at_or_below;
use crate::xenstore::wire::{
    Decoder, HEADER_LEN, Header, Message, MessageType, Oversized, PAYLOAD_MAX, strings,
};
use crate::xenstore::{Endpoint, Errno, Error, NodeAccess, Permission, XenStore, XsPath};

#[test]
fn a_header_is_four_words_in_the_machines_order() {
    let header = Header {
        kind: MessageType::Write as u32,
        request_id: 0x01020304,
        transaction_id: 7,
        len_bytes: 9,
    };
    let mut expected = Vec::new();
    for word in [11_u32, 0x01020304, 7, 9] {
        expected.extend_from_slice(&word.to_ne_bytes());
    }
    assert_eq!(header.to_bytes()[..], expected[..]);
    assert_eq!(Header::from_bytes(&header.to_bytes()), header);
}

#[test]
fn messages_are_cut_wherever_the_reads_fall() {
    let messages = [
        Message::new(MessageType::Read, 1, 0, b"value".to_vec()),
        Message::new(MessageType::Write, 2, 3, Vec::new()),
        Message::new(MessageType::Directory, 4, 0, vec![0xaa; PAYLOAD_MAX]),
        Message::new(MessageType::Error, 5, 0, b"ENOENT\0".to_vec()),
    ];
    let stream: Vec<u8> = messages.iter().flat_map(Message::to_bytes).collect();
    for step in (1..40).chain([4096, stream.len()]) {
        let mut decoder = Decoder::new();
        let mut decoded = Vec::new();
        for piece in stream.chunks(step) {
            decoder.feed(piece);
            while let Some(message) = decoder.next_message().unwrap() {
                decoded.push(message);
            }
        }
        assert_eq!(decoded, messages, "in steps of {step}");
    }
}

#[test]
fn a_payload_that_is_too_long_is_refused_with_its_header() {
    let header = Header {
        kind: 2,
        request_id: 1,
        transaction_id: 0,
        len_bytes: u32::MAX,
    };
    let mut decoder = Decoder::new();
    decoder.feed(&header.to_bytes()[..HEADER_LEN - 1]);
    assert_eq!(decoder.next_message(), Ok(None));
    decoder.feed(&header.to_bytes()[HEADER_LEN - 1..]);
    let len_bytes = u32::MAX;
    assert_eq!(decoder.next_message(), Err(Oversized { len_bytes }));
}

#[test]
fn every_type_has_its_number() {
    for number in 0..=22 {
        let kind = MessageType::from_number(number);
        assert_eq!(
            kind.map(|kind| kind as u32),
            (number != 20).then_some(number)
        );
    }
    assert_eq!(MessageType::from_number(23), None);
    assert_eq!(MessageType::from_number(0xffff), None);
}

#[test]
fn strings_end_with_their_nul_or_with_the_payload() {
    let split = |payload: &'static [u8]| strings(payload).collect::<Vec<_>>();
    assert_eq!(split(b""), [b""; 0]);
    assert_eq!(split(b"\0"), [b""]);
    assert_eq!(split(b"a\0b\0"), [b"a", b"b"]);
    assert_eq!(split(b"a\0b"), [b"a", b"b"]);
    assert_eq!(split(b"a\0\0"), [&b"a"[..], b""]);
}

#[test]
fn permissions_are_a_letter_and_a_domain() {
    for (entry, access) in [
        ("n0", NodeAccess::None),
        ("r5", NodeAccess::Read),
        ("w32751", NodeAccess::Write),
        ("b7", NodeAccess::Both),
    ] {
        let permission = Permission::from_wire(entry).unwrap();
        assert_eq!(permission.access, access);
        assert_eq!(permission.to_wire(), entry);
    }
    assert_eq!(Permission::from_wire("r5").unwrap().domain, DomId(5));
    for entry in ["", "r", "x5", "r65536", "r-1", "5"] {
        assert_eq!(Permission::from_wire(entry), None, "{entry}");
    }
}

#[test]
fn paths_grow_and_shrink() {
    let mut path = XsPath::new("/local/domain/");
    path.push(7);
    path.push("device/vusb");
    assert_eq!(&*path, "/local/domain/7/device/vusb");
    assert_eq!(&*path.join(0), "/local/domain/7/device/vusb/0");
    for expected in [
        "/local/domain/7/device",
        "/local/domain/7",
        "/local/domain",
        "/local",
        "/",
        "/",
    ] {
        path.pop();
        assert_eq!(&*path, expected);
    }
    path.push("tool");
    assert_eq!(&*path, "/tool");
    let mut relative = XsPath::default().with("device").with("vusb");
    assert_eq!(&*relative, "device/vusb");
    relative.pop();
    relative.pop();
    assert_eq!(&*relative, "");
}

#[test]
fn a_child_is_the_path_itself_or_below_it() {
    for (path, parent, expected) in [
        ("/a", "/a", true),
        ("/a/b", "/a", true),
        ("/ab", "/a", false),
        ("/a", "/a/b", false),
        ("/a", "/", true),
        ("@releaseDomain", "@releaseDomain", true),
        ("device/vusb/0", "device/vusb", true),
    ] {
        assert_eq!(is_at_or_below(path, parent), expected, "{path} {parent}");
    }
}

/// A FIFO stands in for `/dev/xen/xenbus`: it is opened by its path, it does not mix up whole
/// writes, and it gives back what is written, which looks like an answer with the request's
/// number and type. What only the kernel's device does needs a Xen host.
#[tokio::test]
async fn the_device_is_spoken_to_in_whole_messages() {
    let name = format!("xenstore-test-fifo-{}", std::process::id());
    let path = std::env::temp_dir().join(name);
    let c_path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: a string that ends with a nul.
    assert_eq!(unsafe { libc::mkfifo(c_path.as_ptr(), 0o600) }, 0);
    let endpoint = Endpoint::Device(path.clone());
    let (store, _events) = XenStore::connect(&endpoint).await.unwrap();
    let echo = unhung(store.read("/a/path")).await.unwrap();
    assert_eq!(echo, b"/a/path\0");
    let reads: Vec<_> = (0..100)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move { (n, store.read(&format!("/{n}")).await.unwrap()) })
        })
        .collect();
    for read in reads {
        let (n, echo) = unhung(read).await.unwrap();
        assert_eq!(echo, format!("/{n}\0").as_bytes());
    }
    // The kernel's buffer holds 4,096 bytes with the header.
    let error = store.write("/a", vec![b'x'; 4078]).await.unwrap_err();
    assert!(matches!(
        error,
        Error::TooLong {
            len_bytes: 4081,
            max_bytes: 4080
        }
    ));
    std::fs::remove_file(path).unwrap();
}

#[test]
fn what_the_device_refuses_keeps_its_reason() {
    for (code, errno) in [
        (libc::ENOENT, Errno::NotFound),
        (libc::E2BIG, Errno::TooBig),
        (libc::EPERM, Errno::Other("errno 1".into())),
    ] {
        let error = std::io::Error::from_raw_os_error(code);
        assert_eq!(Errno::from_io(&error), errno);
    }
}

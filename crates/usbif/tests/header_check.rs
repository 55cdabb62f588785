// SPDX-License-Identifier: GPL-3.0-or-later
//! The codec against Xen's own headers, where a C compiler and `xen/io/usbif.h` (Debian:
//! libxen-dev) are installed; skipped with a note where they are not.

use std::path::PathBuf;
use std::process::Command;

use usbif::*;

const PROGRAM: &str = r#"
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#define xen_mb() __sync_synchronize()
#define xen_rmb() xen_mb()
#define xen_wmb() xen_mb()
#include <xen/xen.h>
#include <xen/io/usbif.h>

#define NUMBER(name, value) printf("%s %lld\n", name, (long long)(value))
#define BYTES(name, object) do { \
        const unsigned char *p = (const void *)&(object); \
        printf("%s ", name); \
        for (size_t i = 0; i < sizeof(object); i++) printf("%02x", p[i]); \
        printf("\n"); \
    } while (0)

int main(void)
{
    struct usbif_urb_request isoc, unlink, ctrl;
    struct usbif_urb_response response;
    struct usbif_conn_request conn_request = { .id = 0x1234 };
    struct usbif_conn_response event = { .id = 0x1234, .portnum = 31, .speed = USBIF_SPEED_HIGH };
    uint32_t pipe;

    NUMBER("request", sizeof(struct usbif_urb_request));
    NUMBER("response", sizeof(struct usbif_urb_response));
    NUMBER("urb_slot", sizeof(union usbif_urb_sring_entry));
    NUMBER("urb_slots", USB_URB_RING_SIZE);
    NUMBER("urb_first_slot", offsetof(struct usbif_urb_sring, ring));
    NUMBER("conn_request", sizeof(struct usbif_conn_request));
    NUMBER("conn_response", sizeof(struct usbif_conn_response));
    NUMBER("conn_slot", sizeof(union usbif_conn_sring_entry));
    NUMBER("conn_slots", USB_CONN_RING_SIZE);
    NUMBER("conn_first_slot", offsetof(struct usbif_conn_sring, ring));
    NUMBER("req_prod", offsetof(struct usbif_urb_sring, req_prod));
    NUMBER("req_event", offsetof(struct usbif_urb_sring, req_event));
    NUMBER("rsp_prod", offsetof(struct usbif_urb_sring, rsp_prod));
    NUMBER("rsp_event", offsetof(struct usbif_urb_sring, rsp_event));
    NUMBER("segments", USBIF_MAX_SEGMENTS_PER_REQUEST);
    NUMBER("ports", USBIF_MAX_PORTNR);
    NUMBER("short_not_ok", USBIF_SHORT_NOT_OK);
    NUMBER("ok", USBIF_STATUS_OK);
    NUMBER("nodev", USBIF_STATUS_NODEV);
    NUMBER("inval", USBIF_STATUS_INVAL);
    NUMBER("stall", USBIF_STATUS_STALL);
    NUMBER("ioerror", USBIF_STATUS_IOERROR);
    NUMBER("babble", USBIF_STATUS_BABBLE);
    NUMBER("shutdown", USBIF_STATUS_SHUTDOWN);

    memset(&isoc, 0, sizeof(isoc));
    pipe = 7 | USBIF_PIPE_DIR | 99u << USBIF_PIPE_DEV_SHIFT | 11u << USBIF_PIPE_EP_SHIFT
         | (uint32_t)USBIF_PIPE_TYPE_ISOC << USBIF_PIPE_TYPE_SHIFT;
    isoc.id = 0x0102;
    isoc.nr_buffer_segs = 2;
    isoc.pipe = pipe;
    isoc.transfer_flags = USBIF_SHORT_NOT_OK;
    isoc.buffer_length = 4096 + 200;
    isoc.u.isoc.interval = 0x0304;
    isoc.u.isoc.start_frame = 0x0506;
    isoc.u.isoc.number_of_packets = 3;
    isoc.u.isoc.nr_frame_desc_segs = 1;
    isoc.seg[0].gref = 0x0708090a; isoc.seg[0].offset = 0; isoc.seg[0].length = 4096;
    isoc.seg[1].gref = 0x0b0c0d0e; isoc.seg[1].offset = 0x0123; isoc.seg[1].length = 200;
    isoc.seg[2].gref = 0x11121314; isoc.seg[2].offset = 0x0234; isoc.seg[2].length = 48;
    BYTES("isoc_bytes", isoc);

    memset(&unlink, 0, sizeof(unlink));
    unlink.id = 0x0203;
    unlink.pipe = (pipe & ~(uint32_t)USBIF_PIPE_DIR) | USBIF_PIPE_UNLINK
                | (uint32_t)USBIF_PIPE_TYPE_BULK << USBIF_PIPE_TYPE_SHIFT;
    unlink.u.unlink.unlink_id = 0x0405;
    BYTES("unlink_bytes", unlink);

    memset(&ctrl, 0, sizeof(ctrl));
    ctrl.id = 3;
    ctrl.nr_buffer_segs = 1;
    ctrl.pipe = 1 | USBIF_PIPE_DIR | (uint32_t)USBIF_PIPE_TYPE_CTRL << USBIF_PIPE_TYPE_SHIFT;
    ctrl.buffer_length = 18;
    memcpy(ctrl.u.ctrl, "\x80\x06\x00\x01\x00\x00\x12\x00", 8);
    ctrl.seg[0].gref = 5; ctrl.seg[0].offset = 6; ctrl.seg[0].length = 18;
    BYTES("ctrl_bytes", ctrl);

    memset(&response, 0, sizeof(response));
    response.id = 0x0102;
    response.start_frame = 0x0304;
    response.status = USBIF_STATUS_STALL;
    response.actual_length = 0x05060708;
    response.error_count = 0x090a0b0c;
    BYTES("response_bytes", response);
    BYTES("conn_request_bytes", conn_request);
    BYTES("event_bytes", event);
    return 0;
}
"#;

/// What the C program prints, or why there is none.
fn ask_the_headers() -> Result<String, String> {
    let header = [
        "/usr/include/xen/io/usbif.h",
        "/usr/local/include/xen/io/usbif.h",
    ]
    .iter()
    .find(|path| std::path::Path::new(path).exists())
    .ok_or("xen/io/usbif.h is not installed (Debian: libxen-dev)")?;
    let text = std::fs::read_to_string(header).map_err(|e| format!("{header}: {e}"))?;
    if !text.contains("usbif_urb_request") {
        return Err(format!("{header} is older than the protocol"));
    }
    if Command::new("cc").arg("--version").output().is_err() {
        return Err("there is no C compiler `cc`".into());
    }
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let source = directory.join("usbif-header-check.c");
    let program = directory.join("usbif-header-check");
    std::fs::write(&source, PROGRAM).unwrap();
    let include = header.trim_end_matches("/xen/io/usbif.h");
    let compiled = Command::new("cc")
        .args(["-std=gnu11", "-I", include, "-o"])
        .args([&program, &source])
        .output()
        .unwrap();
    assert!(
        compiled.status.success(),
        "the C program does not compile:\n{}",
        String::from_utf8_lossy(&compiled.stderr)
    );
    let output = Command::new(&program).output().unwrap();
    assert!(output.status.success());
    Ok(String::from_utf8(output.stdout).unwrap())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Bytes that a ring writes into its first slot.
fn slot_bytes(len: usize, write: impl FnOnce(&heap::Page)) -> String {
    let page = heap::Page::default();
    write(&page);
    let bytes = page.0.borrow();
    hex(&bytes[64..64 + len])
}

mod heap {
    use std::cell::RefCell;

    pub(crate) struct Page(pub(crate) RefCell<[u8; 4096]>);

    impl Default for Page {
        fn default() -> Self {
            Self(RefCell::new([0; 4096]))
        }
    }

    impl usbif::RingMemory for Page {
        fn read(&self, offset: usize, dst: &mut [u8]) {
            dst.copy_from_slice(&self.0.borrow()[offset..offset + dst.len()]);
        }
        fn write(&self, offset: usize, src: &[u8]) {
            self.0.borrow_mut()[offset..offset + src.len()].copy_from_slice(src);
        }
        fn load_acquire(&self, offset: usize) -> u32 {
            let mut bytes = [0; 4];
            self.read(offset, &mut bytes);
            u32::from_le_bytes(bytes)
        }
        fn store_release(&self, offset: usize, value: u32) {
            self.write(offset, &value.to_le_bytes());
        }
        fn full_barrier(&self) {}
    }
}

/// Everything that the C program prints, from our side.
fn ours() -> Vec<(&'static str, String)> {
    let page = heap::Page::default();
    let _ = FrontRing::<_, Urb>::starting_at(&page, 7);
    let index_at = |value: u32| {
        let bytes = page.0.borrow();
        let at = bytes
            .chunks(4)
            .enumerate()
            .filter(|(_, b)| *b == value.to_le_bytes());
        at.map(|(n, _)| n * 4).collect::<Vec<_>>()
    };
    // The producers hold 7 and the event indices 8.
    let (producers, events) = (index_at(7), index_at(8));

    let address = DeviceAddress::new(99).unwrap();
    let segment = |gref, offset, length| Segment {
        gref,
        offset,
        length,
    };
    let isoc = UrbRequest::with_descriptors(
        0x0102,
        Pipe::new(7, address, 11, Direction::In, TransferType::Isochronous),
        SHORT_NOT_OK,
        UrbKind::Isochronous {
            interval: 0x0304,
            start_frame: 0x0506,
            packets: 3,
        },
        &[
            segment(0x0708_090a, 0, 4096),
            segment(0x0b0c_0d0e, 0x0123, 200),
        ],
        &[segment(0x1112_1314, 0x0234, 48)],
    )
    .unwrap();
    let unlink = UrbRequest::new(
        0x0203,
        Pipe::new(7, address, 11, Direction::Out, TransferType::Bulk).with_unlink(),
        0,
        UrbKind::Unlink { id: 0x0405 },
        &[],
    )
    .unwrap();
    let ctrl = UrbRequest::new(
        3,
        Pipe::new(
            1,
            DeviceAddress::DEFAULT,
            0,
            Direction::In,
            TransferType::Control,
        ),
        0,
        UrbKind::Control {
            setup: Setup::new(0x80, Setup::GET_DESCRIPTOR, 0x0100, 0, 18),
        },
        &[segment(5, 6, 18)],
    )
    .unwrap();
    let response = UrbResponse {
        id: 0x0102,
        start_frame: 0x0304,
        status: UrbStatus::STALL,
        actual_length: 0x0506_0708,
        error_count: 0x090a_0b0c,
    };
    let event = ConnResponse {
        id: 0x1234,
        port: PortNumber::new(31).unwrap(),
        speed: Speed::High,
    };
    vec![
        ("request", Urb::REQUEST_BYTES.to_string()),
        ("response", Urb::RESPONSE_BYTES.to_string()),
        ("urb_slot", Urb::SLOT_BYTES.to_string()),
        ("urb_slots", Urb::SLOTS.to_string()),
        ("urb_first_slot", RING_HEADER_BYTES.to_string()),
        ("conn_request", Conn::REQUEST_BYTES.to_string()),
        ("conn_response", Conn::RESPONSE_BYTES.to_string()),
        ("conn_slot", Conn::SLOT_BYTES.to_string()),
        ("conn_slots", Conn::SLOTS.to_string()),
        ("conn_first_slot", RING_HEADER_BYTES.to_string()),
        ("req_prod", producers[0].to_string()),
        ("req_event", events[0].to_string()),
        ("rsp_prod", producers[1].to_string()),
        ("rsp_event", events[1].to_string()),
        ("segments", MAX_SEGMENTS.to_string()),
        ("ports", PortNumber::MAX.to_string()),
        ("short_not_ok", SHORT_NOT_OK.to_string()),
        ("ok", UrbStatus::OK.0.to_string()),
        ("nodev", UrbStatus::NODEV.0.to_string()),
        ("inval", UrbStatus::INVAL.0.to_string()),
        ("stall", UrbStatus::STALL.0.to_string()),
        ("ioerror", UrbStatus::IOERROR.0.to_string()),
        ("babble", UrbStatus::BABBLE.0.to_string()),
        ("shutdown", UrbStatus::SHUTDOWN.0.to_string()),
        (
            "isoc_bytes",
            slot_bytes(148, |page| Urb::write_request(page, 64, &isoc)),
        ),
        (
            "unlink_bytes",
            slot_bytes(148, |page| Urb::write_request(page, 64, &unlink)),
        ),
        (
            "ctrl_bytes",
            slot_bytes(148, |page| Urb::write_request(page, 64, &ctrl)),
        ),
        (
            "response_bytes",
            slot_bytes(16, |page| Urb::write_response(page, 64, &response)),
        ),
        (
            "conn_request_bytes",
            slot_bytes(2, |page| {
                Conn::write_request(page, 64, &ConnRequest { id: 0x1234 })
            }),
        ),
        (
            "event_bytes",
            slot_bytes(4, |page| Conn::write_response(page, 64, &event)),
        ),
    ]
}

#[test]
fn every_size_offset_constant_and_byte_is_that_of_the_c_headers() {
    let theirs = match ask_the_headers() {
        Ok(theirs) => theirs,
        Err(reason) => {
            println!("SKIPPED: {reason}");
            return;
        }
    };
    let ours: String = ours()
        .iter()
        .map(|(name, value)| format!("{name} {value}\n"))
        .collect();
    assert_eq!(ours, theirs);
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! Real devices, or those that QEMU emulates (`usb-storage` on EHCI or, at SuperSpeed, on xHCI,
//! `usb-tablet`), or a mass-storage gadget.
//!
//! Not run by default: it needs root, a stick whose first MiB may be lost, and a mouse or the like
//! that nobody touches and that must be plugged in again afterwards. Name their places:
//! `XEN_VUSB_TEST_STICK=1-1 XEN_VUSB_TEST_INPUT=1-2 cargo test -p exporter --test hardware -- --ignored`

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use common::*;
use session::client::Client;
use session::control::{Event, Refusal, Reply, Request};
use session::frame::{FLAG_SHORT_NOT_OK, Transfer, TransferStatus, TransferType};
use session::open::{How, Opened};
use session::{DeviceState, Speed};

fn stick() -> String {
    std::env::var("XEN_VUSB_TEST_STICK").expect("XEN_VUSB_TEST_STICK names no stick")
}

fn input() -> String {
    std::env::var("XEN_VUSB_TEST_INPUT").expect("XEN_VUSB_TEST_INPUT names no device")
}

/// The kernel driver of a device's first interface.
fn driver(device: &str) -> Option<String> {
    let link = format!("/sys/bus/usb/devices/{device}:1.0/driver");
    let target: PathBuf = fs::read_link(Path::new(&link)).ok()?;
    target.file_name().map(|n| n.to_string_lossy().into_owned())
}

/// The stick's endpoints, IN and OUT, once it was asked for them.
static ENDPOINTS: OnceLock<(u8, u8)> = OnceLock::new();

fn bulk_in(length: u32) -> Transfer {
    Transfer {
        endpoint: ENDPOINTS.get().map_or(0x81, |(bulk_in, _)| *bulk_in),
        ..common::bulk_in(length)
    }
}

fn bulk_out(length: u32) -> Transfer {
    Transfer {
        endpoint: ENDPOINTS.get().map_or(0x02, |(_, bulk_out)| *bulk_out),
        ..common::bulk_in(length)
    }
}

/// Runs a command whose data phase is divided so: to where the packets of a SuperSpeed device end,
/// and to where only those end that the guest believes in.
async fn divided(device: &mut Device, cbw: &[u8], data: Option<&[u8]>, pieces: &[u32]) -> Vec<u8> {
    let (command, _) = device.transfer(&bulk_out(31), cbw).await;
    assert_eq!(command.status, TransferStatus::Completed);
    let mut at = 0;
    let mut expected = Vec::new();
    for piece in pieces {
        let request = match data {
            Some(data) => device.submit(&bulk_out(*piece), &data[at..at + *piece as usize]),
            None => device.submit(&bulk_in(*piece), &[]),
        };
        at += *piece as usize;
        expected.push((request, TransferStatus::Completed, *piece));
    }
    let mut all = Vec::new();
    let mut ended = Vec::new();
    for _ in pieces {
        let (completion, body) = device.completion().await;
        ended.push((
            completion.request,
            completion.status,
            completion.actual_length,
        ));
        all.extend(body);
    }
    ended.sort_by_key(|(request, ..)| *request);
    assert_eq!(ended, expected);
    let (status, csw) = device.transfer(&bulk_in(13), &[]).await;
    assert_eq!((status.status, csw[12]), (TransferStatus::Completed, 0));
    all
}

/// Runs a command of the stick, one phase after the other: QEMU's stalls what is early.
async fn command(device: &mut Device, cbw: &[u8], data: Option<&[u8]>, len: u32) -> Vec<u8> {
    let (command, _) = device.transfer(&bulk_out(31), cbw).await;
    assert_eq!(command.status, TransferStatus::Completed);
    let (phase, body) = match data {
        Some(data) => device.transfer(&bulk_out(len), data).await,
        None => device.transfer(&bulk_in(len), &[]).await,
    };
    assert_eq!(
        (phase.status, phase.actual_length),
        (TransferStatus::Completed, len)
    );
    let (status, csw) = device.transfer(&bulk_in(13), &[]).await;
    assert_eq!(status.status, TransferStatus::Completed);
    let expected = [b"USBS", &cbw[4..8]].concat();
    assert_eq!((&csw[..8], csw[12]), (expected.as_slice(), 0));
    body
}

/// TEST UNIT READY and REQUEST SENSE, until the stick has told all that happened to it.
async fn until_ready(device: &mut Device) {
    let wrapper = |tag: u8, len: u8, command: [u8; 6]| {
        let mut cbw = vec![
            b'U', b'S', b'B', b'C', tag, 0, 0, 0, len, 0, 0, 0, 0x80, 0, 6,
        ];
        cbw.extend_from_slice(&command);
        cbw.resize(31, 0);
        cbw
    };
    for _ in 0..8 {
        device
            .transfer(&bulk_out(31), &wrapper(0x70, 0, [0; 6]))
            .await;
        let (_, csw) = device.transfer(&bulk_in(13), &[]).await;
        if csw[12] == 0 {
            return;
        }
        let sense = wrapper(0x71, 18, [3, 0, 0, 0, 18, 0]);
        command(device, &sense, None, 18).await;
    }
    panic!("the stick does not become ready");
}

fn endpoints(configuration: &[u8]) -> (u8, u8) {
    let mut at = 0;
    let (mut bulk_in, mut bulk_out) = (0, 0);
    while let Some(&len) = configuration.get(at) {
        if configuration[at + 1] == 5 {
            match configuration[at + 2] {
                e if e & 0x80 != 0 => bulk_in = e,
                e => bulk_out = e,
            }
        }
        at += usize::from(len);
    }
    (bulk_in, bulk_out)
}

#[test]
#[ignore = "needs root and a USB stick"]
fn a_stick_is_lent_used_moved_and_given_back() {
    let pool = Pool::new();
    let exporter = pool.start_with_usb(ALLOW_ALL);
    let (a, b) = (pool.identity("host-a"), pool.identity("host-b"));
    let kernels = driver(&stick()).expect("no driver has the stick");
    run(async {
        let mut control = exporter.control(&a).await;
        let Reply::Devices(devices) = control.ask(Request::Devices).await else {
            panic!("no devices");
        };
        let info = devices.iter().find(|d| d.id.0 == stick()).unwrap();
        println!("{info:?}");
        assert!(matches!(info.speed, Speed::High | Speed::Super));
        assert_eq!(info.state, DeviceState::Free);
        assert!(info.is_storage() && !info.name.is_empty());
        refuse_others(&mut control, &devices).await;

        let lease = control.acquire(wanted(&stick(), vm(1), 1)).await;
        assert_eq!(driver(&stick()).as_deref(), Some("usbfs"));
        let mut device = exporter.claim(&a, &lease).await;
        enumerate(&mut device).await;
        until_ready(&mut device).await;
        let data: Vec<u8> = (0..65_536).map(|i| (i * 13 + i / 256) as u8).collect();
        command(&mut device, &cbw(1, false, 8, 128), Some(&data), 65_536).await;
        let read = command(&mut device, &cbw(2, true, 8, 128), None, 65_536).await;
        assert!(read == data, "read back what was not written");
        for pieces in [vec![512; 16], vec![3584, 512, 4096], vec![1024, 7168]] {
            let data: Vec<u8> = data.iter().rev().copied().take(8192).collect();
            let write = cbw(8, false, 200, 16);
            divided(&mut device, &write, Some(&data), &pieces).await;
            let read = command(&mut device, &cbw(9, true, 200, 16), None, 8192).await;
            assert!(read == data, "written otherwise: {pieces:?}");
            let read = divided(&mut device, &cbw(10, true, 200, 16), None, &pieces).await;
            assert!(read == data, "read otherwise: {pieces:?}");
        }

        // Another host claims between two phases of a command, and goes on.
        let (sent, _) = device.transfer(&bulk_out(31), &cbw(3, true, 8, 128)).await;
        assert_eq!(sent.status, TransferStatus::Completed);
        let lease = control.lease().await;
        let claim = open(&lease, 7, How::Claim { seen: lease.epoch });
        let (stream, opened) = exporter.open(&b, &claim).await;
        let Opened::Ready { epoch, .. } = opened else {
            panic!("{opened:?}");
        };
        assert_eq!(device.next().await, Said::Fenced);
        let mut device = Device::new(stream, Client::new(epoch));
        let (_, read) = device.transfer(&bulk_in(65_536), &[]).await;
        assert!(read == data, "the claim lost data");
        device.transfer(&bulk_in(13), &[]).await;

        let reset = device.client.reset();
        let (completion, _) = device.completion().await;
        assert_eq!(
            (completion.request, completion.status),
            (reset, TransferStatus::Completed)
        );
        device.configure().await;
        until_ready(&mut device).await;
        let read = command(&mut device, &cbw(4, true, 8, 128), None, 65_536).await;
        assert!(read == data, "a reset lost data");

        // Only its holder releases it.
        let id = lease.device.id.clone();
        let mut holder = exporter.control(&b).await;
        assert_eq!(holder.release(id, vm(1), epoch).await, Reply::Done);
        assert_eq!(device.next().await, Said::Gone);
        // Lent again at once, which waits until it was given back.
        let lease = control.acquire(wanted(&stick(), vm(2), 1)).await;
        let mut device = exporter.claim(&a, &lease).await;
        device.configure().await;
        until_ready(&mut device).await;
        let read = command(&mut device, &cbw(5, true, 8, 128), None, 65_536).await;
        assert!(read == data, "lost between two VMs");
        let epoch = device.client.epoch();
        let id = lease.device.id.clone();
        assert_eq!(control.release(id, vm(2), epoch).await, Reply::Done);
    });
    // It ends when everything is given back.
    drop(exporter);
    assert_eq!(driver(&stick()), Some(kernels));
}

#[test]
#[ignore = "needs root and a USB input device that nobody touches"]
fn transfers_that_wait_are_cancelled_kept_and_completed() {
    let pool = Pool::new();
    let exporter = pool.start_with_usb(ALLOW_ALL);
    let (a, b) = (pool.identity("host-a"), pool.identity("host-b"));
    let read = Transfer {
        transfer_type: TransferType::Interrupt,
        interval: 8,
        ..bulk_in(8)
    };
    run(async {
        let mut control = exporter.control(&a).await;
        assert_eq!(control.ask(Request::Subscribe).await, Reply::Done);
        let lease = control.acquire(wanted(&input(), vm(1), 1)).await;
        let mut device = exporter.claim(&a, &lease).await;
        device.configure().await;

        let waiting = device.submit(&read, &[]);
        device.client.cancel(waiting);
        let (completion, _) = device.completion().await;
        assert_eq!(
            (completion.request, completion.status),
            (waiting, TransferStatus::Cancelled)
        );

        // Many at a time, of which one is cancelled.
        let many: Vec<_> = (0..16).map(|_| device.submit(&read, &[])).collect();
        device.client.cancel(many[7]);
        let (completion, _) = device.completion().await;
        assert_eq!(
            (completion.request, completion.status),
            (many[7], TransferStatus::Cancelled)
        );

        // A claim takes them back; those of the new holder are its own.
        let claim = open(
            &lease,
            7,
            How::Claim {
                seen: device.client.epoch(),
            },
        );
        let (stream, opened) = exporter.open(&b, &claim).await;
        let Opened::Ready { epoch, .. } = opened else {
            panic!("{opened:?}");
        };
        assert_eq!(device.next().await, Said::Fenced);
        let mut device = Device::new(stream, Client::new(epoch));
        let waiting = device.submit(&read, &[]);
        flush_through(&mut device).await;

        // A lost connection does not disturb them.
        let Device {
            stream, mut client, ..
        } = device;
        drop(stream);
        client.lost();
        let (stream, opened) = exporter.open(&b, &open(&lease, 7, client.resume())).await;
        let Opened::Ready {
            requests_received, ..
        } = opened
        else {
            panic!("{opened:?}");
        };
        client.resumed(requests_received).unwrap();
        assert_eq!(client.unsent(requests_received).count(), 0);
        let mut device = Device::new(stream, client);
        flush_through(&mut device).await;

        // A reset cancels them.
        let reset = device.client.reset();
        let mut ended = [device.completion().await.0, device.completion().await.0];
        ended.sort_by_key(|c| c.request);
        let ended = ended.map(|c| (c.request, c.status));
        assert_eq!(ended[0], (waiting, TransferStatus::Cancelled));
        assert_eq!(ended[1], (reset, TransferStatus::Completed));

        // Unplugging ends them.
        let waiting = device.submit(&read, &[]);
        flush_through(&mut device).await;
        fs::write(format!("/sys/bus/usb/devices/{}/remove", input()), "1").unwrap();
        let (completion, _) = device.completion().await;
        assert_eq!(
            (completion.request, completion.status),
            (waiting, TransferStatus::NoDevice)
        );
        assert_eq!(device.next().await, Said::Gone);
        control.wait(|e| matches!(e, Event::Released { .. })).await;
        let gone = control
            .ask(Request::Acquire(wanted(&input(), vm(1), 1)))
            .await;
        assert!(
            matches!(gone, Reply::Refused(Refusal::UnknownDevice(_))),
            "{gone:?}"
        );
    });
}

/// Waits until everything submitted so far is on its way: a control transfer behind it completed.
async fn flush_through(device: &mut Device) {
    let get_configuration = control_transfer([0x80, 8, 0, 0, 0, 0, 1, 0]);
    let (completion, body) = device.transfer(&get_configuration, &[]).await;
    assert_eq!(
        (completion.status, body),
        (TransferStatus::Completed, vec![1])
    );
}

/// What cannot be lent says why.
async fn refuse_others(control: &mut Control, devices: &[session::DeviceInfo]) {
    for device in devices {
        let DeviceState::Unavailable { reason } = &device.state else {
            continue;
        };
        println!("{}: {reason}", device.id);
        let refused = control
            .ask(Request::Acquire(wanted(&device.id.0, vm(9), 9)))
            .await;
        assert!(
            matches!(refused, Reply::Refused(Refusal::Unavailable { .. })),
            "{refused:?}"
        );
    }
}

/// As a guest enumerates it, and a few mistakes.
async fn enumerate(device: &mut Device) {
    let get = |kind: u8, length: u8| control_transfer([0x80, 6, 0, kind, 0, 0, length, 0]);
    let (_, descriptor) = device.transfer(&get(1, 18), &[]).await;
    assert_eq!((descriptor.len(), &descriptor[..2]), (18, &[18, 1][..]));
    let set_address = control_transfer([0, 5, 9, 0, 0, 0, 0, 0]);
    let (done, _) = device.transfer(&set_address, &[]).await;
    assert_eq!(done.status, TransferStatus::Completed);
    let (short, configuration) = device.transfer(&get(2, 255), &[]).await;
    assert_eq!(short.status, TransferStatus::Completed);
    assert_eq!(short.actual_length as usize, configuration.len());
    let (bulk_in_address, _) = *ENDPOINTS.get_or_init(|| endpoints(&configuration));
    let strict = Transfer {
        flags: FLAG_SHORT_NOT_OK,
        ..get(2, 255)
    };
    let (short, _) = device.transfer(&strict, &[]).await;
    assert_eq!(short.status, TransferStatus::ShortPacket);
    device.configure().await;

    let (stall, _) = device.transfer(&get(0x77, 8), &[]).await;
    assert_eq!(stall.status, TransferStatus::Stall);
    let nowhere = Transfer {
        endpoint: 0x8e,
        ..bulk_in(4)
    };
    let (invalid, _) = device.transfer(&nowhere, &[]).await;
    assert_eq!(invalid.status, TransferStatus::Invalid);
    let clear_halt = control_transfer([0x02, 1, 0, 0, bulk_in_address, 0, 0, 0]);
    let (done, _) = device.transfer(&clear_halt, &[]).await;
    assert_eq!(done.status, TransferStatus::Completed);
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! The host and the disk driver against a backend over shared memory: transfers, unlinks,
//! suspends, and backends that break the protocol.

mod common;
#[path = "host/suspend.rs"]
mod suspend;
#[path = "host/violations.rs"]
mod violations;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::backend::{FakeBackend, Order};
use common::disk::{BULK_IN, BULK_OUT, DiskDevice, INTERRUPT_IN, Mischief};
use common::memory::Memory;
use frontend_shim::storage::{Disk, SenseKey, StorageError};
use frontend_shim::{
    BufferSlice, ControlData, Device, HostError, HostOptions, SubmitError, Target, TransferError,
    Urb, UsbHost, Violation,
};
use usbif::{DeviceAddress, PortNumber, Setup, Speed, UrbKind};
use xen::DomId;

/// Long enough for the slowest machine; only what has failed waits for it.
const LONG: Duration = Duration::from_secs(20);
/// For what must not happen.
const SHORT: Duration = Duration::from_millis(50);
const DOM0: DomId = DomId(0);
const GUEST: DomId = DomId(1);

type Violations = Arc<Mutex<Vec<Violation>>>;

struct Rig {
    memory: Memory,
    host: UsbHost<Memory>,
    backend: FakeBackend,
    violations: Violations,
}

fn port(n: u8) -> PortNumber {
    PortNumber::new(n).unwrap()
}

fn rig_with(device: DiskDevice, check_grants: bool) -> Rig {
    let memory = Memory::default();
    let violations = Violations::default();
    let seen = violations.clone();
    let options = HostOptions {
        on_violation: Some(Box::new(move |violation| {
            seen.lock().unwrap().push(*violation)
        })),
        check_grants,
    };
    let mut host = UsbHost::new(memory.clone(), DOM0, 4, options);
    let grants = host.set_up_rings().unwrap();
    let backend = FakeBackend::start(memory.clone(), GUEST, grants, device, HashMap::new());
    Rig {
        memory,
        host,
        backend,
        violations,
    }
}

/// With a disk on port 2, enumerated.
fn rig() -> (Rig, Device) {
    let mut rig = rig_with(DiskDevice::new(), false);
    let device = plug_in(&mut rig);
    (rig, device)
}

fn plug_in(rig: &mut Rig) -> Device {
    rig.backend.order(Order::Plug(2, Speed::High));
    assert_eq!(
        rig.host.wait_for_device(port(2), LONG).unwrap(),
        Speed::High
    );
    let change = rig.host.next_port_change().unwrap();
    assert_eq!(
        (change.port, change.was, change.now),
        (port(2), Speed::None, Speed::High)
    );
    rig.host.enumerate(port(2)).unwrap()
}

fn bulk(device: &Device, endpoint: u8, data: BufferSlice, tag: u64) -> Urb {
    let target = device.target;
    Urb {
        target,
        endpoint,
        kind: UrbKind::Bulk,
        data: Some(data),
        short_not_ok: false,
        tag,
    }
}

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|n| {
            (n as u8)
                .wrapping_mul(31)
                .wrapping_add(seed ^ (n >> 9) as u8)
        })
        .collect()
}

#[test]
fn a_device_is_enumerated() {
    let (rig, device) = rig();
    assert_eq!(
        (device.descriptor.vendor, device.descriptor.product),
        (0x1234, 0x5678)
    );
    assert_eq!(device.target.address.get(), 1);
    assert_eq!(device.configuration, 1);
    assert_eq!(device.interfaces.len(), 1);
    assert_eq!(device.interfaces[0].endpoints.len(), 3);
    let remains = rig.backend.stop();
    assert_eq!(remains.device.configured, 1);
    assert_eq!(remains.addresses, HashMap::from([(1, 2)]));
    assert_eq!(*rig.violations.lock().unwrap(), []);
}

#[test]
fn a_disk_reads_back_what_was_written() {
    for check_grants in [false, true] {
        let mut rig = rig_with(DiskDevice::new(), check_grants);
        let device = plug_in(&mut rig);
        let host = &mut rig.host;
        let mut disk = Disk::open(host, &device).unwrap();
        assert_eq!(disk.inquiry().product, "Test disk");
        assert_eq!(disk.capacity().blocks, 4096);
        // One block, one full command of 65,536 bytes, and several commands.
        for (block, len) in [(7, 512), (64, 65_536), (1000, 65_536 * 2 + 1536)] {
            let data = pattern(len as u8, len);
            disk.write(host, block, &data).unwrap();
            disk.sync(host).unwrap();
            let mut back = vec![0; len];
            disk.read(host, block, &mut back).unwrap();
            assert!(back == data, "{len} bytes at block {block}");
        }
        disk.close(host);
        let remains = rig.backend.stop();
        let media = remains.device.media.lock().unwrap();
        assert!(media[64 * 512..64 * 512 + 65_536] == pattern(0, 65_536));
        assert_eq!(*rig.violations.lock().unwrap(), []);
    }
}

#[test]
fn a_disk_survives_what_disks_do() {
    let device = DiskDevice::new();
    let (mischief, resets) = (device.mischief.clone(), device.resets.clone());
    let mut rig = rig_with(device, false);
    let device = plug_in(&mut rig);
    let host = &mut rig.host;
    let mut disk = Disk::open(host, &device).unwrap();
    let mut data = [0; 4096];

    *mischief.lock().unwrap() = Mischief {
        stall_data: true,
        ..Default::default()
    };
    let error = disk.read(host, 0, &mut data).unwrap_err();
    match error {
        StorageError::Command {
            command: 0x28,
            sense,
        } => {
            assert_eq!(sense.key, SenseKey::MediumError);
        }
        error => panic!("{error}"),
    }
    *mischief.lock().unwrap() = Mischief {
        stall_data: true,
        ..Default::default()
    };
    assert!(matches!(
        disk.write(host, 0, &data),
        Err(StorageError::Command { .. })
    ));

    *mischief.lock().unwrap() = Mischief {
        stall_status: true,
        ..Default::default()
    };
    disk.read(host, 0, &mut data).unwrap();

    *mischief.lock().unwrap() = Mischief {
        sense: Some(6),
        ..Default::default()
    };
    disk.write(host, 3, &pattern(1, 512)).unwrap();

    assert_eq!(*resets.lock().unwrap(), 0);
    *mischief.lock().unwrap() = Mischief {
        wrong_tag: true,
        ..Default::default()
    };
    assert!(matches!(
        disk.read(host, 0, &mut data),
        Err(StorageError::Transport(_))
    ));
    assert_eq!(*resets.lock().unwrap(), 1);

    disk.read(host, 3, &mut data[..512]).unwrap();
    assert_eq!(data[..512], pattern(1, 512));
    let error = disk.read(host, 4090, &mut data).unwrap_err();
    assert!(matches!(
        error,
        StorageError::Range {
            block: 4090,
            len: 4096
        }
    ));
    assert!(matches!(
        disk.write(host, 0, &data[..100]),
        Err(StorageError::Range { .. })
    ));
}

#[test]
fn many_urbs_are_in_flight_and_each_completes_once() {
    let (mut rig, device) = rig();
    let host = &mut rig.host;
    let buffer = host.alloc_buffer(40 * 512).unwrap();
    rig.backend.order(Order::Hold);
    for tag in 0..40 {
        // Each is a command wrapper that the device will dislike or like; all of them complete.
        let slice = buffer.slice(tag * 512, 31);
        host.submit(&bulk(&device, BULK_OUT, slice, tag as u64))
            .unwrap();
    }
    host.step().unwrap();
    assert_eq!(host.front().in_flight(), 16);
    rig.backend.order(Order::Release);
    let mut seen = Vec::new();
    while seen.len() < 40 {
        host.wait(LONG).unwrap();
        while let Some(done) = host.next_completion() {
            seen.push(done.tag);
        }
    }
    assert_eq!(seen, (0..40).collect::<Vec<_>>());
    assert!(host.free_buffer(buffer));
}

#[test]
fn a_urb_is_unlinked() {
    let (mut rig, device) = rig();
    let host = &mut rig.host;
    let buffer = host.alloc_buffer(8).unwrap();
    let error = host.interrupt(device.target, INTERRUPT_IN, 4, buffer.slice(0, 8), SHORT);
    assert!(matches!(error, Err(HostError::TimedOut(_))), "{error:?}");
    assert!(host.free_buffer(buffer));
    // The unlink's own answer may come a little later.
    while host.front().unlinks_unanswered() > 0 {
        host.wait(LONG).unwrap();
    }
    assert_eq!(host.counters().unlinks, 1);
    assert_eq!(rig.backend.stop().unlinks, 1);
    assert_eq!(*rig.violations.lock().unwrap(), []);
}

#[test]
fn what_does_not_fit_is_refused_before_it_is_sent() {
    let (mut rig, device) = rig();
    let host = &mut rig.host;
    let buffer = host.alloc_buffer(65_536 + 4096).unwrap();
    // 65,536 bytes that begin within a page touch 17 pages.
    let error = host
        .submit(&bulk(&device, BULK_IN, buffer.slice(1, 65_536), 0))
        .unwrap_err();
    assert!(matches!(error, HostError::Request(_)), "{error:?}");
    let error = host
        .submit(&bulk(&device, BULK_IN, buffer.slice(65_536, 8192), 0))
        .unwrap_err();
    assert!(
        matches!(error, HostError::OutsideBuffer { .. }),
        "{error:?}"
    );
    let nobody = Target {
        port: port(3),
        address: DeviceAddress::DEFAULT,
    };
    let error = host.control(nobody, Setup::new(0, 9, 1, 0, 0), ControlData::None, LONG);
    assert!(matches!(
        error,
        Err(HostError::Submit(SubmitError::NoDevice(_)))
    ));
    let stranger = Target {
        port: port(2),
        address: DeviceAddress::new(9).unwrap(),
    };
    let error = host.control(stranger, Setup::new(0, 9, 1, 0, 0), ControlData::None, LONG);
    assert!(matches!(
        error,
        Err(HostError::Transfer(TransferError::NoDevice))
    ));
}

#[test]
fn a_device_that_is_pulled_out_takes_its_urbs_with_it() {
    let (mut rig, device) = rig();
    let host = &mut rig.host;
    let buffer = host.alloc_buffer(4096).unwrap();
    rig.backend.order(Order::Hold);
    host.submit(&bulk(&device, BULK_IN, buffer.slice(0, 512), 5))
        .unwrap();
    host.step().unwrap();
    rig.backend.order(Order::Unplug(2));
    let done = loop {
        if let Some(done) = host.next_completion() {
            break done;
        }
        host.wait(LONG).unwrap();
    };
    assert!(matches!(
        done.result,
        Err(TransferError::Shutdown | TransferError::Unlinked)
    ));
    while host.next_port_change().is_none() {
        host.wait(LONG).unwrap();
    }
    assert_eq!(host.counters().disconnects, 1);
    rig.backend.order(Order::Plug(2, Speed::Full));
    host.wait_for_device(port(2), LONG).unwrap();
    assert_eq!(
        host.enumerate(port(2)).unwrap().target.address.get(),
        1,
        "the address is free"
    );
}

#[test]
fn a_controller_that_ends_leaves_no_grant_behind() {
    let (mut rig, device) = rig();
    let disk = Disk::open(&mut rig.host, &device).unwrap();
    disk.close(&mut rig.host);
    rig.backend.stop();
    assert!(rig.host.disconnect());
    // The control buffer.
    assert_eq!(rig.memory.grant_count(), 1);
}

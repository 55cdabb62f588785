// SPDX-License-Identifier: GPL-3.0-or-later
//! The host and the disk driver against a backend over shared memory: transfers, unlinks,
//! suspends, and backends that break the protocol.

mod common;

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
fn a_cancelled_suspend_goes_on_with_the_old_ring() {
    let (mut rig, device) = rig();
    let host = &mut rig.host;
    let mut disk = Disk::open(host, &device).unwrap();
    let before = host.ring_pages().map(|(urb, _)| std::ptr::from_ref(urb));
    let buffer = host.alloc_buffer(4096).unwrap();
    let mouse = Urb {
        target: device.target,
        endpoint: INTERRUPT_IN,
        kind: UrbKind::Interrupt { interval: 4 },
        data: Some(buffer.slice(0, 8)),
        short_not_ok: false,
        tag: 77,
    };
    host.submit(&mouse).unwrap();
    host.step().unwrap();
    host.freeze(LONG).unwrap();
    assert_eq!(
        host.next_completion().unwrap().result,
        Err(TransferError::Unlinked)
    );
    assert!(matches!(
        host.submit(&mouse),
        Err(HostError::Submit(SubmitError::Frozen))
    ));
    host.thaw();
    host.submit(&mouse).unwrap();
    disk.write(host, 1, &pattern(9, 1024)).unwrap();
    assert_eq!(
        host.ring_pages().map(|(urb, _)| std::ptr::from_ref(urb)),
        before
    );
    assert_eq!(host.front().in_flight(), 1);
    assert_eq!(host.counters().disconnects, 0);
    assert_eq!(*rig.violations.lock().unwrap(), []);
}

#[test]
fn a_resume_callback_carries_a_disk_over() {
    let (rig, device) = rig();
    let Rig {
        memory: _,
        mut host,
        mut backend,
        violations,
    } = rig;
    let mut disk = Disk::open(&mut host, &device).unwrap();
    let kept = host.alloc_buffer(100).unwrap();
    host.write_buffer(kept, 10, b"kept").unwrap();
    for round in 0..20u8 {
        let data = pattern(round, 65_536);
        disk.write(&mut host, 64, &data).unwrap();
        host.freeze(LONG).unwrap();
        let remains = backend.stop();
        // Another machine: no grant and no channel of the old one is there.
        let memory = Memory::default();
        host.moved(memory.clone(), DOM0).unwrap();
        host.forget_requests();
        let grants = host.set_up_rings().unwrap();
        backend = FakeBackend::start(memory, GUEST, grants, remains.device, remains.addresses);
        // The backend tells what is plugged in; the frontend knows.
        backend.order(Order::Plug(2, Speed::High));
        let mut back = vec![0; data.len()];
        disk.read(&mut host, 64, &mut back).unwrap();
        assert!(back == data);
    }
    while host.counters().events_ignored < 20 {
        host.wait(LONG).unwrap();
    }
    let mut bytes = [0; 4];
    host.read_buffer(kept, 10, &mut bytes).unwrap();
    assert_eq!(&bytes, b"kept");
    assert_eq!(host.counters().disconnects, 0);
    assert_eq!(host.next_port_change(), None);
    assert_eq!(*violations.lock().unwrap(), []);
}

#[test]
fn a_stock_driver_loses_what_it_submits_before_it_reconnects() {
    let (rig, device) = rig();
    let Rig {
        mut host,
        backend,
        violations,
        ..
    } = rig;
    let buffer = host.alloc_buffer(4096).unwrap();
    host.freeze(LONG).unwrap();
    let remains = backend.stop();
    let memory = Memory::default();
    host.moved(memory.clone(), DOM0).unwrap();
    // A driver that resumes before the rings are new.
    let lost = host
        .submit(&bulk(&device, BULK_IN, buffer.slice(0, 512), 1))
        .unwrap();
    host.step().unwrap();
    assert_eq!(host.front().in_flight(), 1, "it went to the dead ring");
    let grants = host.set_up_rings().unwrap();
    let backend = FakeBackend::start(memory, GUEST, grants, remains.device, remains.addresses);
    // The rest works.
    let mut descriptor = [0; 18];
    assert_eq!(
        host.get_descriptor(device.target, 0x0100, &mut descriptor)
            .unwrap(),
        18
    );
    assert!(matches!(
        host.wait_for(lost, SHORT),
        Err(HostError::TimedOut(_))
    ));
    assert_eq!(backend.stop().requests, 1, "the lost one never came");

    // One that answers the stale id: the ring has as many answers as requests, but the URB that
    // is answered is not the one that was asked on it.
    assert_eq!(*violations.lock().unwrap(), []);
    assert!(host.unlink(lost));
}

#[test]
fn a_stock_driver_runs_out_of_ids_when_enough_was_lost() {
    let (rig, device) = rig();
    let Rig {
        mut host,
        backend,
        violations,
        ..
    } = rig;
    let buffer = host.alloc_buffer(4096).unwrap();
    host.freeze(LONG).unwrap();
    let remains = backend.stop();
    let memory = Memory::default();
    host.moved(memory.clone(), DOM0).unwrap();
    for tag in 0..17 {
        host.submit(&bulk(&device, BULK_IN, buffer.slice(0, 512), tag))
            .unwrap();
    }
    host.step().unwrap();
    let grants = host.set_up_rings().unwrap();
    let _backend = FakeBackend::start(memory, GUEST, grants, remains.device, remains.addresses);
    host.step().unwrap();
    assert!(host.front().is_dead());
    assert_eq!(*violations.lock().unwrap(), [Violation::IdsExhausted]);
}

#[test]
fn a_response_ahead_of_the_requests_is_noticed() {
    let (mut rig, _device) = rig();
    rig.backend.order(Order::AnswerTwice);
    while !rig.host.front().is_dead() {
        rig.host.wait(LONG).unwrap();
    }
    assert!(matches!(
        rig.violations.lock().unwrap()[..],
        [Violation::RingCorrupt(_)]
    ));
    assert!(matches!(
        rig.host.wait_for_device(port(4), LONG),
        Err(HostError::Submit(SubmitError::Dead))
    ));
}

#[test]
fn an_answer_to_an_id_that_is_not_in_use_is_noticed() {
    let (mut rig, device) = rig();
    let host = &mut rig.host;
    let buffer = host.alloc_buffer(4096).unwrap();
    rig.backend.order(Order::Hold);
    host.submit(&bulk(&device, BULK_IN, buffer.slice(0, 512), 0))
        .unwrap();
    host.step().unwrap();
    // Only then: the ring lets it answer as many as it has read.
    let interrupt = Urb {
        target: device.target,
        endpoint: INTERRUPT_IN,
        kind: UrbKind::Interrupt { interval: 4 },
        data: Some(buffer.slice(0, 8)),
        short_not_ok: false,
        tag: 1,
    };
    host.submit(&interrupt).unwrap();
    host.control(
        device.target,
        Setup::new(0x02, Setup::CLEAR_FEATURE, 0, 0x81, 0),
        ControlData::None,
        LONG,
    )
    .unwrap();
    rig.backend.order(Order::AnswerStale(13));
    while !host.front().is_dead() {
        host.wait(LONG).unwrap();
    }
    assert_eq!(*rig.violations.lock().unwrap(), [Violation::UnknownId(13)]);
}

#[test]
fn a_grant_that_is_still_mapped_after_the_answer_is_noticed() {
    let mut rig = rig_with(DiskDevice::new(), true);
    let device = plug_in(&mut rig);
    rig.backend.order(Order::KeepMapping);
    let mut descriptor = [0; 18];
    rig.host
        .get_descriptor(device.target, 0x0100, &mut descriptor)
        .unwrap();
    rig.host.step().unwrap();
    assert!(rig.host.front().is_dead());
    assert_eq!(*rig.violations.lock().unwrap(), [Violation::GrantInUse]);
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

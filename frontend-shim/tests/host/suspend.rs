// SPDX-License-Identifier: GPL-3.0-or-later
//! Suspends that are cancelled, and moves to another machine.

use crate::common::backend::{FakeBackend, Order, Remains};
use crate::common::disk::{BULK_IN, INTERRUPT_IN};
use crate::common::memory::Memory;
use crate::*;
use frontend_shim::RingGrants;

/// Suspends the guest and takes it to another machine: no grant and no channel of the old one is there.
fn move_away(host: &mut UsbHost<Memory>, backend: FakeBackend) -> (Memory, Remains) {
    host.freeze(LONG).unwrap();
    let remains = backend.stop();
    let memory = Memory::default();
    host.moved(memory.clone(), DOM0).unwrap();
    (memory, remains)
}

/// The other machine's backend, with what the first one left.
fn go_on(memory: Memory, grants: RingGrants, remains: Remains) -> FakeBackend {
    FakeBackend::start(memory, GUEST, grants, remains.device, remains.addresses)
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
        let (memory, remains) = move_away(&mut host, backend);
        host.forget_requests();
        let grants = host.set_up_rings().unwrap();
        backend = go_on(memory, grants, remains);
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
    let (memory, remains) = move_away(&mut host, backend);
    // A driver that resumes before the rings are new.
    let lost = host
        .submit(&bulk(&device, BULK_IN, buffer.slice(0, 512), 1))
        .unwrap();
    host.step().unwrap();
    assert_eq!(host.front().in_flight(), 1, "it went to the dead ring");
    let grants = host.set_up_rings().unwrap();
    let backend = go_on(memory, grants, remains);
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
    let (memory, remains) = move_away(&mut host, backend);
    for tag in 0..17 {
        host.submit(&bulk(&device, BULK_IN, buffer.slice(0, 512), tag))
            .unwrap();
    }
    host.step().unwrap();
    let grants = host.set_up_rings().unwrap();
    let _backend = go_on(memory, grants, remains);
    host.step().unwrap();
    assert!(host.front().is_dead());
    assert_eq!(*violations.lock().unwrap(), [Violation::IdsExhausted]);
}

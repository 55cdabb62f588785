// SPDX-License-Identifier: GPL-3.0-or-later
//! A VM is off, and its persistent lease is not over.

use std::time::Duration;

use session::control::{Acquire, Event, Refusal, Reply, Request};
use session::frame::Kind;
use session::open::{How, Opened};
use session::{DeviceState, Exchange, Lease, LeasePhase, OnExchange, Persistence};
use transport::Identity;

use crate::common::*;

/// Nothing waits for a VM but what is persistent.
const NO_HOLD: &str = "hold_seconds = 0\nsaved_hold_seconds = 0\nstartup_hold_seconds = 0\n";

fn rules() -> String {
    format!("{NO_HOLD}{ALLOW_ALL}")
}

fn persistent() -> Acquire {
    Acquire {
        exchange: Some(Exchange {
            on: OnExchange::Replug,
            seconds: 1,
            at_place: false,
        }),
        persistence: Persistence::Persistent,
        ..wanted("0-1", vm(1), 1)
    }
}

async fn lease(exporter: &Exporter, host: &Identity) -> Lease {
    let mut control = exporter.control(host).await;
    match control.ask(Request::Leases { vm: Some(vm(1)) }).await {
        Reply::Leases(mut leases) if leases.len() == 1 => leases.remove(0),
        other => panic!("{other:?}"),
    }
}

async fn is_reserved(exporter: &Exporter, host: &Identity) {
    let mut control = exporter.control(host).await;
    let Reply::Devices(devices) = control.ask(Request::Devices).await else {
        panic!("no devices");
    };
    let state = &devices.iter().find(|d| d.id == disk()).unwrap().state;
    assert!(
        matches!(state, DeviceState::Leased { vm: whose, .. } if *whose == vm(1)),
        "{state:?}"
    );
    let other = control.ask(Request::Acquire(wanted("0-1", vm(2), 1))).await;
    assert!(
        matches!(other, Reply::Refused(Refusal::Busy { .. })),
        "{other:?}"
    );
}

/// The VM was shut down on host a. The exporter is started again without the device, which then is plugged
/// in; the VM starts on host b.
#[test]
fn a_vm_that_is_off_keeps_its_device_through_a_restart_of_the_exporter() {
    let pool = Pool::new();
    let (host_a, host_b) = (pool.identity("host-a"), pool.identity("host-b"));
    let exporter = pool.start(&rules());
    let seen = run(async {
        let mut control = exporter.subscribed(&host_a).await;
        let lease = control.acquire(persistent()).await;
        let confirm = Request::Confirm {
            device: disk(),
            vm: vm(1),
        };
        assert_eq!(control.ask(confirm).await, Reply::Done);
        let mut device = exporter.claim(&host_a, &lease).await;
        device.configure().await;
        device.client.say(Kind::Orphan);
        device.flush().await;
        let off = |e: &Event| matches!(e, Event::Lease(l) if l.phase == LeasePhase::Orphaned);
        control.wait(off).await;
        // Longer than any hold time.
        tokio::time::sleep(Duration::from_millis(100)).await;
        is_reserved(&exporter, &host_b).await;
        lease.epoch
    });
    drop(exporter);
    let exporter = pool.start_without_disk(&rules());
    run(async {
        let mut control = exporter.subscribed(&host_b).await;
        // After the exporter's own wait for devices.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let absent = lease(&exporter, &host_b).await;
        assert_eq!(absent.phase, LeasePhase::Absent);
        pool.command("0-1 plug");
        let back = |e: &Event| matches!(e, Event::Lease(l) if l.phase == LeasePhase::Orphaned);
        control.wait(back).await;
        is_reserved(&exporter, &host_b).await;
        let lease = lease(&exporter, &host_b).await;
        assert!(lease.epoch > seen);
        let mut device = exporter.claim(&host_b, &lease).await;
        // It is open, and as if it had just been plugged in.
        device.configure().await;
    });
}

/// The domain was destroyed before its driver was loaded: nobody has a device connection that could say so.
#[test]
fn a_host_says_that_a_domain_is_gone_which_never_used_its_device() {
    with_exporter(&rules(), async |pool, exporter, host| {
        let mut control = exporter.subscribed(host).await;
        control.acquire(persistent()).await;
        let confirm = Request::Confirm {
            device: disk(),
            vm: vm(1),
        };
        assert_eq!(control.ask(confirm).await, Reply::Done);
        let ended = Request::Ended {
            vm: vm(1),
            domid: 1,
        };
        // Of another host's domain of the same number.
        let other = pool.identity("host-b");
        let mut its = exporter.control(&other).await;
        assert_eq!(its.ask(ended.clone()).await, Reply::Done);
        assert_eq!(lease(exporter, host).await.phase, LeasePhase::Disconnected);
        assert_eq!(control.ask(ended).await, Reply::Done);
        let lease = lease(exporter, host).await;
        assert_eq!(lease.phase, LeasePhase::Orphaned);
        let claim = open(&lease, 9, How::Claim { seen: lease.epoch });
        let (_, opened) = exporter.open(&other, &claim).await;
        assert!(matches!(opened, Opened::Ready { .. }), "{opened:?}");
    });
}

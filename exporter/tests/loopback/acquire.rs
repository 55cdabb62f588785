// SPDX-License-Identifier: GPL-3.0-or-later
//! A device that takes its time to open, and leases that nobody takes up.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use session::control::{Event, Refusal, Reply, Request};
use session::open::How;
use session::{LeasePhase, VmUuid};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::common::*;

/// How long the device takes: longer than a backend waits for any answer.
const OPENING: Duration = Duration::from_secs(6);

fn control_socket(pool: &Pool) -> PathBuf {
    pool.dir.join("simulated.sock")
}

/// Runs a test with an exporter whose first device opens slowly.
fn with_slow_device<T>(test: impl AsyncFnOnce(&Pool, &Exporter, &transport::Identity) -> T) -> T {
    let pool = Pool::new();
    let socket = control_socket(&pool);
    let more = format!("simulated_control = '{}'\n{ALLOW_ALL}", socket.display());
    let exporter = pool.start(&more);
    let host = pool.identity("host-a");
    run(async {
        opens_within(&pool, OPENING).await;
        test(&pool, &exporter, &host).await
    })
}

async fn opens_within(pool: &Pool, time: Duration) {
    let mut control = UnixStream::connect(control_socket(pool)).await.unwrap();
    let command = format!("0-1 opening {}\n", time.as_millis());
    control.write_all(command.as_bytes()).await.unwrap();
    let mut answer = String::new();
    BufReader::new(control)
        .read_line(&mut answer)
        .await
        .unwrap();
    assert_eq!(answer, "ok\n");
}

async fn leases(control: &mut Control) -> Vec<session::Lease> {
    match control.ask(Request::Leases { vm: None }).await {
        Reply::Leases(leases) => leases,
        other => panic!("{other:?}"),
    }
}

fn acquire(vm: VmUuid) -> Request {
    Request::Acquire(wanted("0-1", vm, 1))
}

#[test]
fn requests_and_events_do_not_wait_for_a_device_that_opens_slowly() {
    with_slow_device(async |_, exporter, host| {
        let mut control = exporter.subscribed(host).await;
        let start = Instant::now();
        let slow = control.send(acquire(vm(1))).await;
        let mut worst = Duration::ZERO;
        for port in 1..=20 {
            let asked = Instant::now();
            let leases = leases(&mut control).await;
            assert!(leases.iter().any(|l| l.device.id == disk()));
            let other = Request::Acquire(wanted("0-2", vm(2), port));
            let Reply::Lease(lease) = control.ask(other).await else {
                panic!("the other device is not lent");
            };
            control
                .wait(|e| matches!(e, Event::Lease(l) if l.epoch == lease.epoch))
                .await;
            let released = control.release(lease.device.id, vm(2), lease.epoch).await;
            assert_eq!(released, Reply::Done);
            worst = worst.max(asked.elapsed());
        }
        assert!(worst < Duration::from_secs(1), "{worst:?}");
        assert!(start.elapsed() < OPENING, "it was not beside the opening");
        let reply = control.reply(slow).await;
        assert!(matches!(reply, Reply::Lease(_)), "{reply:?}");
        assert!(start.elapsed() >= OPENING);
    });
}

#[test]
fn who_is_gone_when_the_device_is_open_has_no_lease() {
    with_slow_device(async |pool, exporter, host| {
        let mut control = exporter.control(host).await;
        control.send(acquire(vm(1))).await;
        let mut other = exporter.subscribed(host).await;
        while leases(&mut other).await.is_empty() {}
        drop(control);
        other.wait(|e| matches!(e, Event::Released { .. })).await;
        assert_eq!(leases(&mut other).await, []);
        tokio::time::sleep(OPENING).await;
        assert_eq!(leases(&mut other).await, []);
        // Another VM can have it.
        opens_within(pool, Duration::ZERO).await;
        let lease = other.acquire(wanted("0-1", vm(2), 1)).await;
        exporter.claim(host, &lease).await.configure().await;
    });
}

#[test]
fn a_lease_that_nobody_takes_up_ends_with_the_connection() {
    with_exporter(ALLOW_ALL, async |_, exporter, host| {
        let mut other = exporter.subscribed(host).await;
        let mut control = exporter.control(host).await;
        let Reply::Lease(lease) = control.ask(acquire(vm(1))).await else {
            panic!("not lent");
        };
        drop(control);
        other.wait(|e| matches!(e, Event::Released { .. })).await;
        let claim = open(&lease, 1, How::Claim { seen: lease.epoch });
        let (_, opened) = exporter.open(host, &claim).await;
        let no_lease = Refusal::NoLease {
            device: disk(),
            vm: vm(1),
        };
        assert_eq!(opened, session::open::Opened::Refused(no_lease));
    });
}

#[test]
fn a_lease_that_was_claimed_or_confirmed_stays() {
    with_exporter(ALLOW_ALL, async |_, exporter, host| {
        let mut other = exporter.subscribed(host).await;
        let mut control = exporter.control(host).await;
        let Reply::Lease(claimed) = control.ask(acquire(vm(1))).await else {
            panic!("not lent");
        };
        let device = exporter.claim(host, &claimed).await;
        let confirmed = control.acquire(wanted("0-2", vm(2), 1)).await;
        drop((control, device));
        other
            .wait(|e| matches!(e, Event::Lease(l) if l.phase == LeasePhase::Disconnected && l.vm == vm(1)))
            .await;
        let left = leases(&mut other).await;
        assert_eq!(left.len(), 2);
        assert!(left.iter().any(|l| l.epoch == confirmed.epoch));
    });
}

/// The backend has asked, was killed, and asks again.
#[test]
fn who_asks_again_over_another_connection_keeps_the_lease() {
    with_exporter(ALLOW_ALL, async |_, exporter, host| {
        let mut first = exporter.control(host).await;
        let Reply::Lease(lease) = first.ask(acquire(vm(1))).await else {
            panic!("not lent");
        };
        let mut second = exporter.subscribed(host).await;
        let Reply::Lease(again) = second.ask(acquire(vm(1))).await else {
            panic!("not lent again");
        };
        assert_eq!(again.epoch, lease.epoch);
        drop(first);
        // The exporter has seen that the first is gone when it has answered this one.
        exporter.control(host).await.ask(Request::Devices).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(leases(&mut second).await.len(), 1);
    });
}

/// By class and by the name of the VM: what matches is seen and lent, anything else is neither.
#[test]
fn a_policy_by_class_and_by_name() {
    let rule = "[[allow]]\nclass = \"mass-storage\"\nvm_name = \"guest\"\nhost = \"*\"\n";
    with_exporter(rule, async |_, exporter, host| {
        let mut control = exporter.control(host).await;
        let named = |name: &str| session::control::Acquire {
            vm_name: name.to_owned(),
            ..wanted("0-1", vm(1), 1)
        };
        let other = control.ask(Request::Acquire(named("another"))).await;
        assert!(
            matches!(other, Reply::Refused(Refusal::Policy { .. })),
            "{other:?}"
        );
        let lease = control.acquire(named("guest")).await;
        exporter.claim(host, &lease).await;
    });
    let rule = rule.replace("mass-storage", "printer");
    with_exporter(&rule, async |_, exporter, host| {
        let mut control = exporter.control(host).await;
        assert_eq!(
            control.ask(Request::Devices).await,
            Reply::Devices(Vec::new())
        );
    });
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! An exporter is started when not all of its devices are there yet; and what a backend is told when a
//! session cannot go on.

use session::control::{Refusal, Reply, Request};
use session::frame::{Kind, TransferStatus};
use session::open::{How, Opened};
use session::{Epoch, Lease, LeasePhase};
use transport::Identity;

use crate::common::*;

/// VM 1 has the disk at 0-1, whose configuration it has set. Answers its epoch.
fn lent_before(pool: &Pool, host: &Identity, words: &[Kind]) -> Epoch {
    let exporter = pool.start(ALLOW_ALL);
    run(async {
        let (_control, _, mut device) = exporter.lend(host).await;
        for &word in words {
            device.client.say(word);
        }
        // It is answered when all that was said is handled.
        device
            .transfer(&control_transfer([0x80, 8, 0, 0, 0, 0, 1, 0]), &[])
            .await;
        device.client.epoch()
    })
}

async fn leases(exporter: &Exporter, host: &Identity) -> Vec<Lease> {
    let mut control = exporter.control(host).await;
    match control.ask(Request::Leases { vm: None }).await {
        Reply::Leases(leases) => leases,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_device_that_appears_after_the_start_is_its_vms_again() {
    let pool = Pool::new();
    let host = pool.identity("host-a");
    let seen = lent_before(&pool, &host, &[]);
    let exporter = pool.start_without_disk(ALLOW_ALL);
    run(async {
        let [lease] = &leases(&exporter, &host).await[..] else {
            panic!("not one lease");
        };
        let claim = open(lease, 1, How::Claim { seen });
        let (_, opened) = exporter.open(&host, &claim).await;
        let Opened::Refused(Refusal::NotReady { seconds, .. }) = opened else {
            panic!("{opened:?}");
        };
        assert!((1..=60).contains(&seconds), "{seconds}");
        pool.command("0-1 plug");
        let (stream, opened) = exporter.open(&host, &claim).await;
        let Opened::Ready { epoch, .. } = opened else {
            panic!("{opened:?}");
        };
        // Its guest goes on where it was: the device is configured.
        let mut device = Device::new(stream, session::client::Client::new(epoch));
        let (sent, _) = device.transfer(&bulk_out(31), &cbw(1, true, 0, 1)).await;
        assert_eq!(sent.status, TransferStatus::Completed);
    });
}

#[test]
fn a_device_that_does_not_appear_in_time_is_given_up() {
    let pool = Pool::new();
    let host = pool.identity("host-a");
    let seen = lent_before(&pool, &host, &[]);
    let exporter = pool.start_without_disk(&format!("startup_hold_seconds = 0\n{ALLOW_ALL}"));
    run(async {
        let mut control = exporter.subscribed(&host).await;
        let given_up = async {
            while !leases(&exporter, &host).await.is_empty() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        let limit = std::time::Duration::from_secs(30);
        tokio::time::timeout(limit, given_up)
            .await
            .expect("it waits for ever");
        pool.command("0-1 plug");
        let lease = control.acquire(wanted("0-1", vm(1), 1)).await;
        assert!(lease.epoch > seen);
    });
}

#[test]
fn a_saved_vm_keeps_a_device_that_is_not_there() {
    let pool = Pool::new();
    let host = pool.identity("host-a");
    lent_before(&pool, &host, &[Kind::Freeze, Kind::Orphan]);
    for _ in 0..2 {
        let exporter = pool.start_without_disk(&format!("startup_hold_seconds = 0\n{ALLOW_ALL}"));
        run(async {
            // After its own deadline, if it had one.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            let leases = leases(&exporter, &host).await;
            assert_eq!(leases.len(), 1);
            assert_eq!(leases[0].phase, LeasePhase::Saved);
        });
    }
    let exporter = pool.start(ALLOW_ALL);
    run(async {
        let leases = leases(&exporter, &host).await;
        exporter.claim(&host, &leases[0]).await;
    });
}

/// Asked again with the same numbers, it would never get anywhere: it must claim.
#[test]
fn a_resume_with_numbers_that_cannot_be_is_fenced_and_a_claim_is_not() {
    with_exporter(ALLOW_ALL, async |_, exporter, host| {
        let (_control, lease, device) = exporter.lend(host).await;
        let epoch = device.client.epoch();
        let How::Resume {
            completions_received,
            ..
        } = device.client.resume()
        else {
            unreachable!("a client resumes");
        };
        drop(device);
        let how = How::Resume {
            epoch,
            completions_received: completions_received + 1,
        };
        let (_, opened) = exporter.open(host, &open(&lease, 1, how)).await;
        let fenced = Refusal::Fenced {
            yours: epoch,
            current: epoch,
        };
        assert_eq!(opened, Opened::Refused(fenced));
        let (_, opened) = exporter
            .open(host, &open(&lease, 1, How::Claim { seen: epoch }))
            .await;
        assert!(matches!(opened, Opened::Ready { .. }), "{opened:?}");
    });
}

/// A driver of this machine holds it for a moment, or udev has not set its group yet.
#[test]
fn a_device_that_cannot_be_opened_this_time_can_be_the_next_time() {
    let pool = Pool::new();
    let host = pool.identity("host-a");
    let exporter = pool.start_without_disk(ALLOW_ALL);
    pool.command("0-1 plug");
    run(async {
        let (mut control, lease, device) = exporter.lend(&host).await;
        let resume = open(&lease, 1, device.client.resume());
        pool.command("0-1 fail-open 2");
        for _ in 0..2 {
            let (_, opened) = exporter.open(&host, &resume).await;
            let Opened::Refused(Refusal::NotReady { reason, .. }) = opened else {
                panic!("{opened:?}");
            };
            assert!(reason.contains("not to open"), "{reason}");
        }
        let (_, opened) = exporter.open(&host, &resume).await;
        assert!(matches!(opened, Opened::Ready { .. }), "{opened:?}");
        // To who wants it anew, that is the answer, at once.
        assert_eq!(
            control.release(disk(), vm(1), device.client.epoch()).await,
            Reply::Done
        );
        pool.command("0-1 fail-open 1");
        let acquire = Request::Acquire(wanted("0-1", vm(1), 1));
        let refused = control.ask(acquire.clone()).await;
        assert!(
            matches!(refused, Reply::Refused(Refusal::Unavailable { .. })),
            "{refused:?}"
        );
        assert!(matches!(control.ask(acquire).await, Reply::Lease(_)));
    });
}

/// Alternate settings, which no kernel keeps when the exporter ends; of any lease, also one that does not follow
/// its device.
#[test]
fn what_a_guest_had_set_outlives_the_exporter() {
    let pool = Pool::new();
    let host = pool.identity("host-a");
    let config = format!("{ALLOW_ALL}[[simulated]]\nkind = 'source-sink'\n");
    let exporter = pool.start(&config);
    let saved = pool.dir.join("state/leases.json");
    let alternates = || {
        let text = std::fs::read_to_string(&saved).unwrap();
        let saved: session::lease::Saved = serde_json::from_str(&text).unwrap();
        saved.leases[0].configured.alternates.clone()
    };
    let set_interface = |setting| control_transfer([1, 11, setting, 0, 0, 0, 0, 0]);
    let seen = run(async {
        let lease = exporter.acquire(&host).await;
        let mut device = exporter.claim(&host, &lease).await;
        device
            .transfer(&control_transfer([0, 9, 3, 0, 0, 0, 0, 0]), &[])
            .await;
        device.transfer(&set_interface(3), &[]).await;
        // A crash would find it, too: nothing else is saved meanwhile.
        let saved = async {
            while alternates() != [(0, 3)] {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        let limit = std::time::Duration::from_secs(30);
        tokio::time::timeout(limit, saved)
            .await
            .expect("never saved");
        // And again and again: that is not written each time, but at the end.
        for round in 0..100 {
            device.transfer(&set_interface(round % 3), &[]).await;
        }
        device.transfer(&set_interface(2), &[]).await;
        device.client.epoch()
    });
    drop(exporter);
    assert_eq!(alternates(), [(0, 2)]);
    let exporter = pool.start(&config);
    run(async {
        let lease = exporter.control(&host).await.lease().await;
        assert!(lease.epoch > seen);
        let mut device = exporter.claim(&host, &lease).await;
        let get_interface = control_transfer([0x81, 10, 0, 0, 0, 0, 1, 0]);
        let (_, setting) = device.transfer(&get_interface, &[]).await;
        assert_eq!(setting, [2]);
    });
}

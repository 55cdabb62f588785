// SPDX-License-Identifier: GPL-3.0-or-later
//! Who has a device, who may have it, and what becomes of it.

use session::client::Client;
use session::control::{Event, Refusal, Reply, Request};
use session::frame::{Kind, TransferStatus};
use session::open::{How, Opened};
use session::{Epoch, LeasePhase};
use tokio::io::AsyncWriteExt;

use crate::common::*;
use crate::control_in_descriptor;

/// The answer is a refusal of this kind.
macro_rules! assert_refused {
    ($answer:expr, $Answer:ident, $Kind:ident) => {{
        let answer = $answer;
        let refused = matches!(answer, $Answer::Refused(Refusal::$Kind { .. }));
        assert!(refused, "{answer:?}");
    }};
}

#[test]
fn a_claim_fences_the_old_holder_and_drops_what_it_waits_for() {
    with_exporter(ALLOW_ALL, async |pool, exporter, a| {
        let b = pool.identity("host-b");
        let (mut control, _, mut source) = exporter.lend(a).await;
        source.client.save_cookie(b"address 5");
        source.client.say(Kind::Freeze);
        source.submit(&bulk_in(13), &[]);
        source.flush().await;
        let frozen = |e: &Event| matches!(e, Event::Lease(l) if l.phase == LeasePhase::Frozen);
        let Event::Lease(lease) = control.wait(frozen).await else {
            unreachable!();
        };
        assert_eq!(lease.cookie, b"address 5");

        let seen = How::Claim { seen: lease.epoch };
        let (stream, opened) = exporter.open(&b, &open(&lease, 7, seen)).await;
        let Opened::Ready { epoch, .. } = opened else {
            panic!("{opened:?}");
        };
        assert_eq!(source.next().await, Said::Fenced);
        assert_eq!(source.next().await, Said::Closed);

        // The device kept its configuration; the old transfer does not take the new status.
        let mut target = Device::new(stream, Client::new(epoch));
        target.transfer(&bulk_out(31), &cbw(3, true, 0, 0)).await;
        let (_, status) = target.transfer(&bulk_in(13), &[]).await;
        assert_eq!(status, b"USBS\x03\0\0\0\0\0\0\0\0");

        // The source can neither claim with what it saw, nor resume.
        for how in [seen, source.client.resume()] {
            let (_, opened) = exporter.open(a, &open(&lease, 1, how)).await;
            let fenced = Refusal::Fenced {
                yours: lease.epoch,
                current: epoch,
            };
            assert_eq!(opened, Opened::Refused(fenced));
        }
        let lease = control.lease().await;
        assert_eq!(
            (lease.holder.host.as_str(), lease.holder.domid),
            ("host-b", 7)
        );
    });
}

#[test]
fn the_policy_decides_about_everything() {
    let pool = Pool::new();
    let allow = format!(
        "[[allow]]\ndevice = '0-1'\nvm = '{}'\nhost = 'host-a'\n",
        vm(1)
    );
    let exporter = pool.start(&allow);
    let (a, b) = (pool.identity("host-a"), pool.identity("host-b"));
    run(async {
        let mut control = exporter.control(&a).await;
        let Reply::Devices(devices) = control.ask(Request::Devices).await else {
            panic!("no devices");
        };
        assert_eq!(devices.len(), 1);
        for acquire in [wanted("0-1", vm(2), 1), wanted("0-2", vm(1), 1)] {
            let refused = control.ask(Request::Acquire(acquire)).await;
            assert!(
                matches!(&refused, Reply::Refused(Refusal::Policy { host, .. }) if host == "host-a"),
                "{refused:?}"
            );
        }
        let lease = control.acquire(wanted("0-1", vm(1), 1)).await;

        let mut other = exporter.control(&b).await;
        assert_eq!(other.ask(Request::Devices).await, Reply::Devices(vec![]));
        assert_eq!(
            other.ask(Request::Leases { vm: None }).await,
            Reply::Leases(vec![])
        );
        let refused = other.release(disk(), vm(1), lease.epoch).await;
        assert_refused!(refused, Reply, Policy);
        let claim = open(&lease, 1, How::Claim { seen: lease.epoch });
        let (_, opened) = exporter.open(&b, &claim).await;
        assert_refused!(opened, Opened, Policy);
    });
}

#[test]
fn nobody_may_do_anything_by_default() {
    with_exporter("", async |_, exporter, host| {
        let mut control = exporter.control(host).await;
        assert_eq!(control.ask(Request::Devices).await, Reply::Devices(vec![]));
        let refused = control.ask(Request::Acquire(wanted("0-1", vm(1), 1))).await;
        assert_refused!(refused, Reply, Policy);
    });
}

#[test]
fn what_cannot_be_lent_is_refused_with_the_reason() {
    with_exporter(ALLOW_ALL, async |_, exporter, host| {
        let mut control = exporter.control(host).await;
        control.acquire(wanted("0-1", vm(1), 1)).await;
        for (acquire, part) in [
            (wanted("0-1", vm(2), 1), "in use by VM guest"),
            (wanted("0-9", vm(1), 2), "no device 0-9 here"),
            (wanted("1209:0001", vm(1), 2), "matches 2 devices"),
            (wanted("0-2", vm(1), 0), "no port 0"),
            (wanted("0-2", vm(1), 32), "no port 32"),
            (wanted("0-2", vm(1), 1), "has device 0-1 already"),
        ] {
            match control.ask(Request::Acquire(acquire)).await {
                Reply::Refused(refusal) => assert!(refusal.to_string().contains(part), "{refusal}"),
                other => panic!("{other:?}"),
            }
        }
        // The other disk can still be had.
        control
            .acquire(wanted("1209:0001:000000000002", vm(2), 1))
            .await;
    });
}

#[test]
fn a_release_completes_what_is_in_flight() {
    with_exporter(ALLOW_ALL, async |_, exporter, host| {
        let (mut control, lease, mut device) = exporter.lend(host).await;
        let waiting = device.submit(&bulk_in(13), &[]);
        // Answered after the one before was received.
        device.submit(&control_in_descriptor(), &[]);
        device.completion().await;
        let old = control.release(disk(), vm(1), lease.epoch).await;
        assert_refused!(old, Reply, Fenced);
        let epoch = device.client.epoch();
        assert_eq!(control.release(disk(), vm(1), epoch).await, Reply::Done);
        let (completion, _) = device.completion().await;
        assert_eq!(
            (completion.request, completion.status),
            (waiting, TransferStatus::NoDevice)
        );
        assert_eq!(device.next().await, Said::Gone);
        assert_eq!(device.next().await, Said::Closed);
        control
            .wait(|e| matches!(e, Event::Released { vm: whose, .. } if *whose == vm(1)))
            .await;

        // The next VM finds a device that was reset.
        let lease = control.acquire(wanted("0-1", vm(2), 1)).await;
        let mut device = exporter.claim(host, &lease).await;
        let (_, configuration) = device
            .transfer(&control_transfer([0x80, 8, 0, 0, 0, 0, 1, 0]), &[])
            .await;
        assert_eq!(configuration, [0]);
    });
}

#[test]
fn an_orphan_is_released_when_nobody_claims_it() {
    with_exporter(
        &format!("hold_seconds = 0\n{ALLOW_ALL}"),
        async |_, exporter, host| {
            let mut control = exporter.subscribed(host).await;
            let lease = control.acquire(wanted("0-1", vm(1), 1)).await;
            let mut device = exporter.claim(host, &lease).await;
            device.client.say(Kind::Orphan);
            device.flush().await;
            let released = control.wait(|e| matches!(e, Event::Released { .. })).await;
            let Event::Released { reason, .. } = released else {
                unreachable!();
            };
            assert!(reason.contains("nobody claimed it"), "{reason}");
            assert_eq!(
                control.ask(Request::Leases { vm: None }).await,
                Reply::Leases(vec![])
            );
        },
    );
}

#[test]
fn a_lost_connection_leaves_the_lease_and_others_hear_of_it() {
    with_exporter(ALLOW_ALL, async |pool, exporter, a| {
        let b = pool.identity("host-b");
        let mut control = exporter.subscribed(&b).await;
        let lease = exporter.acquire(a).await;
        let device = exporter.claim(a, &lease).await;
        control
            .wait(|e| matches!(e, Event::Lease(l) if l.phase == LeasePhase::Serving))
            .await;
        drop(device);
        control
            .wait(|e| matches!(e, Event::Lease(l) if l.phase == LeasePhase::Disconnected))
            .await;

        let expect = Request::Expect {
            name: String::new(),
            vm: vm(1),
            domid: 9,
        };
        let reply = exporter.control(a).await.ask(expect).await;
        assert!(matches!(reply, Reply::Leases(leases) if leases.len() == 1));
    });
}

/// Its connection stays open, for example behind something that answers for a machine that is off. Nobody
/// speaks on it, and a backend does at least every 2 s.
#[test]
fn a_holder_that_says_nothing_is_not_connected() {
    with_exporter(ALLOW_ALL, async |_, exporter, a| {
        let mut control = exporter.subscribed(a).await;
        let lease = exporter.acquire(a).await;
        let mut device = exporter.claim(a, &lease).await;
        device.configure().await;
        let phase =
            |wanted: LeasePhase| move |e: &Event| matches!(e, Event::Lease(l) if l.phase == wanted);
        control.wait(phase(LeasePhase::Serving)).await;
        control.wait(phase(LeasePhase::Disconnected)).await;
        let lease = control.lease().await;
        assert!(lease.silent_seconds.is_some(), "{lease:?}");
        drop(device);
    });
}

#[test]
fn leases_survive_the_exporter_and_old_epochs_do_not() {
    let pool = Pool::new();
    let exporter = pool.start(ALLOW_ALL);
    let host = pool.identity("host-a");
    let (lease, client) = run(async {
        let mut control = exporter.subscribed(&host).await;
        let lease = control.acquire(wanted("0-1", vm(1), 3)).await;
        let mut device = exporter.claim(&host, &lease).await;
        device.configure().await;
        device.client.save_cookie(b"kept");
        device.flush().await;
        control
            .wait(|e| matches!(e, Event::Lease(l) if l.cookie == b"kept"))
            .await;
        // Saved at the latest with what is answered next.
        let note = Request::Note {
            device: disk(),
            vm: vm(1),
            text: "read me".to_owned(),
        };
        assert_eq!(control.ask(note).await, Reply::Done);
        (lease, device.client)
    });
    drop(exporter);
    let exporter = pool.start(ALLOW_ALL);
    run(async {
        let mut control = exporter.control(&host).await;
        let restored = control.lease().await;
        assert!(restored.epoch > client.epoch());
        assert_eq!(
            (restored.port, restored.phase),
            (3, LeasePhase::Disconnected)
        );
        assert_eq!(
            (restored.cookie.as_slice(), restored.note.as_deref()),
            (&b"kept"[..], Some("read me"))
        );
        // What was in flight is unknown now.
        let (_, opened) = exporter
            .open(&host, &open(&lease, 1, client.resume()))
            .await;
        assert_refused!(opened, Opened, Fenced);
        let mut device = exporter.claim(&host, &restored).await;
        assert!(device.client.epoch() > restored.epoch);
        // The guest knows nothing of all this: its device is as it was.
        let (sent, _) = device.transfer(&bulk_out(31), &cbw(1, true, 0, 1)).await;
        assert_eq!(sent.status, TransferStatus::Completed);
    });
}

#[test]
fn a_device_that_is_not_lent_cannot_be_opened() {
    with_exporter(ALLOW_ALL, async |_, exporter, host| {
        let lease = exporter.acquire(host).await;
        let mut claim = open(&lease, 1, How::Claim { seen: Epoch(0) });
        claim.vm = vm(2);
        let (_, opened) = exporter.open(host, &claim).await;
        assert_refused!(opened, Opened, NoLease);
        claim.vm = vm(1);
        claim.device.0 = "0-2".to_owned();
        let (_, opened) = exporter.open(host, &claim).await;
        assert_refused!(opened, Opened, NoLease);
    });
}

/// SET_ADDRESS is not for the device. Its completion says that the cookie before it would survive a crash.
#[test]
fn an_address_is_answered_when_its_cookie_is_on_the_disk() {
    with_exporter(ALLOW_ALL, async |pool, exporter, host| {
        let lease = exporter.acquire(host).await;
        let mut device = exporter.claim(host, &lease).await;
        for address in 1..40 {
            device.client.save_cookie(&[1, address, 3]);
            let set_address = control_transfer([0, 5, address, 0, 0, 0, 0, 0]);
            let (done, _) = device.transfer(&set_address, &[]).await;
            assert_eq!(done.status, TransferStatus::Completed);
            let saved = std::fs::read_to_string(pool.dir.join("state/leases.json")).unwrap();
            let saved: serde_json::Value = serde_json::from_str(&saved).unwrap();
            let cookie = saved["leases"][0]["cookie"].clone();
            assert_eq!(cookie, serde_json::json!([1, address, 3]));
        }
        // What comes behind it does not wait for it.
        let first = device.submit(&control_transfer([0, 5, 9, 0, 0, 0, 0, 0]), &[]);
        let second = device.submit(&control_transfer([0x80, 6, 0, 1, 0, 0, 18, 0]), &[]);
        let mut done = [
            device.completion().await.0.request,
            device.completion().await.0.request,
        ];
        done.sort_unstable();
        assert_eq!(done, [first, second]);
    });
}

/// Who has said that its guest's domain is gone, and sees its connection closed in order, may forget it.
#[test]
fn last_words_are_on_the_disk_when_the_connection_is_closed() {
    with_exporter(ALLOW_ALL, async |pool, exporter, host| {
        let mut control = exporter.control(host).await;
        let mut lease = control.acquire(wanted("0-1", vm(1), 1)).await;
        for round in 0..20 {
            let mut device = exporter.claim(host, &lease).await;
            let suspended = round % 2 == 0;
            if suspended {
                device.client.say(Kind::Freeze);
            }
            device.client.say(Kind::Orphan);
            device.flush().await;
            device.stream.shutdown().await.unwrap();
            assert_eq!(device.next().await, Said::Closed);
            let saved = std::fs::read_to_string(pool.dir.join("state/leases.json")).unwrap();
            let saved: session::lease::Saved = serde_json::from_str(&saved).unwrap();
            let phase = match suspended {
                true => LeasePhase::Saved,
                false => LeasePhase::Orphaned,
            };
            assert_eq!(saved.leases[0].phase, phase, "round {round}");
            lease = control.lease().await;
        }
    });
}

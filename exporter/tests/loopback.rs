// SPDX-License-Identifier: GPL-3.0-or-later
//! A whole exporter with simulated disks, over TLS on loopback.

mod common;

use common::*;
use session::client::Client;
use session::control::{Event, Refusal, Reply, Request};
use session::frame::{HEADER_LEN, Kind, TransferStatus, encode_plain};
use session::message::Purpose;
use session::open::{How, Opened};
use session::{Epoch, LeasePhase};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use transport::{connect, receive};

/// The answer is a refusal of this kind.
macro_rules! assert_refused {
    ($answer:expr, $Answer:ident, $Kind:ident) => {{
        let answer = $answer;
        let refused = matches!(answer, $Answer::Refused(Refusal::$Kind { .. }));
        assert!(refused, "{answer:?}");
    }};
}

#[test]
fn a_disk_is_written_and_read_over_the_network() {
    let pool = Pool::new();
    let exporter = pool.start(ALLOW_ALL);
    let host = pool.identity("host-a");
    run(async {
        let mut control = exporter.control(&host).await;
        let Reply::Devices(devices) = control.ask(Request::Devices).await else {
            panic!("no devices");
        };
        assert_eq!(devices.len(), 2);
        assert_eq!((devices[0].vendor, devices[0].product), (0x1209, 1));
        assert_eq!(devices[0].serial.as_deref(), Some("000000000001"));
        assert!(devices[0].is_storage());

        let lease = control.acquire(wanted("0-1", vm(1), 1)).await;
        assert_eq!(lease.phase, LeasePhase::Disconnected);
        let mut device = exporter.claim(&host, &lease).await;
        assert!(device.client.epoch() > lease.epoch);
        assert_eq!(control.lease().await.phase, LeasePhase::Serving);

        device.configure().await;
        let data: Vec<u8> = (0..65_536).map(|i| (i * 7 + i / 256) as u8).collect();
        // Command, data and status without waiting in between, as they are answered in order.
        device.submit(&bulk_out(31), &cbw(1, false, 8, 128));
        device.submit(&bulk_out(65_536), &data);
        device.submit(&bulk_in(13), &[]);
        device.submit(&bulk_out(31), &cbw(2, true, 8, 128));
        device.submit(&bulk_in(65_536), &[]);
        device.submit(&bulk_in(13), &[]);
        let mut bodies = Vec::new();
        for _ in 0..6 {
            let (completion, body) = device.completion().await;
            assert_eq!(completion.status, TransferStatus::Completed);
            bodies.push(body);
        }
        assert_eq!(bodies[2], b"USBS\x01\0\0\0\0\0\0\0\0");
        assert!(bodies[4] == data, "read back what was not written");
        assert_eq!(bodies[5], b"USBS\x02\0\0\0\0\0\0\0\0");
        let file = std::fs::read(pool.dir.join("disk1")).unwrap();
        assert!(file[8 * 512..][..65_536] == data);
    });
}

#[test]
fn a_connection_cut_in_the_middle_is_resumed_without_loss_or_repetition() {
    let pool = Pool::new();
    let exporter = pool.start(ALLOW_ALL);
    let host = pool.identity("host-a");
    run(async {
        let (_control, lease, mut device) = exporter.lend(&host).await;
        // An IN transfer that waits while the connection is away, and a command that is cut in two.
        let status = device.submit(&bulk_in(13), &[]);
        let command = device.submit(&bulk_out(31), &cbw(9, true, 0, 0));
        let output = std::mem::take(device.client.output());
        device
            .stream
            .write_all(&output[..output.len() - 5])
            .await
            .unwrap();
        device.stream.flush().await.unwrap();
        let Device {
            stream, mut client, ..
        } = device;
        drop(stream);
        client.lost();

        let (stream, opened) = exporter
            .open(&host, &open(&lease, 1, client.resume()))
            .await;
        let Opened::Ready {
            epoch,
            requests_received,
            ..
        } = opened
        else {
            panic!("{opened:?}");
        };
        assert_eq!(epoch, client.epoch());
        client.resumed(requests_received).unwrap();
        // The first arrived whole unless the cut was quicker; the second cannot have.
        assert!(requests_received < command);
        let unsent: Vec<_> = client.unsent(requests_received).collect();
        for request in unsent {
            let (transfer, body) = match request == command {
                true => (bulk_out(31), cbw(9, true, 0, 0)),
                false => (bulk_in(13), Vec::new()),
            };
            client
                .resend(request, &transfer, |out| {
                    out.extend_from_slice(&body);
                    Ok::<_, ()>(())
                })
                .unwrap();
        }
        let mut device = Device::new(stream, client);
        let (completion, _) = device.completion().await;
        assert_eq!((completion.request, completion.number), (command, 2));
        let (completion, body) = device.completion().await;
        assert_eq!((completion.request, completion.number), (status, 3));
        assert_eq!(body, b"USBS\x09\0\0\0\0\0\0\0\0");
        assert_eq!(device.client.outstanding(), 0);
    });
}

#[test]
fn completions_that_were_lost_with_the_connection_are_sent_again() {
    let pool = Pool::new();
    let exporter = pool.start(ALLOW_ALL);
    let host = pool.identity("host-a");
    run(async {
        let (_control, lease, mut device) = exporter.lend(&host).await;
        device.submit(&control_in_descriptor(), &[]);
        device.flush().await;
        // It is answered, and the answer is thrown away with the connection.
        device.stream.read_u8().await.unwrap();
        let Device {
            stream, mut client, ..
        } = device;
        drop(stream);
        client.lost();
        let (stream, opened) = exporter
            .open(&host, &open(&lease, 1, client.resume()))
            .await;
        let Opened::Ready {
            requests_received: 2,
            ..
        } = opened
        else {
            panic!("{opened:?}");
        };
        client.resumed(2).unwrap();
        assert_eq!(client.unsent(2).count(), 0);
        let (completion, body) = Device::new(stream, client).completion().await;
        assert_eq!(completion.status, TransferStatus::Completed);
        assert_eq!(body.len(), 18);
    });
}

fn control_in_descriptor() -> session::frame::Transfer {
    control_transfer([0x80, 6, 0, 1, 0, 0, 18, 0])
}

#[test]
fn a_claim_fences_the_old_holder_and_drops_what_it_waits_for() {
    let pool = Pool::new();
    let exporter = pool.start(ALLOW_ALL);
    let (a, b) = (pool.identity("host-a"), pool.identity("host-b"));
    run(async {
        let (mut control, _, mut source) = exporter.lend(&a).await;
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
        let Opened::Ready { epoch, cookie, .. } = opened else {
            panic!("{opened:?}");
        };
        assert_eq!(cookie, b"address 5");
        assert_eq!(source.next().await, Said::Fenced);
        assert_eq!(source.next().await, Said::Closed);

        // The device kept its configuration; the old transfer does not take the new status.
        let mut target = Device::new(stream, Client::new(epoch));
        target.transfer(&bulk_out(31), &cbw(3, true, 0, 0)).await;
        let (_, status) = target.transfer(&bulk_in(13), &[]).await;
        assert_eq!(status, b"USBS\x03\0\0\0\0\0\0\0\0");

        // The source can neither claim with what it saw, nor resume.
        for how in [seen, source.client.resume()] {
            let (_, opened) = exporter.open(&a, &open(&lease, 1, how)).await;
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
    let pool = Pool::new();
    let exporter = pool.start("");
    let host = pool.identity("host-a");
    run(async {
        let mut control = exporter.control(&host).await;
        assert_eq!(control.ask(Request::Devices).await, Reply::Devices(vec![]));
        let refused = control.ask(Request::Acquire(wanted("0-1", vm(1), 1))).await;
        assert_refused!(refused, Reply, Policy);
    });
}

#[test]
fn what_cannot_be_lent_is_refused_with_the_reason() {
    let pool = Pool::new();
    let exporter = pool.start(ALLOW_ALL);
    let host = pool.identity("host-a");
    run(async {
        let mut control = exporter.control(&host).await;
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
    let pool = Pool::new();
    let exporter = pool.start(ALLOW_ALL);
    let host = pool.identity("host-a");
    run(async {
        let (mut control, lease, mut device) = exporter.lend(&host).await;
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
        let mut device = exporter.claim(&host, &lease).await;
        let (_, configuration) = device
            .transfer(&control_transfer([0x80, 8, 0, 0, 0, 0, 1, 0]), &[])
            .await;
        assert_eq!(configuration, [0]);
    });
}

#[test]
fn an_orphan_is_released_when_nobody_claims_it() {
    let pool = Pool::new();
    let exporter = pool.start(&format!("hold_seconds = 0\n{ALLOW_ALL}"));
    let host = pool.identity("host-a");
    run(async {
        let mut control = exporter.subscribed(&host).await;
        let lease = control.acquire(wanted("0-1", vm(1), 1)).await;
        let mut device = exporter.claim(&host, &lease).await;
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
    });
}

#[test]
fn a_lost_connection_leaves_the_lease_and_others_hear_of_it() {
    let pool = Pool::new();
    let exporter = pool.start(ALLOW_ALL);
    let (a, b) = (pool.identity("host-a"), pool.identity("host-b"));
    run(async {
        let mut control = exporter.subscribed(&b).await;
        let lease = exporter.acquire(&a).await;
        let device = exporter.claim(&a, &lease).await;
        control
            .wait(|e| matches!(e, Event::Lease(l) if l.phase == LeasePhase::Serving))
            .await;
        drop(device);
        control
            .wait(|e| matches!(e, Event::Lease(l) if l.phase == LeasePhase::Disconnected))
            .await;

        let expect = Request::Expect {
            vm: vm(1),
            domid: 9,
        };
        let reply = exporter.control(&a).await.ask(expect).await;
        assert!(matches!(reply, Reply::Leases(leases) if leases.len() == 1));
        let event = control.wait(|e| matches!(e, Event::Expected { .. })).await;
        let expected = Event::Expected {
            vm: vm(1),
            host: "host-a".to_owned(),
            domid: 9,
        };
        assert_eq!(event, expected);
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
fn a_stranger_is_refused_and_harms_nobody() {
    let (pool, other) = (Pool::new(), Pool::new());
    let exporter = pool.start(ALLOW_ALL);
    let stranger = other.identity("host-a");
    run(async {
        let address = exporter.address.to_string();
        let error = connect(&stranger, &address, EXPORTER)
            .await
            .map(|_| ())
            .unwrap_err();
        assert!(
            matches!(error, transport::Error::NotOurCa { .. }),
            "{error}"
        );
        // Not even TLS.
        let mut raw = tokio::net::TcpStream::connect(exporter.address)
            .await
            .unwrap();
        raw.write_all(&[0; 64]).await.unwrap();
        let mut rest = Vec::new();
        let _ = raw.read_to_end(&mut rest).await;

        let host = pool.identity("host-a");
        exporter.acquire(&host).await;
    });
}

#[test]
fn impossible_frames_cost_the_connection_and_no_more() {
    let pool = Pool::new();
    let exporter = pool.start(ALLOW_ALL);
    let host = pool.identity("host-a");
    run(async {
        let mut control = exporter.control(&host).await;
        let mut lease = control.acquire(wanted("0-1", vm(1), 1)).await;
        let mut too_long = Vec::new();
        encode_plain(&mut too_long, Kind::Ping, 0, 0, &[]);
        too_long[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut cookie = Vec::new();
        encode_plain(&mut cookie, Kind::Cookie, 0, 0, &[0; 1025]);
        let mut gap = Vec::new();
        encode_plain(&mut gap, Kind::Reset, 5, 0, &[]);
        for bytes in [too_long, cookie, gap, vec![0xff; HEADER_LEN]] {
            let mut device = exporter.claim(&host, &lease).await;
            device.stream.write_all(&bytes).await.unwrap();
            assert_eq!(device.next().await, Said::Closed);
            lease = control.lease().await;
        }
        let mut device = exporter.claim(&host, &lease).await;
        device.configure().await;
    });
}

#[test]
fn an_oversize_message_costs_the_connection_and_no_more() {
    let pool = Pool::new();
    let exporter = pool.start(ALLOW_ALL);
    let host = pool.identity("host-a");
    run(async {
        for purpose in [Purpose::Control, Purpose::Device] {
            let mut stream = exporter.connect(&host, purpose).await;
            stream.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
            let error = receive::<Opened>(&mut stream).await.unwrap_err();
            assert!(matches!(error, transport::Error::Closed), "{error}");
        }
        exporter.acquire(&host).await;
    });
}

#[test]
fn a_device_that_is_not_lent_cannot_be_opened() {
    let pool = Pool::new();
    let exporter = pool.start(ALLOW_ALL);
    let host = pool.identity("host-a");
    run(async {
        let lease = exporter.acquire(&host).await;
        let mut claim = open(&lease, 1, How::Claim { seen: Epoch(0) });
        claim.vm = vm(2);
        let (_, opened) = exporter.open(&host, &claim).await;
        assert_refused!(opened, Opened, NoLease);
        claim.vm = vm(1);
        claim.device.0 = "0-2".to_owned();
        let (_, opened) = exporter.open(&host, &claim).await;
        assert_refused!(opened, Opened, NoLease);
    });
}

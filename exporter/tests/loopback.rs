// SPDX-License-Identifier: GPL-3.0-or-later
//! A whole exporter with simulated disks, over TLS on loopback: connections, and what goes over them.

#[path = "loopback/acquire.rs"]
mod acquire;
mod common;
#[path = "loopback/hosts.rs"]
mod hosts;
#[path = "loopback/leases.rs"]
mod leases;
#[path = "loopback/network.rs"]
mod network;
#[path = "loopback/persistent.rs"]
mod persistent;
#[path = "loopback/start.rs"]
mod start;

use common::*;
use session::LeasePhase;
use session::control::{Reply, Request};
use session::frame::{HEADER_LEN, Kind, TransferStatus, encode_plain};
use session::message::Purpose;
use session::open::Opened;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use transport::{connect, receive};

#[test]
fn a_disk_is_written_and_read_over_the_network() {
    with_exporter(ALLOW_ALL, async |pool, exporter, host| {
        let mut control = exporter.control(host).await;
        let Reply::Devices(devices) = control.ask(Request::Devices).await else {
            panic!("no devices");
        };
        assert_eq!(devices.len(), 2);
        assert_eq!((devices[0].vendor, devices[0].product), (0x1209, 1));
        assert_eq!(devices[0].serial.as_deref(), Some("000000000001"));
        assert!(devices[0].is_storage());

        let lease = control.acquire(wanted("0-1", vm(1), 1)).await;
        assert_eq!(lease.phase, LeasePhase::Disconnected);
        let mut device = exporter.claim(host, &lease).await;
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
    with_exporter(ALLOW_ALL, async |_, exporter, host| {
        let (_control, lease, mut device) = exporter.lend(host).await;
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

        let (stream, opened) = exporter.open(host, &open(&lease, 1, client.resume())).await;
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
    with_exporter(ALLOW_ALL, async |_, exporter, host| {
        let (_control, lease, mut device) = exporter.lend(host).await;
        device.submit(&control_in_descriptor(), &[]);
        device.flush().await;
        // It is answered, and the answer is thrown away with the connection.
        device.stream.read_u8().await.unwrap();
        let Device {
            stream, mut client, ..
        } = device;
        drop(stream);
        client.lost();
        let (stream, opened) = exporter.open(host, &open(&lease, 1, client.resume())).await;
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
    with_exporter(ALLOW_ALL, async |_, exporter, host| {
        let mut control = exporter.control(host).await;
        let mut lease = control.acquire(wanted("0-1", vm(1), 1)).await;
        let mut too_long = Vec::new();
        encode_plain(&mut too_long, Kind::Ping, 0, 0, &[]);
        too_long[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut cookie = Vec::new();
        encode_plain(&mut cookie, Kind::Cookie, 0, 0, &[0; 1025]);
        let mut gap = Vec::new();
        encode_plain(&mut gap, Kind::Reset, 5, 0, &[]);
        for bytes in [too_long, cookie, gap, vec![0xff; HEADER_LEN]] {
            let mut device = exporter.claim(host, &lease).await;
            device.stream.write_all(&bytes).await.unwrap();
            assert_eq!(device.next().await, Said::Closed);
            lease = control.lease().await;
        }
        let mut device = exporter.claim(host, &lease).await;
        device.configure().await;
    });
}

#[test]
fn an_oversize_message_costs_the_connection_and_no_more() {
    with_exporter(ALLOW_ALL, async |_, exporter, host| {
        for purpose in [Purpose::Control, Purpose::Device] {
            let mut stream = exporter.connect(host, purpose).await;
            stream.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
            let error = receive::<Opened>(&mut stream).await.unwrap_err();
            assert!(matches!(error, transport::Error::Closed), "{error}");
        }
        exporter.acquire(host).await;
    });
}

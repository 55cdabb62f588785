// SPDX-License-Identifier: GPL-3.0-or-later
//! What others on the network do costs hosts nothing.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use session::control::{Event, Reply, Request};
use session::{DeviceId, Epoch};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::common::*;

/// Connects from another address of this machine.
async fn connect_from(source: &str, exporter: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(source.parse().unwrap(), 0))?;
    socket.connect(exporter).await
}

#[test]
fn idle_connections_of_a_stranger_keep_no_host_out() {
    with_exporter(ALLOW_ALL, async |_, exporter, host| {
        // Whoever connects, says nothing, and connects again when that was noticed.
        let stranger = tokio::spawn({
            let exporter = exporter.address;
            async move {
                let idle = |_| async move {
                    loop {
                        let Ok(mut tcp) = connect_from("127.0.0.2", exporter).await else {
                            return;
                        };
                        let _ = tcp.read_u8().await;
                    }
                };
                let all: Vec<_> = (0..400).map(|n| tokio::spawn(idle(n))).collect();
                for one in all {
                    let _ = one.await;
                }
            }
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        for _ in 0..3 {
            let start = Instant::now();
            let control = timeout(Duration::from_secs(10), exporter.control(host));
            let mut control = control.await.expect("a host does not get in");
            control.ask(Request::Devices).await;
            let took = start.elapsed();
            assert!(took < Duration::from_secs(2), "{took:?}");
        }
        stranger.abort();
    });
}

/// A guest's address is saved again and again, by a host that means harm.
#[test]
fn a_host_that_changes_its_lease_without_end_costs_others_nothing() {
    with_exporter(ALLOW_ALL, async |pool, exporter, a| {
        let b = pool.identity("host-b");
        let mut hears = exporter.subscribed(&b).await;
        let lease = exporter.acquire(a).await;
        let mut device = exporter.claim(a, &lease).await;
        for _ in 0..20 {
            for n in 0..1000_u32 {
                device.client.save_cookie(&n.to_le_bytes());
            }
            device.client.save_cookie(b"last");
            device.flush().await;
        }
        // The connection of the other host lives, hears how it is now, and is answered.
        let is_last = |e: &Event| matches!(e, Event::Lease(l) if l.cookie == b"last");
        let heard = timeout(Duration::from_secs(10), hears.wait(is_last));
        heard.await.expect("it hears nothing");
        let reply = hears.ask(Request::Devices).await;
        assert!(matches!(reply, Reply::Devices(_)));
        assert!(hears.events.len() < 500, "{} events", hears.events.len());
    });
}

/// A buffer that a logger writes to.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_host_neither_fills_the_log_nor_forges_its_lines() {
    let lines = Lines::default();
    let (log, guard) = logging::to_writer(lines.clone(), 0);
    let pool = Pool::new();
    let exporter = pool.start_logging(ALLOW_ALL, log);
    let (a, b) = (pool.identity("host-a"), pool.identity("host-b"));
    run(async {
        // What can be said at all: the device is another's, or there is none.
        let mut control = exporter.control(&a).await;
        for _ in 0..400 {
            let refused = control.release(disk(), vm(1), Epoch(1)).await;
            assert!(matches!(refused, Reply::Refused(_)));
        }
        // What cannot: it costs the connection.
        for text in ["x\nDec 01 00:00:00.000 INFO fake", "0-1\n"] {
            let mut control = exporter.control(&a).await;
            let device = DeviceId(text.to_owned());
            let vm = vm(1);
            control.send(Request::Confirm { device, vm }).await;
            control.closed().await;
        }
        // Another host's lines are written all the same.
        let mut control = exporter.control(&b).await;
        let unknown = Request::Acquire(wanted("0-77", vm(2), 1));
        assert!(matches!(control.ask(unknown).await, Reply::Refused(_)));
    });
    drop(exporter);
    drop(guard);
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("0-77"), "{text}");
    let of_host_a = text.lines().filter(|l| l.contains("host-a")).count();
    assert!((1..=101).contains(&of_host_a), "{of_host_a} lines");
    assert!(text.lines().count() < 150, "{text}");
    assert!(!text.contains("fake"), "{text}");
}

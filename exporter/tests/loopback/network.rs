// SPDX-License-Identifier: GPL-3.0-or-later
//! What others on the network do costs hosts nothing.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use session::control::Request;
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

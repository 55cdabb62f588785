// SPDX-License-Identifier: GPL-3.0-or-later
//! What `xl-vusb pool` makes is what `vusbd` and `vusb-exporter` accept from each other.

use std::path::PathBuf;

use tokio::net::TcpListener;
use transport::{Acceptor, Identity};
use xl_hooks::pool::{self, CA_CERT, HOST_CERT, HOST_KEY};

/// A pool's directory, removed at the end.
struct PoolDir(PathBuf);

impl PoolDir {
    fn new(test: &str) -> Self {
        let dir =
            std::env::temp_dir().join(format!("xl-vusb-members-{test}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        pool::init(&dir, test).unwrap();
        Self(dir)
    }

    fn identity(&self, host: &str) -> Identity {
        let issued = pool::issue(&self.0, host, None).unwrap();
        let file = |name| issued.dir.join(name);
        Identity::load(&file(CA_CERT), &file(HOST_CERT), &file(HOST_KEY)).unwrap()
    }
}

impl Drop for PoolDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Connects `backend` to `exporter` as `name`; the exporter's view of the handshake and the backend's.
async fn meet(
    backend: &Identity,
    exporter: &Identity,
    name: &str,
) -> (
    Result<String, transport::Error>,
    Result<(), transport::Error>,
) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let acceptor = Acceptor::new(exporter);
    let accepting = async {
        let (tcp, _) = listener.accept().await.unwrap();
        acceptor.accept(tcp).await.map(|(_, host)| host)
    };
    let connecting = async {
        transport::connect(backend, &address, name)
            .await
            .map(|_| ())
    };
    tokio::join!(accepting, connecting)
}

#[tokio::test]
async fn members_of_one_pool_know_each_other_by_name() {
    let pool = PoolDir::new("one");
    let (host, exporter) = (pool.identity("xen1.example.org"), pool.identity("pi4"));
    assert_eq!((host.name(), exporter.name()), ("xen1.example.org", "pi4"));
    let (accepted, connected) = meet(&host, &exporter, "pi4").await;
    assert_eq!(accepted.unwrap(), "xen1.example.org");
    connected.unwrap();
    // And the other way round: one certificate serves both roles.
    let (accepted, connected) = meet(&exporter, &host, "xen1.example.org").await;
    assert_eq!(accepted.unwrap(), "pi4");
    connected.unwrap();
}

#[tokio::test]
async fn a_member_cannot_pass_for_another() {
    let pool = PoolDir::new("names");
    let (host, desk) = (pool.identity("xen1"), pool.identity("desk"));
    let (_, connected) = meet(&host, &desk, "pi4").await;
    assert!(connected.is_err());
}

#[tokio::test]
async fn a_pool_of_the_same_name_is_another_pool() {
    let (ours, theirs) = (PoolDir::new("ours"), PoolDir::new("theirs"));
    let (host, exporter) = (ours.identity("xen1"), theirs.identity("pi4"));
    let (accepted, connected) = meet(&host, &exporter, "pi4").await;
    assert!(accepted.is_err());
    assert!(connected.is_err());
}

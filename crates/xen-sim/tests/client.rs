// SPDX-License-Identifier: GPL-3.0-or-later
//! The daemons' own xenstore client against this xenstored.

mod common;

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use common::{TestHost, start_process, temporary_dir};
use xen::DomId;
use xen::xenstore::{
    Endpoint, Errno, Error, NodeAccess, Permission, WatchEvent, WatchEvents, XenStore,
};

async fn connect(dir: &Path) -> (XenStore, WatchEvents) {
    let endpoint = Endpoint::Socket(dir.join("xenstored.sock"));
    XenStore::connect(&endpoint).await.unwrap()
}

async fn next_path(events: &mut WatchEvents) -> String {
    let limit = Duration::from_secs(20);
    match tokio::time::timeout(limit, events.next()).await {
        Ok(Some(WatchEvent::Changed { path, .. })) => path,
        other => panic!("{other:?}"),
    }
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(test);
}

#[test]
fn a_burst_of_events_while_reads_go_on() {
    let host = TestHost::start();
    run(async {
        let (store, mut events) = connect(&host.dir).await;
        store.watch("/burst", "t").await.unwrap();
        assert_eq!(next_path(&mut events).await, "/burst");
        store.write("/value", "1").await.unwrap();
        let mut writer = host.store();
        let writing = std::thread::spawn(move || {
            for i in 0..10_000 {
                writer.write(&format!("/burst/{i}"), "").unwrap();
            }
        });
        let mut reads = 0;
        while !writing.is_finished() {
            assert_eq!(store.read_string("/value").await.unwrap(), "1");
            reads += 1;
        }
        writing.join().unwrap();
        assert!(reads > 0);
        let mut seen = HashSet::new();
        while seen.len() < 10_000 {
            assert!(seen.insert(next_path(&mut events).await));
        }
    });
}

#[test]
fn transactions_permissions_and_directories() {
    let host = TestHost::start();
    let domid = host.domain("guest");
    run(async {
        let (store, _events) = connect(&host.dir).await;
        let tx = store.begin().await.unwrap();
        tx.write("/t/a", "1").await.unwrap();
        store.write("/t/b", "1").await.unwrap();
        let refused = tx.commit().await.unwrap_err();
        assert_eq!(refused.errno(), Some(&Errno::Again));
        assert!(!store.exists("/t/a").await.unwrap());
        for i in 0..1000 {
            store
                .write(&format!("/long/name-of-node-{i}"), "")
                .await
                .unwrap();
        }
        assert_eq!(store.directory("/long").await.unwrap().len(), 1000);
        let shared = [
            Permission {
                domain: DomId(0),
                access: NodeAccess::None,
            },
            Permission {
                domain: domid,
                access: NodeAccess::Read,
            },
        ];
        store.set_perms("/t/b", &shared).await.unwrap();
        assert_eq!(store.get_perms("/t/b").await.unwrap(), shared);
        let endpoint = Endpoint::Socket(host.dir.join(format!("dom-{domid}.sock")));
        let (guest, _guest_events) = XenStore::connect(&endpoint).await.unwrap();
        assert_eq!(guest.read_string("/t/b").await.unwrap(), "1");
        let refused = guest.write("/t/b", "2").await.unwrap_err();
        assert_eq!(refused.errno(), Some(&Errno::AccessDenied));
        assert_eq!(guest.read_string("name").await.unwrap(), "guest");
    });
}

#[test]
fn a_daemon_that_died_and_came_back() {
    let dir = temporary_dir();
    let mut first = start_process(&dir);
    run(async {
        let (store, mut events) = connect(&dir).await;
        store.watch("/w", "t").await.unwrap();
        assert_eq!(next_path(&mut events).await, "/w");
        first.kill().unwrap();
        first.wait().unwrap();
        let lost = store.read("/w").await.unwrap_err();
        assert!(matches!(lost, Error::ConnectionLost), "{lost:?}");
        let mut second = start_process(&dir);
        assert_eq!(events.next().await, Some(WatchEvent::Disconnected));
        // Its watch is set again; both its event and the notice come, in either order.
        let mut reconnected = false;
        let mut fired = false;
        while !(reconnected && fired) {
            match events.next().await {
                Some(WatchEvent::Reconnected) => reconnected = true,
                Some(WatchEvent::Changed { path, .. }) if path == "/w" => fired = true,
                other => panic!("{other:?}"),
            }
        }
        store.write("/w/x", "1").await.unwrap();
        assert_eq!(next_path(&mut events).await, "/w/x");
        second.kill().unwrap();
        second.wait().unwrap();
    });
    std::fs::remove_dir_all(&dir).unwrap();
}

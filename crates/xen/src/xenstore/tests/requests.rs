// SPDX-License-Identifier: GPL-3.0-or-later
use super::daemon::Daemon;
use super::{unhung, until};
use crate::DomId;
use crate::xenstore::wire::{Message, MessageType};
use crate::xenstore::{Endpoint, Errno, Error, NodeAccess, Permission, WatchEvents, XenStore};

async fn connect(daemon: &Daemon) -> (XenStore, WatchEvents) {
    XenStore::connect(&daemon.endpoint()).await.unwrap()
}

#[tokio::test]
async fn nodes_are_written_read_listed_and_removed() {
    let daemon = Daemon::start();
    let (store, _events) = connect(&daemon).await;
    store.write("/a/b", "value").await.unwrap();
    store.write("/a/c", [0, 1, 0xff]).await.unwrap();
    store.mkdir("/a/d").await.unwrap();
    assert_eq!(store.read_string("/a/b").await.unwrap(), "value");
    assert_eq!(store.read("/a/c").await.unwrap(), [0, 1, 0xff]);
    assert_eq!(store.read("/a/d").await.unwrap(), []);
    assert_eq!(store.directory("/a").await.unwrap(), ["b", "c", "d"]);
    assert_eq!(store.directory("/a/d").await.unwrap(), [""; 0]);
    assert!(store.exists("/a/b").await.unwrap());
    store.rm("/a").await.unwrap();
    assert!(!store.exists("/a/b").await.unwrap());
    assert_eq!(store.read_optional("/a/b").await.unwrap(), None);
    let error = store.read_string("/a/b").await.unwrap_err();
    assert!(error.is_not_found());
    assert_eq!(error.to_string(), "xenstore Read of '/a/b': ENOENT");
    let removed = daemon.seen(MessageType::Rm);
    assert_eq!(removed[0].payload, b"/a\0");
}

#[tokio::test]
async fn a_value_that_is_not_text_is_an_error_of_its_own() {
    let daemon = Daemon::start();
    let (store, _events) = connect(&daemon).await;
    store.write("/a", [0xff]).await.unwrap();
    let error = store.read_string("/a").await.unwrap_err();
    assert!(matches!(error, Error::NotText { path } if &*path == "/a"));
}

#[tokio::test]
async fn permissions_and_domains() {
    let daemon = Daemon::start();
    let (store, _events) = connect(&daemon).await;
    let permissions = [
        Permission {
            domain: DomId(0),
            access: NodeAccess::None,
        },
        Permission {
            domain: DomId(5),
            access: NodeAccess::Read,
        },
    ];
    store.set_perms("/a", &permissions).await.unwrap();
    assert_eq!(
        daemon.seen(MessageType::SetPerms)[0].payload,
        b"/a\0n0\0r5\0"
    );
    assert_eq!(store.get_perms("/a").await.unwrap(), permissions);
    let path = store.get_domain_path(DomId(5)).await.unwrap();
    assert_eq!(path, "/local/domain/5");
    assert!(store.is_domain_introduced(DomId(5)).await.unwrap());
}

#[tokio::test]
async fn a_directory_longer_than_a_message_is_read_in_parts() {
    let daemon = Daemon::start();
    let names: Vec<String> = (0..2000).map(|n| format!("node-{n:05}")).collect();
    for name in &names {
        let path = format!("/long/{name}");
        daemon.state().nodes.insert(path, Vec::new());
    }
    let (store, _events) = connect(&daemon).await;
    assert_eq!(store.directory("/long").await.unwrap(), names);
    assert!(daemon.seen(MessageType::DirectoryPart).len() > 4);
}

#[tokio::test]
async fn a_directory_that_changes_between_its_parts_is_read_again() {
    let daemon = Daemon::start();
    daemon.state().scripted = vec![
        (MessageType::Directory, Err("E2BIG")),
        (MessageType::DirectoryPart, Ok(b"1\0old\0".to_vec())),
        (MessageType::DirectoryPart, Ok(b"2\0rest\0\0".to_vec())),
        (MessageType::DirectoryPart, Ok(b"2\0new\0".to_vec())),
        (MessageType::DirectoryPart, Ok(b"2\0\0".to_vec())),
    ];
    let (store, _events) = connect(&daemon).await;
    assert_eq!(store.directory("/d").await.unwrap(), ["new"]);
    let parts = daemon.seen(MessageType::DirectoryPart);
    let offsets: Vec<&[u8]> = parts.iter().map(|part| &part.payload[3..]).collect();
    assert_eq!(offsets, [b"0\0", b"4\0", b"0\0", b"4\0"]);
}

#[tokio::test]
async fn error_names_are_kept() {
    let daemon = Daemon::start();
    let (store, _events) = connect(&daemon).await;
    for (name, errno) in [
        ("ENOENT", Errno::NotFound),
        ("EACCES", Errno::AccessDenied),
        ("EAGAIN", Errno::Again),
        ("EINVAL", Errno::Invalid),
        ("EEXIST", Errno::Exists),
        ("ENOSPC", Errno::NoSpace),
        ("EBUSY", Errno::Busy),
        ("EWHATEVER", Errno::Other("EWHATEVER".into())),
    ] {
        daemon.state().scripted = vec![(MessageType::Write, Err(name))];
        let error = store.write("/a", "x").await.unwrap_err();
        assert_eq!(error.errno(), Some(&errno));
        assert!(error.to_string().ends_with(name), "{error}");
    }
}

#[tokio::test]
async fn what_does_not_fit_is_refused_before_it_is_sent() {
    let daemon = Daemon::start();
    let (store, _events) = connect(&daemon).await;
    let absolute = format!("/{}", "x".repeat(3072));
    let relative = "x".repeat(2049);
    for (path, reason) in [
        ("", "it is empty"),
        ("/a\0b", "it holds a nul byte"),
        ("/a//b", "it holds a doubled slash"),
        ("/a/", "it ends in a slash"),
        (&absolute, "it is longer than 3072 bytes"),
        (&relative, "it is relative and longer than 2048 bytes"),
    ] {
        let error = store.read(path).await.unwrap_err();
        assert!(matches!(error, Error::BadPath { reason: r, .. } if r == reason));
        assert!(error.to_string().len() < 200, "{error}");
    }
    let error = store.watch("/a", "to\0ken").await.unwrap_err();
    assert!(matches!(error, Error::BadToken));
    // The path, a nul, and the value: 4,096 bytes fit.
    store.write("/a", vec![b'x'; 4093]).await.unwrap();
    let error = store.write("/a", vec![b'x'; 4094]).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "a xenstore request of 4097 bytes: at most 4096 are allowed"
    );
    assert_eq!(
        store.read(&absolute[..3072]).await.unwrap_err().errno(),
        Some(&Errno::NotFound)
    );
    assert_eq!(daemon.state().seen.len(), 2);
}

#[tokio::test]
async fn answers_find_their_requests_in_any_order() {
    let daemon = Daemon::start();
    let (store, _events) = connect(&daemon).await;
    for n in 0..50 {
        let path = format!("/{n}");
        daemon.state().nodes.insert(path, n.to_string().into());
    }
    daemon.state().reverse = 50;
    let reads: Vec<_> = (0..50)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move { (n, store.read_string(&format!("/{n}")).await) })
        })
        .collect();
    for read in reads {
        let (n, value) = unhung(read).await.unwrap();
        assert_eq!(value.unwrap(), n.to_string());
    }
}

#[tokio::test]
async fn an_answer_of_another_type_is_a_broken_protocol_and_an_unasked_one_is_dropped() {
    let daemon = Daemon::start();
    let (store, _events) = connect(&daemon).await;
    store.write("/a", "1").await.unwrap();
    daemon.state().mute = true;
    let read = {
        let store = store.clone();
        tokio::spawn(async move { store.read("/a").await })
    };
    until(|| !daemon.seen(MessageType::Read).is_empty()).await;
    // The first request had number 1, so this one has 2.
    daemon.send(&Message::new(MessageType::Read, 99, 0, b"other".to_vec()));
    daemon.send(&Message::new(MessageType::Write, 2, 0, b"OK\0".to_vec()));
    let error = unhung(read).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Protocol(_)), "{error:?}");
    daemon.state().mute = false;
    assert_eq!(store.read_string("/a").await.unwrap(), "1");
}

#[tokio::test]
async fn a_caller_that_stops_waiting_harms_nobody() {
    let daemon = Daemon::start();
    let (store, _events) = connect(&daemon).await;
    daemon.state().mute = true;
    for _ in 0..10 {
        let given_up = {
            let store = store.clone();
            tokio::spawn(async move { store.read("/a").await })
        };
        until(|| !daemon.state().seen.is_empty()).await;
        given_up.abort();
        daemon.state().seen.clear();
    }
    daemon.state().mute = false;
    store.write("/a", "1").await.unwrap();
    assert_eq!(store.read_string("/a").await.unwrap(), "1");
}

#[tokio::test]
async fn handles_work_on_other_threads_and_runtimes() {
    let daemon = Daemon::start();
    let (store, _events) = connect(&daemon).await;
    let elsewhere = store.clone();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            elsewhere.write("/from", "another runtime").await.unwrap();
            elsewhere.read_string("/from").await.unwrap()
        })
    });
    let value = unhung(tokio::task::spawn_blocking(|| thread.join().unwrap()))
        .await
        .unwrap();
    assert_eq!(value, "another runtime");
}

#[tokio::test]
async fn the_connection_ends_with_its_last_handle() {
    let daemon = Daemon::start();
    let (store, mut events) = connect(&daemon).await;
    let second = store.clone();
    store.write("/a", "1").await.unwrap();
    drop(store);
    second.write("/a", "2").await.unwrap();
    drop(second);
    assert_eq!(unhung(events.next()).await, None);
    until(|| daemon.clients() == 0).await;
}

#[tokio::test]
async fn requests_fail_when_the_runtime_of_the_connection_is_gone() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (daemon, store, mut events) = std::thread::spawn(move || {
        let parts = runtime.block_on(async {
            let daemon = Daemon::start();
            let (store, events) = connect(&daemon).await;
            (daemon, store, events)
        });
        drop(runtime);
        parts
    })
    .join()
    .unwrap();
    let error = unhung(store.read("/a")).await.unwrap_err();
    assert!(matches!(error, Error::ConnectionLost));
    assert_eq!(unhung(events.next()).await, None);
    drop(daemon);
}

#[tokio::test]
async fn an_unreachable_daemon_is_named() {
    let endpoint = Endpoint::Socket("/nowhere/socket".into());
    let error = XenStore::connect(&endpoint).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot connect to xenstored at /nowhere/socket: is xenstored running?"
    );
}

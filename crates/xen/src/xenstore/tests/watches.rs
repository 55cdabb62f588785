// SPDX-License-Identifier: GPL-3.0-or-later
use std::collections::BTreeSet;

use super::daemon::Daemon;
use super::{changed, next, unhung};
use crate::xenstore::watch::DISTINCT_MAX;
use crate::xenstore::{Errno, WatchEvent, WatchEvents, XenStore};

const BURST: usize = 10_000;

async fn watching(path: &str) -> (Daemon, XenStore, WatchEvents) {
    let daemon = Daemon::start();
    let (store, mut events) = XenStore::connect(&daemon.endpoint()).await.unwrap();
    store.watch(path, "t").await.unwrap();
    assert_eq!(next(&mut events).await, changed(path, "t"));
    (daemon, store, events)
}

/// Everything that arrived before an answer is in the queue once the answer is there.
async fn settle(store: &XenStore) {
    unhung(store.exists("/settle")).await.unwrap();
}

#[tokio::test]
async fn changes_below_a_watch_are_told_until_it_ends() {
    let (_daemon, store, mut events) = watching("/w").await;
    store.write("/w/a", "1").await.unwrap();
    store.write("/elsewhere", "1").await.unwrap();
    store.write("/w", "1").await.unwrap();
    assert_eq!(next(&mut events).await, changed("/w/a", "t"));
    assert_eq!(next(&mut events).await, changed("/w", "t"));
    store.unwatch("/w", "t").await.unwrap();
    store.write("/w/a", "2").await.unwrap();
    settle(&store).await;
    assert_eq!(events.try_next(), None);
    let error = store.unwatch("/w", "t").await.unwrap_err();
    assert!(error.is_not_found());
}

#[tokio::test]
async fn the_same_watch_twice_is_refused_and_the_first_stays() {
    let (_daemon, store, mut events) = watching("/w").await;
    let error = store.watch("/w", "t").await.unwrap_err();
    assert_eq!(error.errno(), Some(&Errno::Exists));
    store.watch("/w", "another").await.unwrap();
    assert_eq!(next(&mut events).await, changed("/w", "another"));
    store.write("/w/a", "1").await.unwrap();
    assert_eq!(next(&mut events).await, changed("/w/a", "t"));
    assert_eq!(next(&mut events).await, changed("/w/a", "another"));
}

#[tokio::test]
async fn ten_thousand_events_that_nobody_takes_do_not_hold_up_reads() {
    let (daemon, store, mut events) = watching("/w").await;
    store.write("/value", "1").await.unwrap();
    for n in 0..BURST {
        daemon.send_event(&format!("/w/{n}"), "t");
    }
    for _ in 0..100 {
        assert_eq!(unhung(store.read_string("/value")).await.unwrap(), "1");
    }
    for n in 0..BURST {
        assert_eq!(next(&mut events).await, changed(&format!("/w/{n}"), "t"));
    }
    assert_eq!(events.try_next(), None);
}

#[tokio::test]
async fn ten_thousand_events_each_answered_with_a_read_all_make_progress() {
    // What a backend does: for each event it reads, on the connection that the events come on.
    let (daemon, store, mut events) = watching("/w").await;
    store.write("/value", "1").await.unwrap();
    for n in 0..BURST {
        daemon.send_event(&format!("/w/{n}"), "t");
    }
    let mut paths = BTreeSet::new();
    while paths.len() < BURST {
        match next(&mut events).await {
            WatchEvent::Changed { path, .. } => assert!(paths.insert(path)),
            other => panic!("{other:?}"),
        }
        assert_eq!(unhung(store.read_string("/value")).await.unwrap(), "1");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_while_several_tasks_read_and_write() {
    let (daemon, store, mut events) = watching("/w").await;
    let work: Vec<_> = (0..8)
        .map(|task| {
            let store = store.clone();
            tokio::spawn(async move {
                let path = format!("/task/{task}");
                for n in 0..200 {
                    store.write(&path, n.to_string()).await.unwrap();
                    assert_eq!(store.read_string(&path).await.unwrap(), n.to_string());
                }
            })
        })
        .collect();
    let consumer = tokio::spawn(async move {
        for _ in 0..BURST {
            next(&mut events).await;
        }
    });
    for n in 0..BURST {
        daemon.send_event(&format!("/w/{n}"), "t");
        if n % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    for task in work {
        unhung(task).await.unwrap();
    }
    unhung(consumer).await.unwrap();
}

#[tokio::test]
async fn events_of_one_path_are_told_once_until_taken() {
    let (daemon, store, mut events) = watching("/w").await;
    for _ in 0..BURST {
        daemon.send_event("/w/a", "t");
        daemon.send_event("/w/b", "t");
        daemon.send_event("/w/a", "other");
    }
    settle(&store).await;
    assert_eq!(next(&mut events).await, changed("/w/a", "t"));
    assert_eq!(next(&mut events).await, changed("/w/b", "t"));
    assert_eq!(next(&mut events).await, changed("/w/a", "other"));
    assert_eq!(events.try_next(), None);
    // Taken, so it may come again.
    daemon.send_event("/w/a", "t");
    assert_eq!(next(&mut events).await, changed("/w/a", "t"));
}

#[tokio::test]
async fn too_many_distinct_events_become_one_on_the_watch_itself() {
    let (daemon, store, mut events) = watching("/w").await;
    for n in 0..DISTINCT_MAX + 5000 {
        daemon.send_event(&format!("/w/{n}"), "t");
    }
    settle(&store).await;
    for n in 0..DISTINCT_MAX {
        assert_eq!(events.try_next(), Some(changed(&format!("/w/{n}"), "t")));
    }
    assert_eq!(events.try_next(), Some(changed("/w", "t")));
    assert_eq!(events.try_next(), None);
    daemon.send_event("/w/new", "t");
    assert_eq!(next(&mut events).await, changed("/w/new", "t"));
}

#[tokio::test]
async fn a_refused_watch_can_be_set_later() {
    use crate::xenstore::wire::MessageType;

    let (daemon, store, mut events) = watching("/w").await;
    daemon.state().scripted = vec![(MessageType::Watch, Err("E2BIG"))];
    let error = store.watch("/v", "t").await.unwrap_err();
    assert_eq!(error.errno(), Some(&Errno::TooBig));
    store.watch("/v", "t").await.unwrap();
    assert_eq!(next(&mut events).await, changed("/v", "t"));
}

#[tokio::test]
async fn requests_go_on_when_nobody_wants_events() {
    let (daemon, store, events) = watching("/w").await;
    drop(events);
    for n in 0..BURST {
        daemon.send_event(&format!("/w/{n}"), "t");
    }
    settle(&store).await;
}

#[tokio::test]
async fn malformed_events_are_dropped() {
    use crate::xenstore::wire::{Message, MessageType};

    let (daemon, store, mut events) = watching("/w").await;
    for payload in [&b""[..], b"/w/a", b"/w/a\0", b"\xff\0t\0"] {
        let message = Message::new(MessageType::WatchEvent, 0, 0, payload.to_vec());
        daemon.send(&message);
    }
    settle(&store).await;
    assert_eq!(events.try_next(), None);
}

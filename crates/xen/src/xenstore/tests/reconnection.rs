// SPDX-License-Identifier: GPL-3.0-or-later
use super::daemon::Daemon;
use super::{changed, next, unhung, until};
use crate::xenstore::wire::{Header, Message, MessageType};
use crate::xenstore::{Errno, Error, WatchEvent, WatchEvents, XenStore};

async fn connect() -> (Daemon, XenStore, WatchEvents) {
    let daemon = Daemon::start();
    let (store, events) = XenStore::connect(&daemon.endpoint()).await.unwrap();
    (daemon, store, events)
}

/// Takes `Disconnected`, then `Reconnected` and as many other events, before or after it, and gives
/// those, sorted.
async fn reconnected_and(others: usize, events: &mut WatchEvents) -> Vec<WatchEvent> {
    assert_eq!(next(events).await, WatchEvent::Disconnected);
    let mut taken = Vec::new();
    for _ in 0..others + 1 {
        taken.push(next(events).await);
    }
    let before = taken.len();
    taken.retain(|event| *event != WatchEvent::Reconnected);
    assert_eq!(taken.len() + 1, before, "Reconnected once");
    taken.sort_by_key(|event| format!("{event:?}"));
    taken
}

#[tokio::test]
async fn everyone_who_waits_is_told_that_the_connection_is_lost() {
    let (mut daemon, store, _events) = connect().await;
    daemon.state().mute = true;
    let waiting: Vec<_> = (0..20)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                match n % 3 {
                    0 => store.read("/a").await.map(drop),
                    1 => store.begin().await.map(drop),
                    _ => store.watch("/a", &n.to_string()).await,
                }
            })
        })
        .collect();
    until(|| daemon.state().seen.len() >= 20).await;
    daemon.stop().await;
    for request in waiting {
        let error = unhung(request).await.unwrap().unwrap_err();
        assert!(matches!(error, Error::ConnectionLost), "{error:?}");
    }
    let error = unhung(store.read("/a")).await.unwrap_err();
    assert!(matches!(error, Error::ConnectionLost));
}

#[tokio::test]
async fn watches_are_set_again_and_the_reconnection_is_told() {
    let (mut daemon, store, mut events) = connect().await;
    store.watch("/w", "one").await.unwrap();
    store.watch("/v", "two").await.unwrap();
    store.watch("/gone", "three").await.unwrap();
    store.unwatch("/gone", "three").await.unwrap();
    for _ in 0..3 {
        next(&mut events).await;
    }
    daemon.stop().await;
    daemon.state().seen.clear();
    daemon.restart();
    assert_eq!(
        reconnected_and(2, &mut events).await,
        [changed("/v", "two"), changed("/w", "one")]
    );
    assert_eq!(daemon.seen(MessageType::Watch).len(), 2);
    store.write("/w/a", "1").await.unwrap();
    assert_eq!(next(&mut events).await, changed("/w/a", "one"));
    assert_eq!(store.read_string("/w/a").await.unwrap(), "1");
}

#[tokio::test]
async fn a_reconnection_without_watches_is_told_too_and_again() {
    let (mut daemon, _store, mut events) = connect().await;
    for _ in 0..3 {
        daemon.stop().await;
        daemon.restart();
        assert_eq!(reconnected_and(0, &mut events).await, []);
    }
}

#[tokio::test]
async fn a_watch_that_cannot_be_set_again_is_told() {
    let (mut daemon, store, mut events) = connect().await;
    store.watch("/w", "t").await.unwrap();
    next(&mut events).await;
    daemon.stop().await;
    daemon.state().scripted = vec![(MessageType::Watch, Err("E2BIG"))];
    daemon.restart();
    let lost = WatchEvent::Lost {
        path: "/w".to_owned(),
        token: "t".to_owned(),
        errno: Errno::TooBig,
    };
    assert_eq!(reconnected_and(1, &mut events).await, [lost]);
    store.watch("/w", "t").await.unwrap();
    assert_eq!(next(&mut events).await, changed("/w", "t"));
}

#[tokio::test]
async fn a_watch_can_be_ended_but_not_set_while_the_daemon_is_away() {
    let (mut daemon, store, mut events) = connect().await;
    store.watch("/w", "t").await.unwrap();
    store.watch("/kept", "t").await.unwrap();
    next(&mut events).await;
    next(&mut events).await;
    daemon.stop().await;
    unhung(store.unwatch("/w", "t")).await.unwrap();
    let error = unhung(store.watch("/kept", "t")).await.unwrap_err();
    assert!(matches!(error, Error::ConnectionLost));
    daemon.restart();
    assert_eq!(
        reconnected_and(1, &mut events).await,
        [changed("/kept", "t")]
    );
}

#[tokio::test]
async fn a_transaction_does_not_outlive_its_connection() {
    let (mut daemon, store, mut events) = connect().await;
    let transaction = store.begin().await.unwrap();
    let other = store.begin().await.unwrap();
    daemon.stop().await;
    daemon.restart();
    assert_eq!(reconnected_and(0, &mut events).await, []);
    // On the new connection the same numbers may belong to other transactions.
    daemon.state().seen.clear();
    let error = transaction.write("/a", "1").await.unwrap_err();
    assert!(matches!(error, Error::ConnectionLost));
    let error = transaction.commit().await.unwrap_err();
    assert!(matches!(error, Error::ConnectionLost));
    drop(other);
    store.exists("/a").await.unwrap();
    let kinds: Vec<_> = daemon.state().seen.iter().map(|seen| seen.kind).collect();
    assert_eq!(kinds, [MessageType::Read]);
}

#[tokio::test]
async fn a_message_that_is_too_long_ends_the_connection() {
    let (daemon, store, mut events) = connect().await;
    let error = {
        daemon.state().mute = true;
        let read = {
            let store = store.clone();
            tokio::spawn(async move { store.read("/a").await })
        };
        until(|| !daemon.state().seen.is_empty()).await;
        daemon.send(&Message {
            header: Header {
                kind: MessageType::Read as u32,
                request_id: 1,
                transaction_id: 0,
                len_bytes: 4097,
            },
            payload: vec![0; 4097],
        });
        unhung(read).await.unwrap().unwrap_err()
    };
    assert!(matches!(error, Error::ConnectionLost));
    daemon.state().mute = false;
    assert_eq!(reconnected_and(0, &mut events).await, []);
    store.write("/a", "1").await.unwrap();
}

#[tokio::test]
async fn handles_dropped_while_the_daemon_is_away_end_the_task() {
    let (mut daemon, store, mut events) = connect().await;
    daemon.stop().await;
    // Else it may see the handle go before it sees that the daemon is away.
    assert_eq!(next(&mut events).await, WatchEvent::Disconnected);
    drop(store);
    assert_eq!(unhung(events.next()).await, None);
}

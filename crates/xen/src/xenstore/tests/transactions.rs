// SPDX-License-Identifier: GPL-3.0-or-later
use super::daemon::{Daemon, Seen};
use super::{unhung, until};
use crate::xenstore::wire::MessageType;
use crate::xenstore::{Errno, Error, WatchEvents, XenStore};

async fn connect() -> (Daemon, XenStore, WatchEvents) {
    let daemon = Daemon::start();
    let (store, events) = XenStore::connect(&daemon.endpoint()).await.unwrap();
    (daemon, store, events)
}

fn end(transaction_id: u32, verdict: &[u8]) -> Seen {
    Seen {
        kind: MessageType::TransactionEnd,
        transaction_id,
        payload: verdict.to_vec(),
    }
}

#[tokio::test]
async fn operations_carry_the_transactions_number() {
    let (daemon, store, _events) = connect().await;
    let transaction = store.begin().await.unwrap();
    transaction.write("/a", "1").await.unwrap();
    assert_eq!(transaction.read_string("/a").await.unwrap(), "1");
    store.write("/b", "1").await.unwrap();
    transaction.commit().await.unwrap();
    let ids: Vec<_> = daemon
        .state()
        .seen
        .iter()
        .map(|seen| (seen.kind, seen.transaction_id))
        .collect();
    assert_eq!(
        ids,
        [
            (MessageType::TransactionStart, 0),
            (MessageType::Write, 1),
            (MessageType::Read, 1),
            (MessageType::Write, 0),
            (MessageType::TransactionEnd, 1),
        ]
    );
    assert_eq!(daemon.seen(MessageType::TransactionEnd), [end(1, b"T\0")]);
}

#[tokio::test]
async fn a_conflict_runs_the_whole_body_again() {
    let (daemon, store, _events) = connect().await;
    daemon.state().scripted = vec![
        (MessageType::TransactionEnd, Err("EAGAIN")),
        (MessageType::TransactionEnd, Err("EAGAIN")),
    ];
    let mut runs = 0;
    let value = store
        .transaction(|transaction| {
            runs += 1;
            let run = runs;
            async move {
                transaction.write("/a", run.to_string()).await?;
                Ok::<_, Error>(run)
            }
        })
        .await
        .unwrap();
    assert_eq!((value, runs), (3, 3));
    assert_eq!(
        daemon.seen(MessageType::TransactionEnd),
        [end(1, b"T\0"), end(2, b"T\0"), end(3, b"T\0")]
    );
}

#[tokio::test]
async fn a_conflict_without_end_is_given_up() {
    let (daemon, store, _events) = connect().await;
    daemon.state().scripted = vec![(MessageType::TransactionEnd, Err("EAGAIN")); 200];
    let error = unhung(store.transaction(|_| async { Ok::<_, Error>(()) }))
        .await
        .unwrap_err();
    assert_eq!(error.errno(), Some(&Errno::Again));
    assert_eq!(daemon.seen(MessageType::TransactionEnd).len(), 100);
}

#[tokio::test]
async fn a_body_that_fails_aborts_and_its_error_is_kept() {
    let (daemon, store, _events) = connect().await;
    let error = store
        .transaction(|transaction| async move { transaction.read("/missing").await })
        .await
        .unwrap_err();
    assert!(error.is_not_found());
    assert_eq!(daemon.seen(MessageType::TransactionEnd), [end(1, b"F\0")]);
}

#[tokio::test]
async fn a_dropped_transaction_is_aborted_once() {
    let (daemon, store, _events) = connect().await;
    let transaction = store.begin().await.unwrap();
    let clone = transaction.clone();
    drop(transaction);
    clone.write("/a", "1").await.unwrap();
    assert!(daemon.seen(MessageType::TransactionEnd).is_empty());
    drop(clone);
    store.exists("/a").await.unwrap();
    assert_eq!(daemon.seen(MessageType::TransactionEnd), [end(1, b"F\0")]);
}

#[tokio::test]
async fn an_ended_transaction_takes_nothing_more() {
    let (daemon, store, _events) = connect().await;
    let transaction = store.begin().await.unwrap();
    let clone = transaction.clone();
    transaction.commit().await.unwrap();
    for error in [
        clone.write("/a", "1").await.unwrap_err(),
        clone.clone().abort().await.unwrap_err(),
        clone.commit().await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::TransactionEnded));
    }
    store.exists("/a").await.unwrap();
    assert_eq!(daemon.seen(MessageType::TransactionEnd), [end(1, b"T\0")]);
}

#[tokio::test]
async fn a_transaction_whose_caller_stopped_waiting_is_aborted() {
    let (daemon, store, _events) = connect().await;
    // The answer to this one is held back until the caller is gone.
    daemon.state().reverse = 2;
    let begin = {
        let store = store.clone();
        tokio::spawn(async move { store.begin().await.map(drop) })
    };
    until(|| !daemon.state().seen.is_empty()).await;
    begin.abort();
    assert!(begin.await.unwrap_err().is_cancelled());
    store.exists("/a").await.unwrap();
    daemon.state().reverse = 0;
    until(|| !daemon.seen(MessageType::TransactionEnd).is_empty()).await;
    assert_eq!(daemon.seen(MessageType::TransactionEnd), [end(1, b"F\0")]);
}

#[tokio::test]
async fn a_transaction_without_a_number_is_a_broken_protocol() {
    let (daemon, store, _events) = connect().await;
    daemon.state().scripted = vec![(MessageType::TransactionStart, Ok(b"many\0".to_vec()))];
    let error = store.begin().await.map(drop).unwrap_err();
    assert!(matches!(error, Error::Protocol(_)));
}

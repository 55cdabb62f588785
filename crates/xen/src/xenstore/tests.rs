// SPDX-License-Identifier: GPL-3.0-or-later
mod daemon;
mod reconnection;
mod requests;
mod transactions;
mod watches;
mod without_daemon;

use std::future::Future;
use std::time::Duration;

use super::{WatchEvent, WatchEvents};

/// Ends a test that hangs. No measurement: the time is far beyond what any of them takes.
async fn unhung<T>(work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(60), work).await {
        Ok(value) => value,
        Err(_) => panic!("no progress: a deadlock"),
    }
}

fn changed(path: &str, token: &str) -> WatchEvent {
    WatchEvent::Changed {
        path: path.to_owned(),
        token: token.to_owned(),
    }
}

async fn next(events: &mut WatchEvents) -> WatchEvent {
    unhung(events.next()).await.expect("the connection lives")
}

/// Waits for something to become true in the daemon.
async fn until(condition: impl Fn() -> bool) {
    unhung(async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

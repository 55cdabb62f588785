// SPDX-License-Identifier: GPL-3.0-or-later
//! The backend's `state` node: written in order, without making the rings wait.

use std::time::Duration;

use slog::{Logger, debug, info, warn};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use xen::xenstore::{Error, XenStore};

use crate::xenbus::{Key, XenbusState};

/// How long InitWait stands at least. libxl waits for exactly this state (`devstate_callback`);
/// with a controller that is added to a running guest the frontend connects at once, and a
/// Connected that libxl reads instead makes it time out.
const INIT_WAIT_STANDS: Duration = Duration::from_millis(500);

/// Pause before a state is written again that xenstored did not take because it was gone.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// Writes states in the order in which they are sent to it.
#[derive(Debug)]
pub struct StateNode {
    states: mpsc::UnboundedSender<Option<XenbusState>>,
    writer: JoinHandle<()>,
}

impl StateNode {
    /// Starts the writer on the current `LocalSet`.
    pub fn start(store: XenStore, key: Key, log: Logger) -> Self {
        let (sender, mut states) = mpsc::unbounded_channel();
        let writer = tokio::task::spawn_local(async move {
            let mut init_wait_until = Instant::now();
            while let Some(mut state) = states.recv().await {
                // What comes after Connected does not wait with it.
                while state == Some(XenbusState::Connected) {
                    match timeout_at(init_wait_until, states.recv()).await {
                        Ok(Some(newer)) => state = newer,
                        Ok(None) | Err(_) => break,
                    }
                }
                match write_patiently(&store, key, state, &log).await {
                    Ok(true) => debug!(log, "state written"; "state" => ?state),
                    Ok(false) => debug!(log, "state not written: the node is gone"),
                    Err(e) => warn!(log, "cannot write the backend's state: {}", e),
                }
                if state == Some(XenbusState::InitWait) {
                    init_wait_until = Instant::now() + INIT_WAIT_STANDS;
                }
            }
        });
        Self {
            states: sender,
            writer,
        }
    }

    /// Switches to a state.
    pub fn switch(&self, state: XenbusState) {
        let _ = self.states.send(Some(state));
    }

    /// Removes the node: libxl gives up waiting at once.
    pub fn remove(&self) {
        let _ = self.states.send(None);
    }

    /// Waits until everything is written.
    pub async fn finish(self) {
        drop(self.states);
        // An error: it panicked, and has said so.
        let _ = self.writer.await;
    }
}

/// As [`write()`], also where xenstored goes away meanwhile: the toolstack or the frontend waits for
/// this state, and nothing would make us write it again.
async fn write_patiently(
    store: &XenStore,
    key: Key,
    state: Option<XenbusState>,
    log: &Logger,
) -> Result<bool, Error> {
    let mut said = false;
    loop {
        match write(store, key, state).await {
            Err(Error::ConnectionLost) => {
                if !std::mem::replace(&mut said, true) {
                    info!(log, "the backend's state waits for xenstored"; "state" => ?state);
                }
                sleep(RETRY_AFTER).await;
            }
            result => return result,
        }
    }
}

/// Writes or removes the node, but never makes it: the toolstack may have removed the controller
/// meanwhile, and a `state` alone would stay for ever.
async fn write(store: &XenStore, key: Key, state: Option<XenbusState>) -> Result<bool, Error> {
    let path = format!("{}/state", key.backend());
    store
        .transaction(|t| {
            let path = path.clone();
            async move {
                let there = t.exists(&path).await?;
                match state {
                    Some(state) if there => t.write(&path, state.as_str()).await?,
                    None if there => t.rm(&path).await?,
                    _ => {}
                }
                Ok(there)
            }
        })
        .await
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! A frontend's view of xenstore.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use xen::DomId;
use xen::xenstore::{Endpoint, Error, WatchEvent, WatchEvents, XenStore, XsPath};

use crate::frontend::BusEvent;
use crate::{FrontendError, RingGrants};

/// `XenbusState`: where one side of a split driver is.
pub(crate) mod state {
    pub(crate) const INIT_WAIT: u32 = 2;
    pub(crate) const CONNECTED: u32 = 4;
    pub(crate) const CLOSING: u32 = 5;
    pub(crate) const CLOSED: u32 = 6;
}

const SHUTDOWN: &str = "control/shutdown";
const SHUTDOWN_TOKEN: &str = "shutdown";
const BACKEND_TOKEN: &str = "backend-state";

/// The nodes of one controller, over a xenstore connection of its own.
#[derive(Debug)]
pub(crate) struct Bus {
    store: XenStore,
    events: WatchEvents,
    /// `device/vusb/<devid>`, relative to the domain.
    path: XsPath,
    backend: XsPath,
    backend_id: DomId,
    /// `control/shutdown` changed while something else was waited for.
    shutdown_changed: bool,
    driver: Driver,
}

impl Bus {
    pub(crate) fn open(endpoint: &Endpoint, devid: u32) -> Result<Self, FrontendError> {
        let driver = Driver::start()?;
        let path = XsPath::new("device/vusb").with(devid);
        let opened = driver.wait(async {
            let (store, events) = XenStore::connect(endpoint).await?;
            let backend_path = path.join("backend");
            let backend = match store.read_optional(&backend_path).await? {
                Some(backend) if backend.starts_with('/') => XsPath::new(&backend),
                value => {
                    return Err(FrontendError::Node {
                        path: backend_path.into(),
                        value,
                    });
                }
            };
            let id_path = path.join("backend-id");
            let value = store.read_optional(&id_path).await?;
            let id = value.as_deref().and_then(|id| id.parse().ok());
            let id = id.ok_or(FrontendError::Node {
                path: id_path.into(),
                value,
            })?;
            store.watch(SHUTDOWN, SHUTDOWN_TOKEN).await?;
            store.watch(&backend.join("state"), BACKEND_TOKEN).await?;
            Ok((store, events, backend, DomId(id)))
        });
        let (store, events, backend, backend_id) = opened?;
        Ok(Self {
            store,
            events,
            path,
            backend,
            backend_id,
            shutdown_changed: false,
            driver,
        })
    }

    pub(crate) fn backend_id(&self) -> DomId {
        self.backend_id
    }

    /// A number in the backend's directory, from `low` to `high`.
    pub(crate) fn backend_number(
        &self,
        node: &str,
        low: u32,
        high: u32,
    ) -> Result<u32, FrontendError> {
        let path = self.backend.join(node);
        let value = self.driver.wait(self.store.read_optional(&path))?;
        match value.as_deref().and_then(|value| value.parse().ok()) {
            Some(number) if (low..=high).contains(&number) => Ok(number),
            _ => Err(FrontendError::Node {
                path: path.into(),
                value,
            }),
        }
    }

    /// 0 when the node cannot be read (`xenbus_read_driver_state`): of a directory that has been
    /// removed, xenstored says that it is not ours to read.
    pub(crate) fn backend_state(&self) -> Result<u32, FrontendError> {
        let path = self.backend.join("state");
        match self.driver.wait(self.store.read_string(&path)) {
            Ok(value) => Ok(value.parse().unwrap_or(0)),
            Err(Error::Refused { .. }) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// As `xenhcd_backend_changed`: any state from InitWait to Connected will do.
    pub(crate) fn wait_for_backend(&mut self, timeout: Duration) -> Result<(), FrontendError> {
        let ready = state::INIT_WAIT..=state::CONNECTED;
        self.wait_for_state(timeout, |state| ready.contains(&state))
    }

    pub(crate) fn wait_for_state(
        &mut self,
        timeout: Duration,
        wanted: impl Fn(u32) -> bool,
    ) -> Result<(), FrontendError> {
        let deadline = Instant::now() + timeout;
        loop {
            let state = self.backend_state()?;
            if wanted(state) {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let events = &mut self.events;
            let event = self
                .driver
                .wait(async { tokio::time::timeout(left, events.next()).await });
            match event {
                Ok(Some(event)) => self.shutdown_changed |= is_shutdown(&event),
                // No event, or none any more.
                _ => return Err(FrontendError::Backend { state, timeout }),
            }
        }
    }

    /// What has happened, without waiting for it.
    pub(crate) fn next_event(&mut self) -> Result<Option<BusEvent>, FrontendError> {
        let mut shutdown_changed = std::mem::take(&mut self.shutdown_changed);
        loop {
            if shutdown_changed {
                let value = self.driver.wait(self.store.read_optional(SHUTDOWN))?;
                match value.as_deref() {
                    None | Some("") => {}
                    Some("suspend") => return Ok(Some(BusEvent::Suspend)),
                    Some(reason) => return Ok(Some(BusEvent::Shutdown(reason.to_owned()))),
                }
            }
            let Some(event) = self.take_watch_event() else {
                return Ok(None);
            };
            shutdown_changed = is_shutdown(&event);
            if !shutdown_changed && is_closing(self.backend_state()?) {
                return Ok(Some(BusEvent::BackendClosing));
            }
        }
    }

    fn take_watch_event(&mut self) -> Option<WatchEvent> {
        let mut next = pin!(self.events.next());
        self.driver.wait(poll_fn(|context| {
            // Once: what is not there now is for the next call.
            Poll::Ready(match next.as_mut().poll(context) {
                Poll::Ready(event) => event,
                Poll::Pending => None,
            })
        }))
    }

    pub(crate) fn acknowledge_shutdown(&self) -> Result<(), FrontendError> {
        self.driver.wait(self.store.write(SHUTDOWN, ""))?;
        Ok(())
    }

    /// Tells the backend where the rings are, and switches to Connected.
    pub(crate) fn publish(
        &self,
        grants: RingGrants,
        features: &[&str],
    ) -> Result<(), FrontendError> {
        let nodes = [
            ("urb-ring-ref", grants.urb_ring.to_string()),
            ("conn-ring-ref", grants.conn_ring.to_string()),
            ("event-channel", grants.event_channel.to_string()),
        ];
        let (path, nodes) = (&self.path, &nodes);
        self.driver
            .wait(self.store.transaction(|transaction| async move {
                for (node, value) in nodes {
                    transaction.write(&path.join(node), value).await?;
                }
                for feature in features {
                    transaction.write(&path.join(feature), "1").await?;
                }
                Ok::<_, xen::xenstore::Error>(())
            }))?;
        self.switch_to(state::CONNECTED)
    }

    /// Switches to Closed, if the toolstack has left us a node for it.
    pub(crate) fn switch_to_closed(&self) -> Result<(), FrontendError> {
        match self.switch_to(state::CLOSED) {
            Err(FrontendError::Store(Error::Refused { .. })) => Ok(()),
            result => result,
        }
    }

    pub(crate) fn switch_to(&self, state: u32) -> Result<(), FrontendError> {
        let path = self.path.join("state");
        self.driver
            .wait(self.store.write(&path, state.to_string()))?;
        Ok(())
    }
}

/// Whether a backend that was there is going or gone.
pub(crate) fn is_closing(state: u32) -> bool {
    state == 0 || state >= state::CLOSING
}

fn is_shutdown(event: &WatchEvent) -> bool {
    matches!(event, WatchEvent::Changed { token, .. } if token == SHUTDOWN_TOKEN)
}

/// A thread that serves the xenstore connection, so that events arrive also while nobody waits.
#[derive(Debug)]
struct Driver {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Driver {
    fn start() -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("xenstore".into())
            .spawn(move || {
                // Also when the sender is gone.
                let _ = runtime.block_on(stopped);
            })?;
        Ok(Self {
            handle,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    fn wait<F: Future>(&self, future: F) -> F::Output {
        self.handle.block_on(future)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! A host with its xenstore handshake.

use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use xen::xenstore::{Endpoint, WatchEvents, XenStore, XsPath};
use xen::{DomId, Guest};

use crate::{FrontendError, HostError, HostOptions, RingGrants, UsbHost};

/// `XenbusState`: where one side of a split driver is.
mod state {
    pub(super) const INIT_WAIT: u32 = 2;
    pub(super) const CONNECTED: u32 = 4;
    pub(super) const CLOSING: u32 = 5;
    pub(super) const CLOSED: u32 = 6;
}

/// What the frontend does when its domain resumes elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResumeMode {
    /// As the stock `xen-hcd`, which has no resume callback: the USB devices above resume first,
    /// and what they submit goes to the dead ring. New rings come later, when the watch on the
    /// backend's state is served. The table of request ids is kept as it is.
    Stock,
    /// As with our module: new rings and Connected first, with a clean table, then the devices
    /// above. Announced with `feature-resume` = 1.
    #[default]
    Callback,
}

/// How a frontend connects.
#[derive(Debug)]
pub struct FrontendOptions {
    /// Which controller: the number under `device/vusb`.
    pub devid: u32,
    /// What it does on resume.
    pub mode: ResumeMode,
    /// How long it waits for its backend.
    pub timeout: Duration,
    /// The host's options.
    pub host: HostOptions,
}

impl Default for FrontendOptions {
    fn default() -> Self {
        Self {
            devid: 0,
            mode: ResumeMode::default(),
            timeout: Duration::from_secs(10),
            host: HostOptions::default(),
        }
    }
}

/// Where a domain finds itself after a suspend that took place.
#[derive(Debug)]
pub struct Resumed<G> {
    /// Its interface to the Xen it runs on now.
    pub guest: G,
    /// The xenstore there.
    pub store: Endpoint,
}

/// A PV USB frontend: the handshake of `xen-hcd` in xenstore, with a [`UsbHost`] behind it.
///
/// Blocking. It has a xenstore connection of its own.
pub struct Frontend<G: Guest> {
    host: UsbHost<G>,
    bus: Bus,
    options: Settings,
}

#[derive(Clone, Copy, Debug)]
struct Settings {
    devid: u32,
    mode: ResumeMode,
    timeout: Duration,
}

/// The frontend's view of xenstore.
#[derive(Debug)]
struct Bus {
    store: XenStore,
    events: WatchEvents,
    runtime: Runtime,
    /// `device/vusb/<devid>`, relative to the domain.
    path: XsPath,
    backend: XsPath,
    backend_id: DomId,
}

impl<G: Guest> Frontend<G> {
    /// Connects the controller `device/vusb/<devid>` of this domain: waits for the backend to be
    /// ready, sets up the rings and switches to Connected. Devices appear as port changes.
    ///
    /// # Errors
    /// [`FrontendError`].
    pub fn connect(
        guest: G,
        endpoint: &Endpoint,
        options: FrontendOptions,
    ) -> Result<Self, FrontendError> {
        let FrontendOptions {
            devid,
            mode,
            timeout,
            host,
        } = options;
        let settings = Settings {
            devid,
            mode,
            timeout,
        };
        let mut bus = Bus::open(endpoint, devid)?;
        let num_ports = bus.backend_number("num-ports", 1, 31)?;
        bus.backend_number("usb-ver", 1, 2)?;
        // At most 31.
        let mut host = UsbHost::new(guest, bus.backend_id, num_ports as u8, host);
        bus.wait_for_backend(timeout)?;
        bus.publish(host.set_up_rings()?, mode)?;
        Ok(Self {
            host,
            bus,
            options: settings,
        })
    }

    /// The host.
    pub fn host(&mut self) -> &mut UsbHost<G> {
        &mut self.host
    }

    /// Before a suspend: see [`UsbHost::freeze`].
    ///
    /// # Errors
    /// [`HostError::TimedOut`].
    pub fn freeze(&mut self, timeout: Duration) -> Result<u32, HostError> {
        self.host.freeze(timeout)
    }

    /// The suspend was cancelled: the domain is where it was, and so are its rings.
    pub fn resume_cancelled(&mut self) {
        self.host.thaw();
    }

    /// The domain has resumed elsewhere. `devices` is what the drivers of the USB devices do when
    /// they resume; whether the rings are new by then depends on the [`ResumeMode`].
    ///
    /// # Errors
    /// [`FrontendError`].
    pub fn resume(
        &mut self,
        resumed: Resumed<G>,
        devices: impl FnOnce(&mut UsbHost<G>),
    ) -> Result<(), FrontendError> {
        // The connection of the old place is closed only when the new one stands.
        self.bus = Bus::open(&resumed.store, self.options.devid)?;
        self.host.moved(resumed.guest, self.bus.backend_id)?;
        match self.options.mode {
            ResumeMode::Callback => {
                self.host.forget_requests();
                // The toolstack lets the domain run only when the backend is ready.
                self.bus
                    .publish(self.host.set_up_rings()?, ResumeMode::Callback)?;
                devices(&mut self.host);
            }
            ResumeMode::Stock => {
                devices(&mut self.host);
                self.host.step()?;
                self.bus.wait_for_backend(self.options.timeout)?;
                self.bus
                    .publish(self.host.set_up_rings()?, ResumeMode::Stock)?;
            }
        }
        Ok(())
    }

    /// The backend's `XenbusState` now; 0 when its node is gone.
    ///
    /// # Errors
    /// [`FrontendError::Store`].
    pub fn backend_state(&mut self) -> Result<u32, FrontendError> {
        self.bus.backend_state()
    }

    /// Follows a backend that is closing: gives all URBs back, ends the rings and switches to
    /// Closed. False: the backend is not closing, and nothing was done.
    ///
    /// # Errors
    /// [`FrontendError::Store`].
    pub fn follow_backend(&mut self) -> Result<bool, FrontendError> {
        let state = self.bus.backend_state()?;
        if state != state::CLOSING && state != state::CLOSED {
            return Ok(false);
        }
        self.host.disconnect();
        self.bus.switch_to(state::CLOSED)?;
        Ok(true)
    }

    /// Unloads the driver: switches to Closing, waits for the backend to follow, ends the rings.
    /// False: the backend still maps a ring.
    ///
    /// # Errors
    /// [`FrontendError::Backend`] when it does not follow.
    pub fn close(mut self) -> Result<bool, FrontendError> {
        self.bus.switch_to(state::CLOSING)?;
        let closing = |state| state == 0 || state >= state::CLOSING;
        let result = self.bus.wait_for_state(self.options.timeout, closing);
        let released = self.host.disconnect();
        self.bus.switch_to(state::CLOSED)?;
        result?;
        Ok(released)
    }
}

impl Bus {
    fn open(endpoint: &Endpoint, devid: u32) -> Result<Self, FrontendError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let path = XsPath::new("device/vusb").with(devid);
        let (store, events, backend, backend_id) = runtime.block_on(async {
            let (store, events) = XenStore::connect(endpoint).await?;
            let backend_path = path.join("backend");
            let backend = store.read_optional(&backend_path).await?;
            let backend = match backend {
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
            store.watch(&backend.join("state"), "backend-state").await?;
            Ok((store, events, backend, DomId(id)))
        })?;
        Ok(Self {
            store,
            events,
            runtime,
            path,
            backend,
            backend_id,
        })
    }

    fn backend_number(&self, node: &str, low: u32, high: u32) -> Result<u32, FrontendError> {
        let path = self.backend.join(node);
        let value = self.runtime.block_on(self.store.read_optional(&path))?;
        match value.as_deref().and_then(|value| value.parse().ok()) {
            Some(number) if (low..=high).contains(&number) => Ok(number),
            _ => Err(FrontendError::Node {
                path: path.into(),
                value,
            }),
        }
    }

    fn backend_state(&self) -> Result<u32, FrontendError> {
        let path = self.backend.join("state");
        let value = self.runtime.block_on(self.store.read_optional(&path))?;
        Ok(value.and_then(|value| value.parse().ok()).unwrap_or(0))
    }

    /// As `xenhcd_backend_changed`: any state from InitWait to Connected will do.
    fn wait_for_backend(&mut self, timeout: Duration) -> Result<(), FrontendError> {
        self.wait_for_state(timeout, |state| {
            (state::INIT_WAIT..=state::CONNECTED).contains(&state)
        })
    }

    fn wait_for_state(
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
                .runtime
                .block_on(async { tokio::time::timeout(left, events.next()).await });
            // No event, or none any more.
            if !matches!(event, Ok(Some(_))) {
                return Err(FrontendError::Backend { state, timeout });
            }
        }
    }

    fn publish(&self, grants: RingGrants, mode: ResumeMode) -> Result<(), FrontendError> {
        let nodes = [
            ("urb-ring-ref", grants.urb_ring.to_string()),
            ("conn-ring-ref", grants.conn_ring.to_string()),
            ("event-channel", grants.event_channel.to_string()),
        ];
        let (path, nodes) = (&self.path, &nodes);
        self.runtime
            .block_on(self.store.transaction(|transaction| async move {
                for (node, value) in nodes {
                    transaction.write(&path.join(node), value).await?;
                }
                if mode == ResumeMode::Callback {
                    transaction.write(&path.join("feature-resume"), "1").await?;
                }
                Ok::<_, xen::xenstore::Error>(())
            }))?;
        self.switch_to(state::CONNECTED)
    }

    fn switch_to(&self, state: u32) -> Result<(), FrontendError> {
        let path = self.path.join("state");
        self.runtime
            .block_on(self.store.write(&path, state.to_string()))?;
        Ok(())
    }
}

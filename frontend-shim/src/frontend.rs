// SPDX-License-Identifier: GPL-3.0-or-later
//! A host with its xenstore handshake.

use std::time::Duration;

use xen::Guest;
use xen::xenstore::Endpoint;

use crate::bus::{Bus, is_closing, state};
use crate::{FrontendError, HostError, HostOptions, UsbHost};

/// What the frontend does when its domain resumes elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResumeMode {
    /// As the stock `xen-hcd`, which has no resume callback: the USB devices above resume first,
    /// and what they submit goes to the dead ring. New rings come later, when the watch on the
    /// backend's state is served. The table of request ids is kept as it is.
    Stock,
    /// As the stock one with our small module (`xen-vusb-resume`): new rings and Connected first, then
    /// the devices above. Announced with `feature-resume` = 1.
    Callback,
    /// As our own (`xen-vusb-hcd`): drivers notice nothing, URBs that were in flight go on by
    /// themselves. Announced with `feature-recall` = 1, too.
    #[default]
    Recall,
}

impl ResumeMode {
    /// Whether drivers take nothing back before a suspend.
    pub fn is_unnoticed(self) -> bool {
        self == Self::Recall
    }

    /// What is announced.
    fn features(self) -> &'static [&'static str] {
        match self {
            Self::Stock => &[],
            Self::Callback => &["feature-resume"],
            Self::Recall => &["feature-resume", "feature-recall"],
        }
    }
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

/// What the frontend's xenstore connection has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BusEvent {
    /// The toolstack asks the domain to suspend, for a migration or a save.
    Suspend,
    /// The toolstack asks the domain to shut down in another way: `poweroff`, `reboot`…
    Shutdown(String),
    /// The backend is closing: see [`Frontend::follow_backend`].
    BackendClosing,
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
        let mut host = UsbHost::new(guest, bus.backend_id(), num_ports as u8, host);
        host.set_recalls(mode.is_unnoticed());
        bus.wait_for_backend(timeout)?;
        bus.publish(host.set_up_rings()?, mode.features())?;
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

    /// Before a suspend: see [`UsbHost::freeze`] and [`UsbHost::recall`].
    ///
    /// # Errors
    /// [`HostError::TimedOut`].
    pub fn freeze(&mut self, timeout: Duration) -> Result<u32, HostError> {
        match self.options.mode.is_unnoticed() {
            true => self.host.recall(timeout).map(|()| 0),
            false => self.host.freeze(timeout),
        }
    }

    /// What it does when its domain is suspended.
    pub fn mode(&self) -> ResumeMode {
        self.options.mode
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
        self.host.moved(resumed.guest, self.bus.backend_id())?;
        match self.options.mode {
            mode @ (ResumeMode::Callback | ResumeMode::Recall) => {
                self.host.forget_requests();
                // The toolstack lets the domain run only when the backend is ready.
                self.bus
                    .publish(self.host.set_up_rings()?, mode.features())?;
                devices(&mut self.host);
            }
            ResumeMode::Stock => {
                devices(&mut self.host);
                self.host.step()?;
                self.bus.wait_for_backend(self.options.timeout)?;
                self.bus.publish(self.host.set_up_rings()?, &[])?;
            }
        }
        Ok(())
    }

    /// What has come from the toolstack or the backend. Never blocks on others than xenstored.
    ///
    /// # Errors
    /// [`FrontendError::Store`].
    pub fn next_bus_event(&mut self) -> Result<Option<BusEvent>, FrontendError> {
        self.bus.next_event()
    }

    /// Tells the toolstack that its request to shut down or suspend has been seen
    /// (`control/shutdown` = ""). Then [`freeze`](Self::freeze) and suspend.
    ///
    /// # Errors
    /// [`FrontendError::Store`].
    pub fn acknowledge_shutdown(&mut self) -> Result<(), FrontendError> {
        self.bus.acknowledge_shutdown()
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
        if !is_closing(self.bus.backend_state()?) {
            return Ok(false);
        }
        self.host.disconnect();
        self.bus.switch_to_closed()?;
        Ok(true)
    }

    /// Unloads the driver: switches to Closing, waits for the backend to follow, ends the rings.
    /// False: the backend still maps a ring.
    ///
    /// # Errors
    /// [`FrontendError::Backend`] when it does not follow.
    pub fn close(mut self) -> Result<bool, FrontendError> {
        self.bus.switch_to(state::CLOSING)?;
        let result = self.bus.wait_for_state(self.options.timeout, is_closing);
        let released = self.host.disconnect();
        self.bus.switch_to_closed()?;
        result?;
        Ok(released)
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! What carries out a device's transfers.

use std::sync::Arc;
use std::time::Duration;

use session::control::Returns;
use session::frame::{Transfer, TransferStatus};
use session::server::{Outcome, Server};
use session::{Configured, DeviceInfo, Digest, Epoch};
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::sim::SimulatedDevice;
use crate::usb::{self, UsbDevice};

/// Why a hub is not lent.
pub(crate) const HUB_REASON: &str = "it is a hub; lend the devices that are plugged into it";

/// A device that can be lent.
pub(crate) enum Executor {
    Simulated(Box<SimulatedDevice>),
    Usb(Box<UsbDevice>),
}

/// A device that was made ready, for [`Executor::opened`].
pub(crate) enum Opened {
    Simulated,
    Usb(Box<usb::Open>),
}

impl Opened {
    /// Something for the administrator to know about it.
    pub(crate) fn take_note(&mut self) -> Option<String> {
        match self {
            Self::Simulated => None,
            Self::Usb(open) => open.take_note(),
        }
    }
}

impl Executor {
    /// The device as it is listed.
    pub(crate) fn info(&self) -> &DeviceInfo {
        match self {
            Self::Simulated(device) => device.info(),
            Self::Usb(device) => device.info(),
        }
    }

    /// Whether it is plugged into this machine.
    pub(crate) fn is_real(&self) -> bool {
        matches!(self, Self::Usb(_))
    }

    /// Makes the device ready for its holder, if it is not: a future that does not borrow the
    /// device, and whose result is for [`Executor::opened`]. With `begin`, it begins as if it were
    /// plugged in now, and is made what its guest knows, if it is that.
    ///
    /// # Errors
    /// Why it cannot be lent, for people.
    pub(crate) fn start_opening(
        &mut self,
        begin: Option<&Returns>,
    ) -> Result<Option<impl Future<Output = Result<Opened, String>> + use<>>, String> {
        enum Opening<F> {
            Simulated(Duration),
            Usb(F),
        }
        let opening = match self {
            Self::Simulated(device) => {
                device.open_once()?;
                if let Some(returns) = begin
                    && returns.descriptors == Some(device.descriptors())
                {
                    device.configure(&returns.configured)?;
                }
                device.start_opening().map(Opening::Simulated)
            }
            Self::Usb(device) => device.start_opening(begin).map(Opening::Usb),
        };
        Ok(opening.map(|opening| async move {
            match opening {
                Opening::Simulated(time) => {
                    sleep(time).await;
                    Ok(Opened::Simulated)
                }
                Opening::Usb(opening) => opening.await.map(|open| Opened::Usb(Box::new(open))),
            }
        }))
    }

    /// Its descriptors, once it is open; `None` where they could not be read.
    pub(crate) fn descriptors(&self) -> Option<Digest> {
        match self {
            Self::Simulated(device) => Some(device.descriptors()),
            Self::Usb(device) => device.descriptors(),
        }
    }

    /// See [`Executor::start_opening`].
    pub(crate) fn opened(&mut self, opened: Opened) {
        match (self, opened) {
            (Self::Simulated(device), _) => device.opened(),
            (Self::Usb(device), Opened::Usb(open)) => device.opened(*open),
            (Self::Usb(_), Opened::Simulated) => (),
        }
    }

    /// Somebody holds the device since before we were started, and has set this.
    pub(crate) fn restore(&mut self, configured: &Configured) {
        match self {
            Self::Simulated(device) => device.restore(configured),
            Self::Usb(device) => device.restore(configured),
        }
    }

    /// The host that holds it.
    pub(crate) fn set_host(&mut self, host: &str) {
        match self {
            Self::Simulated(_) => (),
            Self::Usb(device) => device.set_host(host),
        }
    }

    /// Who is to be woken when [`Executor::drain`] has something.
    pub(crate) fn set_wake(&mut self, wake: Arc<Notify>) {
        match self {
            Self::Simulated(device) => device.set_wake(wake),
            Self::Usb(device) => device.set_wake(wake),
        }
    }

    /// Carries out a transfer that `server` handed out.
    pub(crate) fn submit(
        &mut self,
        server: &mut Server,
        request: u64,
        transfer: &Transfer,
        body: &[u8],
    ) {
        match self {
            Self::Simulated(device) => device.submit(server, request, transfer, body),
            Self::Usb(device) => device.submit(server, request, transfer, body),
        }
    }

    /// Cancels a transfer; it still completes.
    pub(crate) fn cancel(&mut self, server: &mut Server, request: u64) {
        match self {
            Self::Simulated(device) => device.cancel(server, request),
            Self::Usb(device) => device.cancel(server, request),
        }
    }

    /// Resets the device for `request`.
    pub(crate) fn reset(&mut self, server: &mut Server, request: u64) {
        match self {
            Self::Simulated(device) => {
                device.reset(server);
                let outcome = Outcome::new(TransferStatus::Completed, 0);
                server.complete(server.epoch(), request, outcome, |_| ());
            }
            Self::Usb(device) => device.reset(server, request),
        }
    }

    /// Has the device see what it was asked for since the last time: one wake, however much it is.
    pub(crate) fn flush(&mut self) {
        match self {
            Self::Simulated(_) => (),
            Self::Usb(device) => device.flush(),
        }
    }

    /// Hands what is over to `server`.
    pub(crate) fn drain(&mut self, server: &mut Server) {
        match self {
            Self::Simulated(device) => device.drain(server),
            Self::Usb(device) => device.drain(server),
        }
    }

    /// Cancels these requests of `epoch`; nobody waits for them any more.
    pub(crate) fn abandon(&mut self, server: &mut Server, epoch: Epoch, requests: &[u64]) {
        match self {
            Self::Simulated(device) => {
                for &request in requests {
                    // Of an epoch that is over: the server does not know it any more.
                    device.cancel(server, request);
                }
            }
            Self::Usb(device) => device.abandon(epoch, requests),
        }
    }

    /// wMaxPacketSize of an endpoint, in bytes, where that is known.
    pub(crate) fn packet_len(&self, endpoint: u8) -> Option<u16> {
        match self {
            Self::Simulated(device) => device.packet_len(endpoint),
            Self::Usb(device) => device.packet_len(endpoint),
        }
    }

    /// The endpoints of all settings of an interface, where they are known.
    pub(crate) fn endpoints_of(&self, interface: u8) -> Option<Vec<u8>> {
        match self {
            Self::Simulated(device) => device.endpoints_of(interface),
            Self::Usb(device) => device.endpoints_of(interface),
        }
    }

    /// The lease ended: cancels everything and resets the device.
    pub(crate) fn release(&mut self) {
        match self {
            Self::Simulated(device) => device.release(),
            Self::Usb(device) => device.release(),
        }
    }
}

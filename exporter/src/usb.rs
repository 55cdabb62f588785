// SPDX-License-Identifier: GPL-3.0-or-later
//! Real devices, through usbfs. libusb finds them and notices what comes and goes.
//!
//! - `list`: what is plugged in, and whether it can be lent; `bus`: libusb's context, its event
//!   thread, and the thread that notices what comes and goes;
//! - `opening`: a device's own thread, from opening it to giving it back; `interfaces`: what is claimed, and the
//!   operations that the kernel must know of; `configurations`: what the descriptors say;
//! - `open`: a device while it is lent: which request goes where; `request`: those that are not the
//!   device's alone; `packets`: bulk endpoints of SuperSpeed devices;
//! - `transfer`: transfers and their answers; `iso`: packets; `status`: words.
//!
//! A transfer goes from the thread of the sessions into the queue of the device's thread ([`usbfs::Worker`]), and comes back
//! through [`shared::Shared`], which wakes the session's connection. The thread of the sessions never waits for a device.

mod bus;
mod configurations;
mod interfaces;
mod iso;
mod list;
mod open;
mod opening;
mod packets;
mod request;
mod shared;
mod status;
mod transfer;

use std::sync::Arc;
use std::time::Duration;

use rusb::Context;
use session::control::Returns;
use session::frame::{Transfer, TransferStatus};
use session::server::{Outcome, Server};
use session::{Configured, DeviceInfo, Digest, Epoch};
use tokio::sync::Notify;
use tokio::time::timeout;

pub(crate) use bus::{Bus, Change};
pub(crate) use open::Open;
pub(crate) use opening::Usb;
use opening::{Begin, Thread};

/// How long a device may take to be opened, also if it is still being given back by its last holder. The reset of one that
/// does not answer takes longer.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);

/// A device, whether lent or not.
pub(crate) struct UsbDevice {
    /// Bus number and device address.
    address: (u8, u8),
    info: DeviceInfo,
    usb: Arc<Usb>,
    thread: Thread,
    open: Option<Open>,
    /// What a guest has set that has the device since before we were started.
    restore: Option<Configured>,
    host: Option<String>,
    wake: Option<Arc<Notify>>,
}

impl UsbDevice {
    pub(crate) fn new(device: &rusb::Device<Context>, info: DeviceInfo, usb: Arc<Usb>) -> Self {
        Self {
            address: (device.bus_number(), device.address()),
            info,
            usb,
            thread: Thread::default(),
            open: None,
            restore: None,
            host: None,
            wake: None,
        }
    }

    pub(crate) fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Opens the device for its holder, on a thread of its own; `None` when it is open. With `begin` it
    /// begins as if it were plugged in now, and is made what its guest knows, if it is that.
    pub(crate) fn start_opening(
        &mut self,
        begin: Option<&Returns>,
    ) -> Option<impl Future<Output = Result<Open, String>> + use<>> {
        if self.open.is_some() {
            return None;
        }
        let begin = match begin {
            Some(returns) => Begin::Anew(returns.clone()),
            None => Begin::GoOn(self.restore.clone().unwrap_or_default()),
        };
        let (usb, address) = (&self.usb, self.address);
        let opening = self.thread.start(usb, address, self.info.clone(), begin);
        Some(async move {
            let opened = timeout(OPEN_TIMEOUT, opening?).await.map_err(|_| {
                "it does not answer, or is not given back yet; unplug it, or try again later"
                    .to_owned()
            })?;
            let gone = |_| "its thread has ended".to_owned();
            Ok(Open::new(opened.map_err(gone)??))
        })
    }

    pub(crate) fn opened(&mut self, open: Open) {
        self.restore = None;
        if let Some(host) = &self.host {
            open.set_owner(host);
        }
        open.set_wake(self.wake.clone());
        self.open = Some(open);
    }

    /// Somebody holds the device since before we were started, and has set this.
    pub(crate) fn restore(&mut self, configured: &Configured) {
        self.restore = Some(configured.clone());
    }

    /// The host that holds it.
    pub(crate) fn set_host(&mut self, host: &str) {
        if let Some(open) = &self.open {
            open.set_owner(host);
        }
        self.host = Some(host.to_owned());
    }

    /// Its descriptors, once it is open.
    pub(crate) fn descriptors(&self) -> Option<Digest> {
        self.open.as_ref()?.descriptors()
    }

    /// Who is to be woken for completions.
    pub(crate) fn set_wake(&mut self, wake: Arc<Notify>) {
        self.wake = Some(wake.clone());
        if let Some(open) = &self.open {
            open.set_wake(Some(wake));
        }
    }

    pub(crate) fn submit(
        &mut self,
        server: &mut Server,
        request: u64,
        transfer: &Transfer,
        body: &[u8],
    ) {
        match &mut self.open {
            Some(open) => open.submit(server, request, transfer, body),
            None => no_device(server, request),
        }
    }

    /// wMaxPacketSize of an endpoint.
    pub(crate) fn packet_len(&self, endpoint: u8) -> Option<u16> {
        self.open.as_ref()?.packet_len(endpoint)
    }

    /// The endpoints of an interface, of all its settings.
    pub(crate) fn endpoints_of(&self, interface: u8) -> Option<Vec<u8>> {
        Some(self.open.as_ref()?.endpoints_of(interface))
    }

    /// Has the device see what it was asked for.
    pub(crate) fn flush(&mut self) {
        if let Some(open) = &mut self.open {
            open.flush();
        }
    }

    pub(crate) fn cancel(&mut self, server: &mut Server, request: u64) {
        if let Some(open) = &mut self.open {
            open.cancel(server, request);
        }
    }

    pub(crate) fn reset(&mut self, server: &mut Server, request: u64) {
        match &mut self.open {
            Some(open) => open.reset(server, request),
            None => no_device(server, request),
        }
    }

    /// Hands what is over to `server`.
    pub(crate) fn drain(&mut self, server: &mut Server) {
        if let Some(open) = &mut self.open {
            open.drain(server);
        }
    }

    /// Cancels these requests of `epoch`; nobody waits for them any more.
    pub(crate) fn abandon(&mut self, epoch: Epoch, requests: &[u64]) {
        if let Some(open) = &mut self.open {
            open.abandon(epoch, requests);
        }
    }

    /// Has the device reset and given back to this machine, by its thread.
    pub(crate) fn release(&mut self) {
        self.restore = None;
        if let Some(open) = self.open.take() {
            open.release();
        }
    }
}

fn no_device(server: &mut Server, request: u64) {
    let outcome = Outcome::new(TransferStatus::NoDevice, 0);
    server.complete(server.epoch(), request, outcome, |_| ());
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! Real devices, through libusb.
//!
//! - `list`: what is plugged in, and whether it can be lent; `bus`: libusb's context, its event
//!   thread, and the thread that notices what comes and goes;
//! - `handle`: an open device, and what may block: claiming, configurations, resets;
//! - `open`: a device while it is lent: which request goes where; `request`: those that are not the
//!   device's alone; `packets`: bulk endpoints of SuperSpeed devices;
//! - `transfer`, `pool`: asynchronous transfers, the only unsafe code; `iso`: packets; `status`: words.
//!
//! A transfer is submitted by the thread of the sessions, completed by libusb's event thread, and
//! handed back through [`shared::Shared`], which wakes the session's connection.

mod bus;
mod handle;
mod iso;
mod list;
mod open;
mod packets;
mod pool;
mod request;
mod shared;
mod status;
mod transfer;

use std::sync::Arc;

use rusb::Context;
use session::control::Returns;
use session::frame::{Transfer, TransferStatus};
use session::server::{Outcome, Server};
use session::{DeviceInfo, Digest, Epoch};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::in_use;
pub(crate) use bus::{Bus, Change};
use handle::Handle;
pub(crate) use open::Open;

/// A device, whether lent or not.
pub(crate) struct UsbDevice {
    device: rusb::Device<Context>,
    info: DeviceInfo,
    open: Option<Open>,
    /// The handle of before is being closed.
    closing: Option<JoinHandle<()>>,
    wake: Option<Arc<Notify>>,
}

impl UsbDevice {
    pub(crate) fn new(device: rusb::Device<Context>, info: DeviceInfo) -> Self {
        Self {
            device,
            info,
            open: None,
            closing: None,
            wake: None,
        }
    }

    pub(crate) fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Opens the device for its holder, on another thread; `None` when it is open. With `begin` it
    /// begins as if it were plugged in now, and is made what its guest knows, if it is that.
    pub(crate) fn start_opening(
        &mut self,
        begin: Option<&Returns>,
    ) -> Option<impl Future<Output = Result<Open, String>> + use<>> {
        if self.open.is_some() {
            return None;
        }
        let (device, closing) = (self.device.clone(), self.closing.take());
        let info = self.info.clone();
        let begin = begin.cloned();
        Some(async move {
            if let Some(closing) = closing {
                // It ends in any case, if only by a panic.
                let _ = closing.await;
            }
            let opening = spawn_blocking(move || match in_use::needed_by(&info.id) {
                Some(reason) => Err(reason),
                None => take(&device, &info, begin.as_ref()),
            });
            let (handle, descriptors) = opening
                .await
                .map_err(|_| "the exporter is shutting down".to_owned())??;
            let bulk_only = handle.super_speed_bulk_only();
            Ok(Open::new(handle, bulk_only, descriptors))
        })
    }

    pub(crate) fn opened(&mut self, open: Open) {
        open.set_wake(self.wake.clone());
        self.open = Some(open);
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
        let configuration = self.device.active_config_descriptor().ok()?;
        let settings = configuration.interfaces().flat_map(|i| i.descriptors());
        let mut endpoints = settings.flat_map(|s| s.endpoint_descriptors());
        let found = endpoints.find(|e| e.address() == endpoint)?;
        Some(found.max_packet_size() & 0x7ff)
    }

    /// The endpoints of an interface, of all its settings.
    pub(crate) fn endpoints_of(&self, interface: u8) -> Option<Vec<u8>> {
        let configuration = self.device.active_config_descriptor().ok()?;
        let found = configuration
            .interfaces()
            .find(|i| i.number() == interface)?;
        let settings = found.descriptors();
        let endpoints = settings.flat_map(|s| s.endpoint_descriptors());
        Some(endpoints.map(|e| e.address()).collect())
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

    /// Resets the device and gives it back to this machine, on another thread.
    pub(crate) fn release(&mut self) {
        let Some(open) = self.open.take() else {
            return;
        };
        let shared = open.into_shared();
        let before = self.closing.take();
        debug_assert!(before.is_none(), "it was open, so nothing is closing");
        self.closing = Some(spawn_blocking(move || {
            // Transfers hold the handle open until they are back.
            shared.wait_until_idle();
            shared.handle().give_back();
        }));
    }
}

/// Opens the device. Blocks.
fn take(
    device: &rusb::Device<Context>,
    info: &DeviceInfo,
    begin: Option<&Returns>,
) -> Result<(Handle, Option<Digest>), String> {
    let handle = Handle::open(device, begin.is_some())
        .map_err(|e| format!("this machine does not give it away: {e}"))?;
    let digest = handle.descriptors(info);
    let known = begin.filter(|r| digest.is_some() && r.descriptors == digest);
    let mut requests = known.into_iter().flat_map(|r| r.configured.requests());
    let refused = requests.any(|setup| match request::classify(setup) {
        request::Request::Operation(operation) => {
            handle.carry_out(operation) != TransferStatus::Completed
        }
        _ => true,
    });
    if refused {
        handle.give_back();
        return Err(crate::sim::NOT_CONFIGURED.to_owned());
    }
    Ok((handle, digest))
}

fn no_device(server: &mut Server, request: u64) {
    let outcome = Outcome::new(TransferStatus::NoDevice, 0);
    server.complete(server.epoch(), request, outcome, |_| ());
}

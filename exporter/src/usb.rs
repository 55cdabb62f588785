// SPDX-License-Identifier: GPL-3.0-or-later
//! Real devices, through libusb.
//!
//! - `list`: what is plugged in, and whether it can be lent; `bus`: libusb's context, its event
//!   thread, and the thread that notices what comes and goes;
//! - `handle`: an open device, and what may block: claiming, configurations, resets;
//! - `transfer`: asynchronous transfers, the only unsafe code.
//!
//! A transfer is submitted by the thread of the sessions, completed by libusb's event thread, and
//! handed back through [`transfer::Shared`], which wakes the session's connection.

mod bus;
mod handle;
mod list;
mod transfer;

use std::sync::Arc;

use rusb::Context;
use session::frame::{FLAG_SHORT_NOT_OK, Transfer, TransferStatus, TransferType};
use session::server::{Outcome, Server};
use session::{DeviceInfo, Epoch};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_blocking};

pub(crate) use bus::{Bus, Change};
use handle::Handle;
use transfer::{Finished, InFlight, Pool, Shared, Tag};

/// A device, whether lent or not.
pub(crate) struct UsbDevice {
    device: rusb::Device<Context>,
    info: DeviceInfo,
    open: Option<Open>,
    /// The handle of before is being closed.
    closing: Option<JoinHandle<()>>,
    wake: Option<Arc<Notify>>,
}

/// The device while it is lent.
pub(crate) struct Open {
    shared: Arc<Shared>,
    in_flight: Vec<InFlight>,
    pool: Pool,
    finished: Vec<Finished>,
}

/// What a standard request has to go through libusb for, since it changes what the kernel knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Reset,
    SetConfiguration(u8),
    SetInterface { interface: u8, setting: u8 },
    ClearHalt(u8),
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

    /// Opens the device for its holder, on another thread; `None` when it is open. With `reset` it
    /// begins as if it were plugged in now.
    pub(crate) fn start_opening(
        &mut self,
        reset: bool,
    ) -> Option<impl Future<Output = Result<Open, String>> + use<>> {
        if self.open.is_some() {
            return None;
        }
        let (device, closing) = (self.device.clone(), self.closing.take());
        let id = self.info.id.clone();
        Some(async move {
            if let Some(closing) = closing {
                // It ends in any case, if only by a panic.
                let _ = closing.await;
            }
            let opening = spawn_blocking(move || match list::mounted(&id) {
                Some(path) => Err(format!(
                    "this machine has mounted it at {}; unmount it first",
                    path.display()
                )),
                None => Handle::open(&device, reset)
                    .map_err(|e| format!("this machine does not give it away: {e}")),
            });
            let handle = opening
                .await
                .map_err(|_| "the exporter is shutting down".to_owned())??;
            Ok(Open {
                shared: Arc::new(Shared::new(handle)),
                in_flight: Vec::new(),
                pool: Pool::default(),
                finished: Vec::new(),
            })
        })
    }

    pub(crate) fn opened(&mut self, open: Open) {
        open.shared.set_wake(self.wake.clone());
        self.open = Some(open);
    }

    /// Who is to be woken for completions.
    pub(crate) fn set_wake(&mut self, wake: Arc<Notify>) {
        self.wake = Some(wake.clone());
        if let Some(open) = &self.open {
            open.shared.set_wake(Some(wake));
        }
    }

    pub(crate) fn submit(
        &mut self,
        server: &mut Server,
        request: u64,
        transfer: &Transfer,
        body: &[u8],
    ) {
        let epoch = server.epoch();
        let submitted = match &mut self.open {
            Some(open) => open.submit(Tag { epoch, request }, transfer, body),
            None => Err(TransferStatus::NoDevice),
        };
        let status = match submitted {
            Ok(Submitted::Later) => return,
            Ok(Submitted::Done) => TransferStatus::Completed,
            Err(status) => status,
        };
        server.complete(epoch, request, Outcome::new(status, 0), |_| ());
    }

    pub(crate) fn cancel(&mut self, epoch: Epoch, request: u64) {
        let tag = Tag { epoch, request };
        let in_flight = self.open.iter().flat_map(|open| &open.in_flight);
        for transfer in in_flight.filter(|t| t.tag() == tag) {
            transfer.cancel();
        }
    }

    pub(crate) fn reset(&mut self, server: &mut Server, request: u64) {
        let epoch = server.epoch();
        match &self.open {
            Some(open) => {
                open.cancel_all();
                open.operate(Tag { epoch, request }, Operation::Reset);
            }
            None => {
                let outcome = Outcome::new(TransferStatus::NoDevice, 0);
                server.complete(epoch, request, outcome, |_| ());
            }
        }
    }

    /// Hands what is over to `server`.
    pub(crate) fn drain(&mut self, server: &mut Server) {
        if let Some(open) = &mut self.open {
            open.drain(server);
        }
    }

    pub(crate) fn abandon(&mut self) {
        if let Some(open) = &self.open {
            open.cancel_all();
        }
    }

    /// Resets the device and gives it back to this machine, on another thread.
    pub(crate) fn release(&mut self) {
        let Some(open) = self.open.take() else {
            return;
        };
        open.cancel_all();
        open.shared.set_wake(None);
        let before = self.closing.take();
        debug_assert!(before.is_none(), "it was open, so nothing is closing");
        self.closing = Some(spawn_blocking(move || {
            // Transfers hold the handle open until they are back.
            open.shared.wait_until_idle();
            open.shared.handle().give_back();
        }));
    }
}

enum Submitted {
    /// There will be a [`Finished`].
    Later,
    /// There was nothing to do.
    Done,
}

impl Open {
    fn submit(
        &mut self,
        tag: Tag,
        transfer: &Transfer,
        body: &[u8],
    ) -> Result<Submitted, TransferStatus> {
        match transfer.transfer_type {
            TransferType::Control => {
                if transfer.endpoint & 0x0f != 0 {
                    return Err(TransferStatus::Invalid);
                }
                match intercept(transfer.setup) {
                    Some(Some(operation)) => self.operate(tag, operation),
                    Some(None) => return Ok(Submitted::Done),
                    None => self.start(tag, transfer, body)?,
                }
            }
            TransferType::Bulk | TransferType::Interrupt => self.start(tag, transfer, body)?,
            // Not served yet: answered like an endpoint that does not exist.
            TransferType::Isochronous => return Err(TransferStatus::Invalid),
        }
        Ok(Submitted::Later)
    }

    fn start(&mut self, tag: Tag, transfer: &Transfer, body: &[u8]) -> Result<(), TransferStatus> {
        let in_flight = self.pool.submit(&self.shared, tag, transfer, body)?;
        self.in_flight.push(in_flight);
        Ok(())
    }

    fn cancel_all(&self) {
        for transfer in &self.in_flight {
            transfer.cancel();
        }
    }

    /// Carries out an operation on another thread. Those of one device wait for each other.
    fn operate(&self, tag: Tag, operation: Operation) {
        let shared = self.shared.clone();
        spawn_blocking(move || {
            let handle = shared.handle();
            let result = match operation {
                Operation::Reset => {
                    shared.wait_until_idle();
                    handle.reset()
                }
                Operation::SetConfiguration(value) => handle.set_configuration(value),
                Operation::SetInterface { interface, setting } => {
                    handle.set_interface(interface, setting)
                }
                Operation::ClearHalt(endpoint) => handle.clear_halt(endpoint),
            };
            let status =
                result.map_or_else(transfer::status_of_error, |()| TransferStatus::Completed);
            shared.finish(Finished::Operation { tag, status });
        });
    }

    fn drain(&mut self, server: &mut Server) {
        self.shared.take_finished(&mut self.finished);
        for finished in self.finished.drain(..) {
            match finished {
                Finished::Operation { tag, status } => {
                    server.complete(tag.epoch, tag.request, Outcome::new(status, 0), |_| ());
                }
                Finished::Transfer(transfer) => {
                    self.in_flight.retain(|t| t.tag() != transfer.tag());
                    let (status, data) = transfer.result();
                    let short = transfer.is_short();
                    let status = match status {
                        TransferStatus::Completed if short => TransferStatus::ShortPacket,
                        status => status,
                    };
                    let outcome = Outcome::new(status, transfer.actual_length());
                    let Tag { epoch, request } = transfer.tag();
                    server.complete(epoch, request, outcome, |out| out.extend_from_slice(data));
                    self.pool.put_back(transfer);
                }
            }
        }
    }
}

/// Standard requests that must not go to the device as they are. `Some(None)`: nothing is to be
/// done.
fn intercept(setup: [u8; 8]) -> Option<Option<Operation>> {
    const CLEAR_FEATURE: u8 = 1;
    const SET_ADDRESS: u8 = 5;
    const SET_CONFIGURATION: u8 = 9;
    const SET_INTERFACE: u8 = 11;
    const ENDPOINT_HALT: [u8; 2] = [0, 0];
    let [request_type, request, value, value_high, index, ..] = setup;
    Some(match (request_type, request) {
        // The kernel here has given the device an address; the guest's is the backend's business.
        (0x00, SET_ADDRESS) => None,
        // The kernel here keeps the device configured; the guest sees no difference.
        (0x00, SET_CONFIGURATION) if value == 0 => None,
        (0x00, SET_CONFIGURATION) => Some(Operation::SetConfiguration(value)),
        (0x01, SET_INTERFACE) => Some(Operation::SetInterface {
            interface: index,
            setting: value,
        }),
        // Endpoint 0 has no halt to clear that libusb would know of.
        (0x02, CLEAR_FEATURE) if [value, value_high] == ENDPOINT_HALT && index & 0x0f != 0 => {
            Some(Operation::ClearHalt(index))
        }
        _ => return None,
    })
}

/// Whether the submitter calls an end before `length` an error.
fn short_is_error(transfer: &Transfer) -> bool {
    transfer.is_in() && transfer.flags & FLAG_SHORT_NOT_OK != 0
}

#[cfg(test)]
mod tests;

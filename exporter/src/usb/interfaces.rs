// SPDX-License-Identifier: GPL-3.0-or-later
//! The interfaces of an open device: taken from this machine's drivers, held, and given back; and the operations of the guest that
//! the kernel must know of. All of it blocks, on the device's own thread.

use std::io;
use std::sync::Arc;

use session::DeviceId;
use session::frame::TransferStatus;
use usbfs::{Device, Operator, Status, USBFS_DRIVER};

use super::configurations::Configurations;
use super::request::Operation;
use super::{list, status};

/// Which interfaces are ours.
#[derive(Debug)]
pub(super) struct Interfaces {
    id: DeviceId,
    configurations: Arc<Configurations>,
    claimed: Vec<u8>,
    /// The configuration that the device had; 0 for none.
    original: u8,
}

/// Why an interface cannot be had.
#[derive(Debug)]
pub(super) struct Unclaimed {
    interface: u8,
    error: io::Error,
    driver: Option<String>,
}

impl std::fmt::Display for Unclaimed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            interface,
            error,
            driver,
        } = self;
        match driver.as_deref() {
            Some(USBFS_DRIVER) => write!(
                f,
                "a program on this machine uses it (interface {interface}); stop that program first"
            ),
            Some(driver) => write!(f, "interface {interface} of driver {driver}: {error}"),
            None => write!(f, "interface {interface}: {error}"),
        }
    }
}

impl Interfaces {
    pub(super) fn new(id: DeviceId, configurations: Arc<Configurations>) -> Self {
        let original = list::configuration(&id).unwrap_or(0);
        Self {
            id,
            configurations,
            claimed: Vec::new(),
            original,
        }
    }

    /// bConfigurationValue of the configuration that is active; 0 for none.
    pub(super) fn configuration(&self) -> u8 {
        list::configuration(&self.id).unwrap_or(0)
    }

    /// Claims every interface of the active configuration.
    pub(super) fn claim(&mut self, device: &Device) -> Result<(), Unclaimed> {
        for interface in self.configurations.interfaces(self.configuration()) {
            if let Err(error) = device.disconnect_claim(interface) {
                let driver = device.driver(interface);
                return Err(Unclaimed {
                    interface,
                    error,
                    driver,
                });
            }
            self.claimed.push(interface);
        }
        Ok(())
    }

    fn release(&mut self, device: &Device) {
        for interface in self.claimed.drain(..) {
            // Fails only when the device is gone.
            let _ = device.release(interface);
        }
    }

    /// Lets go of the interfaces for something that the kernel does not do while they are claimed, or that takes
    /// them away. Afterwards they are ours again, also where it failed.
    fn between(
        &mut self,
        device: &Device,
        act: impl FnOnce(&Device) -> io::Result<()>,
    ) -> io::Result<()> {
        self.release(device);
        let result = act(device);
        let claimed = self.claim(device).map_err(|unclaimed| unclaimed.error);
        result.and(claimed)
    }

    /// A bus reset. The device keeps its configuration, as the kernel sets it again.
    ///
    /// # Errors
    /// `ENODEV`: it came back as another device, or not at all.
    pub(super) fn reset(&mut self, device: &Device) -> io::Result<()> {
        self.between(device, Device::reset)
    }

    /// Also of the one that is active: the device is to get the request, and all interfaces start
    /// with their first settings, all endpoints with DATA0 and without halts (USB 2.0 §9.1.1.5).
    fn set_configuration(&mut self, device: &Device, value: u8) -> io::Result<()> {
        self.between(device, |device| device.set_configuration(value))
    }

    /// Carries out what the guest asked for. The transfers that it ends were cancelled before.
    pub(super) fn carry_out(&mut self, device: &Device, operation: Operation) -> TransferStatus {
        let result = match operation {
            Operation::Reset => self.reset(device),
            Operation::SetConfiguration(value) => self.set_configuration(device, value),
            Operation::SetInterface { interface, setting } => {
                device.set_interface(interface, setting)
            }
            Operation::ClearHalt(endpoint) => device.clear_halt(endpoint),
            // The kernel here keeps the device configured.
            Operation::Unconfigure => Ok(()),
        };
        match result {
            Ok(()) => TransferStatus::Completed,
            Err(e) => {
                let errno = e.raw_os_error().unwrap_or(0);
                status::of_operation(Status::of_operation(errno))
            }
        }
    }

    /// Resets the device and lets this machine's drivers have it again.
    pub(super) fn give_back(&mut self, device: &Device) {
        // Each fails only when the device is gone.
        self.release(device);
        let _ = device.reset();
        self.connect(device);
    }

    /// Lets this machine's drivers have what they had. Of all interfaces: one may have lost its driver without
    /// becoming ours, or to an exporter before us that was killed.
    pub(super) fn connect(&mut self, device: &Device) {
        self.release(device);
        let active = self.configuration();
        if self.original != 0 && active != self.original {
            // The kernel binds its drivers by itself to a configuration that it sets.
            let _ = device.set_configuration(self.original);
        }
        for interface in self.configurations.interfaces(self.configuration()) {
            // Where there is no driver that fits, or it has one, this fails.
            let _ = device.connect(interface);
        }
    }
}

impl Operator<Device> for Interfaces {
    type Operation = Operation;
    type Outcome = TransferStatus;

    fn operate(&mut self, device: &mut Device, operation: Operation) -> TransferStatus {
        self.carry_out(device, operation)
    }

    fn gone(&self) -> TransferStatus {
        TransferStatus::NoDevice
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! An open device. Everything in here may block.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rusb::ffi::libusb_device_handle;
use rusb::{Context, Device, DeviceHandle, Error};

/// A device whose interfaces are ours.
pub(super) struct Handle {
    usb: DeviceHandle<Context>,
    /// Held during each operation.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Interfaces that are claimed.
    claimed: Vec<u8>,
    /// The configuration that the device had.
    original: u8,
}

impl Handle {
    /// Takes the device from the kernel's drivers. With `reset` it begins as if it were plugged in
    /// now.
    pub(super) fn open(device: &Device<Context>, reset: bool) -> Result<Self, Error> {
        let handle = Self {
            usb: device.open()?,
            state: Mutex::default(),
        };
        let result = handle.take_over(reset);
        if result.is_err() {
            handle.give_back();
        }
        result.map(|()| handle)
    }

    fn take_over(&self, reset: bool) -> Result<(), Error> {
        let mut state = self.lock();
        state.original = self.usb.active_configuration()?;
        self.claim(&mut state)?;
        if reset {
            self.usb.reset()?;
        }
        Ok(())
    }

    pub(super) fn as_raw(&self) -> *mut libusb_device_handle {
        self.usb.as_raw()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is a note of what the kernel knows; a panic does not make it wrong.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims every interface of the active configuration.
    fn claim(&self, state: &mut State) -> Result<(), Error> {
        let device = self.usb.device();
        let configuration = match device.active_config_descriptor() {
            Ok(configuration) => configuration,
            // Not configured: it has no interfaces.
            Err(Error::NotFound) => return Ok(()),
            Err(e) => return Err(e),
        };
        for number in configuration.interfaces().map(|i| i.number()) {
            match self.usb.detach_kernel_driver(number) {
                // Or no driver, or none of the kernel's.
                Ok(()) | Err(Error::NotFound | Error::InvalidParam) => (),
                Err(e) => return Err(e),
            }
            self.usb.claim_interface(number)?;
            state.claimed.push(number);
        }
        Ok(())
    }

    fn unclaim(&self, state: &mut State) {
        for number in state.claimed.drain(..) {
            // Fails only when the device is gone.
            let _ = self.usb.release_interface(number);
        }
    }

    /// A bus reset. The device keeps its configuration, as the kernel sets it again.
    pub(super) fn reset(&self) -> Result<(), Error> {
        let _state = self.lock();
        match self.usb.reset() {
            // It came back as another device: for its holder it is gone.
            Err(Error::NotFound) => Err(Error::NoDevice),
            result => result,
        }
    }

    pub(super) fn set_configuration(&self, value: u8) -> Result<(), Error> {
        let mut state = self.lock();
        if self.usb.active_configuration()? == value {
            // The kernel refuses this while interfaces are claimed. What it is for: all endpoints
            // start with DATA0 and without halts (USB 2.0 §9.1.1.5).
            return self.clear_all_halts();
        }
        self.unclaim(&mut state);
        let result = self.usb.set_active_configuration(value);
        // Also after a failure: the interfaces of the old one are to be ours again.
        self.claim(&mut state)?;
        result
    }

    fn clear_all_halts(&self) -> Result<(), Error> {
        let configuration = match self.usb.device().active_config_descriptor() {
            Ok(configuration) => configuration,
            Err(Error::NotFound) => return Ok(()),
            Err(e) => return Err(e),
        };
        for interface in configuration.interfaces() {
            // Only one setting of an interface is active; others may lack the endpoint.
            if let Some(setting) = interface.descriptors().next() {
                for endpoint in setting.endpoint_descriptors() {
                    // Some devices stall this; their toggles are right, then.
                    if let Err(e @ Error::NoDevice) = self.usb.clear_halt(endpoint.address()) {
                        return Err(e);
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn set_interface(&self, interface: u8, setting: u8) -> Result<(), Error> {
        let _state = self.lock();
        self.usb.set_alternate_setting(interface, setting)
    }

    pub(super) fn clear_halt(&self, endpoint: u8) -> Result<(), Error> {
        let _state = self.lock();
        self.usb.clear_halt(endpoint)
    }

    /// Resets the device and lets the kernel's drivers have it again. Errors mean that it is gone.
    pub(super) fn give_back(&self) {
        let mut state = self.lock();
        let _ = self.usb.reset();
        let ours = state.claimed.clone();
        self.unclaim(&mut state);
        let active = self.usb.active_configuration();
        if state.original != 0 && active.is_ok_and(|a| a != state.original) {
            // The kernel binds its drivers by itself to a configuration that it sets.
            let _ = self.usb.set_active_configuration(state.original);
        }
        // Of all interfaces, since an exporter that was killed may have sent a driver away before
        // us. Where there is none that fits, this fails.
        for number in ours {
            let _ = self.usb.attach_kernel_driver(number);
        }
    }
}

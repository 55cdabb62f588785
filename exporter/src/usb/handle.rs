// SPDX-License-Identifier: GPL-3.0-or-later
//! An open device. Everything in here may block.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusb::ffi::libusb_device_handle;
use rusb::{ConfigDescriptor, Context, Device, DeviceHandle, Error, InterfaceDescriptor};
use session::frame::TransferStatus;
use session::{DeviceInfo, Digest};

use super::request::Operation;
use super::{list, status};
use crate::descriptors;

/// Mass storage, SCSI commands, bulk-only transport.
const BULK_ONLY: (u8, u8) = (8, 0x50);

/// Longest wait for the BOS, which the kernel has read when the device was plugged in.
const BOS_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest BOS that is looked at, in bytes: Linux takes no longer control transfers from user space.
const MAX_BOS: usize = 4096;

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

    pub(super) fn context(&self) -> Context {
        self.usb.context().clone()
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

    /// Carries out what the guest asked for. The transfers that it ends were cancelled before.
    pub(super) fn carry_out(&self, operation: Operation) -> TransferStatus {
        let result = match operation {
            Operation::Reset => self.reset(),
            Operation::SetConfiguration(value) => self.set_configuration(value),
            Operation::SetInterface { interface, setting } => {
                let _state = self.lock();
                self.usb.set_alternate_setting(interface, setting)
            }
            Operation::ClearHalt(endpoint) => {
                let _state = self.lock();
                self.usb.clear_halt(endpoint)
            }
        };
        // Of the last call that failed, which is the one whose error this is.
        let errno = io::Error::last_os_error().raw_os_error();
        result.map_or_else(
            |error| status::of_operation(error, errno),
            |()| TransferStatus::Completed,
        )
    }

    /// A bus reset. The device keeps its configuration, as the kernel sets it again.
    fn reset(&self) -> Result<(), Error> {
        let _state = self.lock();
        match self.usb.reset() {
            // It came back as another device: for its holder it is gone.
            Err(Error::NotFound) => Err(Error::NoDevice),
            result => result,
        }
    }

    /// Also where it is active already: the device is to get the request, and all interfaces start
    /// with their first settings, all endpoints with DATA0 and without halts (USB 2.0 §9.1.1.5).
    fn set_configuration(&self, value: u8) -> Result<(), Error> {
        let mut state = self.lock();
        // The kernel refuses while interfaces are claimed.
        self.unclaim(&mut state);
        let result = self.usb.set_active_configuration(value);
        // Also after a failure: the interfaces of the old one are to be ours again.
        let claimed = self.claim(&mut state);
        result.and(claimed)
    }

    /// The device's descriptors; `None` where they cannot be read.
    pub(super) fn descriptors(&self, info: &DeviceInfo) -> Option<Digest> {
        let raw = list::descriptors(&info.id)?;
        let (device, configurations) = descriptors::split(&raw)?;
        // bcdUSB: older devices have none, and some do not take being asked well.
        let bos = match u16::from_le_bytes([device[2], device[3]]) > 0x0200 {
            true => self.bos()?,
            false => Vec::new(),
        };
        Some(descriptors::digest(info, device, configurations, &bos))
    }

    /// The BOS (USB 3.2 §9.6.2); empty where it has none.
    fn bos(&self) -> Option<Vec<u8>> {
        const GET_DESCRIPTOR: (u8, u8) = (0x80, 6);
        const BOS: u16 = 0x0f00;
        let mut bos = vec![0; MAX_BOS];
        let (kind, request) = GET_DESCRIPTOR;
        match self
            .usb
            .read_control(kind, request, BOS, 0, &mut bos, BOS_TIMEOUT)
        {
            Ok(len) => {
                bos.truncate(len);
                Some(bos)
            }
            Err(Error::Pipe) => Some(Vec::new()),
            Err(_) => None,
        }
    }

    /// The endpoints of all settings of an interface.
    pub(super) fn endpoints_of(&self, interface: u8) -> EndpointSet {
        let mut set = EndpointSet::default();
        let Ok(configuration) = self.usb.device().active_config_descriptor() else {
            return set;
        };
        for setting in settings(&configuration) {
            if setting.interface_number() == interface {
                for endpoint in setting.endpoint_descriptors() {
                    set.insert(endpoint.address());
                }
            }
        }
        set
    }

    /// Of a device at SuperSpeed: bit = number, the OUT endpoints of bulk-only mass storage.
    pub(super) fn super_speed_bulk_only(&self) -> Option<u16> {
        let device = self.usb.device();
        if !matches!(device.speed(), rusb::Speed::Super | rusb::Speed::SuperPlus) {
            return None;
        }
        let count = device
            .device_descriptor()
            .map_or(0, |d| d.num_configurations());
        let mut numbers = 0;
        for configuration in (0..count).filter_map(|i| device.config_descriptor(i).ok()) {
            for setting in settings(&configuration) {
                if (setting.class_code(), setting.protocol_code()) == BULK_ONLY {
                    let endpoints = setting.endpoint_descriptors();
                    let out = endpoints.filter(|e| e.address() & 0x80 == 0);
                    numbers |= out.fold(0, |bits, e| bits | 1 << (e.address() & 0x0f));
                }
            }
        }
        Some(numbers)
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

fn settings(configuration: &ConfigDescriptor) -> impl Iterator<Item = InterfaceDescriptor<'_>> {
    configuration.interfaces().flat_map(|i| i.descriptors())
}

/// Endpoints by bEndpointAddress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct EndpointSet(u32);

impl EndpointSet {
    fn insert(&mut self, address: u8) {
        self.0 |= Self::bit(address);
    }

    pub(super) fn contains(self, address: u8) -> bool {
        self.0 & Self::bit(address) != 0
    }

    fn bit(address: u8) -> u32 {
        1 << (u32::from(address & 0x0f) | u32::from(address & 0x80) >> 3)
    }
}

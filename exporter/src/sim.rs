// SPDX-License-Identifier: GPL-3.0-or-later
//! Simulated devices.

mod alarm;
mod control;
mod present;
mod storage;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use session::frame::{Transfer, TransferStatus, TransferType};
use session::server::{Outcome, Server};
use session::{Configured, DeviceId, DeviceInfo, DeviceState, Digest, Speed};
use tokio::sync::Notify;
use tokio::time::Instant;
use usb_sim::{
    Audio, Device, Disk, Function, Host, Hub, Keyboard, Pattern, Port, SerialLoop, SourceSink,
};

use crate::config::{Simulated, SimulatedClock, SimulatedKind, SimulatedPattern};
use crate::descriptors;
use crate::executor::HUB_REASON;
use alarm::Alarm;
pub(crate) use control::Control;
use storage::FileStorage;

/// Time on a device's bus.
enum Clock {
    /// Since a moment.
    Real(Instant),
    Manual(Duration),
}

/// A simulated device, plugged in.
pub(crate) struct SimulatedDevice {
    port: Port<Device<FileStorage>>,
    info: DeviceInfo,
    clock: Clock,
    alarm: Alarm,
    /// How many times it does not open, as a real device that a driver of this machine holds for a moment.
    pub(crate) closed: u32,
    /// It takes this time to be made ready for a holder.
    opening: Duration,
    is_open: bool,
}

impl SimulatedDevice {
    /// The device of the `number`th entry, from 1. To be called in a `LocalSet`.
    pub(crate) fn open(config: &Simulated, number: usize) -> io::Result<Self> {
        let serial = match &config.serial {
            Some(serial) => serial.clone(),
            None => format!("{number:012X}"),
        };
        let mut port = Port::new(function(config, &serial)?);
        let clock = match config.clock {
            SimulatedClock::Real => Clock::Real(Instant::now()),
            SimulatedClock::Manual => Clock::Manual(Duration::ZERO),
        };
        port.start_clock(Duration::ZERO);
        let mut info = port.info(place(number));
        if config.kind == SimulatedKind::Hub {
            info.state = DeviceState::Unavailable {
                reason: HUB_REASON.to_owned(),
            };
        }
        Ok(Self {
            port,
            info,
            clock,
            alarm: Alarm::new(),
            closed: 0,
            opening: Duration::ZERO,
            is_open: false,
        })
    }

    pub(crate) fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Opens it.
    ///
    /// # Errors
    /// For people, where it was told not to open.
    pub(crate) fn open_once(&mut self) -> Result<(), String> {
        match self.closed.checked_sub(1) {
            Some(left) => {
                self.closed = left;
                Err("it was told not to open".to_owned())
            }
            None => Ok(()),
        }
    }

    /// How long it takes to be made ready; `None` where it is.
    pub(crate) fn start_opening(&self) -> Option<Duration> {
        (!self.is_open && !self.opening.is_zero()).then_some(self.opening)
    }

    pub(crate) fn opened(&mut self) {
        self.is_open = true;
    }

    pub(crate) fn set_wake(&mut self, wake: Arc<Notify>) {
        self.alarm.set_wake(wake);
    }

    pub(crate) fn submit(
        &mut self,
        server: &mut Server,
        request: u64,
        transfer: &Transfer,
        body: &[u8],
    ) {
        match transfer.transfer_type {
            TransferType::Isochronous | TransferType::Interrupt => {
                // It begins now, not when time was looked at last.
                self.port.advance(self.now(), &mut ToServer(server));
            }
            TransferType::Control if self.info.speed == Speed::Super => {
                present::submit(&mut self.port, server, request, transfer, body);
                return;
            }
            TransferType::Control | TransferType::Bulk => (),
        }
        self.port
            .submit(request, transfer, body, &mut ToServer(server));
        self.set_alarm();
    }

    pub(crate) fn cancel(&mut self, server: &mut Server, request: u64) {
        // What is over by now is over.
        self.port.advance(self.now(), &mut ToServer(server));
        self.port.cancel(request, &mut ToServer(server));
        self.set_alarm();
    }

    pub(crate) fn reset(&mut self, server: &mut Server) {
        self.port.reset(&mut ToServer(server));
        self.set_alarm();
    }

    /// Completes what is due.
    pub(crate) fn drain(&mut self, server: &mut Server) {
        if let Some(due) = self.port.next_event() {
            let now = self.now();
            if due <= now {
                self.port.advance(now, &mut ToServer(server));
            }
            self.set_alarm();
        }
    }

    pub(crate) fn packet_len(&self, endpoint: u8) -> Option<u16> {
        let endpoint = self.port.endpoint(endpoint)?;
        Some(endpoint.max_packet_size & 0x7ff)
    }

    pub(crate) fn endpoints_of(&self, interface: u8) -> Option<Vec<u8>> {
        self.port.endpoints_of(interface)
    }

    /// Makes it what it was for its holder before the exporter was started again: configured. A
    /// real device never knew that the exporter was away.
    pub(crate) fn restore(&mut self, configured: &Configured) {
        // What it has set itself it accepts again.
        let _ = self.configure(configured);
        if configured.configuration == 0 {
            // A lease of before that was noted.
            let configurations = &self.port.function().descriptors().configurations;
            let value = configurations.first().and_then(|c| c.get(5)).copied();
            self.set([0, 9, value.unwrap_or(0), 0, 0, 0, 0, 0]);
        }
    }

    /// Sets all this.
    ///
    /// # Errors
    /// For people, when the device does not accept it.
    pub(crate) fn configure(&mut self, configured: &Configured) -> Result<(), String> {
        for setup in configured.requests() {
            if self.set(setup) != Some(TransferStatus::Completed) {
                return Err(NOT_CONFIGURED.to_owned());
            }
        }
        Ok(())
    }

    /// A control transfer without data, which simulated devices answer at once.
    fn set(&mut self, setup: [u8; 8]) -> Option<TransferStatus> {
        let set = Transfer {
            transfer_type: TransferType::Control,
            endpoint: 0,
            flags: 0,
            length: 0,
            interval: 0,
            setup,
        };
        let mut host = Status(None);
        self.port.submit(0, &set, &[], &mut host);
        host.0
    }

    pub(crate) fn descriptors(&self) -> Digest {
        let of = self.port.function().descriptors();
        descriptors::digest(&self.info, &of.device, &of.configurations, &of.bos)
    }

    pub(crate) fn release(&mut self) {
        self.is_open = false;
        self.port.forget_all();
        self.port.reset(&mut Nobody);
    }

    fn now(&self) -> Duration {
        match self.clock {
            Clock::Real(start) => start.elapsed(),
            Clock::Manual(now) => now,
        }
    }

    fn set_alarm(&self) {
        if let Clock::Real(start) = self.clock {
            self.alarm.set(self.port.next_event().map(|at| start + at));
        }
    }
}

/// Why a device that came back is not lent.
pub(crate) const NOT_CONFIGURED: &str =
    "it does not accept the configuration that its guest had set";

/// Where the `number`th device is.
fn place(number: usize) -> DeviceId {
    DeviceId(format!("0-{number}"))
}

fn function(config: &Simulated, serial: &str) -> io::Result<Device<FileStorage>> {
    let storage = || {
        let file = config.file.as_deref();
        let file = file.ok_or_else(|| io::Error::other("a disk without a file"))?;
        FileStorage::open(file, config.size_mib << 20, config.sync)
    };
    let pattern = match config.pattern {
        SimulatedPattern::Zero => Pattern::Zero,
        SimulatedPattern::Mod63 => Pattern::Mod63,
        SimulatedPattern::None => Pattern::None,
    };
    let source_sink = |speed| Device::SourceSink(SourceSink::new(pattern, speed, serial));
    Ok(match config.kind {
        SimulatedKind::Disk => Device::Disk(Disk::new(storage()?, serial)),
        SimulatedKind::SuperDisk => Device::Disk(Disk::super_speed(storage()?, serial, true)),
        SimulatedKind::Keyboard => Device::Keyboard(Keyboard::new(serial)),
        SimulatedKind::Serial => Device::Serial(SerialLoop::new(serial)),
        SimulatedKind::SourceSink => source_sink(Speed::High),
        SimulatedKind::SourceSinkFull => source_sink(Speed::Full),
        SimulatedKind::Audio => Device::Audio(Audio::new(serial)),
        SimulatedKind::Hub => Device::Hub(Hub::new(serial)),
    })
}

struct ToServer<'a>(&'a mut Server);

impl Host for ToServer<'_> {
    fn complete(
        &mut self,
        request: u64,
        fill: &mut dyn FnMut(&mut Vec<u8>) -> Option<Outcome>,
    ) -> bool {
        self.0.try_complete(self.0.epoch(), request, fill)
    }
}

/// How one transfer ended.
struct Status(Option<TransferStatus>);

impl Host for Status {
    fn complete(
        &mut self,
        _request: u64,
        fill: &mut dyn FnMut(&mut Vec<u8>) -> Option<Outcome>,
    ) -> bool {
        self.0 = fill(&mut Vec::new()).map(|outcome| outcome.status);
        self.0.is_some()
    }
}

/// Has transfers carried out and their results dropped.
struct Nobody;

impl Host for Nobody {
    fn complete(
        &mut self,
        _request: u64,
        fill: &mut dyn FnMut(&mut Vec<u8>) -> Option<Outcome>,
    ) -> bool {
        fill(&mut Vec::new()).is_some()
    }
}

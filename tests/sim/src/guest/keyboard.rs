// SPDX-License-Identifier: GPL-3.0-or-later
//! A driver of a boot keyboard, with the habits of Linux's `usbhid`: one URB of the interrupt
//! endpoint, sent again when it is over.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use frontend_shim::{
    BufferSlice, Completion, ControlData, Device, Target, TransferError, Urb, UrbHandle, UsbHost,
};
use usbif::{Setup, UrbKind};
use xen_sim::SimGuest;

use super::workload::{Driver, UnlinkedData};

const REPORT_BYTES: usize = 8;
const TIMEOUT: Duration = Duration::from_secs(10);

/// What was typed.
#[derive(Clone, Debug, Default)]
pub struct Typed {
    /// Usages of the keys that went down, in order.
    pub keys: Vec<u8>,
    /// Reports that came with an unlinked URB, and so were not seen.
    pub dropped: u64,
}

/// The driver.
#[derive(Debug)]
pub struct Keyboard {
    target: Target,
    endpoint: u8,
    interval: u16,
    report: BufferSlice,
    in_flight: Option<UrbHandle>,
    last: [u8; REPORT_BYTES],
    unlinked: UnlinkedData,
    typed: Arc<Mutex<Typed>>,
}

impl Keyboard {
    /// Opens an enumerated keyboard: reports come when a key changes, and only then.
    ///
    /// # Errors
    /// When it is none, or does not answer.
    pub fn open(
        host: &mut UsbHost<SimGuest>,
        device: &Device,
        unlinked: UnlinkedData,
    ) -> Result<Self> {
        let mut endpoints = device.interfaces.iter().flat_map(|i| &i.endpoints);
        let endpoint = endpoints.find(|e| e.is_interrupt() && e.is_in());
        let endpoint = endpoint.context("a keyboard without an interrupt endpoint")?;
        let set_idle = Setup::new(0x21, 0x0a, 0, 0, 0);
        host.control(device.target, set_idle, ControlData::None, TIMEOUT)?;
        Ok(Self {
            target: device.target,
            endpoint: endpoint.address,
            interval: endpoint.interval.into(),
            report: host.alloc_buffer(REPORT_BYTES)?.slice(0, REPORT_BYTES),
            in_flight: None,
            last: [0; REPORT_BYTES],
            unlinked,
            typed: Arc::default(),
        })
    }

    /// What it saw, while it goes on.
    pub fn typed(&self) -> Arc<Mutex<Typed>> {
        self.typed.clone()
    }
}

impl Driver for Keyboard {
    fn submit(&mut self, host: &mut UsbHost<SimGuest>, _busy: bool) -> Result<()> {
        if self.in_flight.is_none() {
            self.in_flight = Some(host.submit(&Urb {
                target: self.target,
                endpoint: self.endpoint,
                kind: UrbKind::Interrupt {
                    interval: self.interval,
                },
                data: Some(self.report),
                short_not_ok: false,
                tag: 0,
            })?);
        }
        Ok(())
    }

    fn unlink(&mut self, host: &mut UsbHost<SimGuest>) {
        if let Some(urb) = self.in_flight {
            host.unlink(urb);
        }
    }

    fn completed(&mut self, host: &mut UsbHost<SimGuest>, completion: &Completion) -> Result<bool> {
        if self.in_flight != Some(completion.urb) {
            return Ok(false);
        }
        self.in_flight = None;
        let mut typed = self.typed.lock().expect("no holder panics");
        match completion.result {
            Ok(()) if completion.actual_length == REPORT_BYTES => (),
            Err(TransferError::Unlinked) if completion.actual_length == 0 => return Ok(true),
            Err(TransferError::Unlinked) if self.unlinked == UnlinkedData::Taken => (),
            Err(TransferError::Unlinked) => {
                typed.dropped += 1;
                return Ok(true);
            }
            other => bail!("a report: {other:?}, {} bytes", completion.actual_length),
        }
        let mut report = [0; REPORT_BYTES];
        host.read_buffer(self.report.buffer, self.report.offset, &mut report)?;
        let keys = report[2..].iter().filter(|key| **key != 0);
        let down = keys.filter(|key| !self.last[2..].contains(key));
        typed.keys.extend(down);
        self.last = report;
        Ok(true)
    }
}

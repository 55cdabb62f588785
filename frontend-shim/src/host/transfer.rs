// SPDX-License-Identifier: GPL-3.0-or-later
//! Blocking transfers.

use std::time::{Duration, Instant};

use usbif::{Direction, Setup, UrbKind};
use xen::Guest;

use super::{BufferId, BufferSlice, Target, Urb, UsbHost};
use crate::{HostError, SubmitError, TransferError, UrbHandle};

/// How long a backend may take to give an unlinked URB back.
const UNLINK_TIMEOUT: Duration = Duration::from_secs(10);

/// The data stage of a control transfer.
#[derive(Debug)]
pub enum ControlData<'a> {
    /// There is none.
    None,
    /// To the device.
    Out(&'a [u8]),
    /// From the device.
    In(&'a mut [u8]),
}

impl ControlData<'_> {
    fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Out(data) => data.len(),
            Self::In(data) => data.len(),
        }
    }
}

impl<G: Guest> UsbHost<G> {
    /// A control transfer on endpoint 0. Its `wLength` is set to the length of `data`. Returns
    /// the bytes of the data stage.
    ///
    /// # Errors
    /// [`HostError::Transfer`], [`HostError::TimedOut`] and those of [`submit`](Self::submit).
    ///
    /// # Panics
    /// When `data` is longer than 65,535 bytes.
    pub fn control(
        &mut self,
        target: Target,
        setup: Setup,
        data: ControlData<'_>,
        timeout: Duration,
    ) -> Result<usize, HostError> {
        let length = u16::try_from(data.len()).expect("a data stage is at most 65,535 bytes");
        let setup = Setup::new(
            setup.request_type(),
            setup.request(),
            setup.value(),
            setup.index(),
            length,
        );
        let buffer = match data {
            ControlData::None => None,
            _ => Some(self.control_buffer(data.len())?),
        };
        if let (ControlData::Out(bytes), Some(buffer)) = (&data, buffer) {
            self.write_buffer(buffer, 0, bytes)?;
        }
        let direction = setup.direction();
        let endpoint = if direction == Direction::In { 0x80 } else { 0 };
        let slice = buffer.map(|buffer| buffer.slice(0, data.len()));
        let urb = Urb::plain(target, endpoint, UrbKind::Control { setup }, slice);
        let done = self.transfer(&urb, timeout)?;
        if let (ControlData::In(bytes), Some(buffer)) = (data, buffer) {
            self.read_buffer(buffer, 0, &mut bytes[..done])?;
        }
        Ok(done)
    }

    /// A bulk transfer to or from the endpoint with this address. Returns the bytes transferred,
    /// which for IN may be fewer than asked for.
    ///
    /// # Errors
    /// As [`control`](Self::control).
    pub fn bulk(
        &mut self,
        target: Target,
        endpoint: u8,
        data: BufferSlice,
        timeout: Duration,
    ) -> Result<usize, HostError> {
        let kind = UrbKind::Bulk;
        self.transfer(&Urb::plain(target, endpoint, kind, Some(data)), timeout)
    }

    /// An interrupt transfer to or from the endpoint with this address, polled every `interval`
    /// (micro)frames. Returns the bytes transferred.
    ///
    /// # Errors
    /// As [`control`](Self::control).
    pub fn interrupt(
        &mut self,
        target: Target,
        endpoint: u8,
        interval: u16,
        data: BufferSlice,
        timeout: Duration,
    ) -> Result<usize, HostError> {
        let kind = UrbKind::Interrupt { interval };
        self.transfer(&Urb::plain(target, endpoint, kind, Some(data)), timeout)
    }

    /// Submits a URB and waits for it; unlinks it when it takes too long.
    fn transfer(&mut self, urb: &Urb, timeout: Duration) -> Result<usize, HostError> {
        let handle = self.submit(urb)?;
        match self.wait_for(handle, timeout) {
            Err(HostError::TimedOut(_)) => {
                self.unlink(handle);
                match self.wait_for(handle, UNLINK_TIMEOUT) {
                    // It was done just then.
                    Ok(actual) => Ok(actual),
                    Err(HostError::Transfer(TransferError::Unlinked)) => {
                        Err(HostError::TimedOut(timeout))
                    }
                    Err(error) => Err(error),
                }
            }
            result => result,
        }
    }

    /// Waits until this URB completes, and returns its length. Others complete meanwhile and are
    /// kept for [`next_completion`](Self::next_completion).
    ///
    /// # Errors
    /// [`HostError::TimedOut`]: it is still in flight. [`HostError::Transfer`]: it failed.
    pub fn wait_for(&mut self, urb: UrbHandle, timeout: Duration) -> Result<usize, HostError> {
        let deadline = Instant::now() + timeout;
        loop {
            self.step()?;
            if let Some(completion) = self.front.take_completion(urb) {
                self.buffers.done(urb);
                completion.result?;
                return Ok(completion.actual_length);
            }
            if self.front.is_dead() {
                return Err(SubmitError::Dead.into());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(HostError::TimedOut(timeout));
            }
            let channel = self.channel().ok_or(HostError::NotConnected)?;
            super::poll::readable(channel, left).map_err(HostError::Channel)?;
        }
    }

    /// A buffer for control transfers, of at least this many bytes.
    fn control_buffer(&mut self, len: usize) -> Result<BufferId, HostError> {
        match self.control_buffer {
            Some(buffer) if self.buffers.len(buffer) >= len => Ok(buffer),
            old => {
                let buffer = self.alloc_buffer(len)?;
                // One that timed out may still be in use; then it is left alone.
                if let Some(old) = old.filter(|old| self.buffers.is_idle(*old)) {
                    self.free_buffer(old);
                }
                self.control_buffer = Some(buffer);
                Ok(buffer)
            }
        }
    }
}

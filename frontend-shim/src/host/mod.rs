// SPDX-License-Identifier: GPL-3.0-or-later
//! A USB host controller: the machine with its rings, event channel and buffers.

mod addresses;
mod buffers;
mod enumerate;
mod isochronous;
mod link;
mod poll;
mod suspend;
mod transfer;
mod urb;

use std::fmt;
use std::time::{Duration, Instant};

use usbif::{Direction, PortNumber, Segment, Setup, Speed};
use xen::{DomId, EvtchnPort, GrantRef, Guest};

pub use buffers::{BufferId, BufferSlice};
pub use enumerate::{Device, DeviceDescriptor, Endpoint, Interface};
pub use isochronous::IsochronousUrb;
pub use transfer::ControlData;
pub use urb::{Target, Urb};

use crate::{
    Completion, Counters, Front, HostError, PortChange, SubmitError, UrbHandle, Violation,
};
use addresses::Addresses;
use buffers::Buffers;
use link::Link;

/// Is told of every breach of the protocol by the backend.
pub type ViolationHook = Box<dyn FnMut(&Violation) + Send>;

/// How a host behaves.
#[derive(Default)]
pub struct HostOptions {
    /// Called for every breach of the protocol by the backend.
    pub on_violation: Option<ViolationHook>,
    /// End the grants of a buffer whenever no URB uses it any more, as Linux does for every
    /// request, and report a grant that the backend still maps then. Costs a copy of the buffer
    /// for every URB: for tests.
    pub check_grants: bool,
}

impl fmt::Debug for HostOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostOptions")
            .field("check_grants", &self.check_grants)
            .finish_non_exhaustive()
    }
}

/// What a frontend tells its backend in xenstore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingGrants {
    /// `urb-ring-ref`.
    pub urb_ring: GrantRef,
    /// `conn-ring-ref`.
    pub conn_ring: GrantRef,
    /// `event-channel`.
    pub event_channel: EvtchnPort,
}

/// A USB host controller in the guest.
///
/// Nothing happens on its own: [`step`](Self::step) takes in what the backend has sent and sends
/// what has been submitted, [`wait`](Self::wait) does so until there is something to look at. The
/// blocking operations ([`control`](Self::control), [`bulk`](Self::bulk)…) do it themselves, and
/// keep completions of other URBs for later.
pub struct UsbHost<G: Guest> {
    guest: G,
    backend: DomId,
    front: Front,
    link: Option<Link<G>>,
    /// Dead rings whose requests have not been forgotten. `xen-hcd` leaks their pages: a backend
    /// may look into them through a foreign mapping.
    abandoned: Vec<Link<G>>,
    buffers: Buffers<G>,
    addresses: Addresses,
    control_buffer: Option<BufferId>,
    options: HostOptions,
}

impl<G: Guest> UsbHost<G> {
    /// A controller with `num_ports` ports, not yet connected.
    pub fn new(guest: G, backend: DomId, num_ports: u8, options: HostOptions) -> Self {
        Self {
            guest,
            backend,
            front: Front::new(num_ports),
            link: None,
            abandoned: Vec::new(),
            buffers: Buffers::default(),
            addresses: Addresses::default(),
            control_buffer: None,
            options,
        }
    }

    /// Sets up new rings and an event channel in place of any old ones, and says what to write to
    /// xenstore. The pages of the old rings are kept.
    ///
    /// # Errors
    /// [`HostError::Grant`], [`HostError::Channel`]. The old rings stay in use then.
    pub fn set_up_rings(&mut self) -> Result<RingGrants, HostError> {
        let link = Link::new(&self.guest, self.backend)?;
        let grants = link.grants();
        self.abandoned.extend(self.link.replace(link));
        Ok(grants)
    }

    /// The pages of the URB ring and of the connection ring.
    pub fn ring_pages(&self) -> Option<(&G::Pages, &G::Pages)> {
        self.link.as_ref().map(Link::pages)
    }

    /// Hands a URB over. It goes out with the next [`step`](Self::step), so that several travel
    /// under one notification.
    ///
    /// # Errors
    /// [`HostError::Submit`], [`HostError::OutsideBuffer`], [`HostError::Request`] when the data
    /// touches more than 16 pages. No completion follows then.
    pub fn submit(&mut self, urb: &Urb) -> Result<UrbHandle, HostError> {
        let mut segments = [Segment::default(); usbif::MAX_SEGMENTS + 1];
        let count = match urb.data {
            Some(slice) => self.buffers.segments(slice, &mut segments)?,
            None => 0,
        };
        let submission = urb.submission(&segments[..count])?;
        let handle = self.front.submit(submission)?;
        if let Some(slice) = urb.data {
            self.buffers.use_by(slice.buffer, handle);
        }
        Ok(handle)
    }

    /// Asks for a URB back, with the next [`step`](Self::step). It still completes. False: it has
    /// completed, or is being unlinked.
    pub fn unlink(&mut self, urb: UrbHandle) -> bool {
        self.front.unlink(urb)
    }

    /// Takes in everything that the backend has sent, and sends everything that can be sent.
    /// Never blocks.
    ///
    /// # Errors
    /// [`HostError::Channel`]. Breaches of the protocol are not errors here: see
    /// [`HostOptions::on_violation`] and [`Front::is_dead`].
    pub fn step(&mut self) -> Result<(), HostError> {
        if let Some(link) = &mut self.link {
            link.step(&mut self.front).map_err(HostError::Channel)?;
        }
        if self.options.check_grants {
            self.check_grants()?;
        }
        while let Some(violation) = self.front.next_violation() {
            if let Some(hook) = &mut self.options.on_violation {
                hook(&violation);
            }
        }
        Ok(())
    }

    /// [`step`](Self::step)s, and when that brought nothing waits for the backend's signal, for
    /// `timeout` at most, and steps once more.
    ///
    /// # Errors
    /// As [`step`](Self::step), or [`HostError::NotConnected`].
    pub fn wait(&mut self, timeout: Duration) -> Result<(), HostError> {
        let before = self.progress();
        self.step()?;
        if self.progress() != before || self.front.is_dead() {
            return Ok(());
        }
        let link = self.link.as_ref().ok_or(HostError::NotConnected)?;
        match link.channel() {
            Some(channel) => {
                poll::readable(channel, timeout).map_err(HostError::Channel)?;
            }
            None => return Err(HostError::NotConnected),
        }
        self.step()
    }

    fn progress(&self) -> (u64, u64) {
        let counters = self.front.counters();
        (counters.completed, counters.connects + counters.disconnects)
    }

    /// The next finished URB, of those that no blocking operation waits for.
    pub fn next_completion(&mut self) -> Option<Completion> {
        let completion = self.front.next_completion()?;
        self.buffers.done(completion.urb);
        Some(completion)
    }

    /// The next change on a port.
    pub fn next_port_change(&mut self) -> Option<PortChange> {
        let change = self.front.next_port_change()?;
        if change.was != Speed::None {
            self.addresses.release(change.port);
        }
        Some(change)
    }

    /// Waits until a device is plugged into `port`.
    ///
    /// # Errors
    /// [`HostError::TimedOut`], or as [`wait`](Self::wait).
    pub fn wait_for_device(
        &mut self,
        port: PortNumber,
        timeout: Duration,
    ) -> Result<Speed, HostError> {
        let deadline = Instant::now() + timeout;
        loop {
            let speed = self.front.speed(port);
            if speed != Speed::None {
                return Ok(speed);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(HostError::TimedOut(timeout));
            }
            if self.front.is_dead() {
                return Err(SubmitError::Dead.into());
            }
            self.wait(left)?;
        }
    }

    /// Gives every URB back and ends the rings. False: the backend still maps one of them, and
    /// its page leaks.
    pub fn disconnect(&mut self) -> bool {
        self.front.shut_down();
        match self.link.take() {
            Some(link) => link.end(&self.guest),
            None => true,
        }
    }

    /// The machine.
    pub fn front(&self) -> &Front {
        &self.front
    }

    /// What has been counted so far.
    pub fn counters(&self) -> Counters {
        self.front.counters()
    }

    /// The guest's interface to Xen.
    pub fn guest(&self) -> &G {
        &self.guest
    }

    /// The event channel, to be polled for reading along with others. `None`: not connected.
    pub fn channel(&self) -> Option<&G::Channel> {
        self.link.as_ref().and_then(Link::channel)
    }

    /// Allocates a buffer for URBs, zeroed, granted to the backend. `len` is rounded up to pages.
    ///
    /// # Errors
    /// [`HostError::Grant`].
    pub fn alloc_buffer(&mut self, len: usize) -> Result<BufferId, HostError> {
        self.buffers.alloc(&self.guest, self.backend, len)
    }

    /// Frees a buffer. False: the backend still maps it, although no URB uses it any more; the
    /// memory leaks.
    ///
    /// # Panics
    /// When a URB still uses the buffer.
    pub fn free_buffer(&mut self, buffer: BufferId) -> bool {
        let released = self.buffers.free(&self.guest, buffer);
        if !released {
            self.front.handle_grant_in_use();
        }
        released
    }

    /// Copies `src` into a buffer.
    ///
    /// # Errors
    /// [`HostError::OutsideBuffer`].
    pub fn write_buffer(
        &self,
        buffer: BufferId,
        offset: usize,
        src: &[u8],
    ) -> Result<(), HostError> {
        self.buffers.write(buffer, offset, src)
    }

    /// Copies from a buffer into `dst`.
    ///
    /// # Errors
    /// [`HostError::OutsideBuffer`].
    pub fn read_buffer(
        &self,
        buffer: BufferId,
        offset: usize,
        dst: &mut [u8],
    ) -> Result<(), HostError> {
        self.buffers.read(buffer, offset, dst)
    }

    fn check_grants(&mut self) -> Result<(), HostError> {
        // Only what no URB uses: its completion may still be waiting for its driver.
        let front = &mut self.front;
        self.buffers
            .grant_idle_again(&self.guest, self.backend, |_| front.handle_grant_in_use())
    }
}

/// The setup packet of a standard request to a device.
fn standard(direction: Direction, request: u8, value: u16, index: u16, length: u16) -> Setup {
    let request_type = match direction {
        Direction::In => 0x80,
        Direction::Out => 0,
    };
    Setup::new(request_type, request, value, index, length)
}

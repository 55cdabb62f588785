// SPDX-License-Identifier: GPL-3.0-or-later
//! The ports: what is plugged in, under which address, and what the guest is still to be told of it.

use usbif::{DeviceAddress, PortNumber, Speed};

use super::Controller;
use crate::port::Port;
use crate::{ConnEvent, PortSnapshot, PortState, ResetDue};

/// Why a device cannot be plugged in there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// The controller has fewer ports.
    #[error("the controller has ports 1 to {count}, not {port}")]
    NoSuchPort {
        /// The port asked for.
        port: PortNumber,
        /// How many there are.
        count: u8,
    },
    /// Something is plugged in there.
    #[error("port {0} is taken")]
    Taken(PortNumber),
}

impl Controller {
    /// How many ports it has.
    pub fn port_count(&self) -> u8 {
        self.port_count
    }

    /// Every port in order.
    pub fn ports(&self) -> impl DoubleEndedIterator<Item = PortNumber> + Clone + use<> {
        PortNumber::first(self.port_count)
    }

    /// Plugs a device in. With `carried`, the state of a hand-off, the guest is told the speed that
    /// it knows already and the device keeps its address; without, it sees a new device.
    ///
    /// Requests to it are held until [`Controller::release`].
    ///
    /// # Errors
    /// [`PortError`]; nothing has changed then.
    pub fn plug(
        &mut self,
        port: PortNumber,
        speed: Speed,
        carried: Option<PortState>,
    ) -> Result<(), PortError> {
        if port.get() > self.port_count {
            let count = self.port_count;
            return Err(PortError::NoSuchPort { port, count });
        }
        if !self.port(port).is_empty() {
            return Err(PortError::Taken(port));
        }
        let entry = self.port_mut(port);
        entry.speed = speed;
        entry.held = true;
        entry.address = None;
        entry.reset = ResetDue::No;
        entry.announce(speed);
        match carried.map(|c| c.address) {
            Some(Some(address)) => self.set_address(port, address),
            // The guest was in the middle of an enumeration.
            Some(None) => self.expect_reset(port),
            None => {}
        }
        Ok(())
    }

    /// The device at a port has been in use, and the guest will enumerate it as a new one: its first
    /// request to address 0 resets it. Call this after [`Controller::plug`] of a device that was not
    /// just leased.
    pub fn expect_reset(&mut self, port: PortNumber) {
        let entry = self.port_mut(port);
        if entry.reset == ResetDue::No && !entry.is_empty() {
            entry.reset = ResetDue::AtDefaultAddress;
        }
    }

    /// Puts a disconnect before the connect that is still to be told, so that the guest sees the
    /// device come anew.
    pub fn replug(&mut self, port: PortNumber) {
        self.forget_address(port);
        self.expect_reset(port);
        let entry = self.port_mut(port);
        let speed = entry.speed;
        entry.announce(Speed::None);
        entry.announce(speed);
    }

    /// Unplugs whatever is there. The caller then answers every request of
    /// [`Controller::unanswered`] with [`Controller::complete`].
    pub fn unplug(&mut self, port: PortNumber) {
        self.forget_address(port);
        let entry = self.port_mut(port);
        if !entry.is_empty() {
            entry.speed = Speed::None;
            entry.held = false;
            entry.reset = ResetDue::No;
            entry.announce(Speed::None);
        }
    }

    /// What a hand-off carries over.
    pub fn port_state(&self, port: PortNumber) -> PortState {
        let entry = self.port(port);
        PortState {
            speed: entry.speed,
            address: entry.address,
        }
    }

    /// Holds requests to a port until [`Controller::release`].
    pub fn hold(&mut self, port: PortNumber) {
        let entry = self.port_mut(port);
        entry.held = !entry.is_empty();
    }

    /// Ends the holding of a port. The caller now submits every request of
    /// [`Controller::held_requests`].
    pub fn release(&mut self, port: PortNumber) {
        self.port_mut(port).held = false;
    }

    /// Whether the guest has reset a port, and the device at it was not reset since. Where this is so
    /// it is to be reset before the port is released.
    pub fn is_reset_due(&self, port: PortNumber) -> bool {
        self.port(port).reset == ResetDue::Now
    }

    /// The device at a port was reset; releases the port as [`Controller::release`] does.
    pub fn reset_done(&mut self, port: PortNumber) {
        let entry = self.port_mut(port);
        entry.reset = ResetDue::No;
        entry.held = false;
    }

    /// Whether requests to a port are held.
    pub fn is_held(&self, port: PortNumber) -> bool {
        self.port(port).held
    }

    /// Whether a [`Controller::snapshot`] may have changed since the last call.
    pub fn take_ports_changed(&mut self) -> bool {
        core::mem::take(&mut self.ports_changed)
    }

    /// All that is known of a port.
    pub fn snapshot(&self, port: PortNumber) -> PortSnapshot {
        let Port {
            speed,
            address,
            held,
            events,
            reset,
        } = *self.port(port);
        PortSnapshot {
            speed,
            address,
            held,
            events,
            reset,
        }
    }

    /// A port is as it was in an earlier process. Ports beyond the last one are left alone.
    pub fn restore_port(&mut self, port: PortNumber, snapshot: &PortSnapshot) {
        if port.get() > self.port_count {
            return;
        }
        self.forget_address(port);
        let entry = self.port_mut(port);
        entry.speed = snapshot.speed;
        entry.held = snapshot.held && !entry.is_empty();
        entry.events = snapshot.events;
        entry.reset = snapshot.reset;
        if let Some(address) = snapshot.address
            && snapshot.speed != Speed::None
            && self.addresses[usize::from(address.get())].is_none()
        {
            self.set_address(port, address);
        }
    }

    /// The next event to tell the guest. Taken off the queue only by [`Controller::told`].
    pub fn next_event(&self) -> Option<ConnEvent> {
        self.ports()
            .find_map(|port| self.port(port).events[0].map(|speed| ConnEvent { port, speed }))
    }

    /// The event of [`Controller::next_event`] was pushed.
    pub fn told(&mut self, event: ConnEvent) {
        let events = &mut self.port_mut(event.port).events;
        debug_assert_eq!(events[0], Some(event.speed));
        *events = [events[1], None];
    }

    /// A frontend has connected with new rings: tell it what is plugged in, also where nothing is,
    /// since a guest that was moved or restored may remember a device that is gone. A disconnect that
    /// was not told yet stays.
    pub fn tell_all(&mut self) {
        self.stale.begin_anew();
        for port in PortNumber::first(self.port_count) {
            let entry = self.port_mut(port);
            let speed = entry.speed;
            entry.announce(speed);
        }
    }

    /// Gives a port without an address this one, and takes it from another port that has it.
    pub(super) fn set_address(&mut self, port: PortNumber, address: DeviceAddress) {
        if let Some(other) = self.addresses[usize::from(address.get())]
            && other != port
        {
            self.forget_address(other);
            self.expect_reset(other);
        }
        self.port_mut(port).address = Some(address);
        self.addresses[usize::from(address.get())] = Some(port);
    }

    pub(super) fn forget_address(&mut self, port: PortNumber) {
        if let Some(address) = self.port_mut(port).address.take() {
            self.addresses[usize::from(address.get())] = None;
        }
    }

    pub(super) fn port(&self, port: PortNumber) -> &Port {
        &self.ports[port.index()]
    }

    pub(super) fn port_mut(&mut self, port: PortNumber) -> &mut Port {
        self.ports_changed = true;
        &mut self.ports[port.index()]
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! Devices that another domain with the VM's uuid holds (docs/decisions/0020-same-uuid.md). The guest is
//! not shown them. Their tasks ask the exporter again and again, which says yes when the other domain is
//! gone.

use session::Lease;
use session::open::Evidence;
use slog::{info, warn};
use usbif::PortNumber;
use xen::Backend;

use super::Actor;
use super::devices::{Plugged, speed_of};
use super::withdraw::Withdrawn;
use crate::config;

impl Plugged {
    /// Whether another domain with the VM's uuid holds it.
    pub(super) fn is_elsewhere(&self) -> bool {
        self.withdrawn == Some(Withdrawn::HeldElsewhere)
    }
}

impl<B: Backend> Actor<B> {
    /// What says that the guest here is the VM, and not a copy of it.
    pub(super) fn evidence(&self) -> Evidence {
        match (self.arrives, self.first_connect) {
            (true, _) => Evidence::Arrival,
            (false, true) => Evidence::FirstConnect,
            (false, false) => Evidence::Uuid,
        }
    }

    /// A lease that was seen to be another domain's: its port stays empty.
    pub(super) fn plug_elsewhere(
        &mut self,
        port: PortNumber,
        exporter: config::Exporter,
        lease: Lease,
        note: String,
    ) -> Result<(), String> {
        if self.plugged[port.index()].is_some() {
            return Err(format!("port {port} is taken"));
        }
        warn!(self.log, "device not plugged in: {}", note; "port" => port.get(),
            "device" => format!("{}/{}", exporter.name, lease.device.id));
        self.start(port, exporter, lease, None, false);
        if let Some(plugged) = &mut self.plugged[port.index()] {
            plugged.withdrawn = Some(Withdrawn::HeldElsewhere);
            plugged.note = Some(note);
        }
        self.keep_devices();
        Ok(())
    }

    /// The exporter has refused a claim for that reason.
    pub(super) fn held_elsewhere(&mut self, port: PortNumber, note: String) {
        let Some(plugged) = &mut self.plugged[port.index()] else {
            return;
        };
        if let Some(waiting) = plugged.waiting.take() {
            let _ = waiting.send(Err(note.clone()));
        }
        let before = plugged.withdrawn.replace(Withdrawn::HeldElsewhere);
        plugged.note = Some(note);
        if before.is_none() {
            info!(self.log, "disconnected: another domain with the same uuid has it";
                "port" => port.get());
            self.serving.borrow_mut().withdraw(port);
        }
        if before != Some(Withdrawn::HeldElsewhere) {
            self.keep_devices();
        }
    }

    /// The exporter has admitted the claim. The guest sees the device as one that was just plugged in, and
    /// what the other domain was in the middle of is over.
    pub(super) fn no_longer_elsewhere(&mut self, port: PortNumber) {
        let Some(plugged) = &mut self.plugged[port.index()] else {
            return;
        };
        if !plugged.is_elsewhere() {
            return;
        }
        info!(self.log, "the other domain is gone: device plugged in"; "port" => port.get());
        plugged.withdrawn = None;
        plugged.note = None;
        let speed = speed_of(&plugged.lease);
        let mut serving = self.serving.borrow_mut();
        serving.give_again(port, speed);
        serving.start_over(port);
        drop(serving);
        self.keep_devices();
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! The leases once more, when the frontend connects for the first time.
//!
//! A controller may be made long before its guest comes: `vusbd` makes one of its own as soon as the domain is
//! there, while the VM still runs at the source. What the leases said then is not what the guest knows: it may have
//! enumerated a device since, or have been given another one, and without a sign of the toolstack nothing says
//! that it arrives before it is suspended.

use handoff::{Incoming, State};
use session::Lease;
use slog::info;
use usbif::PortNumber;
use xen::Backend;

use super::Actor;
use crate::config;

impl<B: Backend> Actor<B> {
    /// Replaces what was planned. Leases of `silent` exporters stay as they are, and so do devices that were just
    /// leased for this controller, or are waited for.
    pub(super) fn plan_again(
        &mut self,
        mut leases: Vec<(config::Exporter, Lease, Incoming)>,
        silent: &[String],
    ) {
        if self.state != State::WaitingForFrontend {
            return;
        }
        let ports = self.serving.borrow().core.ports();
        for port in ports {
            let Some(plugged) = &self.plugged[port.index()] else {
                continue;
            };
            if plugged.fresh || plugged.away.is_some() || silent.contains(&plugged.exporter.name) {
                continue;
            }
            let (before, elsewhere) = (&plugged.lease, plugged.is_elsewhere());
            let as_before = leases.iter().position(|(exporter, lease, incoming)| {
                exporter.name == plugged.exporter.name
                    && lease.device.id == before.device.id
                    && (lease.port, lease.epoch) == (before.port, before.epoch)
                    && lease.cookie == before.cookie
                    && lease.frontend_resumes == before.frontend_resumes
                    && (*incoming == Incoming::Elsewhere) == elsewhere
            });
            match as_before {
                Some(at) => drop(leases.swap_remove(at)),
                None => self.forget_planned(port),
            }
        }
        for (exporter, lease, incoming) in leases {
            let port = PortNumber::new(lease.port);
            let taken = port.and_then(|port| self.plugged[port.index()].as_ref());
            // One that was leased for this controller meanwhile is newer than the answer.
            if taken.is_none() {
                self.plug_arriving(exporter, lease, incoming);
            }
        }
        self.keep_devices();
    }

    /// No guest has seen it.
    fn forget_planned(&mut self, port: PortNumber) {
        let Some(plugged) = self.plugged[port.index()].take() else {
            return;
        };
        info!(self.log, "the lease has changed since the controller was made"; "port" => port.get());
        if let Some(task) = plugged.task {
            task.abort();
        }
        self.serving.borrow_mut().forget_planned(port);
    }
}

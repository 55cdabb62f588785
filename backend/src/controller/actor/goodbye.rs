// SPDX-License-Identifier: GPL-3.0-or-later
//! The last words of a controller to its exporters.

use std::time::Duration;

use session::client::Client;
use slog::debug;
use tokio::time::{Instant, sleep};
use usbif::PortNumber;
use xen::Backend;

use super::Actor;

/// Longest wait for the last words to an exporter.
const GOODBYE: Duration = Duration::from_millis(500);

impl<B: Backend> Actor<B> {
    /// Gives the last words to the exporters, and the last state, the time to leave. Whether every
    /// exporter was there to hear them, and has written them down.
    pub(super) async fn say_goodbye(&self) -> bool {
        // What is said without a connection is not said, also where one comes back meanwhile.
        let before = self.connections();
        self.serving.borrow_mut().ask_for_receipts();
        let until = Instant::now() + GOODBYE;
        let mut silent = false;
        while !silent && Instant::now() < until {
            sleep(Duration::from_millis(2)).await;
            silent = self.serving.borrow_mut().is_silent();
        }
        let said = silent && before.is_some() && before == self.connections();
        debug!(self.log, "last words said"; "to all" => said);
        said
    }

    /// How often the devices' connections were made again; `None` when one is not there.
    fn connections(&self) -> Option<u64> {
        let serving = self.serving.borrow();
        let away = |port: &PortNumber| {
            let plugged = self.plugged[port.index()].as_ref();
            plugged.is_some_and(|p| p.away.is_some())
        };
        let there = serving.core.ports().filter(|port| !away(port));
        let mut attached = there.filter_map(|port| serving.at(port));
        attached.try_fold(0, |sum, attached| {
            let connected = attached.client.as_ref().is_some_and(Client::is_connected);
            connected.then_some(sum + attached.counters.reconnects)
        })
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! What comes from the devices: transfers that are over.

use session::client::{ClientError, Event};
use session::frame::{Completion, TransferStatus};
use slog::warn;
use usbif::{PortNumber, UrbStatus};
use vusb_core::{UrbResult, urb_status};
use xen::Backend;

use super::{Serving, Unanswered};
use crate::controller::data;

/// How a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nobody is there to hear of it.
    Gone,
    /// The device is gone.
    Unplugged,
    /// Somebody else holds the lease.
    Fenced,
}

impl<B: Backend> Serving<B> {
    /// Takes whole frames off the input, says how many bytes they were, and publishes what came of
    /// them.
    ///
    /// # Errors
    /// [`ClientError`]: the connection is of no more use.
    pub fn receive(
        &mut self,
        port: PortNumber,
        input: &[u8],
    ) -> Result<(usize, Option<End>), ClientError> {
        let mut taken = 0;
        let mut end = None;
        while end.is_none() {
            let Some(client) = self.client(port) else {
                end = Some(End::Gone);
                break;
            };
            let Some((event, len)) = client.next_event(&input[taken..])? else {
                break;
            };
            taken += len;
            match event {
                Event::Completed { completion, body } => self.completed(port, &completion, body),
                Event::Gone => {
                    if self.pauses(port) {
                        self.pause(port, Unanswered::NotBegun);
                    }
                    end = Some(End::Unplugged);
                }
                Event::Fenced => end = Some(End::Fenced),
                Event::Ping | Event::Pong => {}
            }
        }
        self.submit_waiting(port);
        self.flush();
        Ok((taken, end))
    }

    /// A transfer is over. Call [`Serving::flush`] after the last of a batch, and before anything is
    /// sent.
    fn completed(&mut self, port: PortNumber, completion: &Completion, body: &[u8]) {
        self.settle(port, completion, body);
        if let Some(client) = self.client(port) {
            let number = client.completions_received();
            self.journal.completed(port, number);
        }
    }

    fn settle(&mut self, port: PortNumber, completion: &Completion, body: &[u8]) {
        if let Some(attached) = self.at_mut(port)
            && attached.reset == Some(completion.request)
        {
            attached.reset = None;
            if completion.status != TransferStatus::Completed {
                warn!(self.place.log, "device reset failed"; "status" => ?completion.status);
            }
            self.core.reset_done(port);
            self.note_ports();
            self.journal.reset_over(port);
            self.submit_held(port);
            return;
        }
        let Some(slot) = self.core.by_number(port, completion.request) else {
            return;
        };
        if self.ended_by_unplugging(port, slot, completion) {
            self.completions.notify_one();
            return;
        }
        let Some(urb) = self.core.urb(slot) else {
            return;
        };
        // Who asked for that may want to know it from a transfer that failed. Linux's xen-hcd does
        // not look at the status of what it has unlinked.
        let was_cancelled =
            completion.status == TransferStatus::Cancelled && urb.unlinked_by.is_some();
        let mut result = UrbResult {
            status: match was_cancelled {
                true => UrbStatus::SHUTDOWN,
                false => urb_status(completion.status),
            },
            actual_length: completion.actual_length,
            error_count: completion.error_count,
            start_frame: completion.start_frame,
        };
        let copied = data::body_to_guest(
            &self.place.platform,
            self.place.domid,
            &urb.request,
            &urb.transfer,
            completion.actual_length,
            body,
        );
        // A device has done it; where the guest has no page for its data, in vain.
        match copied.is_ok() && !urb.sets_address() {
            true => self.spent.useful += 1,
            false => self.spent.useless += 1,
        }
        if let Err(e) = copied {
            warn!(self.place.log, "URB's data lost"; "id" => urb.request.id, "error" => %e);
            result = UrbResult::failed(UrbStatus::INVAL);
        }
        self.finish(slot, result);
        self.completions.notify_one();
    }

    /// Answers a transfer that was cancelled and has not completed for too long. Its completion,
    /// if one comes, finds no request.
    pub fn give_up(&mut self, port: PortNumber, number: u64) {
        if let Some(slot) = self.core.by_number(port, number) {
            warn!(self.place.log, "exporter did not answer a cancellation in time";
                "port" => port.get(), "request" => number);
            self.finish(slot, UrbResult::failed(UrbStatus::IOERROR));
            self.publish();
        }
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! A connection that was lost, or that of an earlier process, is made again.

use super::{Client, ClientError, End, Outstanding};
use crate::Epoch;
use crate::frame::{Kind, Transfer};
use crate::open::How;
use crate::server::MAX_OPEN;

impl Client {
    /// The client of an earlier process, not connected. `known` are the requests without a
    /// completion that somebody waits for, in any order, a reset as `None`. `last_request` is the
    /// last one that may have been sent, `completions_received` the last completion whose outcome
    /// was kept.
    ///
    /// Numbers that are neither known nor completed belong to requests that nobody waits for any more:
    /// their completions are taken, and what of them did not arrive is sent with no effect.
    ///
    /// `None` when these numbers contradict each other; then the lease is to be claimed.
    pub fn restore(
        epoch: Epoch,
        last_request: u64,
        completions_received: u64,
        known: impl IntoIterator<Item = (u64, Option<Transfer>)>,
    ) -> Option<Self> {
        let mut client = Self::new(epoch);
        client.connected = false;
        client.last_request = last_request;
        client.completions_received = completions_received;
        client.acknowledged = completions_received;
        for (request, transfer) in known {
            if request == 0 || request > last_request || !client.has_room() {
                return None;
            }
            client.outstanding.push_back(match transfer {
                Some(transfer) => Outstanding::transfer(request, &transfer),
                None => Outstanding::nothing(request),
            });
        }
        let open = last_request.checked_sub(completions_received)?;
        client.unaccounted = open.checked_sub(client.outstanding.len() as u64)?;
        // More than an exporter would ever have taken.
        if open > MAX_OPEN as u64 {
            return None;
        }
        client.sort_outstanding();
        Some(client)
    }

    /// The connection is lost. What was not sent is dropped: it will be sent again.
    pub fn lost(&mut self) {
        self.connected = false;
        self.output.clear();
    }

    /// How to open a new connection.
    pub fn resume(&self) -> How {
        How::Resume {
            epoch: self.epoch,
            completions_received: self.completions_received,
        }
    }

    /// The exporter answered a resume: it has all requests up to `requests_received`. The caller
    /// sends those of [`Client::unsent`] again, in order, then calls [`Client::resend_cancels`].
    pub fn resumed(&mut self, requests_received: u64) -> Result<(), ClientError> {
        if requests_received > self.last_request {
            return Err(ClientError::Received {
                got: requests_received,
                last: self.last_request,
            });
        }
        self.connected = true;
        self.acknowledged = self.completions_received;
        // Numbers have no gaps: what nobody waits for is sent, too, with no effect.
        let fillers = requests_received + 1..=self.last_request;
        for request in fillers.take(MAX_OPEN) {
            if self.unaccounted > 0 && !self.is_outstanding(request) {
                self.unaccounted -= 1;
                self.outstanding.push_back(Outstanding::nothing(request));
            }
        }
        self.sort_outstanding();
        Ok(())
    }

    fn is_outstanding(&self, request: u64) -> bool {
        self.outstanding.iter().any(|o| o.request == request)
    }

    fn sort_outstanding(&mut self) {
        let outstanding = self.outstanding.make_contiguous();
        outstanding.sort_unstable_by_key(|o| o.request);
    }

    /// The outstanding requests after `requests_received`, oldest first.
    pub fn unsent(&self, requests_received: u64) -> impl Iterator<Item = u64> + '_ {
        self.outstanding
            .iter()
            .map(|o| o.request)
            .filter(move |&r| r > requests_received)
    }

    /// Sends a request of [`Client::unsent`] again.
    pub fn resend<E>(
        &mut self,
        request: u64,
        transfer: &Transfer,
        fill: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.encode_submit(request, transfer, fill)
    }

    /// Sends a reset of [`Client::unsent`] again.
    pub fn resend_reset(&mut self, request: u64) {
        self.plain(Kind::Reset, request, &[]);
    }

    /// Cancels again what was cancelled, after the requests were sent again: the newest first, as
    /// the USB core does. Else it would look as if the guest had seen what came after a request
    /// whose data is to be kept.
    pub fn resend_cancels(&mut self) {
        for at in (0..self.outstanding.len()).rev() {
            let Outstanding { request, end, .. } = self.outstanding[at];
            match end {
                End::Awaited => (),
                End::Cancelled => self.plain(Kind::Cancel, request, &[]),
                End::Kept => self.plain(Kind::Keep, request, &[]),
                End::Recalled => self.plain(Kind::Recall, request, &[]),
            }
        }
    }
}

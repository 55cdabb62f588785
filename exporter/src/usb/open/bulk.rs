// SPDX-License-Identifier: GPL-3.0-or-later
//! Bulk transfers of a SuperSpeed device.

use session::frame::{Transfer, TransferStatus};
use session::server::Server;

use super::super::packets::Plan;
use super::super::shared::Tag;
use super::super::transfer::Job;
use super::{Data, Open, Submitted};

impl Open {
    /// A bulk transfer of a device that is presented.
    pub(super) fn bulk(
        &mut self,
        tag: Tag,
        transfer: &Transfer,
        body: &[u8],
    ) -> Result<Submitted, TransferStatus> {
        let Self {
            presented: Some(bulk),
            slots,
            handle,
            ..
        } = self
        else {
            return self.send(&Job::new(tag, transfer, body));
        };
        let address = transfer.endpoint;
        if transfer.is_in() {
            let input = bulk.input(address);
            if input.is_busy() {
                input.wait(tag, *transfer);
                return Ok(Submitted::Later);
            }
            return self.bulk_in(tag, transfer);
        }
        let output = bulk.output(address);
        match output.plan(body) {
            Plan::Answer(status, len) => Ok(Submitted::Done(status, len as u32, Data::None)),
            Plan::Ask { ask, halves } => {
                let job = Job {
                    lead: output.tail(),
                    ask,
                    ..Job::new(tag, transfer, body)
                };
                let Some(urb) = slots.prepare(&job) else {
                    output.restart();
                    return Err(TransferStatus::Invalid);
                };
                handle.submit(urb);
                output.started(body, halves);
                Ok(Submitted::Later)
            }
        }
    }

    /// A bulk IN transfer of a device that is presented, when it is its turn.
    fn bulk_in(&mut self, tag: Tag, transfer: &Transfer) -> Result<Submitted, TransferStatus> {
        let Some(bulk) = &mut self.presented else {
            return self.send(&Job::new(tag, transfer, &[]));
        };
        let input = bulk.input(transfer.endpoint);
        match input.plan(transfer.length as usize) {
            Plan::Answer(status, len) => {
                let data = Data::Surplus(transfer.endpoint);
                // Not more than was asked for, which is 32 bits long.
                Ok(Submitted::Done(status, len as u32, data))
            }
            Plan::Ask { ask, halves } => {
                let job = Job {
                    lead: input.surplus(),
                    ask,
                    ..Job::new(tag, transfer, &[])
                };
                let urb = self.slots.prepare(&job).ok_or(TransferStatus::Invalid)?;
                self.handle.submit(urb);
                input.started(halves.then_some(tag));
                Ok(Submitted::Later)
            }
        }
    }

    /// Starts the transfers of a bulk IN endpoint whose turn it is.
    pub(super) fn next_input(&mut self, server: &mut Server, address: u8) {
        while let Some(bulk) = &mut self.presented
            && let Some((tag, transfer)) = bulk.input(address).next()
        {
            let started = self.bulk_in(tag, &transfer);
            self.conclude(server, tag, started);
        }
    }
}

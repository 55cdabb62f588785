// SPDX-License-Identifier: GPL-3.0-or-later
//! Control transfers to a SuperSpeed device, which its guest takes for a high-speed one.

use session::frame::{FLAG_SHORT_NOT_OK, Transfer, TransferStatus};
use session::server::{Outcome, Server};
use usb_present::{Intercept, intercept};
use usb_sim::{Function, Host, Port};

use super::ToServer;

/// Submits the transfer, or what is asked of the device in its stead. Simulated devices answer
/// control transfers at once.
pub(super) fn submit<F: Function>(
    port: &mut Port<F>,
    server: &mut Server,
    request: u64,
    transfer: &Transfer,
    body: &[u8],
) {
    match intercept(transfer.setup) {
        Intercept::Pass => port.submit(request, transfer, body, &mut ToServer(server)),
        Intercept::Stall => {
            let stall = Outcome::new(TransferStatus::Stall, 0);
            server.complete(server.epoch(), request, stall, |_| ());
        }
        Intercept::Ask(setup) => {
            let asked = Transfer {
                flags: 0,
                length: u16::from_le_bytes([setup[6], setup[7]]).into(),
                setup,
                ..*transfer
            };
            let mut host = Presenting {
                server: ToServer(server),
                request,
                transfer,
            };
            port.submit(request, &asked, &[], &mut host);
        }
    }
}

/// Changes the answer to one request.
struct Presenting<'a> {
    server: ToServer<'a>,
    request: u64,
    transfer: &'a Transfer,
}

impl Host for Presenting<'_> {
    fn complete(
        &mut self,
        request: u64,
        fill: &mut dyn FnMut(&mut Vec<u8>) -> Option<Outcome>,
    ) -> bool {
        if request != self.request {
            return self.server.complete(request, fill);
        }
        let transfer = self.transfer;
        self.server.complete(request, &mut |out| {
            let start = out.len();
            let outcome = fill(out)?;
            if outcome.status != TransferStatus::Completed {
                return Some(outcome);
            }
            let len = usb_present::present(transfer.setup, &mut out[start..]);
            let len = len.min(transfer.length as usize);
            out.truncate(start + len);
            let is_error = transfer.flags & FLAG_SHORT_NOT_OK != 0;
            let status = match is_error && len < transfer.length as usize {
                true => TransferStatus::ShortPacket,
                false => TransferStatus::Completed,
            };
            Some(Outcome::new(status, len as u32))
        })
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! Transfers that wait for use, and those that libusb has. See `transfer` for what keeps this sound.

use std::io;
use std::os::raw::{c_int, c_uchar};
use std::ptr::NonNull;
use std::sync::Arc;

use rusb::constants::LIBUSB_TRANSFER_ADD_ZERO_PACKET;
use rusb::ffi::{libusb_cancel_transfer, libusb_submit_transfer, libusb_transfer};
use session::frame::{FLAG_ZERO_PACKET, TransferStatus, TransferType};

use super::shared::{Finished, Shared, Tag};
use super::status;
use super::transfer::{Job, UsbTransfer};

/// A transfer that libusb has, or whose [`Finished`] was not looked at yet.
pub(super) struct InFlight {
    raw: NonNull<libusb_transfer>,
    tag: Tag,
    endpoint: u8,
}

impl InFlight {
    pub(super) fn tag(&self) -> Tag {
        self.tag
    }

    /// bEndpointAddress.
    pub(super) fn endpoint(&self) -> u8 {
        self.endpoint
    }

    /// It will come back, unless it was about to, anyway. When this returns, the kernel has ended
    /// it.
    pub(super) fn cancel(&self) {
        // SAFETY: the transfer lives: it is freed only after this was removed (see `transfer`).
        // libusb answers with an error where it is over already.
        unsafe { libusb_cancel_transfer(self.raw.as_ptr()) };
    }
}

/// Transfers that are not in use.
#[derive(Default)]
#[expect(
    clippy::vec_box,
    reason = "libusb has the boxes in turns; nothing is allocated for that"
)]
pub(super) struct Pool(Vec<Box<UsbTransfer>>);

impl Pool {
    pub(super) fn put_back(&mut self, transfer: Box<UsbTransfer>) {
        self.0.push(transfer);
    }

    /// Hands a transfer to libusb. On failure the answer is what it ends with.
    pub(super) fn submit(
        &mut self,
        shared: &Arc<Shared>,
        job: &Job<'_>,
    ) -> Result<InFlight, TransferStatus> {
        let mut boxed = match self.0.pop() {
            Some(boxed) => boxed,
            None => {
                let context = shared.handle().context();
                Box::new(UsbTransfer::new(context).ok_or(TransferStatus::Invalid)?)
            }
        };
        let Some((start, len)) = boxed.prepare(job) else {
            self.0.push(boxed);
            return Err(TransferStatus::Invalid);
        };
        boxed.shared = Some(shared.clone());
        shared.started();
        let raw = boxed.raw;
        let transfer = job.transfer;
        let packets = match transfer.transfer_type {
            TransferType::Isochronous => boxed.packets.len(),
            _ => 0,
        };
        let zero_packet = transfer.transfer_type == TransferType::Bulk
            && !transfer.is_in()
            && transfer.flags & FLAG_ZERO_PACKET != 0;
        let buffer = boxed.buffer[start..start + len].as_mut_ptr();
        let leaked = Box::into_raw(boxed);
        // SAFETY: `raw` is a transfer of libusb that libusb does not have, with room for `packets`
        // packets, which `prepare` has set. `buffer` has `len` bytes, and it stays where it is and
        // untouched until the callback, since the box that owns it is leaked until then. The handle
        // lives as long as `shared`, of which the box holds a reference.
        let result = unsafe {
            let fields = &mut *raw.as_ptr();
            fields.dev_handle = shared.handle().as_raw();
            fields.flags = match zero_packet {
                true => LIBUSB_TRANSFER_ADD_ZERO_PACKET,
                false => 0,
            };
            fields.endpoint = transfer.endpoint;
            fields.transfer_type = transfer.transfer_type as c_uchar;
            fields.timeout = 0;
            fields.length = len as c_int;
            fields.actual_length = 0;
            fields.callback = completed;
            fields.user_data = leaked.cast();
            fields.buffer = buffer;
            fields.num_iso_packets = packets as c_int;
            libusb_submit_transfer(raw.as_ptr())
        };
        if result == 0 {
            return Ok(InFlight {
                raw,
                tag: job.tag,
                endpoint: transfer.endpoint,
            });
        }
        let errno = io::Error::last_os_error().raw_os_error();
        // SAFETY: libusb did not take it, so there will be no callback, and the box is ours again.
        let mut boxed = unsafe { Box::from_raw(leaked) };
        boxed.shared = None;
        shared.ended();
        self.0.push(boxed);
        Err(status::of_submission(result, errno, transfer.transfer_type))
    }
}

/// Called by libusb on its event thread, once for each transfer that it took.
extern "system" fn completed(raw: *mut libusb_transfer) {
    // SAFETY: `user_data` is the box that `Pool::submit` leaked for this submission, and libusb has
    // just given it back.
    let mut boxed = unsafe { Box::from_raw((*raw).user_data.cast::<UsbTransfer>()) };
    if let Some(shared) = boxed.shared.take() {
        shared.finish(Finished::Transfer(boxed));
        shared.ended();
    }
}

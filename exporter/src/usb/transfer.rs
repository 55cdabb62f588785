// SPDX-License-Identifier: GPL-3.0-or-later
//! Asynchronous transfers of libusb.
//!
//! Why unsafe: rusb has no asynchronous interface. Why sound: libusb's transfer and its buffer
//! belong to one [`UsbTransfer`]. While libusb has it, its box is libusb's `user_data` and nobody
//! else touches it; the callback makes the box again and hands it over through [`Shared`]. Only the
//! thread of the sessions frees one, in [`Pool`] or in `Open::drain`, after it removed the
//! [`InFlight`] with the pointer that `cancel` uses.

use std::os::raw::{c_int, c_uchar};
use std::ptr::NonNull;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusb::constants::{
    LIBUSB_ERROR_NO_DEVICE, LIBUSB_TRANSFER_ADD_ZERO_PACKET, LIBUSB_TRANSFER_CANCELLED,
    LIBUSB_TRANSFER_COMPLETED, LIBUSB_TRANSFER_NO_DEVICE, LIBUSB_TRANSFER_OVERFLOW,
    LIBUSB_TRANSFER_STALL, LIBUSB_TRANSFER_TIMED_OUT,
};
use rusb::ffi::{
    libusb_alloc_transfer, libusb_cancel_transfer, libusb_free_transfer, libusb_submit_transfer,
    libusb_transfer,
};
use session::Epoch;
use session::frame::{FLAG_ZERO_PACKET, Transfer, TransferStatus, TransferType};
use tokio::sync::Notify;

use super::handle::Handle;
use super::short_is_error;

/// Bytes of a SETUP packet, which is at the front of a control transfer's buffer.
const SETUP_LEN: usize = 8;
/// Bytes of every buffer: the longest data stage and a SETUP packet.
const BUFFER_LEN: usize = 65_536 + SETUP_LEN;
/// How long cancelled transfers may take to come back.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// Whose transfer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    pub(super) epoch: Epoch,
    pub(super) request: u64,
}

/// What is over.
pub(super) enum Finished {
    Transfer(Box<UsbTransfer>),
    Operation { tag: Tag, status: TransferStatus },
}

/// An open device, and what the event thread has for it.
pub(super) struct Shared {
    // Before the handle, so that transfers are freed before it is closed.
    finished: Mutex<Vec<Finished>>,
    handle: Handle,
    wake: Mutex<Option<Arc<Notify>>>,
    /// Transfers that libusb has.
    in_flight: Mutex<usize>,
    idle: Condvar,
}

impl Shared {
    pub(super) fn new(handle: Handle) -> Self {
        Self {
            handle,
            finished: Mutex::default(),
            wake: Mutex::default(),
            in_flight: Mutex::new(0),
            idle: Condvar::new(),
        }
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    pub(super) fn set_wake(&self, wake: Option<Arc<Notify>>) {
        if let Some(wake) = &wake {
            // What came while nobody listened.
            wake.notify_one();
        }
        *lock(&self.wake) = wake;
    }

    pub(super) fn finish(&self, finished: Finished) {
        lock(&self.finished).push(finished);
        if let Some(wake) = &*lock(&self.wake) {
            wake.notify_one();
        }
    }

    /// Moves all that is over to the empty `into`, and takes its memory for what comes.
    pub(super) fn take_finished(&self, into: &mut Vec<Finished>) {
        debug_assert!(into.is_empty());
        std::mem::swap(&mut *lock(&self.finished), into);
    }

    /// Waits until libusb has no transfer any more. Blocks; the transfers are to be cancelled
    /// before.
    pub(super) fn wait_until_idle(&self) {
        let in_flight = lock(&self.in_flight);
        // After the timeout the handle just stays open until the last transfer is back.
        let _ = self
            .idle
            .wait_timeout_while(in_flight, IDLE_TIMEOUT, |n| *n > 0);
    }

    fn started(&self) {
        *lock(&self.in_flight) += 1;
    }

    fn ended(&self) {
        let mut in_flight = lock(&self.in_flight);
        *in_flight -= 1;
        if *in_flight == 0 {
            self.idle.notify_all();
        }
    }
}

/// A panic while one of these is held cannot leave anything half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A transfer of libusb with its buffer.
pub(super) struct UsbTransfer {
    raw: NonNull<libusb_transfer>,
    buffer: Box<[u8]>,
    tag: Tag,
    is_control: bool,
    is_in: bool,
    /// Bytes of data asked for.
    length: usize,
    short_is_error: bool,
    /// While libusb has it.
    shared: Option<Arc<Shared>>,
}

// SAFETY: libusb's transfers may be used from any thread, one at a time, and nothing in here is
// tied to a thread.
unsafe impl Send for UsbTransfer {}

impl UsbTransfer {
    fn new() -> Option<Self> {
        // SAFETY: no arguments to get wrong; a null is looked for.
        let raw = NonNull::new(unsafe { libusb_alloc_transfer(0) })?;
        Some(Self {
            raw,
            buffer: vec![0; BUFFER_LEN].into_boxed_slice(),
            tag: Tag {
                epoch: Epoch::default(),
                request: 0,
            },
            is_control: false,
            is_in: false,
            length: 0,
            short_is_error: false,
            shared: None,
        })
    }

    pub(super) fn tag(&self) -> Tag {
        self.tag
    }

    /// Bytes of data that were moved.
    pub(super) fn actual_length(&self) -> u32 {
        // SAFETY: libusb does not have it (we do), and `raw` lives as long as we do.
        let actual = unsafe { (*self.raw.as_ptr()).actual_length };
        u32::try_from(actual).unwrap_or(0).min(self.length as u32)
    }

    /// Whether it ended early, and that is an error to its submitter.
    pub(super) fn is_short(&self) -> bool {
        self.short_is_error && (self.actual_length() as usize) < self.length
    }

    /// How it ended, and the data of an IN transfer.
    pub(super) fn result(&self) -> (TransferStatus, &[u8]) {
        // SAFETY: as in `actual_length`.
        let status = match unsafe { (*self.raw.as_ptr()).status } {
            LIBUSB_TRANSFER_COMPLETED => TransferStatus::Completed,
            LIBUSB_TRANSFER_TIMED_OUT => TransferStatus::TimedOut,
            LIBUSB_TRANSFER_CANCELLED => TransferStatus::Cancelled,
            LIBUSB_TRANSFER_STALL => TransferStatus::Stall,
            LIBUSB_TRANSFER_NO_DEVICE => TransferStatus::NoDevice,
            LIBUSB_TRANSFER_OVERFLOW => TransferStatus::Overflow,
            _ => TransferStatus::Protocol,
        };
        let start = if self.is_control { SETUP_LEN } else { 0 };
        let len = match self.is_in {
            true => self.actual_length() as usize,
            false => 0,
        };
        (status, &self.buffer[start..start + len])
    }

    /// Makes it `transfer`, with the data of an OUT transfer. Returns the bytes that libusb may
    /// touch.
    fn prepare(&mut self, tag: Tag, transfer: &Transfer, body: &[u8]) -> usize {
        self.tag = tag;
        self.is_control = transfer.transfer_type == TransferType::Control;
        self.is_in = transfer.is_in();
        self.short_is_error = short_is_error(transfer);
        self.length = (transfer.length as usize).min(BUFFER_LEN - SETUP_LEN);
        let mut start = 0;
        if self.is_control {
            // The data stage is as long as the SETUP packet says; it must not be longer than what
            // the guest has room for, and the packet must tell the device the same.
            let announced = u16::from_le_bytes([transfer.setup[6], transfer.setup[7]]);
            let length = u16::try_from(self.length)
                .unwrap_or(u16::MAX)
                .min(announced);
            self.length = length.into();
            if length > 0 {
                self.is_in = transfer.setup[0] & 0x80 != 0;
            }
            start = SETUP_LEN;
            self.buffer[..SETUP_LEN].copy_from_slice(&transfer.setup);
            self.buffer[6..8].copy_from_slice(&length.to_le_bytes());
        }
        let total = start + self.length;
        if !self.is_in {
            let data = &body[..self.length.min(body.len())];
            self.buffer[start..start + data.len()].copy_from_slice(data);
            self.buffer[start + data.len()..total].fill(0);
        }
        total
    }
}

impl Drop for UsbTransfer {
    fn drop(&mut self) {
        debug_assert!(self.shared.is_none(), "freed while libusb has it");
        // SAFETY: libusb does not have it: while it has, the box is leaked and nobody drops it.
        unsafe { libusb_free_transfer(self.raw.as_ptr()) };
    }
}

/// A transfer that libusb has, or whose [`Finished`] was not looked at yet.
pub(super) struct InFlight {
    raw: NonNull<libusb_transfer>,
    tag: Tag,
}

impl InFlight {
    pub(super) fn tag(&self) -> Tag {
        self.tag
    }

    /// It will come back, unless it was about to, anyway.
    pub(super) fn cancel(&self) {
        // SAFETY: the transfer lives: it is freed only after this was removed (see the module).
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
        tag: Tag,
        transfer: &Transfer,
        body: &[u8],
    ) -> Result<InFlight, TransferStatus> {
        let mut boxed = match self.0.pop() {
            Some(boxed) => boxed,
            None => Box::new(UsbTransfer::new().ok_or(TransferStatus::Invalid)?),
        };
        let total = boxed.prepare(tag, transfer, body);
        boxed.shared = Some(shared.clone());
        shared.started();
        let raw = boxed.raw;
        let buffer = boxed.buffer.as_mut_ptr();
        let zero_packet = !transfer.is_in() && transfer.flags & FLAG_ZERO_PACKET != 0;
        let leaked = Box::into_raw(boxed);
        // SAFETY: `raw` is a transfer of libusb that libusb does not have. `buffer` is of
        // BUFFER_LEN bytes, of which `total` are no more, and it stays where it is and untouched
        // until the callback, since the box that owns it is leaked until then. The handle lives as
        // long as `shared`, of which the box holds a reference.
        let result = unsafe {
            let fields = &mut *raw.as_ptr();
            fields.dev_handle = shared.handle.as_raw();
            fields.flags = match zero_packet {
                true => LIBUSB_TRANSFER_ADD_ZERO_PACKET,
                false => 0,
            };
            fields.endpoint = transfer.endpoint;
            fields.transfer_type = transfer.transfer_type as c_uchar;
            fields.timeout = 0;
            fields.length = total as c_int;
            fields.actual_length = 0;
            fields.callback = completed;
            fields.user_data = leaked.cast();
            fields.buffer = buffer;
            fields.num_iso_packets = 0;
            libusb_submit_transfer(raw.as_ptr())
        };
        if result == 0 {
            return Ok(InFlight { raw, tag });
        }
        // SAFETY: libusb did not take it, so there will be no callback, and the box is ours again.
        let mut boxed = unsafe { Box::from_raw(leaked) };
        boxed.shared = None;
        shared.ended();
        self.0.push(boxed);
        Err(match result {
            LIBUSB_ERROR_NO_DEVICE => TransferStatus::NoDevice,
            _ => TransferStatus::Invalid,
        })
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

/// What an operation that failed looks like to the guest.
pub(super) fn status_of_error(error: rusb::Error) -> TransferStatus {
    match error {
        rusb::Error::NoDevice => TransferStatus::NoDevice,
        // libusb's word for a request that the device stalled.
        rusb::Error::Pipe | rusb::Error::NotFound | rusb::Error::InvalidParam => {
            TransferStatus::Stall
        }
        rusb::Error::Timeout => TransferStatus::TimedOut,
        _ => TransferStatus::Protocol,
    }
}

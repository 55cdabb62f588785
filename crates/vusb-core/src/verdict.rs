// SPDX-License-Identifier: GPL-3.0-or-later
//! What becomes of a request, and what it is answered with.

use usbif::{UrbResponse, UrbStatus};

use crate::Slot;

/// What is to be done with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a request without an answer blocks the guest"]
pub enum Verdict {
    /// Answer at once.
    Answer(UrbResponse),
    /// Submit it to the device of its port, then say so with [`Controller::submitted`](crate::Controller::submitted).
    /// Where it [sets the address](crate::Urb::sets_address), what a hand-off carries over is to be saved
    /// before.
    Submit(Slot),
    /// Keep it: [`Controller::release`](crate::Controller::release) will name it again.
    Hold(Slot),
    /// The guest has reset the port, which a real device must be told: reset it, and call
    /// [`Controller::reset_done`](crate::Controller::reset_done) when that is over. The request is held.
    Reset(Slot),
    /// Cancel this transfer in the device's session. Its completion answers both.
    Cancel(Slot),
    /// The cancelled request, which was in this slot, never left: answer both now.
    AnswerBoth(Slot, Answers),
}

impl Verdict {
    /// A request of this id is over at once.
    pub(crate) fn answer(id: u16, status: UrbStatus) -> Self {
        Self::Answer(UrbResponse::with_status(id, status))
    }
}

/// One or two answers, to be published together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answers {
    /// To the unlink, if there was one.
    pub unlink: Option<UrbResponse>,
    /// To the request.
    pub urb: UrbResponse,
}

/// What a request is answered with, apart from its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UrbResult {
    /// How it went.
    pub status: UrbStatus,
    /// Bytes transferred, 0 to 65,536.
    pub actual_length: u32,
    /// Isochronous: packets with an error.
    pub error_count: u32,
    /// Isochronous: the frame in which it started.
    pub start_frame: u16,
}

impl UrbResult {
    /// Nothing was transferred.
    pub const fn failed(status: UrbStatus) -> Self {
        Self::new(status, 0)
    }

    /// For all but isochronous requests.
    pub const fn new(status: UrbStatus, actual_length: u32) -> Self {
        Self {
            status,
            actual_length,
            error_count: 0,
            start_frame: 0,
        }
    }
}

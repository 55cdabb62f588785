// SPDX-License-Identifier: GPL-3.0-or-later
//! What a frame is.

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Backend: carry out a transfer.
    Submit = 1,
    /// Backend: cancel the transfer of this request number. It still completes, once.
    Cancel = 2,
    /// Exporter: a transfer is over.
    Complete = 3,
    /// Backend: nothing but the completion number received.
    Ack = 4,
    /// Backend: save this body as the lease's cookie.
    Cookie = 5,
    /// Backend: the guest is suspended, nothing is in flight; the lease becomes Frozen.
    Freeze = 6,
    /// Backend: the suspend was cancelled; the lease is Serving again.
    Thaw = 7,
    /// Backend: the domain is gone; the lease is Orphaned, or Saved after a Freeze, and the hold time starts.
    Orphan = 8,
    /// Backend: reset the device (USB 2.0 §7.1.7.5). Completes like a transfer.
    Reset = 9,
    /// Exporter: the device is gone. Everything in flight has completed.
    Gone = 10,
    /// Exporter: a newer epoch exists. Nothing follows.
    Fenced = 11,
    /// Either: are you there? Answered by [`Kind::Pong`].
    Ping = 12,
    /// Either: yes.
    Pong = 13,
    /// Backend: the frontend said `feature-resume=1` (the lease's `frontend_resumes` becomes true).
    ResumeYes = 14,
    /// Backend: the frontend took `feature-resume` back.
    ResumeNo = 15,
    /// Backend: cancel the transfer of this request number, whose submitter is suspended. What it
    /// brought or still brings is kept for the endpoint's next transfers, and an interrupt endpoint
    /// is polled until there is one. Unless it was acknowledged it may also have completed: the
    /// backend has not given, and will not give, its data to the guest.
    Keep = 16,
    /// Backend: cancel the transfer of this request number, whose submitter is suspended and uses
    /// whatever comes of it. Then, also where it is over already, poll its endpoint (an interrupt
    /// IN one) until there is a next transfer, which gets what the polls have brought.
    Recall = 17,
}

impl Kind {
    pub(super) fn from_u8(value: u8) -> Option<Self> {
        Some(match value {
            1 => Self::Submit,
            2 => Self::Cancel,
            3 => Self::Complete,
            4 => Self::Ack,
            5 => Self::Cookie,
            6 => Self::Freeze,
            7 => Self::Thaw,
            8 => Self::Orphan,
            9 => Self::Reset,
            10 => Self::Gone,
            11 => Self::Fenced,
            12 => Self::Ping,
            13 => Self::Pong,
            14 => Self::ResumeYes,
            15 => Self::ResumeNo,
            16 => Self::Keep,
            17 => Self::Recall,
            _ => return None,
        })
    }
}

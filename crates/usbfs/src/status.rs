// SPDX-License-Identifier: GPL-3.0-or-later
//! How a transfer ended, in the words of the kernel's `Documentation/driver-api/usb/error-codes.rst`.

/// How a transfer, or one of its isochronous packets, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// Done, perhaps with less data than was asked for.
    Completed,
    /// The endpoint answered STALL, or is halted.
    Stall,
    /// Taken back by the caller, or ended by an operation (a reset, another setting).
    Cancelled,
    /// The device sent more than was asked for (babble).
    Overflow,
    /// The device is gone.
    NoDevice,
    /// Bus errors that retries did not cure: CRC, bit stuffing, no answer in a transaction's time, an
    /// overrun of the host controller.
    Protocol,
    /// No answer in time.
    TimedOut,
    /// There is no such interface or endpoint (it was not asked).
    NoEndpoint,
    /// The bus has no room left for what this periodic endpoint needs.
    NoBandwidth,
    /// The kernel did not take it: malformed, the wrong type for this endpoint, too long.
    Invalid,
    /// The device is suspended.
    Suspended,
}

impl Status {
    /// Of a transfer that the kernel has given back with this `status`: 0, or an error number, which the
    /// kernel has negated.
    pub fn of_transfer(status: i32) -> Self {
        match status.checked_neg().unwrap_or(i32::MAX) {
            0 => Self::Completed,
            libc::EPIPE => Self::Stall,
            // EINPROGRESS: a packet whose turn had not come when its transfer was taken back.
            libc::ENOENT | libc::ECONNRESET | libc::EINPROGRESS => Self::Cancelled,
            libc::EOVERFLOW => Self::Overflow,
            libc::ENODEV | libc::ESHUTDOWN => Self::NoDevice,
            libc::ETIMEDOUT => Self::TimedOut,
            libc::EINVAL => Self::Invalid,
            // It asks for no error for short data, which is looked at by the length.
            libc::EREMOTEIO => Self::Completed,
            // EPROTO, EILSEQ, ETIME, ECOMM, ENOSR, EXDEV, and what the kernel may add.
            _ => Self::Protocol,
        }
    }

    /// Of a transfer that the kernel did not take, for the error number `errno`. ENOMEM has no word here: who
    /// has it tries again.
    pub fn of_submission(errno: i32) -> Self {
        match errno {
            libc::ENODEV | libc::ESHUTDOWN => Self::NoDevice,
            libc::EPIPE => Self::Stall,
            libc::ENOENT => Self::NoEndpoint,
            libc::ENOSPC => Self::NoBandwidth,
            libc::EHOSTUNREACH => Self::Suspended,
            _ => Self::Invalid,
        }
    }

    /// Of an operation (another configuration or setting, a halt to be cleared, a reset) that failed with
    /// `errno`.
    pub fn of_operation(errno: i32) -> Self {
        match errno {
            libc::ENODEV | libc::ESHUTDOWN => Self::NoDevice,
            libc::EPIPE => Self::Stall,
            libc::ETIMEDOUT => Self::TimedOut,
            libc::ENOENT | libc::EINVAL => Self::NoEndpoint,
            libc::ENOSPC => Self::NoBandwidth,
            libc::EHOSTUNREACH => Self::Suspended,
            _ => Self::Protocol,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfers() {
        for (errno, expected) in [
            (0, Status::Completed),
            (libc::EPIPE, Status::Stall),
            (libc::ENOENT, Status::Cancelled),
            (libc::ECONNRESET, Status::Cancelled),
            (libc::EINPROGRESS, Status::Cancelled),
            (libc::EOVERFLOW, Status::Overflow),
            (libc::ENODEV, Status::NoDevice),
            (libc::ESHUTDOWN, Status::NoDevice),
            (libc::ETIMEDOUT, Status::TimedOut),
            (libc::EPROTO, Status::Protocol),
            (libc::EILSEQ, Status::Protocol),
            (libc::ETIME, Status::Protocol),
            (libc::ECOMM, Status::Protocol),
            (libc::ENOSR, Status::Protocol),
            (libc::EXDEV, Status::Protocol),
            (libc::EINVAL, Status::Invalid),
            (libc::EREMOTEIO, Status::Completed),
            (7777, Status::Protocol),
        ] {
            assert_eq!(Status::of_transfer(-errno), expected, "{errno}");
        }
        assert_eq!(Status::of_transfer(i32::MIN), Status::Protocol);
    }

    #[test]
    fn submissions() {
        for (errno, expected) in [
            (libc::ENODEV, Status::NoDevice),
            (libc::ESHUTDOWN, Status::NoDevice),
            (libc::EPIPE, Status::Stall),
            (libc::ENOENT, Status::NoEndpoint),
            (libc::ENOSPC, Status::NoBandwidth),
            (libc::EHOSTUNREACH, Status::Suspended),
            (libc::EINVAL, Status::Invalid),
            (libc::EMSGSIZE, Status::Invalid),
            (libc::EFBIG, Status::Invalid),
            (libc::ENXIO, Status::Invalid),
        ] {
            assert_eq!(Status::of_submission(errno), expected, "{errno}");
        }
    }

    #[test]
    fn operations() {
        for (errno, expected) in [
            (libc::ENODEV, Status::NoDevice),
            (libc::EPIPE, Status::Stall),
            (libc::EINVAL, Status::NoEndpoint),
            (libc::ENOENT, Status::NoEndpoint),
            (libc::ETIMEDOUT, Status::TimedOut),
            (libc::ENOSPC, Status::NoBandwidth),
            (libc::EBUSY, Status::Protocol),
            (libc::EPROTO, Status::Protocol),
        ] {
            assert_eq!(Status::of_operation(errno), expected, "{errno}");
        }
    }
}

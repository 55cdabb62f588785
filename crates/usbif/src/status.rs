// SPDX-License-Identifier: GPL-3.0-or-later
//! How a request went.

/// The `status` of a response: 0 or a negative errno of Linux (`XENUSB_STATUS_*`).
///
/// Linux's `xen-hcd` knows the constants here and takes every other value as
/// [`SHUTDOWN`](Self::SHUTDOWN), so a backend must not send others:
///
/// - a short transfer is [`OK`](Self::OK) with the true `actual_length`, also under
///   [`crate::SHORT_NOT_OK`]: the guest's USB core itself turns it into `-EREMOTEIO`;
/// - the frontend overrides the status of a URB that it unlinked with the reason for unlinking
///   (`-ECONNRESET` or `-ENOENT`), whatever the response says; QEMU's backend sends
///   [`IOERROR`](Self::IOERROR). The answer to the unlink itself is ignored apart from its id;
/// - for timeouts, CRC errors and bit stuffing (`-ETIMEDOUT`, `-EILSEQ`) there is only
///   [`IOERROR`](Self::IOERROR).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UrbStatus(pub i32);

impl UrbStatus {
    /// Done; `actual_length` says how much.
    pub const OK: Self = Self(0);
    /// No such device (`-ENODEV`).
    pub const NODEV: Self = Self(-19);
    /// The request makes no sense (`-EINVAL`).
    pub const INVAL: Self = Self(-22);
    /// The endpoint stalled (`-EPIPE`).
    pub const STALL: Self = Self(-32);
    /// The transfer failed on the bus, or was cancelled (`-EPROTO`).
    pub const IOERROR: Self = Self(-71);
    /// The device sent more than was asked for (`-EOVERFLOW`).
    pub const BABBLE: Self = Self(-75);
    /// The device or the controller is going away (`-ESHUTDOWN`).
    pub const SHUTDOWN: Self = Self(-108);

    /// Whether `xen-hcd` knows this value.
    pub const fn is_defined(self) -> bool {
        matches!(
            self,
            Self::OK
                | Self::NODEV
                | Self::INVAL
                | Self::STALL
                | Self::IOERROR
                | Self::BABBLE
                | Self::SHUTDOWN
        )
    }

    /// Whether the transfer succeeded.
    pub const fn is_ok(self) -> bool {
        self.0 == 0
    }
}

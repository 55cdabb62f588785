// SPDX-License-Identifier: GPL-3.0-or-later
//! What can go wrong.

use std::io;

use usbif::BadRequest;
use xen::GrantError;

use crate::{SubmitError, TransferError};

/// Why an operation of a [`crate::UsbHost`] failed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Pages could not be granted.
    #[error("granting pages to the backend")]
    Grant(#[from] GrantError),
    /// The event channel.
    #[error("event channel to the backend")]
    Channel(#[source] io::Error),
    /// There are no rings yet, or no more.
    #[error("the controller is not connected to a backend")]
    NotConnected,
    /// The URB was not taken.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The URB failed.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// The URB does not fit in a request.
    #[error(transparent)]
    Request(#[from] BadRequest),
    /// The slice is not within its buffer.
    #[error("bytes {offset} to {end} of a buffer of {len}")]
    OutsideBuffer {
        /// First byte.
        offset: usize,
        /// One past the last byte.
        end: usize,
        /// The buffer's length.
        len: usize,
    },
    /// There was no answer in time. The URB was unlinked.
    #[error("no answer within {0:?}")]
    TimedOut(std::time::Duration),
    /// The device described itself wrongly, or not at all.
    #[error("device descriptor: {0}")]
    Descriptor(&'static str),
}

/// Why a [`crate::Frontend`] could not connect.
#[derive(Debug, thiserror::Error)]
pub enum FrontendError {
    /// Xenstore.
    #[error("xenstore")]
    Store(#[from] xen::xenstore::Error),
    /// A node that is not what it should be.
    #[error("xenstore node {path} is {value:?}")]
    Node {
        /// Which.
        path: String,
        /// Its value; `None` when it does not exist.
        value: Option<String>,
    },
    /// The backend did not get ready.
    #[error("the backend's state is {state} after {timeout:?}")]
    Backend {
        /// Its `XenbusState`; 0 when unknown.
        state: u32,
        /// How long we waited.
        timeout: std::time::Duration,
    },
    /// The rings.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The runtime for talking to xenstore.
    #[error("starting the xenstore client")]
    Runtime(#[from] io::Error),
}

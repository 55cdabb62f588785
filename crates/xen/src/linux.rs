// SPDX-License-Identifier: GPL-3.0-or-later
//! The adapter for Linux, over the kernel's own devices: `/dev/xen/gntdev`, `/dev/xen/gntalloc`
//! and `/dev/xen/evtchn`. No library of Xen is needed.

mod backend;
mod evtchn;
mod guest;

pub use backend::{LinuxMapping, LinuxXen};
pub use evtchn::LinuxChannel;
pub use guest::{LinuxGuest, LinuxPages};

use std::io;
use std::path::PathBuf;

use crate::{Access, GrantError};

/// Why this host's Xen cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The grant device cannot be opened.
    #[error(transparent)]
    Grants(#[from] xengnttab::Error),
    /// The event-channel device cannot be opened.
    #[error(
        "cannot open {}: event channels take root, a domain of Xen and the kernel module \
         xen-evtchn (run 'modprobe xen-evtchn')",
        path.display()
    )]
    EventChannels {
        /// The device.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl From<Access> for xengnttab::Access {
    fn from(access: Access) -> xengnttab::Access {
        match access {
            Access::ReadOnly => xengnttab::Access::ReadOnly,
            Access::ReadWrite => xengnttab::Access::ReadWrite,
        }
    }
}

impl From<xengnttab::Error> for GrantError {
    fn from(error: xengnttab::Error) -> GrantError {
        GrantError::Host(error.into())
    }
}

/// Delegates [`crate::Mapping`] to the memory of what the tuple struct wraps.
macro_rules! impl_mapping {
    ($wrapper:ty) => {
        impl crate::Mapping for $wrapper {
            fn len_bytes(&self) -> usize {
                self.0.memory().len_bytes()
            }

            fn read(&self, offset: usize, dst: &mut [u8]) {
                self.0.memory().read(offset, dst);
            }

            fn write(&self, offset: usize, src: &[u8]) {
                self.0.memory().write(offset, src);
            }

            fn load_acquire(&self, offset: usize) -> u32 {
                self.0.memory().load_acquire(offset)
            }

            fn store_release(&self, offset: usize, value: u32) {
                self.0.memory().store_release(offset, value);
            }
        }
    };
}
use impl_mapping;

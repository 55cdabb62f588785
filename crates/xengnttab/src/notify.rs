// SPDX-License-Identifier: GPL-3.0-or-later
//! What the kernel does when a mapping goes away, whatever the reason.

use crate::abi::{
    SET_UNMAP_NOTIFY, SetUnmapNotify, UNMAP_NOTIFY_CLEAR_BYTE, UNMAP_NOTIFY_SEND_EVENT,
};
use crate::device::Device;
use crate::{Error, PAGE_SIZE};

/// What the kernel is to do when the mapping is undone, also by the end of the process. Neither
/// of the two: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnmapNotify {
    /// Clear the byte at this offset of the mapping.
    pub clear_byte: Option<usize>,
    /// Signal this local event channel, which must be bound. The kernel holds a reference to it
    /// until then.
    pub send_event: Option<u32>,
}

impl UnmapNotify {
    /// Tells the kernel, for the mapping of `len_bytes` that starts at `index` of the device's
    /// file.
    pub(crate) fn set(self, device: &Device, index: u64, len_bytes: usize) -> Result<(), Error> {
        let argument = self.argument(index, len_bytes)?;
        let mut argument = argument;
        // SAFETY: the structure of this ioctl, and it holds no pointers.
        unsafe {
            device.ioctl(
                "SET_UNMAP_NOTIFY",
                SET_UNMAP_NOTIFY,
                (&raw mut argument).cast(),
            )
        }
    }

    fn argument(self, index: u64, len_bytes: usize) -> Result<SetUnmapNotify, Error> {
        let offset = self.clear_byte.unwrap_or(0);
        if offset >= len_bytes {
            return Err(Error::OutOfRange { offset, len_bytes });
        }
        debug_assert!(index.is_multiple_of(PAGE_SIZE as u64));
        let mut action = 0;
        if self.clear_byte.is_some() {
            action |= UNMAP_NOTIFY_CLEAR_BYTE;
        }
        if self.send_event.is_some() {
            action |= UNMAP_NOTIFY_SEND_EVENT;
        }
        Ok(SetUnmapNotify {
            index: index + offset as u64,
            action,
            event_channel_port: self.send_event.unwrap_or(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_is_named_by_its_offset_in_the_file() {
        let notify = UnmapNotify {
            clear_byte: Some(4099),
            send_event: Some(7),
        };
        let argument = notify.argument(0x8000, 8192).unwrap();
        assert_eq!(argument.index, 0x9003);
        assert_eq!(argument.action, 3);
        assert_eq!(argument.event_channel_port, 7);
    }

    #[test]
    fn nothing_clears_an_earlier_notification() {
        let argument = UnmapNotify::default().argument(0x1000, 4096).unwrap();
        assert_eq!((argument.index, argument.action), (0x1000, 0));
    }

    #[test]
    fn a_byte_outside_the_mapping_is_refused() {
        let notify = UnmapNotify {
            clear_byte: Some(4096),
            send_event: None,
        };
        let error = notify.argument(0, 4096).unwrap_err();
        assert!(matches!(
            error,
            Error::OutOfRange {
                offset: 4096,
                len_bytes: 4096
            }
        ));
    }
}

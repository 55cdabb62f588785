// SPDX-License-Identifier: GPL-3.0-or-later
//! Whether this machine uses a USB device itself: lending it would take a disk away under its file
//! system, or this machine off its network.
//!
//! [`Snapshot::read`] reads /sys and /proc, and asks no device: no attribute among them takes the USB
//! device's lock. Everything else works on what was read.
//!
//! - `disk`: file systems, swap, and what is stacked on block devices;
//! - `network`: adapters with routes; `console`: the only keyboard, and serial consoles.

mod console;
mod disk;
mod network;
mod snapshot;
#[cfg(test)]
mod tests;

use std::path::Path;

use session::lease::Policy;
use session::{DeviceId, DeviceInfo, DeviceState};

pub(crate) use snapshot::{Mounts, Snapshot};

/// How this machine uses a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// It loses data or its network without the device. The text says what uses it, and what to do.
    Needed(String),
    /// It is the only keyboard at a screen: perhaps it is here to be lent.
    OnlyKeyboard,
}

impl Use {
    /// The reason that the device is not lent, for people.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::Needed(by) => format!("this machine uses it: {by}"),
            Self::OnlyKeyboard => {
                "it is the only keyboard of this machine, which has a screen; an [[allow]] \
                 that names it by BUS-PORT or VID:PID lends it all the same"
                    .to_owned()
            }
        }
    }
}

impl Snapshot {
    /// How this machine uses the device; `None` where it does not, or there is none.
    pub(crate) fn user(&self, device: &DeviceId) -> Option<Use> {
        let path = self.devices.get(&device.0)?;
        let needed = disk::user(self, path)
            .or_else(|| network::user(self, path))
            .or_else(|| console::serial(self, path));
        match needed {
            Some(by) => Some(Use::Needed(by)),
            None => console::is_only_keyboard(self, path).then_some(Use::OnlyKeyboard),
        }
    }
}

/// Says of those devices that this machine uses that they cannot be lent, and why. The only keyboard can
/// where a rule names it: on a machine that lends keyboards it is plugged in for that.
pub(crate) fn mark(devices: &mut [DeviceInfo], now: &Snapshot, policy: &Policy) {
    for device in devices {
        let named = policy.names(device);
        let used = now
            .user(&device.id)
            .filter(|used| !named || *used != Use::OnlyKeyboard);
        if let (DeviceState::Free, Some(used)) = (&device.state, used) {
            device.state = DeviceState::Unavailable {
                reason: used.reason(),
            };
        }
    }
}

/// What keeps a device from being opened: asked again when it is about to be, of every process's mounts.
pub(crate) fn needed_by(device: &DeviceId) -> Option<String> {
    let now = Snapshot::read(Path::new("/"), Mounts::OfAll);
    match now.user(device) {
        Some(used @ Use::Needed(_)) => Some(used.reason()),
        // Where the policy allows it, it was lent.
        Some(Use::OnlyKeyboard) | None => None,
    }
}

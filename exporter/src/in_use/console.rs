// SPDX-License-Identifier: GPL-3.0-or-later
//! What an administrator of this machine sits at.

use std::path::Path;

use super::snapshot::Snapshot;

/// Whether without the USB device in this directory nobody could type at this machine's screen.
pub(super) fn is_only_keyboard(snapshot: &Snapshot, device: &Path) -> bool {
    let all = &snapshot.keyboards;
    snapshot.has_screen && !all.is_empty() && all.iter().all(|path| path.starts_with(device))
}

/// The kernel's console at a serial port of the USB device.
pub(super) fn serial(snapshot: &Snapshot, device: &Path) -> Option<String> {
    let mut consoles = snapshot.consoles.iter();
    let (name, _) = consoles.find(|(_, path)| path.starts_with(device))?;
    Some(format!(
        "{name} is a console of its kernel; take console={name} from the kernel's command line first"
    ))
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! What is plugged in.

use std::fs;
use std::path::{Path, PathBuf};

use rusb::{Context, Device};
use session::{DeviceId, DeviceInfo, DeviceState, Speed};

use crate::executor::HUB_REASON;

const HUB: u8 = 9;

/// The device at `id` as it is listed; `None` for one that has just gone.
pub(super) fn describe(device: &Device<Context>, id: &DeviceId) -> Option<DeviceInfo> {
    let descriptor = device.device_descriptor().ok()?;
    let sysfs = sysfs(id);
    let mut classes = Vec::new();
    let mut add = |class: u8| {
        if class != 0 && !classes.contains(&class) {
            classes.push(class);
        }
    };
    add(descriptor.class_code());
    // Not configured yet, then what it will be; or its descriptors are nonsense, then there is no class
    // to be known.
    let configuration = device
        .active_config_descriptor()
        .or_else(|_| device.config_descriptor(0));
    if let Ok(configuration) = configuration {
        for interface in configuration.interfaces() {
            for setting in interface.descriptors() {
                add(setting.class_code());
            }
        }
    }
    let names = [text(&sysfs, "manufacturer"), text(&sysfs, "product")];
    let names: Vec<_> = names.into_iter().flatten().collect();
    let speed = speed(device.speed());
    let uas_only = speed == Some(Speed::Super)
        && fs::read(sysfs.join("descriptors")).is_ok_and(|d| speaks_uas_only(&d));
    let state = match unavailable(uas_only, &classes) {
        Some(reason) => DeviceState::Unavailable { reason },
        None => DeviceState::Free,
    };
    Some(DeviceInfo {
        vendor: descriptor.vendor_id(),
        product: descriptor.product_id(),
        serial: text(&sysfs, "serial"),
        name: names.join(" "),
        speed: speed.unwrap_or(Speed::Full),
        classes,
        state,
        id: id.clone(),
    })
}

fn sysfs(id: &DeviceId) -> PathBuf {
    Path::new("/sys/bus/usb/devices").join(&id.0)
}

/// Where it is plugged in, in the words of sysfs; `None` for a root hub.
pub(super) fn place(device: &Device<Context>) -> Option<DeviceId> {
    let ports = device.port_numbers().ok()?;
    let (first, rest) = ports.split_first()?;
    let mut id = format!("{}-{first}", device.bus_number());
    for port in rest {
        id.push_str(&format!(".{port}"));
    }
    Some(DeviceId(id))
}

/// A string that the kernel read when the device was plugged in. Reading it from the device again
/// could disturb who uses it.
fn text(sysfs: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(sysfs.join(name)).ok()?;
    let text: String = text.trim().chars().filter(|c| !c.is_control()).collect();
    (!text.is_empty()).then_some(text)
}

fn speed(speed: rusb::Speed) -> Option<Speed> {
    match speed {
        rusb::Speed::Low => Some(Speed::Low),
        rusb::Speed::Full => Some(Speed::Full),
        rusb::Speed::High => Some(Speed::High),
        rusb::Speed::Super | rusb::Speed::SuperPlus => Some(Speed::Super),
        _ => None,
    }
}

/// Whether the kernel has configured it, which it does soon after it was plugged in. There are devices
/// that it never configures.
pub(super) fn is_configured(id: &DeviceId) -> bool {
    configuration(id).is_some()
}

/// bConfigurationValue of the configuration that is active; `None` for none. The kernel may be busy with the device, then this
/// waits for that.
pub(super) fn configuration(id: &DeviceId) -> Option<u8> {
    text(&sysfs(id), "bConfigurationValue")?.parse().ok()
}

/// The device descriptor and all configurations, as the device gave them.
pub(super) fn descriptors(id: &DeviceId) -> Option<Vec<u8>> {
    fs::read(sysfs(id).join("descriptors")).ok()
}

/// Whether nothing of a SuperSpeed device is left without UAS, for which PV USB has no streams. It is
/// asked of its descriptors as sysfs has them: of the device, and of its configurations.
fn speaks_uas_only(descriptors: &[u8]) -> bool {
    const DEVICE_LEN: usize = 18;
    let Some(configuration @ &[_, _, low, high, ..]) = descriptors.get(DEVICE_LEN..) else {
        return false;
    };
    let total = usize::from(u16::from_le_bytes([low, high]));
    let configuration = &configuration[..configuration.len().min(total)];
    let mut presented = configuration.to_vec();
    let len = usb_present::configuration(&mut presented);
    // bNumInterfaces
    usb_present::uas_only_interface(configuration).is_some() && len >= 9 && presented[4] == 0
}

/// Why it can never be lent.
fn unavailable(uas_only: bool, classes: &[u8]) -> Option<String> {
    if classes.contains(&HUB) {
        return Some(HUB_REASON.to_owned());
    }
    uas_only.then(|| {
        "it runs at SuperSpeed and speaks UAS only, which needs streams that PV USB has not; plug it \
         into a USB 2.0 port or hub"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use usb_sim::{Disk, Function, MemoryStorage};

    use super::*;

    #[test]
    fn a_disk_with_a_setting_besides_uas_can_be_lent() {
        let disk = Disk::super_speed(MemoryStorage::new(4096), "1", true);
        let descriptors = disk.descriptors();
        let mut bytes = [&*descriptors.device, &*descriptors.configurations[0]].concat();
        assert!(!speaks_uas_only(&bytes));
        // Its first setting is for UAS, too.
        let protocol = 18 + 9 + 7;
        assert_eq!(bytes[protocol - 2..=protocol], [8, 6, 0x50]);
        bytes[protocol] = 0x62;
        assert!(speaks_uas_only(&bytes));
        for len in 0..bytes.len() {
            // Whatever a device leaves out
            let _ = speaks_uas_only(&bytes[..len]);
        }
    }

    #[test]
    fn hubs_are_not_lent() {
        assert!(unavailable(false, &[3, HUB]).is_some());
        assert!(unavailable(true, &[8]).is_some());
        assert_eq!(unavailable(false, &[8, 3]), None);
    }
}

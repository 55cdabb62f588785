// SPDX-License-Identifier: GPL-3.0-or-later
//! A device's descriptors, to be compared with those of the device that comes back.

use session::{DeviceInfo, Digest, Speed};
use sha2::{Digest as _, Sha256};

const DEVICE_LEN: usize = 18;

/// The digest of everything that a guest has read of a device: its speed and its strings, the device
/// descriptor, all configurations and the BOS (USB 2.0 §9.6, USB 3.2 §9.6.2; empty for none). Those of a
/// SuperSpeed device count as they are presented.
pub(crate) fn digest<C: AsRef<[u8]>>(
    info: &DeviceInfo,
    device: &[u8],
    configurations: impl IntoIterator<Item = C>,
    bos: &[u8],
) -> Digest {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        // So that no two lists of parts are the same bytes.
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    let is_super = info.speed == Speed::Super;
    let speed = match info.speed {
        Speed::Low => 1,
        Speed::Full => 2,
        Speed::High | Speed::Super => 3,
    };
    part(&[speed]);
    part(info.name.as_bytes());
    part(info.serial.as_deref().unwrap_or_default().as_bytes());
    let mut device = device.to_vec();
    if is_super {
        let len = usb_present::device(&mut device);
        device.truncate(len);
    }
    part(&device);
    // A guest of such a device is not shown one.
    part(if is_super { &[] } else { bos });
    for configuration in configurations {
        let mut configuration = configuration.as_ref().to_vec();
        if is_super {
            let len = usb_present::configuration(&mut configuration);
            configuration.truncate(len);
        }
        part(&configuration);
    }
    Digest(hash.finalize().into())
}

/// The device descriptor and the configurations in what sysfs has as a device's `descriptors`. `None` where
/// that is not what it should be.
pub(crate) fn split(raw: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let (device, mut rest) = raw.split_at_checked(DEVICE_LEN)?;
    let mut configurations = Vec::new();
    while !rest.is_empty() {
        let &[_, 2, low, high, ..] = rest else {
            return None;
        };
        let (configuration, after) =
            rest.split_at_checked(usize::from(u16::from_le_bytes([low, high])).max(4))?;
        configurations.push(configuration);
        rest = after;
    }
    (configurations.len() == usize::from(device[DEVICE_LEN - 1]))
        .then_some((device, configurations))
}

#[cfg(test)]
mod tests {
    use session::{DeviceId, DeviceState};
    use usb_sim::{Disk, Function, MemoryStorage};

    use super::*;

    fn info(speed: Speed) -> DeviceInfo {
        DeviceInfo {
            id: DeviceId("1-1".into()),
            vendor: 1,
            product: 2,
            serial: Some("1".into()),
            name: "stick".into(),
            speed,
            classes: vec![8],
            state: DeviceState::Free,
        }
    }

    #[test]
    fn every_byte_counts_and_the_place_does_not() {
        let high = info(Speed::High);
        let of = |info: &DeviceInfo, device: &[u8], configurations: &[&[u8]], bos: &[u8]| {
            digest(info, device, configurations, bos)
        };
        let one = of(&high, &[1, 2], &[&[3, 4], &[5]], &[6]);
        let elsewhere = DeviceInfo {
            id: DeviceId("2-7".into()),
            ..high.clone()
        };
        assert_eq!(one, of(&elsewhere, &[1, 2], &[&[3, 4], &[5]], &[6]));
        let full = info(Speed::Full);
        let renamed = DeviceInfo {
            name: "Stick".into(),
            ..high.clone()
        };
        let others = [
            of(&high, &[1, 3], &[&[3, 4], &[5]], &[6]),
            of(&high, &[1, 2], &[&[3, 4], &[6]], &[6]),
            of(&high, &[1, 2], &[&[3], &[4, 5]], &[6]),
            of(&high, &[1, 2], &[&[3, 4]], &[6]),
            of(&high, &[1, 2], &[&[3, 4], &[5]], &[]),
            of(&full, &[1, 2], &[&[3, 4], &[5]], &[6]),
            of(&renamed, &[1, 2], &[&[3, 4], &[5]], &[6]),
        ];
        assert!(others.iter().all(|other| *other != one));
    }

    #[test]
    fn a_superspeed_device_counts_as_it_is_presented() {
        let disk = Disk::super_speed(MemoryStorage::new(4096), "1", true);
        let of = disk.descriptors();
        let bos = digest(&info(Speed::Super), &of.device, &of.configurations, &of.bos);
        assert_eq!(
            bos,
            digest(&info(Speed::Super), &of.device, &of.configurations, &[])
        );
        assert_ne!(
            bos,
            digest(&info(Speed::High), &of.device, &of.configurations, &[])
        );
    }

    #[test]
    fn what_sysfs_has_is_split_and_never_trusted() {
        let disk = Disk::super_speed(MemoryStorage::new(4096), "1", true);
        let of = disk.descriptors();
        let raw = [&*of.device, &*of.configurations[0]].concat();
        assert_eq!(
            split(&raw),
            Some((&*of.device, vec![&*of.configurations[0]]))
        );
        for len in 0..raw.len() {
            assert_eq!(split(&raw[..len]), None, "{len}");
        }
        let mut wrong = raw.clone();
        (wrong[20], wrong[21]) = (0, 0);
        assert_eq!(split(&wrong), None);
    }
}

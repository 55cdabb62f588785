// SPDX-License-Identifier: GPL-3.0-or-later
//! Devices by name.

use std::str::FromStr;

use session::Speed;
use usb_sim::{Audio, Device, Disk, Keyboard, MemoryStorage, Pattern, SerialLoop, SourceSink};

/// A device to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Disk {
        mib: usize,
    },
    /// At SuperSpeed, with descriptors for UAS.
    SuperDisk {
        mib: usize,
    },
    Keyboard,
    Serial,
    SourceSink {
        pattern: Pattern,
        speed: Speed,
    },
    Audio,
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, option) = match text.split_once(':') {
            Some((name, option)) => (name, Some(option)),
            None => (text, None),
        };
        let pattern = || match option {
            None | Some("zero") => Ok(Pattern::Zero),
            Some("mod63") => Ok(Pattern::Mod63),
            Some("none") => Ok(Pattern::None),
            Some(other) => Err(format!("no pattern '{other}': zero, mod63, none")),
        };
        let mib = || match option.map(str::parse) {
            None => Ok(64),
            Some(Ok(mib @ 1..=65_536)) => Ok(mib),
            Some(_) => Err(format!("no size in MiB in '{text}'")),
        };
        match (name, option) {
            ("disk", _) => Ok(Self::Disk { mib: mib()? }),
            ("super-disk", _) => Ok(Self::SuperDisk { mib: mib()? }),
            ("keyboard", None) => Ok(Self::Keyboard),
            ("serial", None) => Ok(Self::Serial),
            ("audio", None) => Ok(Self::Audio),
            ("source-sink", _) => Ok(Self::SourceSink {
                pattern: pattern()?,
                speed: Speed::High,
            }),
            ("source-sink-full", _) => Ok(Self::SourceSink {
                pattern: pattern()?,
                speed: Speed::Full,
            }),
            _ => Err(format!("no device '{text}'")),
        }
    }
}

impl Kind {
    /// The device, with a serial number made from its own.
    pub(crate) fn make(&self, number: u32) -> Device {
        let serial = format!("{number:012X}");
        match self {
            Self::Disk { mib } => {
                let storage = MemoryStorage::new(mib << 20);
                Device::Disk(Disk::new(storage, &serial))
            }
            Self::SuperDisk { mib } => {
                let storage = MemoryStorage::new(mib << 20);
                Device::Disk(Disk::super_speed(storage, &serial, true))
            }
            Self::Keyboard => Device::Keyboard(Keyboard::new(&serial)),
            Self::Serial => Device::Serial(SerialLoop::new(&serial)),
            Self::SourceSink { pattern, speed } => {
                Device::SourceSink(SourceSink::new(*pattern, *speed, &serial))
            }
            Self::Audio => Device::Audio(Audio::new(&serial)),
        }
    }
}

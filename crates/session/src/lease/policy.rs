// SPDX-License-Identifier: GPL-3.0-or-later
//! Who may hold which device. Without a rule that allows it: nobody.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

use super::AttachRule;
use crate::{DeviceId, DeviceInfo, DeviceSelector, ParseSelectorError, VmUuid};

/// One thing, or `*` for all.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Match<T> {
    /// All.
    Any,
    /// This one.
    Only(T),
}

impl<T> Match<T> {
    fn matches(&self, is: impl FnOnce(&T) -> bool) -> bool {
        match self {
            Self::Any => true,
            Self::Only(one) => is(one),
        }
    }
}

impl<T: FromStr> FromStr for Match<T> {
    type Err = T::Err;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "*" => Ok(Self::Any),
            s => s.parse().map(Self::Only),
        }
    }
}

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Match<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Which devices.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DeviceMatch {
    /// All.
    Any,
    /// By place or by what it is.
    Device(DeviceSelector),
    /// Any interface is of this class, or the device is.
    Class(u8),
}

impl DeviceMatch {
    pub(super) fn matches(&self, device: &DeviceInfo) -> bool {
        match self {
            Self::Any => true,
            Self::Device(selector) => selector.matches(device),
            Self::Class(class) => device.classes.contains(class),
        }
    }
}

impl FromStr for DeviceMatch {
    type Err = ParseSelectorError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "*" => Ok(Self::Any),
            s => s.parse().map(Self::Device),
        }
    }
}

/// Which VMs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum VmMatch {
    /// All.
    Any,
    /// The one with this uuid.
    Uuid(VmUuid),
    /// Those that have this name when a device is attached to them.
    Name(String),
}

impl VmMatch {
    pub(super) fn matches(&self, vm: VmUuid, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Uuid(uuid) => *uuid == vm,
            Self::Name(wanted) => wanted == name,
        }
    }
}

impl FromStr for VmMatch {
    type Err = uuid::Error;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "*" => Ok(Self::Any),
            s => s.parse().map(Self::Uuid),
        }
    }
}

/// USB's classes (bInterfaceClass) by the words of the configuration.
const CLASSES: [(&str, u8); 11] = [
    ("audio", 0x01),
    ("communications", 0x02),
    ("hid", 0x03),
    ("image", 0x06),
    ("printer", 0x07),
    ("mass-storage", 0x08),
    ("smart-card", 0x0b),
    ("video", 0x0e),
    ("wireless", 0xe0),
    ("miscellaneous", 0xef),
    ("vendor", 0xff),
];

/// A class by its word, or two hexadecimal digits.
pub(super) fn class(text: &str) -> Result<u8, String> {
    if let Some((_, class)) = CLASSES.iter().find(|(word, _)| *word == text) {
        return Ok(*class);
    }
    let is_number = text.len() == 2 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let number = is_number.then(|| u8::from_str_radix(text, 16).ok());
    number.flatten().ok_or_else(|| {
        let words: Vec<_> = CLASSES.iter().map(|(word, _)| *word).collect();
        format!(
            "'{}' is no USB class: write two hexadecimal digits, or {}",
            text.escape_debug(),
            words.join(", ")
        )
    })
}

impl fmt::Display for DeviceMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("device = \"*\""),
            Self::Device(selector) => write!(f, "device = \"{selector}\""),
            Self::Class(class) => match CLASSES.iter().find(|(_, c)| c == class) {
                Some((word, _)) => write!(f, "class = \"{word}\""),
                None => write!(f, "class = \"{class:02x}\""),
            },
        }
    }
}

impl fmt::Display for VmMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("vm = \"*\""),
            Self::Uuid(vm) => write!(f, "vm = \"{vm}\""),
            Self::Name(name) => write!(f, "vm_name = \"{name}\""),
        }
    }
}

/// Allows what matches all three.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "Written")]
pub struct Allow {
    /// `device`, a `class` or a `port`.
    pub device: DeviceMatch,
    /// `vm` or `vm_name`.
    pub vm: VmMatch,
    /// The host's name in the pool, or `*`.
    pub host: Match<String>,
}

/// An [`Allow`] as it is written in the configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    /// `BUS-PORT`, `VID:PID[:SERIAL]` or `*`.
    device: Option<Match<DeviceSelector>>,
    class: Option<String>,
    /// `BUS-PORT`: whatever is plugged in there.
    port: Option<String>,
    /// The VM's uuid, or `*`.
    vm: Option<Match<VmUuid>>,
    vm_name: Option<String>,
    host: Match<String>,
}

impl TryFrom<Written> for Allow {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let Written {
            device,
            class: of_class,
            port,
            vm,
            vm_name,
            host,
        } = written;
        let device = match (device, of_class, port) {
            (Some(Match::Any), None, None) => DeviceMatch::Any,
            (Some(Match::Only(selector)), None, None) => DeviceMatch::Device(selector),
            (None, Some(text), None) => DeviceMatch::Class(class(&text)?),
            (None, None, Some(port)) => {
                let place = DeviceId::try_from(port).map_err(|e| {
                    format!(
                        "port: '{}' is no BUS-PORT, for example \"1-1.2\"",
                        e.0.escape_debug()
                    )
                })?;
                DeviceMatch::Device(DeviceSelector::Place(place))
            }
            _ => return Err("one of device, class and port is needed, and only one".to_owned()),
        };
        let vm = match (vm, vm_name) {
            (Some(Match::Any), None) => VmMatch::Any,
            (Some(Match::Only(uuid)), None) => VmMatch::Uuid(uuid),
            (None, Some(name)) if !name.is_empty() => VmMatch::Name(name),
            _ => return Err("one of vm and vm_name is needed, and only one".to_owned()),
        };
        Ok(Self { device, vm, host })
    }
}

impl Allow {
    /// Whether this can allow what a rule attaches, on some host. What a device is shows only when it is there,
    /// and a VM's name or uuid when it runs: then this says yes.
    pub fn may_allow(&self, rule: &AttachRule) -> bool {
        use DeviceMatch::{Class, Device};
        use DeviceSelector::{Kind, Place};
        let device = match (&self.device, &rule.device) {
            (
                Device(Kind {
                    vendor, product, ..
                }),
                Device(Kind {
                    vendor: v,
                    product: p,
                    ..
                }),
            ) => (vendor, product) == (v, p),
            (Device(Place(a)), Device(Place(b))) => a == b,
            (Class(a), Class(b)) => a == b,
            _ => true,
        };
        let vm = match (&self.vm, &rule.vm) {
            (VmMatch::Uuid(a), VmMatch::Uuid(b)) => a == b,
            (VmMatch::Name(a), VmMatch::Name(b)) => a == b,
            _ => true,
        };
        device && vm
    }

    fn host(&self, host: &str) -> bool {
        self.host.matches(|h| h == host)
    }
}

/// All that is allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(transparent)]
pub struct Policy {
    /// Any of these allows.
    pub allow: Vec<Allow>,
}

impl Policy {
    /// Whether `vm`, which has this name, may hold `device` on `host`.
    pub fn allows(&self, device: &DeviceInfo, vm: VmUuid, name: &str, host: &str) -> bool {
        let allows = |a: &Allow| a.host(host) && a.vm.matches(vm, name) && a.device.matches(device);
        self.allow.iter().any(allows)
    }

    /// Whether some VM on `host` may hold `device`.
    pub fn may_see(&self, device: &DeviceInfo, host: &str) -> bool {
        let sees = |a: &Allow| a.host(host) && a.device.matches(device);
        self.allow.iter().any(sees)
    }

    /// Whether a rule names `device`, by place or by what it is, and not only all devices or its class.
    pub fn names(&self, device: &DeviceInfo) -> bool {
        let names = |a: &Allow| matches!(&a.device, DeviceMatch::Device(d) if d.matches(device));
        self.allow.iter().any(names)
    }

    /// Whether `vm` on `host` may hold anything, whatever its name is.
    pub fn may_expect(&self, vm: VmUuid, host: &str) -> bool {
        let may = |a: &Allow| match &a.vm {
            VmMatch::Any | VmMatch::Name(_) => true,
            VmMatch::Uuid(uuid) => *uuid == vm,
        };
        self.allow.iter().any(|a| a.host(host) && may(a))
    }
}

#[cfg(test)]
mod tests;

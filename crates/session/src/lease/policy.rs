// SPDX-License-Identifier: GPL-3.0-or-later
//! Who may hold which device. Without a rule that allows it: nobody.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

use crate::{DeviceInfo, DeviceSelector, VmUuid};

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

/// Allows what matches all three.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allow {
    /// `BUS-PORT`, `VID:PID[:SERIAL]` or `*`.
    pub device: Match<DeviceSelector>,
    /// The VM's uuid, or `*`.
    pub vm: Match<VmUuid>,
    /// The host's name in the pool, or `*`.
    pub host: Match<String>,
}

impl Allow {
    fn host(&self, host: &str) -> bool {
        self.host.matches(|h| h == host)
    }

    fn vm(&self, vm: VmUuid) -> bool {
        self.vm.matches(|v| *v == vm)
    }

    fn device(&self, device: &DeviceInfo) -> bool {
        self.device.matches(|d| d.matches(device))
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
    /// Whether `vm` on `host` may hold `device`.
    pub fn allows(&self, device: &DeviceInfo, vm: VmUuid, host: &str) -> bool {
        let allows = |a: &Allow| a.host(host) && a.vm(vm) && a.device(device);
        self.allow.iter().any(allows)
    }

    /// Whether some VM on `host` may hold `device`.
    pub fn may_see(&self, device: &DeviceInfo, host: &str) -> bool {
        let sees = |a: &Allow| a.host(host) && a.device(device);
        self.allow.iter().any(sees)
    }

    /// Whether a rule names `device`, by place or by what it is, and does not only allow all devices.
    pub fn names(&self, device: &DeviceInfo) -> bool {
        let names = |a: &Allow| a.device != Match::Any && a.device(device);
        self.allow.iter().any(names)
    }

    /// Whether `vm` on `host` may hold anything.
    pub fn may_expect(&self, vm: VmUuid, host: &str) -> bool {
        self.allow.iter().any(|a| a.host(host) && a.vm(vm))
    }
}

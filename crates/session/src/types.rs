// SPDX-License-Identifier: GPL-3.0-or-later
//! Devices and leases, as both ends name them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Configured, Digest, Exchange};

/// Version of everything in this crate. Both ends must have the same.
pub const PROTOCOL_VERSION: u16 = 4;

/// A VM's uuid: what stays the same when its domid and host change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VmUuid(pub uuid::Uuid);

impl fmt::Display for VmUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for VmUuid {
    type Err = uuid::Error;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        s.parse().map(Self)
    }
}

/// A fencing number. It only grows; an exporter executes requests of the current one only.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A device's place on its exporter, as sysfs writes it: `BUS-PORT[.PORT…]`, for example
/// `1-2.3`. Simulated devices are on bus 0.
///
/// What is decoded is of this form, and so is nothing else: it goes into logs and file names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct DeviceId(pub String);

/// A bus, and no more ports than USB has hubs in a row (USB 2.0 §4.1.1).
fn is_place(text: &str) -> bool {
    const MAX_PORTS: usize = 7;
    let number = |s: &str| (1..=3).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_digit());
    text.split_once('-').is_some_and(|(bus, ports)| {
        number(bus) && ports.split('.').all(number) && ports.split('.').count() <= MAX_PORTS
    })
}

impl TryFrom<String> for DeviceId {
    type Error = ParseSelectorError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match is_place(&text) {
            true => Ok(Self(text)),
            false => Err(ParseSelectorError(text.chars().take(64).collect())),
        }
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How an administrator names a device of one exporter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DeviceSelector {
    /// By place: `1-2.3`.
    Place(DeviceId),
    /// By what it is: `VID:PID[:SERIAL]`, hexadecimal.
    Kind {
        /// idVendor.
        vendor: u16,
        /// idProduct.
        product: u16,
        /// The serial number string, where several are alike.
        #[serde(deserialize_with = "crate::text::optional")]
        serial: Option<String>,
    },
}

/// A device selector that is neither `BUS-PORT` nor `VID:PID[:SERIAL]`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{}' names no device: write BUS-PORT (1-2.3) or VID:PID[:SERIAL] (0951:1666:0123)", .0.escape_debug())]
pub struct ParseSelectorError(pub String);

impl FromStr for DeviceSelector {
    type Err = ParseSelectorError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let error = || ParseSelectorError(s.to_owned());
        if let Some((vendor, rest)) = s.split_once(':') {
            let (product, serial) = match rest.split_once(':') {
                Some((product, serial)) if !serial.is_empty() => (product, Some(serial.to_owned())),
                Some(_) => return Err(error()),
                None => (rest, None),
            };
            let number = |s: &str| match s.len() {
                1..=4 => u16::from_str_radix(s, 16).map_err(|_| error()),
                _ => Err(error()),
            };
            return Ok(Self::Kind {
                vendor: number(vendor)?,
                product: number(product)?,
                serial,
            });
        }
        match is_place(s) {
            true => Ok(Self::Place(DeviceId(s.to_owned()))),
            false => Err(error()),
        }
    }
}

impl fmt::Display for DeviceSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Place(id) => id.fmt(f),
            Self::Kind {
                vendor,
                product,
                serial: None,
            } => write!(f, "{vendor:04x}:{product:04x}"),
            Self::Kind {
                vendor,
                product,
                serial: Some(s),
            } => {
                write!(f, "{vendor:04x}:{product:04x}:{s}")
            }
        }
    }
}

impl DeviceSelector {
    /// Whether `device` is what this names.
    pub fn matches(&self, device: &DeviceInfo) -> bool {
        match self {
            Self::Place(id) => *id == device.id,
            Self::Kind {
                vendor,
                product,
                serial,
            } => {
                *vendor == device.vendor
                    && *product == device.product
                    && (serial.is_none() || *serial == device.serial)
            }
        }
    }
}

/// Signalling speed of a device (USB 2.0 §4.2.1; SuperSpeed from USB 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Speed {
    /// 1.5 Mb/s.
    Low,
    /// 12 Mb/s.
    Full,
    /// 480 Mb/s.
    High,
    /// 5 Gb/s and more. A guest sees it at high speed: PV USB knows nothing faster.
    Super,
}

/// Whether a device can be had.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceState {
    /// Nobody holds it.
    Free,
    /// A VM holds it.
    Leased {
        /// The VM.
        vm: VmUuid,
        /// Its name when it attached the device.
        vm_name: String,
    },
    /// It cannot be lent; the reason is for people.
    Unavailable {
        /// Why, and what to do about it.
        reason: String,
    },
}

/// A device of an exporter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Where it is plugged in.
    pub id: DeviceId,
    /// idVendor of the device descriptor.
    pub vendor: u16,
    /// idProduct of the device descriptor.
    pub product: u16,
    /// iSerialNumber's string, if the device has one that could be read.
    pub serial: Option<String>,
    /// iManufacturer and iProduct, for people; empty when the device has none.
    pub name: String,
    /// Speed on the exporter's bus.
    pub speed: Speed,
    /// bInterfaceClass of every interface of the active configuration, each class once; the device
    /// class where that is not zero. 8 is mass storage.
    pub classes: Vec<u8>,
    /// Whether it can be had.
    pub state: DeviceState,
}

impl DeviceInfo {
    /// Whether this may be the same device as `other`, by what it says of itself.
    pub fn is_same(&self, other: &Self) -> bool {
        (self.vendor, self.product, &self.serial) == (other.vendor, other.product, &other.serial)
    }

    /// Whether any interface is mass storage (class 08h): data is lost if it is replugged.
    pub fn is_storage(&self) -> bool {
        self.classes.contains(&8)
    }
}

/// What happens to a device when a guest is migrated whose frontend cannot resume
/// (`docs/architecture.md`, "Hand-off"). A guest whose frontend can resume is always migrated seamlessly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnMigrate {
    /// The migration fails before the guest has moved.
    Refuse,
    /// The device is disconnected and connected again.
    Replug,
    /// Treated as if the frontend could resume.
    Risk,
}

impl OnMigrate {
    /// The default: storage refuses, everything else is replugged.
    pub fn default_for(device: &DeviceInfo) -> Self {
        if device.is_storage() {
            Self::Refuse
        } else {
            Self::Replug
        }
    }
}

impl fmt::Display for OnMigrate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refuse => "refuse",
            Self::Replug => "replug",
            Self::Risk => "risk",
        })
    }
}

/// What became of the data that a device sent while its guest was away ([`crate::stash`]), in
/// transfers, since the device was lent or its exporter was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StashCounters {
    /// Kept for the guest.
    pub kept: u64,
    /// Of those, given to the guest.
    pub delivered: u64,
    /// Of those kept, dropped: the device was reset or configured anew, or the guest never asked.
    pub discarded: u64,
    /// Not kept, because there was no room.
    pub overflowed: u64,
}

/// Who holds a lease: a backend, and the domain it holds it for. During a migration to localhost
/// the same host holds it first for one domid, then for another.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Holder {
    /// The host's name in the pool, from its certificate.
    pub host: String,
    /// The VM's domid there.
    pub domid: u16,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (domain {})", self.host, self.domid)
    }
}

/// How far a lease's holder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeasePhase {
    /// The holder is connected and serves the guest.
    Serving,
    /// The holder said that the guest is suspended; nothing is in flight.
    Frozen,
    /// The holder said that its domain is gone. Waits for a claim, at most the hold time.
    Orphaned,
    /// The holder's connection was lost; it may come back or be superseded.
    Disconnected,
    /// The holder said that its domain is gone, after it had said that the guest is suspended: it
    /// was saved. Waits for a claim, at most the hold time of saved guests.
    Saved,
    /// Its device was pulled out. It waits for the device to be plugged in somewhere, at most
    /// [`Exchange::seconds`].
    Absent,
}

impl LeasePhase {
    /// Whether the domain is gone, and somebody is waited for to claim the lease.
    pub fn is_orphaned(self) -> bool {
        matches!(self, Self::Orphaned | Self::Saved)
    }
}

/// A controller that `vusbd` made and makes again on the host that its VM goes to, or starts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OwnController {
    /// `num-ports`, 1 to 31.
    pub ports: u8,
    /// `usb-ver`: 1 or 2.
    pub usb_version: u8,
}

impl OwnController {
    /// Controllers of lower numbers are the toolstack's.
    pub const FIRST_DEVID: u16 = 64;

    /// Whether a controller can be made so, with this number.
    pub fn is_valid(self, devid: u16) -> bool {
        (1..=31).contains(&self.ports)
            && (1..=2).contains(&self.usb_version)
            && devid >= Self::FIRST_DEVID
    }
}

/// Whether an attachment outlasts the domain of its VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Persistence {
    /// No: when the domain is gone, the lease waits for its hold time.
    #[default]
    Temporary,
    /// The lease stays until it is released: while the VM is off, while its host or the exporter is being
    /// rebooted, and while the device is pulled out.
    Persistent,
    /// The same, because a rule of the exporter's configuration asks for it (`[[attach]]`).
    Rule,
}

impl Persistence {
    /// Whether the lease stays until it is released.
    pub fn is_persistent(self) -> bool {
        self != Self::Temporary
    }
}

/// A device lent to a VM.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lease {
    /// The device.
    pub device: DeviceInfo,
    /// The VM that has it.
    pub vm: VmUuid,
    /// The VM's name when it was attached, for people.
    pub vm_name: String,
    /// The PV USB controller (devid in xenstore).
    pub controller: u16,
    /// The port of that controller, 1 to 31.
    pub port: u8,
    /// Current fencing number.
    pub epoch: Epoch,
    /// Who serves it now, or did last.
    pub holder: Holder,
    /// How far the holder is.
    pub phase: LeasePhase,
    /// What to do at a migration if the frontend cannot resume.
    pub on_migrate: OnMigrate,
    /// How to make the controller, where `vusbd` made it.
    #[serde(default)]
    pub own_controller: Option<OwnController>,
    /// Whether the frontend last said `feature-resume=1`.
    pub frontend_resumes: bool,
    /// The backend's saved state ([`crate::frame::Kind::Cookie`]), at most
    /// [`crate::frame::MAX_COOKIE_LEN`] bytes.
    pub cookie: Vec<u8>,
    /// The last thing that went wrong with it, for people: for example a refused migration.
    pub note: Option<String>,
    /// What the device sent while the guest was away.
    #[serde(default)]
    pub stash: StashCounters,
    /// How it follows its device; `None` if it does not.
    #[serde(default)]
    pub exchange: Option<Exchange>,
    /// The device's descriptors; `None` where they could not be read.
    #[serde(default)]
    pub descriptors: Option<Digest>,
    /// What the guest has set at the device.
    #[serde(default)]
    pub configured: Configured,
    /// Whether it outlasts the VM's domain.
    #[serde(default)]
    pub persistence: Persistence,
    /// For how long the holder has not been connected, in seconds, where it is not: as of the exporter's
    /// answer, and since its start at most.
    #[serde(default)]
    pub silent_seconds: Option<u64>,
}

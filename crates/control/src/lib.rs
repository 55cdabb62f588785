// SPDX-License-Identifier: GPL-3.0-or-later
//! The daemon's control socket: requests and answers between `xl-vusb` and `vusbd`.
//!
//! A Unix stream socket, by default [`DEFAULT_SOCKET`], readable by root only. The client writes one
//! [`Request`] as a line of JSON and reads one [`Response`] as a line of JSON; then either closes.
#![forbid(unsafe_code)]

pub mod client;

use serde::{Deserialize, Serialize};
use session::{
    DeviceInfo, DeviceSelector, Epoch, Exchange, LeasePhase, OnExchange, OnMigrate, OwnController,
    Persistence, StashCounters, VmUuid,
};

/// Where vusbd listens.
pub const DEFAULT_SOCKET: &str = "/run/xen-vusb/vusbd.sock";
/// Longest line, in bytes.
pub const MAX_LINE_LEN: usize = 4 * 1024 * 1024;

/// What an administrator asks of this host's daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// The configured exporters and whether they answer. [`Response::Exporters`].
    Exporters,
    /// The devices of all exporters. [`Response::Devices`].
    Devices,
    /// Attaches a device to a running domain. [`Response::Attached`].
    Attach {
        /// Domid, name or uuid.
        domain: String,
        /// The exporter's name.
        exporter: String,
        /// The device there, as text (`BUS-PORT` or `VID:PID[:SERIAL]`).
        device: DeviceSelector,
        /// Controller; none for the first with a free port.
        controller: Option<u16>,
        /// Port; none for the first that is free.
        port: Option<u8>,
        /// None for the device's default.
        on_migrate: Option<OnMigrate>,
        /// What happens when the device is pulled out; none for the daemon's default.
        #[serde(default)]
        on_exchange: Option<WhenExchanged>,
        /// For how long it is waited for then, in seconds; none for the daemon's default.
        #[serde(default)]
        exchange_seconds: Option<u32>,
        /// Whether the attachment stays while the VM is off.
        #[serde(default)]
        persistent: bool,
    },
    /// Detaches what is at a port. [`Response::Detached`].
    Detach {
        /// Domid, name or uuid; of a VM that is off, its uuid or the name that it had.
        domain: String,
        /// Controller; none for the only one.
        controller: Option<u16>,
        /// Port.
        port: u8,
    },
    /// Takes a device away from a VM that is gone: destroyed, or saved. [`Response::Released`].
    Release {
        /// The exporter's name.
        exporter: String,
        /// The device there, as text.
        device: DeviceSelector,
        /// The epoch of a lease whose holder is not connected: it ends although nobody knows whether the VM
        /// runs.
        #[serde(default)]
        force: Option<Epoch>,
    },
    /// Makes a PV USB controller for a running domain, by vusbd instead of its toolstack.
    /// [`Response::ControllerAdded`].
    AddController {
        /// Domid, name or uuid.
        domain: String,
        /// Its devid, from 64 on; none for the first that is free.
        devid: Option<u16>,
        /// Number of ports and USB version.
        controller: OwnController,
    },
    /// Removes a controller that vusbd made and that nothing is attached to. [`Response::ControllerRemoved`].
    RemoveController {
        /// Domid, name or uuid.
        domain: String,
        /// Its devid.
        devid: u16,
    },
    /// The controllers of this host's domains. [`Response::Controllers`].
    Controllers {
        /// Only of this domain: domid, name or uuid.
        domain: Option<String>,
    },
    /// What is attached to domains of this host. [`Response::Attachments`].
    List,
    /// The same, and what is attached to VMs that are off or run on other hosts, as far as the exporters
    /// show it to this host. [`Response::Attachments`].
    ListAll,
    /// Everything the daemon knows of itself. [`Response::Status`].
    Status,
    /// What would happen to each device of a domain in a migration. [`Response::Check`].
    Check {
        /// Domid, name or uuid.
        domain: String,
        /// The toolstack that is to migrate it; none for the one that made it, as far as that shows.
        #[serde(default)]
        toolstack: Option<Toolstack>,
        /// Names of the hosts that it could go to; none for all that the exporters know.
        #[serde(default)]
        to: Vec<String>,
    },
    /// The hosts that the exporters know. [`Response::Hosts`].
    Hosts,
    /// Puts a host that is gone out of the exporters' lists. [`Response::Forgotten`].
    ForgetHost {
        /// Its name in the pool.
        host: String,
    },
}

/// What makes domains and migrates them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Toolstack {
    /// `xl`: it makes the PV USB controllers of a domain again on the host that the domain goes to.
    #[default]
    Xl,
    /// libvirt's libxl driver: it makes none.
    Libvirt,
    /// XAPI, with xenopsd (XenServer, XCP-ng): it makes none.
    Xapi,
    /// The controller was made neither by libxl nor in a domain of XAPI: nobody makes it again.
    Unknown,
}

impl Toolstack {
    /// Those that an administrator can name.
    pub const NAMED: [Self; 3] = [Self::Xl, Self::Libvirt, Self::Xapi];
}

impl std::fmt::Display for Toolstack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Xl => "xl",
            Self::Libvirt => "libvirt",
            Self::Xapi => "xapi",
            Self::Unknown => "unknown",
        })
    }
}

/// What happens when a device is pulled out of its exporter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenExchanged {
    /// The attachment ends.
    None,
    /// It waits for the device: [`OnExchange::Replug`].
    Replug,
    /// It waits for the device: [`OnExchange::Pause`].
    Pause,
}

impl WhenExchanged {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::None, Self::Replug, Self::Pause];

    /// What the guest sees; `None` for an attachment that ends.
    pub fn on(self) -> Option<OnExchange> {
        match self {
            Self::None => None,
            Self::Replug => Some(OnExchange::Replug),
            Self::Pause => Some(OnExchange::Pause),
        }
    }
}

impl std::fmt::Display for WhenExchanged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.on() {
            None => f.write_str("none"),
            Some(on) => on.fmt(f),
        }
    }
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// See [`Request::Exporters`].
    Exporters(Vec<ExporterStatus>),
    /// See [`Request::Devices`].
    Devices {
        /// Devices of the exporters that answered.
        devices: Vec<ExportedDevice>,
        /// Exporters that did not.
        unreachable: Vec<ExporterStatus>,
    },
    /// See [`Request::Attach`].
    Attached(Box<Attachment>),
    /// See [`Request::Detach`].
    Detached(Box<Attachment>),
    /// See [`Request::Release`].
    Released {
        /// The exporter's name.
        exporter: String,
        /// The device.
        device: Box<DeviceInfo>,
        /// The name of the VM that had it.
        vm_name: String,
    },
    /// See [`Request::AddController`].
    ControllerAdded(Box<Controller>),
    /// See [`Request::RemoveController`].
    ControllerRemoved(Box<Controller>),
    /// See [`Request::Controllers`].
    Controllers(Vec<Controller>),
    /// See [`Request::List`].
    Attachments(Vec<Attachment>),
    /// See [`Request::Status`].
    Status(Box<Status>),
    /// See [`Request::Check`].
    Check(Vec<Forecast>),
    /// See [`Request::Hosts`].
    Hosts {
        /// By name.
        hosts: Vec<PoolHost>,
        /// Exporters that did not answer.
        unreachable: Vec<ExporterStatus>,
    },
    /// See [`Request::ForgetHost`].
    Forgotten {
        /// Its name.
        host: String,
        /// The exporters that knew it.
        exporters: Vec<String>,
    },
    /// Nothing was done; the text says why and what to do next.
    Error(String),
}

/// An exporter as this host sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExporterStatus {
    /// Its name in vusbd.toml and in its certificate.
    pub name: String,
    /// Its address.
    pub address: String,
    /// None when it answers; else what went wrong last.
    pub error: Option<String>,
}

/// A device and its exporter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedDevice {
    /// The exporter's name.
    pub exporter: String,
    /// The device.
    pub device: DeviceInfo,
}

/// A device at a guest's port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The exporter's name.
    pub exporter: String,
    /// The device.
    pub device: DeviceInfo,
    /// The VM.
    pub vm: VmUuid,
    /// Its domid here.
    pub domid: u16,
    /// Its name.
    pub vm_name: String,
    /// Controller.
    pub controller: u16,
    /// Port.
    pub port: u8,
    /// The toolstack that made the controller.
    #[serde(default)]
    pub toolstack: Toolstack,
    /// Whether the guest's frontend can resume.
    pub frontend_resumes: bool,
    /// What happens at a migration otherwise.
    pub on_migrate: OnMigrate,
    /// How far the lease is.
    pub phase: LeasePhase,
    /// How it follows its device when that is pulled out; none if it does not.
    #[serde(default)]
    pub exchange: Option<Exchange>,
    /// Whether it stays while the VM is off.
    #[serde(default)]
    pub persistence: Persistence,
    /// The host that the VM runs on; none where the VM is off.
    #[serde(default)]
    pub host: Option<String>,
    /// The last thing worth reading, for example why a migration was refused.
    pub note: Option<String>,
    /// Another domain with the VM's uuid has the device: the port here is empty.
    #[serde(default)]
    pub elsewhere: bool,
    /// What the device sent while the guest was suspended, as the exporter has it.
    #[serde(default)]
    pub stash: StashCounters,
    /// Transfers since it was attached here.
    pub counters: Counters,
}

/// What went through one attachment on this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// URBs taken from the ring for the device.
    pub urbs: u64,
    /// Of those, answered.
    pub answered: u64,
    /// Of those answered, with an error status.
    pub errors: u64,
    /// Unlinked by the guest.
    pub unlinked: u64,
    /// Bytes to the device.
    pub bytes_out: u64,
    /// Bytes from the device.
    pub bytes_in: u64,
    /// Times the connection to the exporter was lost.
    pub reconnects: u64,
}

impl std::ops::AddAssign for Counters {
    fn add_assign(&mut self, more: Self) {
        self.urbs += more.urbs;
        self.answered += more.answered;
        self.errors += more.errors;
        self.unlinked += more.unlinked;
        self.bytes_out += more.bytes_out;
        self.bytes_in += more.bytes_in;
        self.reconnects += more.reconnects;
    }
}

/// The daemon's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// This host's name in the pool.
    pub host: String,
    /// Its exporters.
    pub exporters: Vec<ExporterStatus>,
    /// Its controllers.
    pub controllers: Vec<Controller>,
    /// What is attached.
    pub attachments: Vec<Attachment>,
    /// Everything since the daemon started, also of attachments that ended.
    pub totals: Counters,
}

/// A PV USB controller of a domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Controller {
    /// The VM.
    pub vm: VmUuid,
    /// Its domid.
    pub domid: u16,
    /// Its name.
    pub vm_name: String,
    /// The controller's devid.
    pub controller: u16,
    /// Number of ports.
    pub ports: u8,
    /// USB version: 1 or 2.
    #[serde(default)]
    pub usb_version: u8,
    /// XenbusState of the frontend, as a word ("Connected").
    pub frontend: String,
    /// XenbusState of our side, as a word; "stuck" where the controller's thread does not answer.
    pub backend: String,
    /// State of the hand-off machine, as a word ("Serving"), or "stuck".
    pub hand_off: String,
    /// Whether the guest's frontend can resume.
    pub frontend_resumes: bool,
}

impl Controller {
    /// Whether vusbd made it, and not a toolstack.
    pub fn is_own(&self) -> bool {
        self.controller >= OwnController::FIRST_DEVID
    }
}

/// A host of the pool, as the exporters know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolHost {
    /// Its name in the pool.
    pub name: String,
    /// What each exporter that knows it says.
    pub seen: Vec<SeenHost>,
}

/// A host as one exporter knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenHost {
    /// The exporter's name.
    pub exporter: String,
    /// Whether the host's vusbd is connected to it now.
    pub connected: bool,
    /// How long ago it was connected last, in seconds.
    pub seen_seconds: u64,
    /// The version of its vusbd, where that said it.
    pub version: Option<String>,
    /// Whether its vusbd makes the PV USB controllers of a VM that arrives without one.
    pub makes_controllers: bool,
}

/// What a migration would do to an attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forecast {
    /// The attachment.
    pub attachment: Attachment,
    /// What would happen, at worst, on any of `hosts`.
    pub outcome: Outcome,
    /// Why, and what to do to change it.
    pub reason: String,
    /// What would happen on each host. Empty where no host is known, and for a device that the domain does
    /// not have ([`Outcome::Elsewhere`]).
    pub hosts: Vec<HostForecast>,
}

/// What a migration to one host would do to an attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostForecast {
    /// The host's name in the pool.
    pub host: String,
    /// Whether its vusbd is connected to the device's exporter now.
    pub connected: bool,
    /// How long ago it was connected last, in seconds; none if it never was, or nobody knows.
    pub seen_seconds: Option<u64>,
    /// The version of its vusbd, where that said it.
    pub version: Option<String>,
    /// What would happen.
    pub outcome: Outcome,
    /// Why, and what to do to change it.
    pub reason: String,
}

impl Outcome {
    /// Whether the domain must not be migrated as it is.
    pub fn forbids(self) -> bool {
        matches!(self, Self::Refused | Self::Lost)
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Elsewhere => "elsewhere",
            Self::Seamless => "seamless",
            Self::Replug => "replug",
            Self::Refused => "refused",
            Self::Lost => "lost",
        })
    }
}

/// What happens to a device at a migration, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Nothing: the domain does not have the device, another one with the same uuid has it.
    Elsewhere,
    /// The guest notices a pause.
    Seamless,
    /// The guest sees it disconnected and connected again.
    Replug,
    /// The migration fails before the guest moves.
    Refused,
    /// The guest moves, and loses the device and what it was writing.
    Lost,
}

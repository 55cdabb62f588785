// SPDX-License-Identifier: GPL-3.0-or-later
//! The command line.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};
use control::{Toolstack, WhenExchanged};
use session::{DeviceSelector, OnMigrate, OwnController, ParseSelectorError};

use crate::host_name::{HostName, HostNameError};
use crate::pool;

#[cfg(test)]
mod tests;

/// USB devices for Xen guests that stay with them through `xl migrate`.
#[derive(Debug, Parser)]
#[command(
    name = "xl-vusb",
    version,
    after_help = "Exit status: 0 done; 1 vusbd refused, or check found a device that forbids it;\n\
                  2 it could not be asked (wrong arguments, vusbd not running)."
)]
pub struct Cli {
    /// Print JSON instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// vusbd's control socket
    #[arg(long, global = true, value_name = "PATH", default_value = control::DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make the pool's certificate authority, and certificates for its machines
    #[command(subcommand)]
    Pool(PoolCommand),
    /// List the exporters and whether they answer
    Exporters,
    /// List the devices of all exporters and who has them
    Devices,
    /// Attach a device to a running domain
    Attach(Attach),
    /// Detach the device at a port
    Detach(Detach),
    /// Make PV USB controllers for domains whose toolstack makes none, remove and list them
    #[command(subcommand)]
    Controller(ControllerCommand),
    /// Take a device away from a VM that is gone: destroyed, or saved and not to be restored
    Release {
        /// EXPORTER/BUS-PORT or EXPORTER/VID:PID[:SERIAL]
        #[arg(value_parser = DeviceName::from_str)]
        device: DeviceName,
        /// Also where the VM's host is not connected and has not said that the VM is gone. EPOCH is the number
        /// that the command names without this option. If the VM does run there, it loses the device
        #[arg(long, value_name = "EPOCH")]
        force: Option<u64>,
    },
    /// List what is attached to this host's domains
    List {
        /// Also what is attached to VMs that are off or run on other hosts
        #[arg(long)]
        all: bool,
    },
    /// Show all that vusbd knows: exporters, controllers, attachments
    Status,
    /// Say what a migration would do to each device of a domain, on each host of the pool; exit 1 if one
    /// would be refused or lost anywhere
    Check {
        /// Domain id, name or uuid
        domain: String,
        /// Only to this host, by its name in the pool; may be given several times [default: every host that
        /// has ever been connected to an exporter]
        #[arg(long, value_name = "HOST")]
        to: Vec<String>,
        /// What is to migrate it [default: what made it, as far as that shows]
        #[arg(long, value_name = "xl|libvirt|xapi", value_parser = parse_toolstack)]
        toolstack: Option<Toolstack>,
        /// Print only the devices that would be refused or lost, a line each
        #[arg(short, long)]
        quiet: bool,
    },
    /// List the hosts of the pool that have ever been connected to an exporter
    Hosts {
        /// What to do with them
        #[command(subcommand)]
        command: Option<HostsCommand>,
    },
    /// Make and end persistent attachments as XAPI's VM.other_config:xen-vusb declares them
    ///
    /// Of each VM that has the key, exactly the devices that it lists are attached persistently:
    /// EXPORTER/VID:PID:SERIAL,… An empty value is none. VMs without the key are left alone.
    ApplyOtherConfig {
        /// Uuids of VMs [default: those that run on this host]
        #[arg(value_parser = session::VmUuid::from_str)]
        vms: Vec<session::VmUuid>,
    },
    /// Check, then run `xl migrate`
    ///
    /// Plain `xl migrate` does the same hand-off. This only says beforehand what it would do, and
    /// does not start a migration that a device refuses.
    Migrate(Migrate),
}

/// PV USB controllers.
#[derive(Debug, Subcommand)]
pub enum ControllerCommand {
    /// Make a controller for a running domain, by vusbd instead of the toolstack
    ///
    /// It goes with the VM as soon as a device is attached to it. A domain of `xl` can as well have one by
    /// `usbctrl=` in its configuration, or by `xl usbctrl-attach`.
    Add {
        /// Domain id, name or uuid
        domain: String,
        /// Number of ports, 1 to 31
        #[arg(long, value_name = "N", default_value_t = 8)]
        #[arg(value_parser = clap::value_parser!(u8).range(1..=31))]
        ports: u8,
        /// USB version: 1 for low and full speed only, 2 for high speed, too
        #[arg(long, value_name = "1|2", default_value_t = 2)]
        #[arg(value_parser = clap::value_parser!(u8).range(1..=2))]
        usb: u8,
        /// The controller's number [default: the first from 64 on that is free]
        #[arg(long, value_name = "N")]
        #[arg(value_parser = clap::value_parser!(u16).range(i64::from(OwnController::FIRST_DEVID)..))]
        devid: Option<u16>,
    },
    /// Remove a controller that vusbd has made and that nothing is attached to
    Remove {
        /// Domain id, name or uuid
        domain: String,
        /// The controller's number, as `xl-vusb controller list` shows it
        devid: u16,
    },
    /// List the controllers of this host's domains
    List {
        /// Only those of this domain: domain id, name or uuid
        domain: Option<String>,
    },
}

/// The hosts that exporters know.
#[derive(Debug, Subcommand)]
pub enum HostsCommand {
    /// Put a host that is gone for good out of the list. One that is connected stays
    Forget {
        /// Its name in the pool, as `xl-vusb hosts` shows it
        host: String,
    },
}

/// The pool's certificates.
#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// Make the pool's certificate authority. Never overwrites one
    Init {
        /// Where to keep it; this directory is the pool's secret
        #[arg(long, value_name = "DIR", default_value = pool::DEFAULT_DIR)]
        dir: PathBuf,
        /// The pool's name, for people who look at certificates
        #[arg(long, value_name = "NAME", default_value = "default")]
        name: String,
    },
    /// Make the certificate and key of one machine
    Issue {
        /// The machine's DNS name; its name in vusbd.toml and in exporters' policies
        #[arg(value_name = "HOST", value_parser = HostName::from_str)]
        host: HostName,
        /// Where the pool's certificate authority is
        #[arg(long, value_name = "DIR", default_value = pool::DEFAULT_DIR)]
        dir: PathBuf,
        /// Where to put ca.crt, host.crt and host.key [default: HOST in the pool's directory]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
}

/// Arguments of `attach`.
#[derive(Args, Debug)]
pub struct Attach {
    /// Domain id, name or uuid
    pub domain: String,
    /// EXPORTER/BUS-PORT (pi4/1-1.2) or EXPORTER/VID:PID[:SERIAL] (pi4/0951:1666)
    #[arg(value_parser = DeviceName::from_str)]
    pub device: DeviceName,
    /// The domain's USB controller [default: the first with a free port]
    #[arg(long, value_name = "N")]
    pub controller: Option<u16>,
    /// Its port, 1 to 31 [default: the first that is free]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=31))]
    pub port: Option<u8>,
    /// At a migration of a guest whose driver cannot resume: refuse it, replug the device, or risk
    /// it [default: refuse for storage, else replug]
    #[arg(long, value_name = "refuse|replug|risk", value_parser = parse_on_migrate)]
    pub on_migrate: Option<OnMigrate>,
    /// When the device is pulled out: wait for it, with the port disconnected (replug) or with nothing
    /// but a pause for the guest (pause). One named by VID:PID:SERIAL may come back anywhere, another
    /// one where it was; named by BUS-PORT, what is plugged in there is attached [default: as
    /// vusbd.toml says]
    #[arg(long, value_name = "none|replug|pause", value_parser = parse_on_exchange)]
    pub on_exchange: Option<WhenExchanged>,
    /// For how long it is waited for then [default: as vusbd.toml says]
    #[arg(long, value_name = "SECONDS")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(session::Exchange::MAX_SECONDS)))]
    pub exchange_seconds: Option<u32>,
    /// The attachment stays when the VM is shut down, and while its host or the exporter is rebooted: the
    /// device is reserved for the VM, and is there when it starts again on any host. `detach` ends it
    #[arg(long)]
    pub persistent: bool,
}

/// Arguments of `detach`.
#[derive(Args, Debug)]
pub struct Detach {
    /// Domain id, name or uuid; of a VM that is off, its uuid or name
    pub domain: String,
    /// The port, as `xl-vusb list` shows it
    #[arg(value_parser = clap::value_parser!(u8).range(1..=31))]
    pub port: u8,
    /// The domain's USB controller [default: the only one]
    #[arg(long, value_name = "N")]
    pub controller: Option<u16>,
}

/// Arguments of `migrate`.
#[derive(Args, Debug)]
pub struct Migrate {
    /// Domain id or name
    pub domain: String,
    /// The host to move it to
    pub host: String,
    /// Options for `xl migrate`, after `--`
    #[arg(last = true, value_name = "XL OPTIONS")]
    pub xl_options: Vec<String>,
}

/// A device and the exporter that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceName {
    /// The exporter's name.
    pub exporter: HostName,
    /// The device there.
    pub device: DeviceSelector,
}

/// Why a text is no [`DeviceName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceNameError {
    /// No exporter in front.
    #[error("'{0}' names no exporter: write EXPORTER/{0}; xl-vusb devices lists what there is")]
    NoExporter(String),
    /// A name that no exporter can have.
    #[error("exporter: {0}")]
    Exporter(#[from] HostNameError),
    /// What follows the slash.
    #[error("{0}")]
    Device(String),
}

impl From<ParseSelectorError> for DeviceNameError {
    fn from(error: ParseSelectorError) -> Self {
        Self::Device(error.to_string())
    }
}

impl FromStr for DeviceName {
    type Err = DeviceNameError;

    fn from_str(s: &str) -> Result<Self, DeviceNameError> {
        let (exporter, device) = s
            .split_once('/')
            .ok_or_else(|| DeviceNameError::NoExporter(s.to_owned()))?;
        Ok(Self {
            exporter: exporter.parse()?,
            device: device.parse::<DeviceSelector>()?,
        })
    }
}

fn parse_on_exchange(s: &str) -> Result<WhenExchanged, String> {
    WhenExchanged::ALL
        .into_iter()
        .find(|when| when.to_string() == s)
        .ok_or_else(|| "it is none, replug or pause".to_owned())
}

fn parse_toolstack(s: &str) -> Result<Toolstack, String> {
    Toolstack::NAMED
        .into_iter()
        .find(|toolstack| toolstack.to_string() == s)
        .ok_or_else(|| "it is xl, libvirt or xapi".to_owned())
}

fn parse_on_migrate(s: &str) -> Result<OnMigrate, String> {
    [OnMigrate::Refuse, OnMigrate::Replug, OnMigrate::Risk]
        .into_iter()
        .find(|policy| policy.to_string() == s)
        .ok_or_else(|| "it is refuse, replug or risk".to_owned())
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! `xl-vusb apply-other-config`: the attachments that XAPI's `VM.other_config` declares, so that a pool's
//! administrator never leaves `xe`. It runs `xe` and `xl-vusb`, as an administrator would.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use session::{DeviceSelector, VmUuid};

use crate::cli::DeviceName;
use crate::run::{Exit, RunError};
use crate::table::printable;

#[cfg(test)]
mod tests;

/// The key in `VM.other_config`.
pub const KEY: &str = "xen-vusb";
/// Where XAPI says which of its hosts this is.
const INVENTORY: &str = "/etc/xensource-inventory";

/// Why nothing could be done at all.
#[derive(Debug, thiserror::Error)]
pub enum OtherConfigError {
    /// A program is not there.
    #[error("cannot run {program}: {source}; is this the dom0 of a host of XAPI?")]
    NoProgram {
        /// Which.
        program: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A program failed.
    #[error("{what}: {said}")]
    Failed {
        /// What it was asked to do.
        what: String,
        /// What it said.
        said: String,
    },
    /// [`INVENTORY`] does not say which host this is.
    #[error("{INVENTORY} has no INSTALLATION_UUID ({0}); name the VMs by their uuids instead")]
    NoInventory(String),
    /// A program answered something else.
    #[error("cannot read the answer of {0}")]
    Malformed(&'static str),
}

/// A persistent attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Attached {
    exporter: String,
    device: Device,
    controller: u64,
    port: u64,
}

/// What of a device a declaration can name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Device {
    id: String,
    vendor: u64,
    product: u64,
    serial: Option<String>,
}

/// What is to be done for one VM, in this order.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes<'a> {
    detach: Vec<&'a Attached>,
    attach: Vec<&'a DeviceName>,
}

/// Makes and ends persistent attachments as the VMs' `other_config` says: of these VMs, or of all that run on this
/// host. A VM without the key is left alone.
///
/// # Errors
/// [`OtherConfigError`] where nothing could be asked. What is wrong with one VM is written to `err`, ends in
/// [`Exit::No`], and keeps no other VM from being looked at.
pub(crate) fn run(
    vms: &[VmUuid],
    socket: &Path,
    out: &mut impl Write,
    err: &mut impl Write,
) -> Result<Exit, RunError> {
    let vms = match vms.is_empty() {
        true => resident()?,
        false => vms.iter().map(VmUuid::to_string).collect(),
    };
    let mut exit = Exit::Done;
    let mut listed = None;
    for vm in vms {
        let declared = match declared(&vm) {
            Ok(None) => continue,
            Ok(Some(declared)) => declared,
            Err(error) => {
                writeln!(err, "xl-vusb: VM {vm}: {}", printable(&error))?;
                exit = Exit::No;
                continue;
            }
        };
        let list = match &listed {
            Some(list) => list,
            None => listed.insert(list(socket)?),
        };
        let attached = attached(list, &vm)?;
        let changes = changes(&declared, &attached);
        let commands = changes.detach.iter().map(|a| a.detach(&vm));
        let attach = changes.attach.iter().map(|name| attach(name, &vm));
        for command in commands.chain(attach) {
            match xl_vusb(socket, &command)? {
                Ok(said) => write!(out, "{said}")?,
                Err(said) => {
                    writeln!(err, "xl-vusb: VM {vm}: {}", printable(&said))?;
                    exit = Exit::No;
                }
            }
        }
    }
    Ok(exit)
}

impl Attached {
    /// Whether a declaration means this attachment. A device with a serial number may have been plugged into another
    /// exporter meanwhile.
    fn is(&self, name: &DeviceName) -> bool {
        let Device {
            id,
            vendor,
            product,
            serial,
        } = &self.device;
        match &name.device {
            DeviceSelector::Place(place) => {
                name.exporter.as_str() == self.exporter && place.0 == *id
            }
            DeviceSelector::Kind {
                vendor: v,
                product: p,
                serial: s,
            } => {
                (u64::from(*v), u64::from(*p)) == (*vendor, *product)
                    && match s {
                        Some(_) => s == serial,
                        None => name.exporter.as_str() == self.exporter,
                    }
            }
        }
    }

    fn detach(&self, vm: &str) -> Vec<String> {
        let (port, controller) = (self.port.to_string(), self.controller.to_string());
        ["detach", vm, &port, "--controller", &controller]
            .map(str::to_owned)
            .into()
    }
}

fn attach(name: &DeviceName, vm: &str) -> Vec<String> {
    let device = format!("{}/{}", name.exporter.as_str(), name.device);
    ["attach", vm, &device, "--persistent"]
        .map(str::to_owned)
        .into()
}

/// What makes the one of the other.
fn changes<'a>(declared: &'a [DeviceName], attached: &'a [Attached]) -> Changes<'a> {
    // One attachment fulfils one declaration.
    let mut left: Vec<&Attached> = attached.iter().collect();
    let mut changes = Changes::default();
    for name in declared {
        match left.iter().position(|a| a.is(name)) {
            Some(at) => {
                left.remove(at);
            }
            None => changes.attach.push(name),
        }
    }
    changes.detach = left;
    changes
}

/// `EXPORTER/DEVICE,…`; empty for none.
fn parse(value: &str) -> Result<Vec<DeviceName>, String> {
    let mut names = Vec::new();
    let mut seen = BTreeSet::new();
    for name in value.split(',').map(str::trim) {
        if name.is_empty() && value.trim().is_empty() {
            break;
        }
        let parsed: DeviceName = name
            .parse()
            .map_err(|e| format!("other-config:{KEY}: {e}; nothing was changed"))?;
        if !seen.insert(name.to_owned()) {
            return Err(format!(
                "other-config:{KEY}: {name} is there twice; nothing was changed"
            ));
        }
        names.push(parsed);
    }
    Ok(names)
}

/// What a VM's `other_config` declares; `None` without the key.
fn declared(vm: &str) -> Result<Option<Vec<DeviceName>>, String> {
    let key = format!("param-key={KEY}");
    let uuid = format!("uuid={vm}");
    let arguments = ["vm-param-get", &uuid, "param-name=other-config", &key];
    match xe(&arguments).map_err(|e| e.to_string())? {
        Ok(value) => parse(value.trim_end_matches('\n')).map(Some),
        Err(said) if said.contains("not found in map") => Ok(None),
        Err(said) => Err(format!("xe vm-param-get: {said}")),
    }
}

/// The VMs that run on this host.
fn resident() -> Result<Vec<String>, OtherConfigError> {
    let inventory = std::env::var_os("XENSOURCE_INVENTORY").unwrap_or_else(|| INVENTORY.into());
    let text = std::fs::read_to_string(inventory)
        .map_err(|e| OtherConfigError::NoInventory(e.to_string()))?;
    let host = text.lines().find_map(|line| {
        let value = line.trim().strip_prefix("INSTALLATION_UUID=")?;
        Some(value.trim_matches(['\'', '"']).to_owned())
    });
    let host = host.ok_or_else(|| OtherConfigError::NoInventory("no such line".to_owned()))?;
    let on = format!("resident-on={host}");
    let all = [
        "vm-list",
        &on,
        "is-control-domain=false",
        "params=uuid",
        "--minimal",
    ];
    let listed = xe(&all)?.map_err(|said| OtherConfigError::Failed {
        what: "xe vm-list".to_owned(),
        said,
    })?;
    let listed = listed.trim().split(',').filter(|vm| !vm.is_empty());
    Ok(listed.map(str::to_owned).collect())
}

fn list(socket: &Path) -> Result<Value, OtherConfigError> {
    let arguments = ["list", "--all", "--json"].map(str::to_owned);
    let listed = xl_vusb(socket, &arguments)?.map_err(|said| OtherConfigError::Failed {
        what: "xl-vusb list".to_owned(),
        said,
    })?;
    serde_json::from_str(&listed).map_err(|_| OtherConfigError::Malformed("xl-vusb list"))
}

/// The persistent attachments of a VM. What a rule of an exporter attaches is the rule's.
fn attached(list: &Value, vm: &str) -> Result<Vec<Attached>, OtherConfigError> {
    let malformed = || OtherConfigError::Malformed("xl-vusb list");
    let all = list["attachments"].as_array().ok_or_else(malformed)?;
    let of_vm = all
        .iter()
        .filter(|a| a["persistence"] == "persistent" && a["elsewhere"] != true)
        .filter(|a| a["vm"].as_str().is_some_and(|v| v.eq_ignore_ascii_case(vm)));
    let read = |a: &Value| {
        let device = &a["device"];
        Some(Attached {
            exporter: a["exporter"].as_str()?.to_owned(),
            device: Device {
                id: device["id"].as_str()?.to_owned(),
                vendor: device["vendor"].as_u64()?,
                product: device["product"].as_u64()?,
                serial: device["serial"].as_str().map(str::to_owned),
            },
            controller: a["controller"].as_u64()?,
            port: a["port"].as_u64()?,
        })
    };
    of_vm.map(|a| read(a).ok_or_else(malformed)).collect()
}

/// What a program printed, or what it said when it failed.
type Ran = Result<String, String>;

fn xe(arguments: &[&str]) -> Result<Ran, OtherConfigError> {
    ran("xe", Command::new("xe").args(arguments))
}

fn xl_vusb(socket: &Path, arguments: &[String]) -> Result<Ran, OtherConfigError> {
    let mut command = Command::new("xl-vusb");
    ran(
        "xl-vusb",
        command.arg("--socket").arg(socket).args(arguments),
    )
}

fn ran(program: &'static str, command: &mut Command) -> Result<Ran, OtherConfigError> {
    let output = command
        .output()
        .map_err(|source| OtherConfigError::NoProgram { program, source })?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stderr).trim().to_owned()),
    })
}

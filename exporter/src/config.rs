// SPDX-License-Identifier: GPL-3.0-or-later
//! `/etc/xen-vusb/exporter.toml`.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use session::lease::{Allow, AttachRule, HoldTimes, Policy, TAKEOVER_MS};
use transport::{HOST_KEY, TLS_DIR, Tls};

mod hold;
#[cfg(test)]
mod tests;

pub use hold::HoldTime;

/// Where the configuration is unless told otherwise.
pub const DEFAULT_PATH: &str = "/etc/xen-vusb/exporter.toml";

/// The whole file. Every key but `name` may be left out.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This exporter's name in the pool; without it, the name in its certificate. They must agree.
    pub name: Option<String>,
    /// Address and port to listen on; port 0 takes any free one.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Where leases are kept.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// How long a device waits for its VM after the VM's domain is gone.
    #[serde(default = "default_hold_seconds")]
    pub hold_seconds: u64,
    /// How long it waits for a VM that was suspended first, and so can be restored.
    #[serde(default = "default_saved_hold_seconds")]
    pub saved_hold_seconds: HoldTime,
    /// How long a lease waits for its device after the exporter was started.
    #[serde(default = "default_startup_hold_seconds")]
    pub startup_hold_seconds: u64,
    /// How long it waits for a holder whose connection was lost; for ever by default.
    #[serde(default = "default_disconnected_hold_seconds")]
    pub disconnected_hold_seconds: HoldTime,
    /// For how long a holder must not have been connected before another domain with its VM's uuid may have
    /// the device although nothing says that it is the same VM.
    #[serde(default = "default_takeover_seconds")]
    pub takeover_seconds: u64,
    /// Our certificate; by default where systemd shows it, or in [`transport::TLS_DIR`].
    #[serde(default)]
    pub tls: Tls,
    /// Who may hold what; without any, nobody.
    #[serde(default)]
    pub allow: Vec<Allow>,
    /// Devices that are attached by themselves.
    #[serde(default)]
    pub attach: Vec<AttachRule>,
    /// Simulated devices, at the places 0-1, 0-2 …
    #[serde(default)]
    pub simulated: Vec<Simulated>,
    /// A socket on which whoever may open it presses the keys of simulated devices, pulls them out
    /// and so on; none by default.
    pub simulated_control: Option<PathBuf>,
    /// Real devices.
    #[serde(default)]
    pub usb: Usb,
}

/// Where systemd shows the service its certificate, and nobody else, or where the certificate is.
pub(crate) fn tls_dir() -> PathBuf {
    let shown = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let shown = shown.filter(|dir| dir.join(HOST_KEY).exists());
    shown.unwrap_or_else(|| PathBuf::from(TLS_DIR))
}

/// `[[simulated]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Simulated {
    /// What it is.
    pub kind: SimulatedKind,
    /// The file with a disk's blocks; it is made if it does not exist. Only disks have one.
    pub file: Option<PathBuf>,
    /// Size of a file that is made. An existing one keeps its size.
    #[serde(default = "default_size_mib")]
    pub size_mib: u64,
    /// Serial number string; by default it is made from the device's place.
    pub serial: Option<String>,
    /// Whether the guest's flushes wait for this machine's disk. Without it, what was flushed
    /// survives the exporter, but not this machine.
    #[serde(default)]
    pub sync: bool,
    /// What a source/sink gives and checks.
    #[serde(default)]
    pub pattern: SimulatedPattern,
    /// Whether it is plugged in when the exporter starts; else the control socket does it.
    #[serde(default = "default_plugged")]
    pub plugged: bool,
    /// Whether time on the bus passes by itself, or as the control socket says.
    #[serde(default)]
    pub clock: SimulatedClock,
}

/// What is simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SimulatedKind {
    /// A mass-storage disk, at high speed.
    Disk,
    /// The same at SuperSpeed, with a setting for UAS.
    SuperDisk,
    /// A keyboard, at low speed.
    Keyboard,
    /// A serial adapter that gives back what it is sent, at full speed.
    Serial,
    /// Linux's gadget zero, at high speed.
    SourceSink,
    /// The same at full speed.
    SourceSinkFull,
    /// A headset, at high speed.
    Audio,
    /// A hub, which is not lent.
    Hub,
}

impl SimulatedKind {
    /// Whether it has blocks.
    pub fn is_disk(self) -> bool {
        matches!(self, Self::Disk | Self::SuperDisk)
    }
}

/// The data of a source/sink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SimulatedPattern {
    /// All zero.
    #[default]
    Zero,
    /// Each byte is its place in its packet, modulo 63.
    Mod63,
    /// Zeroes are given, and nothing is checked.
    None,
}

/// Time on a simulated device's bus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SimulatedClock {
    /// It passes.
    #[default]
    Real,
    /// It stands still, until the control socket lets it go on.
    Manual,
}

/// `[usb]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Usb {
    /// Whether the devices plugged into this machine are exported.
    pub enabled: bool,
}

impl Default for Usb {
    fn default() -> Self {
        Self { enabled: true }
    }
}

fn default_listen() -> SocketAddr {
    ([0, 0, 0, 0], transport::DEFAULT_PORT).into()
}

fn default_state_dir() -> PathBuf {
    PathBuf::from("/var/lib/xen-vusb")
}

fn default_hold_seconds() -> u64 {
    60
}

/// A disk that spins up behind two hubs takes half of it.
fn default_startup_hold_seconds() -> u64 {
    60
}

/// A week: whoever saves a guest on a Friday restores it on a Monday.
fn default_saved_hold_seconds() -> HoldTime {
    HoldTime::Seconds(7 * 24 * 60 * 60)
}

fn default_disconnected_hold_seconds() -> HoldTime {
    HoldTime::Forever
}

fn default_takeover_seconds() -> u64 {
    TAKEOVER_MS / 1000
}

fn default_plugged() -> bool {
    true
}

fn default_size_mib() -> u64 {
    64
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not what it should be; the text has the line and the key.
    #[error("{path} is not a configuration")]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// A value is out of range.
    #[error("{path}: {key}: {reason}")]
    Value {
        /// Which file.
        path: PathBuf,
        /// Which key.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// Largest simulated disk, 2 TiB: beyond, READ CAPACITY(10) would not do.
const MAX_SIZE_MIB: u64 = 2 * 1024 * 1024;

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, path)
    }

    /// Checks a text; `path` is for the errors.
    ///
    /// # Errors
    /// [`ConfigError`], for the administrator.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|source| ConfigError::Invalid {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        config.check().map_err(|(key, reason)| ConfigError::Value {
            path: path.to_owned(),
            key,
            reason,
        })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        if let HoldTime::Seconds(seconds) = self.disconnected_hold_seconds
            && seconds <= self.takeover_seconds
        {
            // Else a VM that is started elsewhere would find its lease ended.
            let takeover = self.takeover_seconds;
            return Err((
                "disconnected_hold_seconds",
                format!("{seconds} is not more than takeover_seconds, which is {takeover}"),
            ));
        }
        let conflicts = session::lease::conflicts(&self.attach);
        if !conflicts.is_empty() {
            return Err(("attach", conflicts.join("; ")));
        }
        if self.simulated.len() > 99 {
            return Err(("simulated", "at most 99 devices".to_owned()));
        }
        for simulated in &self.simulated {
            let Simulated {
                kind,
                file,
                size_mib,
                serial,
                ..
            } = simulated;
            match (kind.is_disk(), file.is_some()) {
                (true, false) => {
                    return Err((
                        "simulated.file",
                        "a disk keeps its blocks in one".to_owned(),
                    ));
                }
                (false, true) => {
                    return Err(("simulated.file", "only disks have one".to_owned()));
                }
                _ => (),
            }
            if !(1..=MAX_SIZE_MIB).contains(size_mib) {
                let reason = format!("{size_mib} is not within 1 to {MAX_SIZE_MIB}");
                return Err(("simulated.size_mib", reason));
            }
            if let Some(serial) = serial
                && !(1..=126).contains(&serial.len())
            {
                return Err(("simulated.serial", "1 to 126 characters".to_owned()));
            }
        }
        Ok(())
    }

    /// How long leases wait for their VMs.
    pub fn hold_times(&self) -> HoldTimes {
        HoldTimes {
            gone_ms: self.hold_seconds.saturating_mul(1000),
            saved_ms: self.saved_hold_seconds.ms(),
            startup_ms: self.startup_hold_seconds.saturating_mul(1000),
            disconnected_ms: self.disconnected_hold_seconds.ms(),
            takeover_ms: self.takeover_seconds.saturating_mul(1000),
        }
    }

    /// What is good and probably not meant: `[[attach]]` rules without an `[[allow]]`, a line each.
    pub fn warnings(&self) -> Vec<String> {
        let is_allowed = |rule: &AttachRule| self.allow.iter().any(|allow| allow.may_allow(rule));
        let rules = self.attach.iter().filter(|rule| !is_allowed(rule));
        let lines = rules.map(|rule| {
            format!(
                "no [[allow]] is for the [[attach]] of {} to {}: it is not executed",
                rule.device, rule.vm
            )
        });
        lines.collect()
    }

    /// Who may hold what.
    pub fn policy(&self) -> Policy {
        Policy {
            allow: self.allow.clone(),
        }
    }
}

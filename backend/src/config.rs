// SPDX-License-Identifier: GPL-3.0-or-later
//! `/etc/xen-vusb/vusbd.toml`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use control::WhenExchanged;
use serde::Deserialize;
use transport::Tls;

/// The daemon's configuration. Unknown keys are errors: a typing mistake must not silently mean
/// the default.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Where `xl-vusb` finds the daemon.
    #[serde(default = "default_socket")]
    pub socket: PathBuf,
    /// What outlives the daemon, so that a restart goes unnoticed; see [`Config::state_dir`].
    #[serde(default)]
    pub state_dir: Option<PathBuf>,
    /// This host's certificate, by default in [`transport::TLS_DIR`].
    #[serde(default)]
    pub tls: Tls,
    /// The exporters of the pool, any number.
    #[serde(default, rename = "exporter")]
    pub exporters: Vec<Exporter>,
    /// Times of a hand-off.
    #[serde(default)]
    pub hand_off: HandOff,
    /// The rings.
    #[serde(default)]
    pub rings: Rings,
    /// Devices that are pulled out and plugged in elsewhere.
    #[serde(default)]
    pub exchange: Exchange,
}

/// One exporter.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Exporter {
    /// Its name: that of its certificate, and the first part of a device's name.
    pub name: String,
    /// `HOST:PORT`.
    pub address: String,
    /// What becomes of attached devices when it cannot be reached for long.
    #[serde(default)]
    pub on_unreachable: OnUnreachable,
    /// How long "long" is, in seconds, 1 to a day. Only [`OnUnreachable::Disconnect`] asks.
    #[serde(default = "default_unreachable_seconds")]
    pub unreachable_seconds: u32,
}

impl Exporter {
    /// After how long without its exporter a guest sees a device go; `None` for never.
    pub fn disconnect_after(&self) -> Option<Duration> {
        let after = Duration::from_secs(self.unreachable_seconds.into());
        (self.on_unreachable == OnUnreachable::Disconnect).then_some(after)
    }
}

/// An exporter is out of reach, and devices that it has lent to running guests with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnUnreachable {
    /// The guest's transfers wait, however long that takes.
    #[default]
    Wait,
    /// The guest sees the devices go after a while, and come when the exporter is back.
    Disconnect,
}

fn default_unreachable_seconds() -> u32 {
    60
}

/// Times of a hand-off, in milliseconds.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct HandOff {
    /// How long an OUT transfer that a suspending guest unlinks may take to finish, 0 to 1,000.
    pub quiesce_ms: u64,
    /// What becomes of a guest on its way here when an exporter does not answer.
    pub unreachable: WhenUnreachable,
}

impl Default for HandOff {
    fn default() -> Self {
        Self {
            quiesce_ms: 50,
            unreachable: WhenUnreachable::Refuse,
        }
    }
}

/// An exporter that does not answer may have lent devices to the guest that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenUnreachable {
    /// The guest goes on at its source, with its devices.
    Refuse,
    /// It comes, and sees the devices of that exporter go, until the exporter is heard of again.
    GoOn,
}

/// What becomes of an attachment whose device is pulled out, unless `xl-vusb attach` says otherwise.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Exchange {
    /// Unless `attach` says otherwise. A device that is not named by `VID:PID:SERIAL` is replugged where this
    /// is a pause.
    pub on_exchange: WhenExchanged,
    /// How long a device is waited for, in seconds, 1 to [`session::Exchange::MAX_SECONDS`].
    pub exchange_seconds: u32,
}

impl Default for Exchange {
    fn default() -> Self {
        Self {
            on_exchange: WhenExchanged::Replug,
            exchange_seconds: 60,
        }
    }
}

/// How the rings are served.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Rings {
    /// How long a controller's thread keeps looking, in microseconds, before it sleeps, when that
    /// has paid before: 0 (never) to 1,000.
    pub poll_us: u64,
}

impl Rings {
    /// [`Rings::poll_us`].
    pub fn poll(&self) -> Duration {
        Duration::from_micros(self.poll_us)
    }
}

impl Default for Rings {
    fn default() -> Self {
        Self { poll_us: 50 }
    }
}

/// Why there is no configuration. The texts say what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}; an example is in backend/dist/vusbd.toml")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not what it should be; toml's message names line and key.
    #[error("{path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A value is out of range.
    #[error("{path}: {what}")]
    Value {
        /// The file.
        path: PathBuf,
        /// Which, and what is allowed.
        what: String,
    },
}

fn default_socket() -> PathBuf {
    control::DEFAULT_SOCKET.into()
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ConfigError`], for the administrator.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.into(),
            source,
        })?;
        Self::parse(&text, path)
    }

    /// Where to keep what outlives the daemon: `state` beside the socket, unless it is configured.
    pub fn state_dir(&self) -> PathBuf {
        match (&self.state_dir, self.socket.parent()) {
            (Some(dir), _) => dir.clone(),
            (None, Some(beside)) => beside.join("state"),
            (None, None) => "state".into(),
        }
    }

    /// Reads a text; `path` is for the errors.
    ///
    /// # Errors
    /// [`ConfigError`], for the administrator.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|e| ConfigError::Parse {
            path: path.into(),
            source: Box::new(e),
        })?;
        config.check().map_err(|what| ConfigError::Value {
            path: path.into(),
            what,
        })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        if self.hand_off.quiesce_ms > 1000 {
            return Err("hand-off.quiesce-ms is at most 1000".into());
        }
        if self.rings.poll_us > 1000 {
            return Err("rings.poll-us is at most 1000".into());
        }
        let most = session::Exchange::MAX_SECONDS;
        if !(1..=most).contains(&self.exchange.exchange_seconds) {
            return Err(format!("exchange.exchange-seconds is 1 to {most}"));
        }
        for (at, exporter) in self.exporters.iter().enumerate() {
            if exporter.name.is_empty() || exporter.name.contains('/') {
                return Err(format!(
                    "exporter name '{}' is not a host name",
                    exporter.name
                ));
            }
            if !exporter.address.contains(':') {
                let Exporter { name, address, .. } = exporter;
                return Err(format!(
                    "address of exporter {name}: '{address}' is not HOST:PORT"
                ));
            }
            if !(1..=86_400).contains(&exporter.unreachable_seconds) {
                return Err(format!(
                    "unreachable-seconds of exporter {} is 1 to 86400",
                    exporter.name
                ));
            }
            if self.exporters[..at]
                .iter()
                .any(|other| other.name == exporter.name)
            {
                return Err(format!("exporter {} is named twice", exporter.name));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("vusbd.toml")).map_err(|e| e.to_string())
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        let config = parse("").unwrap();
        assert_eq!(config.socket, Path::new(control::DEFAULT_SOCKET));
        assert_eq!(config.hand_off.quiesce_ms, 50);
        assert_eq!(config.rings.poll(), Duration::from_micros(50));
        assert!(config.exporters.is_empty());
        assert_eq!(config.exchange.on_exchange, WhenExchanged::Replug);
        assert_eq!(config.exchange.exchange_seconds, 60);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = parse("\n[hand-off]\nquiese-ms = 3\n").unwrap_err();
        assert!(
            error.contains("quiese-ms") && error.contains("line 3"),
            "{error}"
        );
    }

    #[test]
    fn values_out_of_range_are_refused() {
        let error = parse("[hand-off]\nquiesce-ms = 5000").unwrap_err();
        assert!(error.contains("at most 1000"), "{error}");
        let error = parse("[rings]\npoll-us = 5000").unwrap_err();
        assert!(error.contains("at most 1000"), "{error}");
        let error = parse("[exchange]\nexchange-seconds = 0").unwrap_err();
        assert!(error.contains("1 to 86400"), "{error}");
        let error = parse("[exchange]\non-exchange = 'stay'").unwrap_err();
        assert!(error.contains("pause"), "{error}");
        let two = "[[exporter]]\nname='a'\naddress='a:1'\n".repeat(2);
        assert!(parse(&two).unwrap_err().contains("named twice"));
        let error = parse("[[exporter]]\nname='a'\naddress='a'\n").unwrap_err();
        assert!(error.contains("HOST:PORT"), "{error}");
        let error = parse("[[exporter]]\nname='a'\naddress='a:1'\nunreachable-seconds=0\n");
        assert!(error.unwrap_err().contains("1 to 86400"));
    }

    #[test]
    fn what_is_out_of_reach_is_waited_for_unless_told_otherwise() {
        let after = |more: &str| {
            let text = format!("[[exporter]]\nname='a'\naddress='a:1'\n{more}");
            parse(&text).unwrap().exporters[0].disconnect_after()
        };
        assert_eq!(after(""), None);
        assert_eq!(after("on-unreachable='wait'\nunreachable-seconds=5"), None);
        let minute = Some(Duration::from_secs(60));
        assert_eq!(after("on-unreachable='disconnect'"), minute);
        let five = Some(Duration::from_secs(5));
        assert_eq!(
            after("on-unreachable='disconnect'\nunreachable-seconds=5"),
            five
        );
    }
}

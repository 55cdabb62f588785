// SPDX-License-Identifier: GPL-3.0-or-later
//! Plays a toolstack: the same nodes in the same order, the same waits. `xl` and libxl, and in the other
//! [`Dialect`]s xenopsd and libvirt.

mod device;
mod dialect;
mod domain;
mod migrate;
mod save;
mod store;
mod xenopsd;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use uuid::Uuid;
use xen::DomId;

use crate::seqpacket::Socket;
use crate::wire::{self, DomainInfo, Request, Response, unexpected};

pub use dialect::{Dialect, Step};
pub use migrate::{Failure, MigrateError, MigrateOptions, Migration};
pub use save::SavedDomain;
pub use store::{Store, WatchEvent};
pub use xenopsd::{temporary_source, temporary_target};

/// How long the toolstack waits for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For a backend, to come and to go (`LIBXL_INIT_TIMEOUT`, `LIBXL_DESTROY_TIMEOUT`).
    pub backend: Duration,
    /// For a guest to acknowledge `control/shutdown`, and then to do it.
    pub guest: Duration,
}

impl Default for Timeouts {
    /// Those of libxl.
    fn default() -> Timeouts {
        Timeouts {
            backend: Duration::from_secs(10),
            guest: Duration::from_secs(60),
        }
    }
}

/// `usbctrl=['type=pv,version=V,ports=P']`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsbController {
    /// USB version: 1 or 2.
    pub version: u8,
    /// Number of ports, 1 to 31.
    pub ports: u8,
}

impl Default for UsbController {
    fn default() -> UsbController {
        UsbController {
            version: 2,
            ports: 4,
        }
    }
}

/// What an `xl` configuration file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainConfig {
    /// The domain's name, unique on its host.
    pub name: String,
    /// The VM's uuid.
    pub uuid: Uuid,
    /// Memory, pages.
    pub pages: usize,
    /// USB controllers; the index is the device id.
    pub usbctrl: Vec<UsbController>,
}

impl DomainConfig {
    /// A domain of 16 MiB with one USB 2.0 controller of four ports.
    pub fn new(name: &str) -> DomainConfig {
        DomainConfig {
            name: name.to_owned(),
            uuid: Uuid::new_v4(),
            pages: 4096,
            usbctrl: vec![UsbController::default()],
        }
    }
}

/// Why the toolstack gave up.
#[derive(Debug, thiserror::Error)]
pub enum ToolstackError {
    /// A call to the host or to xenstore failed.
    #[error("{what}")]
    Host {
        /// What was being done.
        what: String,
        /// The failure.
        #[source]
        source: io::Error,
    },
    /// The name belongs to another domain.
    #[error("a domain named {0} exists already")]
    NameTaken(String),
    /// The backend did not reach the state in time.
    #[error("{path} did not become {wanted} in time")]
    BackendTimeout {
        /// The state node.
        path: String,
        /// The state that was waited for.
        wanted: u32,
    },
    /// The backend removed its state node: it refuses.
    #[error("{path} was removed")]
    BackendRemoved {
        /// The state node.
        path: String,
    },
    /// There is such a device already.
    #[error("device {0} exists already")]
    DeviceExists(u32),
    /// The guest did not acknowledge a request to suspend or reboot, or did not do it.
    #[error("domain {0} did not answer control/shutdown")]
    GuestUnresponsive(DomId),
    /// The domain shut down for another reason than was asked of it.
    #[error("domain {domid} shut down with {reason:?}")]
    UnexpectedShutdown {
        /// The domain.
        domid: DomId,
        /// Its reason.
        reason: crate::ShutdownReason,
    },
}

/// Attaches what was being done to an I/O error.
trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, ToolstackError>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, ToolstackError> {
        self.map_err(|source| ToolstackError::Host {
            what: what(),
            source,
        })
    }
}

impl From<io::Error> for ToolstackError {
    fn from(source: io::Error) -> ToolstackError {
        ToolstackError::Host {
            what: "xenstore".to_owned(),
            source,
        }
    }
}

/// The toolstack of one host.
#[derive(Debug)]
pub struct Toolstack {
    dir: PathBuf,
    socket: Mutex<Socket>,
    timeouts: Timeouts,
    dialect: Dialect,
}

impl Toolstack {
    /// Connects to the host whose sockets are in `dir`.
    pub fn connect(dir: &Path) -> io::Result<Toolstack> {
        Ok(Toolstack {
            dir: dir.to_owned(),
            socket: Mutex::new(Socket::connect(&dir.join("hypervisor.sock"))?),
            timeouts: Timeouts::default(),
            dialect: Dialect::default(),
        })
    }

    /// Waits for a shorter or longer time than libxl.
    pub fn with_timeouts(self, timeouts: Timeouts) -> Toolstack {
        Toolstack { timeouts, ..self }
    }

    /// From now on, plays this toolstack.
    pub fn speak(&mut self, dialect: Dialect) {
        self.dialect = dialect;
    }

    /// Which toolstack it plays.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// A new xenstore connection as domain 0.
    pub fn store(&self) -> io::Result<Store> {
        Store::connect(&self.dir.join("xenstored.sock"))
    }

    fn call(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Response, Vec<OwnedFd>), ToolstackError> {
        let socket = self.socket.lock().expect("no holder panics");
        wire::call(&socket, request, fds).doing(|| format!("{request:?}"))
    }

    /// A domain as the hypervisor sees it.
    pub fn info(&self, domid: DomId) -> Result<DomainInfo, ToolstackError> {
        match self.call(&Request::DomainInfo { domid: domid.0 }, &[])?.0 {
            Response::Info(info) => Ok(info),
            other => Err(unexpected(&other).into()),
        }
    }

    /// All domains but domain 0.
    pub fn list(&self) -> Result<Vec<DomainInfo>, ToolstackError> {
        match self.call(&Request::ListDomains, &[])?.0 {
            Response::Domains(list) => Ok(list),
            other => Err(unexpected(&other).into()),
        }
    }

    /// What guests and backends of this host did that they must not. Not empty: the run fails.
    pub fn violations(&self) -> Result<Vec<String>, ToolstackError> {
        match self.call(&Request::Violations, &[])?.0 {
            Response::Violations {
                mut list,
                truncated,
            } => {
                if truncated > 0 {
                    list.push(format!("and {truncated} more"));
                }
                Ok(list)
            }
            other => Err(unexpected(&other).into()),
        }
    }

    /// Ends the host's process.
    pub fn stop_host(&self) -> Result<(), ToolstackError> {
        self.call(&Request::Shutdown, &[]).map(drop)
    }
}

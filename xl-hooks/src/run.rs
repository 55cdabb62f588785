// SPDX-License-Identifier: GPL-3.0-or-later
//! Runs a command: asks the daemon, prints the answer, says how it ended.

use std::io::Write;
use std::path::Path;

use control::client::{self, ClientError};
use control::{Request, Response};
use serde::Serialize;

use crate::cli::{Attach, Cli, Command, ControllerCommand, Detach, HostsCommand, PoolCommand};
use crate::pool::{self, Issued, Pool, PoolError, TLS_DIR};
use crate::{migrate, other_config, show};

/// How a command ended; the program's exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: done.
    Done,
    /// 1: the answer is no.
    No,
    /// 2: nobody could be asked.
    NotAsked,
    /// What `xl migrate` ended with.
    Xl(u8),
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::No => 1,
            Exit::NotAsked => 2,
            Exit::Xl(status) => status,
        })
    }
}

/// What went wrong. Each is one line.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The daemon could not be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The daemon refused.
    #[error("{0}")]
    Refused(String),
    /// The daemon answered another question.
    #[error("vusbd answered something else; xl-vusb and vusbd must be of one version")]
    OtherAnswer,
    /// The pool's files.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// `xl migrate` was not started.
    #[error(transparent)]
    Migrate(#[from] migrate::MigrateError),
    /// `other_config` could not be read, or nothing be asked.
    #[error(transparent)]
    OtherConfig(#[from] other_config::OtherConfigError),
    /// Standard output is gone.
    #[error("cannot write: {0}")]
    Output(#[from] std::io::Error),
    /// The answer does not fit into JSON.
    #[error("cannot write JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl RunError {
    /// The exit status that goes with it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Refused(_) | Self::Pool(_) => Exit::No,
            Self::Migrate(error) => error.exit(),
            _ => Exit::NotAsked,
        }
    }
}

/// What the pool's commands print with `--json`; all others print a [`Response`].
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
enum PoolResponse<'a> {
    Pool(&'a Pool),
    Issued(&'a Issued),
}

/// Runs `cli`'s command; its output goes to `out`, warnings to `err`.
///
/// # Errors
/// See [`RunError`]. What `check` and `migrate` find is no error but an [`Exit`].
pub async fn run(cli: &Cli, out: &mut impl Write, err: &mut impl Write) -> Result<Exit, RunError> {
    match &cli.command {
        Command::Pool(command) => run_pool(command, cli.json, out, err),
        Command::Migrate(arguments) => migrate::run(&cli.socket, arguments, err).await,
        Command::ApplyOtherConfig { vms } => other_config::run(vms, &cli.socket, out, err),
        command => {
            let request = request(command)?;
            let response = ask(&cli.socket, &request).await?;
            if cli.json {
                write_json(out, &response)?;
            } else if let (Command::Check { quiet: true, .. }, Response::Check(forecasts)) =
                (command, &response)
            {
                for line in show::refusals(forecasts) {
                    writeln!(out, "{line}")?;
                }
            } else {
                out.write_all(show::text(&response).as_bytes())?;
            }
            Ok(match &response {
                Response::Check(forecasts) if forecasts.iter().any(|f| f.outcome.forbids()) => {
                    Exit::No
                }
                _ => Exit::Done,
            })
        }
    }
}

/// Asks the daemon, and takes only the answer that belongs to the request.
pub(crate) async fn ask(socket: &Path, request: &Request) -> Result<Response, RunError> {
    let response = client::call(socket, request).await?;
    match (request, &response) {
        (_, Response::Error(error)) => Err(RunError::Refused(crate::table::printable(error))),
        (Request::Exporters, Response::Exporters(_))
        | (Request::Devices, Response::Devices { .. })
        | (Request::Attach { .. }, Response::Attached(_))
        | (Request::Detach { .. }, Response::Detached(_))
        | (Request::Release { .. }, Response::Released { .. })
        | (Request::AddController { .. }, Response::ControllerAdded(_))
        | (Request::RemoveController { .. }, Response::ControllerRemoved(_))
        | (Request::Controllers { .. }, Response::Controllers(_))
        | (Request::List | Request::ListAll, Response::Attachments(_))
        | (Request::Status, Response::Status(_))
        | (Request::Check { .. }, Response::Check(_))
        | (Request::Hosts, Response::Hosts { .. })
        | (Request::ForgetHost { .. }, Response::Forgotten { .. }) => Ok(response),
        _ => Err(RunError::OtherAnswer),
    }
}

fn request(command: &Command) -> Result<Request, RunError> {
    Ok(match command {
        Command::Exporters => Request::Exporters,
        Command::Devices => Request::Devices,
        Command::Attach(Attach {
            domain,
            device,
            controller,
            port,
            on_migrate,
            on_exchange,
            exchange_seconds,
            persistent,
        }) => Request::Attach {
            domain: domain.clone(),
            exporter: device.exporter.as_str().to_owned(),
            device: device.device.clone(),
            controller: *controller,
            port: *port,
            on_migrate: *on_migrate,
            on_exchange: *on_exchange,
            exchange_seconds: *exchange_seconds,
            persistent: *persistent,
        },
        Command::Detach(Detach {
            domain,
            port,
            controller,
        }) => Request::Detach {
            domain: domain.clone(),
            controller: *controller,
            port: *port,
        },
        Command::Controller(command) => match command {
            ControllerCommand::Add {
                domain,
                ports,
                usb,
                devid,
            } => Request::AddController {
                domain: domain.clone(),
                devid: *devid,
                controller: session::OwnController {
                    ports: *ports,
                    usb_version: *usb,
                },
            },
            ControllerCommand::Remove { domain, devid } => Request::RemoveController {
                domain: domain.clone(),
                devid: *devid,
            },
            ControllerCommand::List { domain } => Request::Controllers {
                domain: domain.clone(),
            },
        },
        Command::Release { device, force } => Request::Release {
            exporter: device.exporter.as_str().to_owned(),
            device: device.device.clone(),
            force: force.map(session::Epoch),
        },
        Command::List { all: false } => Request::List,
        Command::List { all: true } => Request::ListAll,
        Command::Status => Request::Status,
        Command::Check {
            domain,
            to,
            toolstack,
            quiet: _,
        } => Request::Check {
            domain: domain.clone(),
            toolstack: *toolstack,
            to: to.clone(),
        },
        Command::Hosts { command: None } => Request::Hosts,
        Command::Hosts {
            command: Some(HostsCommand::Forget { host }),
        } => Request::ForgetHost { host: host.clone() },
        Command::Pool(_) | Command::Migrate(_) | Command::ApplyOtherConfig { .. } => {
            return Err(RunError::OtherAnswer);
        }
    })
}

fn run_pool(
    command: &PoolCommand,
    json: bool,
    out: &mut impl Write,
    err: &mut impl Write,
) -> Result<Exit, RunError> {
    let warnings = match command {
        PoolCommand::Init { dir, name } => {
            let pool = pool::init(dir, name)?;
            if json {
                write_json(out, &PoolResponse::Pool(&pool))?;
            } else {
                let (cert, key) = (pool.ca_cert.display(), pool.ca_key.display());
                writeln!(
                    out,
                    "made {cert} and {key}, valid until {}",
                    pool.valid_until
                )?;
                writeln!(
                    out,
                    "keep {key} on this machine and in a backup; next: xl-vusb pool issue HOST{}, \
                     for each host and exporter",
                    dir_option(dir)
                )?;
            }
            pool.warnings
        }
        PoolCommand::Issue { host, dir, out: to } => {
            let issued = pool::issue(dir, host.as_str(), to.as_deref())?;
            if json {
                write_json(out, &PoolResponse::Issued(&issued))?;
            } else {
                let dir = issued.dir.display();
                writeln!(
                    out,
                    "made ca.crt, host.crt and host.key for {host} in {dir}, valid until {}",
                    issued.valid_until
                )?;
                writeln!(out, "copy them to {TLS_DIR}/ on {host}:")?;
                writeln!(
                    out,
                    "  ssh root@{host} install -d -m 700 {TLS_DIR} && \
                     scp -p {dir}/ca.crt {dir}/host.crt {dir}/host.key root@{host}:{TLS_DIR}/"
                )?;
            }
            issued.warnings
        }
    };
    for warning in warnings {
        writeln!(err, "warning: {warning}")?;
    }
    Ok(Exit::Done)
}

/// ` --dir DIR` where the pool is not at its usual place.
fn dir_option(dir: &Path) -> String {
    if dir == Path::new(pool::DEFAULT_DIR) {
        String::new()
    } else {
        format!(" --dir {}", dir.display())
    }
}

fn write_json(out: &mut impl Write, value: &impl Serialize) -> Result<(), RunError> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    Ok(writeln!(out)?)
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! `xl-vusb migrate`: a check in front of plain `xl migrate`.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};

use control::{Forecast, Request, Response, Toolstack};

use crate::cli::Migrate;
use crate::run::{Exit, RunError, ask};
use crate::show;

/// Why `xl migrate` was not started.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// At least one device refuses.
    #[error("{domain} was not migrated; {}", .refusals.join("; "))]
    Refused {
        /// The domain.
        domain: String,
        /// A line for each device, with the remedy.
        refusals: Vec<String>,
    },
    /// There is no `xl`.
    #[error("cannot run xl: {0}; is this the dom0 of a Xen host?")]
    NoXl(#[source] std::io::Error),
}

impl MigrateError {
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Refused { .. } => Exit::No,
            Self::NoXl(_) => Exit::NotAsked,
        }
    }
}

/// Checks, says what will happen to each device on `err`, and runs `xl migrate` with this process's
/// standard streams.
pub(crate) async fn run(
    socket: &Path,
    arguments: &Migrate,
    err: &mut impl Write,
) -> Result<Exit, RunError> {
    let request = Request::Check {
        domain: arguments.domain.clone(),
        toolstack: Some(Toolstack::Xl),
        to: Vec::new(),
    };
    let mut response = ask(socket, &request).await?;
    let Response::Check(forecasts) = &mut response else {
        return Err(RunError::OtherAnswer);
    };
    forecasts
        .iter_mut()
        .for_each(|f| to_host(f, &arguments.host));
    if forecasts.iter().any(|f| f.outcome.forbids()) {
        return Err(MigrateError::Refused {
            domain: arguments.domain.clone(),
            refusals: show::refusals(forecasts),
        }
        .into());
    }
    err.write_all(show::text(&response).as_bytes())?;
    err.flush()?;
    let status = xl_migrate(arguments).status().map_err(MigrateError::NoXl)?;
    Ok(Exit::Xl(exit_status(status)))
}

/// Leaves of a forecast what is about this host. `xl` names hosts as ssh does, which may not be their name in
/// the pool: then nothing but what stands in the way on every host does, since plain `xl migrate` is safe.
fn to_host(forecast: &mut Forecast, host: &str) {
    let is_meant = |name: &str| {
        let short = name.split('.').next();
        name.eq_ignore_ascii_case(host) || short.is_some_and(|s| s.eq_ignore_ascii_case(host))
    };
    if forecast.hosts.iter().any(|h| is_meant(&h.host)) {
        forecast.hosts.retain(|h| is_meant(&h.host));
    }
    let best = forecast.hosts.iter().min_by_key(|h| h.outcome);
    if let Some(best) = best.cloned() {
        forecast.outcome = best.outcome;
        forecast.reason.clone_from(&best.reason);
        if !best.outcome.forbids() {
            forecast.hosts.retain(|h| !h.outcome.forbids());
        }
    }
}

fn xl_migrate(arguments: &Migrate) -> Command {
    let mut command = Command::new("xl");
    command
        .arg("migrate")
        .args(&arguments.xl_options)
        .arg(&arguments.domain)
        .arg(&arguments.host);
    command
}

/// As a shell reports it: 128 and the signal's number where there was one.
fn exit_status(status: ExitStatus) -> u8 {
    let status = status
        .code()
        .or(status.signal().map(|signal| 128 + signal))
        .unwrap_or(1);
    u8::try_from(status).unwrap_or(1)
}

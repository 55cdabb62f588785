// SPDX-License-Identifier: GPL-3.0-or-later
//! The controllers and exporters of this host, and what administrators ask about them.

mod attach;
mod check;
mod controllers;
mod detach;
mod exporters;
mod forecast;
mod hosts;
mod own_controllers;
mod persistent;
mod report;
mod toolstack;

use std::sync::Arc;

use control::{Request, Response};
use slog::Logger;
use xen::xenstore::XenStore;

use self::attach::Wanted;
pub use self::controllers::{Controllers, Entry};
pub use self::exporters::Exporters;
use crate::config;
use crate::domain::{Domain, Domains};
use crate::exporter::Exporter;
use crate::totals::Totals;
use crate::xenbus::Key;

/// The state that the daemon and the control socket share, and the answers made of it.
pub struct Admin {
    host: String,
    store: XenStore,
    domains: Domains,
    exchange: config::Exchange,
    log: Logger,
    /// Every exporter.
    pub exporters: Exporters,
    /// Every controller.
    pub controllers: Controllers,
    /// What went through this daemon.
    pub totals: Arc<Totals>,
}

/// Why a request was not done: the text that the administrator reads.
type Refused = String;

impl Admin {
    /// No controllers yet.
    pub fn new(
        host: &str,
        exporters: Vec<Exporter>,
        store: XenStore,
        domains: Domains,
        exchange: config::Exchange,
        log: Logger,
    ) -> Self {
        Self {
            host: host.to_owned(),
            store,
            domains,
            exchange,
            exporters: Exporters::new(exporters, log.clone()),
            controllers: Controllers::default(),
            log,
            totals: Arc::default(),
        }
    }

    /// Answers an administrator.
    pub async fn answer(&self, request: Request) -> Response {
        let result = match request {
            Request::Exporters => Ok(Response::Exporters(self.exporters.status())),
            Request::Devices => {
                let (devices, unreachable) = self.exporters.devices().await;
                Ok(Response::Devices {
                    devices,
                    unreachable,
                })
            }
            Request::Attach {
                domain,
                exporter,
                device,
                controller,
                port,
                on_migrate,
                on_exchange,
                exchange_seconds,
                persistent,
            } => {
                let wanted = Wanted {
                    device,
                    controller,
                    port,
                    on_migrate,
                    on_exchange,
                    exchange_seconds,
                    persistent,
                };
                let attached = self.attach(&domain, &exporter, wanted).await;
                attached.map(|a| Response::Attached(Box::new(a)))
            }
            Request::Detach {
                domain,
                controller,
                port,
            } => self
                .detach(&domain, controller, port)
                .await
                .map(|a| Response::Detached(Box::new(a))),
            Request::Release {
                exporter,
                device,
                force,
            } => self.take_away(&exporter, &device, force).await,
            Request::AddController {
                domain,
                devid,
                controller,
            } => {
                let added = self.add_controller(&domain, devid, controller).await;
                added.map(|c| Response::ControllerAdded(Box::new(c)))
            }
            Request::RemoveController { domain, devid } => {
                let removed = self.remove_controller(&domain, devid).await;
                removed.map(|c| Response::ControllerRemoved(Box::new(c)))
            }
            Request::Controllers { domain } => {
                let controllers = self.list_controllers(domain.as_deref()).await;
                controllers.map(Response::Controllers)
            }
            Request::List => Ok(Response::Attachments(self.attachments().await)),
            Request::ListAll => Ok(Response::Attachments(self.all_attachments().await)),
            Request::Status => Ok(Response::Status(Box::new(self.status().await))),
            Request::Check {
                domain,
                toolstack,
                to,
            } => {
                let forecasts = self.check(&domain, toolstack, &to).await;
                forecasts.map(Response::Check)
            }
            Request::Hosts => Ok(self.hosts().await),
            Request::ForgetHost { host } => self.forget_host(&host).await,
        };
        result.unwrap_or_else(Response::Error)
    }

    /// The domain that an administrator means.
    async fn domain(&self, wanted: &str) -> Result<Domain, Refused> {
        let found = self.domains.find(wanted).await;
        let mut found = found.map_err(|e| format!("xenstore does not answer: {e}"))?;
        match (found.pop(), found.is_empty()) {
            (None, _) => Err(no_domain(wanted)),
            (Some(domain), true) => Ok(domain),
            (Some(domain), false) => {
                found.push(domain);
                let those: Vec<_> = found
                    .iter()
                    .map(|d| format!("domain {} ({}, {})", d.domid, d.name, d.vm))
                    .collect();
                Err(format!(
                    "'{wanted}' is the name or uuid of {} domains of this host: {}. Name the one that you mean \
                     by its domain id",
                    those.len(),
                    those.join(", ")
                ))
            }
        }
    }
}

fn no_domain(wanted: &str) -> Refused {
    format!("no domain '{wanted}' on this host; `xl list` shows them")
}

/// Why nothing can be asked of a controller.
fn stuck(key: Key, domain: &str) -> Refused {
    format!(
        "controller {} of domain {domain} does not answer: its thread hangs in the kernel; see vusbd's log",
        key.devid
    )
}

/// A time for people.
fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

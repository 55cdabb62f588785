// SPDX-License-Identifier: GPL-3.0-or-later
//! The hosts of the pool, as the exporters know them.

use std::collections::BTreeMap;

use control::{PoolHost, Response, SeenHost};
use session::control::Request as Ask;
use slog::info;

use super::{Admin, Refused};

impl Admin {
    /// Every host that an exporter knows.
    pub(super) async fn hosts(&self) -> Response {
        let (known, unreachable) = self.exporters.hosts(None).await;
        let mut by_name: BTreeMap<String, Vec<SeenHost>> = BTreeMap::new();
        for (exporter, hosts) in known {
            for host in hosts {
                let makes_controllers = host.software.as_ref().is_some_and(|s| s.makes_controllers);
                by_name.entry(host.name).or_default().push(SeenHost {
                    exporter: exporter.clone(),
                    connected: host.connected,
                    seen_seconds: host.seen_seconds,
                    version: host.software.map(|s| s.version),
                    makes_controllers,
                });
            }
        }
        let hosts = by_name
            .into_iter()
            .map(|(name, seen)| PoolHost { name, seen });
        Response::Hosts {
            hosts: hosts.collect(),
            unreachable,
        }
    }

    /// Has every exporter forget a host. One that is connected anywhere is forgotten nowhere.
    pub(super) async fn forget_host(&self, wanted: &str) -> Result<Response, Refused> {
        let (known, silent) = self.exporters.hosts(None).await;
        let knows = known.iter().filter_map(|(exporter, hosts)| {
            let host = hosts.iter().find(|h| h.name == wanted)?;
            Some((exporter.as_str(), host.connected))
        });
        let knows: Vec<_> = knows.collect();
        let connected: Vec<_> = knows.iter().filter(|(_, c)| *c).map(|(e, _)| *e).collect();
        if !connected.is_empty() {
            return Err(format!(
                "host {wanted} is connected to {}; stop vusbd there first, else it is known again at once",
                connected.join(", ")
            ));
        }
        let unsure: Vec<_> = silent.iter().map(|s| s.name.as_str()).collect();
        let unsure = match unsure.is_empty() {
            true => String::new(),
            false => format!(
                "; {} does not answer: run it again when it does",
                unsure.join(", ")
            ),
        };
        if knows.is_empty() {
            return Err(format!(
                "no exporter knows a host '{wanted}'; `xl-vusb hosts` lists them{unsure}"
            ));
        }
        let mut exporters = Vec::new();
        for (exporter, _) in knows {
            let host = wanted.to_owned();
            let forget = Ask::ForgetHost { host };
            let done = self.exporters.find(exporter)?.ask(forget).await;
            done.map_err(|e| e.to_string())?;
            exporters.push(exporter.to_owned());
        }
        info!(self.log, "host forgotten"; "host" => wanted);
        match unsure.is_empty() {
            true => Ok(Response::Forgotten {
                host: wanted.to_owned(),
                exporters,
            }),
            false => Err(format!(
                "forgot host {wanted} at {}{unsure}",
                exporters.join(", ")
            )),
        }
    }
}

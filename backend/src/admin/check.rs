// SPDX-License-Identifier: GPL-3.0-or-later
//! What a migration would do to each device of a domain, on each host that it could go to.

use std::collections::{BTreeMap, BTreeSet};

use control::{Attachment, Counters, Forecast, Toolstack};
use session::control::{Reply, Request as Ask};
use session::hosts::KnownHost;
use session::{Holder, Lease, LeasePhase, VmUuid};

use super::forecast::{self, Question, Seen};
use super::{Admin, Refused, no_domain, stuck, toolstack};

/// The answers of the exporters.
struct Known {
    /// By exporter.
    hosts: BTreeMap<String, Vec<KnownHost>>,
    /// Why an exporter did not answer, by its name.
    silent: BTreeMap<String, String>,
}

impl Known {
    /// Every host that some exporter knows.
    fn names(&self) -> BTreeSet<&str> {
        let all = self.hosts.values().flatten();
        all.map(|host| host.name.as_str()).collect()
    }

    /// What an exporter says of a host.
    fn seen<'a>(&'a self, exporter: &str, host: &str) -> Seen<'a> {
        match self.hosts.get(exporter) {
            Some(hosts) => match hosts.iter().find(|h| h.name == host) {
                Some(known) => Seen::Known(known),
                None => Seen::Never,
            },
            None => Seen::Silent(
                self.silent
                    .get(exporter)
                    .map_or("it is not in vusbd.toml any more", String::as_str),
            ),
        }
    }

    /// The hosts that the administrator means by `to`, or all but this one.
    fn candidates(&self, to: &[String], here: &str) -> Result<Vec<String>, Refused> {
        let names = self.names();
        if to.is_empty() {
            let others = names.into_iter().filter(|name| *name != here);
            return Ok(others.map(str::to_owned).collect());
        }
        let found = to.iter().map(|wanted| {
            let found = names.iter().find(|name| name.eq_ignore_ascii_case(wanted));
            found
                .map(|name| (*name).to_owned())
                .ok_or_else(|| self.unknown(wanted))
        });
        let found: Result<BTreeSet<String>, Refused> = found.collect();
        found.map(|found| found.into_iter().collect())
    }

    /// The forecast for an attachment of a VM on the host `here`, on each of these hosts.
    fn forecast(
        &self,
        here: &str,
        by: Toolstack,
        attachment: Attachment,
        candidates: &[String],
    ) -> Forecast {
        let exporter = attachment.exporter.clone();
        let hosts = candidates
            .iter()
            .map(|host| (host.as_str(), self.seen(&exporter, host)));
        forecast::of(&Question { here, by }, attachment, hosts)
    }

    fn unknown(&self, host: &str) -> Refused {
        let names: Vec<_> = self.names().into_iter().collect();
        let known = match names.is_empty() {
            true => "none".to_owned(),
            false => names.join(", "),
        };
        let silent: Vec<_> = self.silent.keys().map(String::as_str).collect();
        let silent = match silent.is_empty() {
            true => String::new(),
            false => format!(
                ". Not asked, because they do not answer: {}",
                silent.join(", ")
            ),
        };
        format!(
            "no host '{host}' has ever been connected to an exporter; name a host as its certificate does. Known: \
             {known}{silent}"
        )
    }
}

impl Admin {
    /// What a migration would do to a domain's attachments; by `toolstack`, or by the one that made it; to
    /// the hosts of these names, or to any.
    pub(super) async fn check(
        &self,
        wanted: &str,
        toolstack: Option<Toolstack>,
        to: &[String],
    ) -> Result<Vec<Forecast>, Refused> {
        let domain = match self.domain(wanted).await {
            Ok(domain) => domain,
            Err(refused) if refused == no_domain(wanted) => {
                let to_here =
                    !to.is_empty() && to.iter().all(|t| t.eq_ignore_ascii_case(&self.host));
                return match (to_here, wanted.parse()) {
                    (true, Ok(vm)) => self.check_arrival(vm, toolstack).await,
                    _ => Err(self.runs_elsewhere(wanted).await.unwrap_or(refused)),
                };
            }
            Err(refused) => return Err(refused),
        };
        let mut attachments = Vec::new();
        for (key, entry) in self.controllers.of(domain.domid) {
            // What hangs may have devices: it must not look as if it had none.
            if entry.handle.describe().await.is_none() && entry.handle.is_running() {
                return Err(stuck(key, &domain.name));
            }
            attachments.extend(self.attachments_of(key, &entry).await);
        }
        if attachments.is_empty() {
            return Ok(Vec::new());
        }
        let known = self.known(domain.vm).await;
        let candidates = known.candidates(to, &self.host)?;
        let forecasts = attachments.into_iter().map(|attachment| {
            let by = toolstack::migrating(attachment.toolstack, toolstack);
            known.forecast(&self.host, by, attachment, &candidates)
        });
        Ok(forecasts.collect())
    }

    /// The same for a VM that runs on another host and is to come here, as the destination is asked by a
    /// toolstack that runs nothing at the source. It is about the leases that the policies show this host.
    async fn check_arrival(
        &self,
        vm: VmUuid,
        toolstack: Option<Toolstack>,
    ) -> Result<Vec<Forecast>, Refused> {
        let known = self.known(vm).await;
        if let Some((exporter, why)) = known.silent.iter().next() {
            return Err(format!(
                "exporter {exporter} does not answer, so nobody knows whether VM {vm} has a device there that it \
                 would lose on {}: {why}",
                self.host
            ));
        }
        let leases = self.exporters.leases_now(vm).await;
        let mut leases: Vec<_> = leases.into_iter().collect();
        leases.sort_by(|((one, _), _), ((other, _), _)| one.cmp(other));
        let forecasts = leases.into_iter().map(|((exporter, _), lease)| {
            let source = lease.holder.host.clone();
            // Which toolstack made it does not show here; what is not said counts as one that waits for nothing.
            let by = toolstack.unwrap_or(Toolstack::Unknown);
            let attachment = of_lease(exporter, by, lease);
            known.forecast(&source, by, attachment, std::slice::from_ref(&self.host))
        });
        Ok(forecasts.collect())
    }

    /// What the exporters know of hosts, and of what their policies allow a VM there.
    async fn known(&self, vm: VmUuid) -> Known {
        let (hosts, silent) = self.exporters.hosts(Some(vm)).await;
        let why = |error: Option<String>| error.unwrap_or_else(|| "no reason known".to_owned());
        let silent = silent.into_iter().map(|s| (s.name, why(s.error)));
        Known {
            hosts,
            silent: silent.collect(),
        }
    }

    /// Where a VM runs that is not here, from the leases that the exporters have of it.
    async fn runs_elsewhere(&self, wanted: &str) -> Option<Refused> {
        for exporter in self.exporters.all() {
            let reply = exporter.ask(Ask::Leases { vm: None }).await;
            let Ok(Reply::Leases(leases)) = reply else {
                continue;
            };
            let found = leases.into_iter().find(|lease| {
                let is_named =
                    lease.vm_name == wanted || wanted.eq_ignore_ascii_case(&lease.vm.to_string());
                let runs = matches!(lease.phase, LeasePhase::Serving | LeasePhase::Frozen);
                is_named && runs && lease.holder.host != self.host
            });
            if let Some(lease) = found {
                let Holder { host, domid } = &lease.holder;
                return Some(format!(
                    "VM {} ({}) does not run on this host but on {host} (domain {domid}): run `xl-vusb check \
                     {}` there",
                    lease.vm_name, lease.vm, lease.vm
                ));
            }
        }
        None
    }
}

/// An attachment on another host, as its lease describes it.
fn of_lease(exporter: String, toolstack: Toolstack, lease: Lease) -> Attachment {
    Attachment {
        exporter,
        vm: lease.vm,
        domid: lease.holder.domid,
        vm_name: lease.vm_name,
        controller: lease.controller,
        port: lease.port,
        toolstack,
        frontend_resumes: lease.frontend_resumes,
        on_migrate: lease.on_migrate,
        phase: lease.phase,
        exchange: lease.exchange,
        elsewhere: false,
        persistence: lease.persistence,
        host: Some(lease.holder.host),
        note: lease.note,
        stash: lease.stash,
        counters: Counters::default(),
        device: lease.device,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> KnownHost {
        KnownHost {
            name: name.to_owned(),
            connected: true,
            seen_seconds: 0,
            software: None,
            refused: Vec::new(),
        }
    }

    fn known() -> Known {
        let hosts = [
            ("desk".to_owned(), vec![host("host-a"), host("host-b")]),
            ("pi4".to_owned(), vec![host("host-a"), host("host-c")]),
        ];
        let silent = [("attic".to_owned(), "no route to host".to_owned())];
        Known {
            hosts: hosts.into(),
            silent: silent.into(),
        }
    }

    #[test]
    fn without_a_name_every_other_host_is_meant() {
        let all = known().candidates(&[], "host-a").unwrap();
        assert_eq!(all, ["host-b", "host-c"]);
    }

    #[test]
    fn names_are_those_of_certificates_and_others_are_refused_with_what_is_known() {
        let of = |to: &[&str]| {
            let to: Vec<_> = to.iter().map(|t| (*t).to_owned()).collect();
            known().candidates(&to, "host-a")
        };
        // Twice the same, and the host itself: a migration to localhost.
        let found = of(&["HOST-C", "host-c", "host-a"]).unwrap();
        assert_eq!(found, ["host-a", "host-c"]);
        let error = of(&["host-b", "host-d"]).unwrap_err();
        for part in ["'host-d'", "Known: host-a, host-b, host-c", "attic"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn each_exporter_is_asked_about_each_host() {
        let known = known();
        assert!(matches!(known.seen("desk", "host-b"), Seen::Known(h) if h.name == "host-b"));
        assert!(matches!(known.seen("pi4", "host-b"), Seen::Never));
        assert!(matches!(
            known.seen("attic", "host-b"),
            Seen::Silent("no route to host")
        ));
        assert!(matches!(known.seen("shed", "host-b"), Seen::Silent(_)));
    }
}

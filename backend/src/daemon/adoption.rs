// SPDX-License-Identifier: GPL-3.0-or-later
//! Controllers of an earlier vusbd, which was killed or restarted.

use std::time::Duration;

use session::frame::{Kind, encode_plain};
use session::message::Purpose;
use session::open::{Attempt, Evidence, How, Open, Opened};
use session::{Epoch, Lease};
use slog::{debug, error, info, warn};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};
use transport::Identity;
use xen::xenstore::Error;
use xen::{Backend, DomId};

use super::Daemon;
use super::leases::Occasion;
use crate::config;
use crate::controller::Adopted;
use crate::state::{Saved, SavedDevice};
use crate::xenbus::{Key, XenbusState};

/// Pauses between attempts to tell an exporter that a domain is gone.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// How long an exporter may take to close a connection after the last words on it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

impl<B: Backend> Daemon<B> {
    /// Takes over whatever an earlier vusbd has left.
    pub(super) async fn take_over(&mut self) -> Result<(), Error> {
        let all = self.state.saved(&self.log);
        for saved in &all {
            self.domains.was(DomId(saved.domid), saved.vm);
        }
        self.own_of_gone().await?;
        self.backends_changed().await?;
        for saved in all {
            let key = saved.key();
            if self.admin.controllers.get(key).is_some() {
                continue;
            }
            match self.is_there(&saved).await? {
                // A running guest must not lose its devices because we cannot serve it.
                true => {
                    error!(self.log, "the controller of a running guest is not served; its devices stay \
                    lent to it. Do what an earlier message says and restart vusbd, or destroy the domain";
                    "controller" => %key, "vm" => %saved.vm)
                }
                false => self.say_gone(saved),
            }
        }
        Ok(())
    }

    /// Whether a domain and its controller are there, by what xenstore says of them and not by what is
    /// served here.
    async fn is_there(&self, saved: &Saved) -> Result<bool, Error> {
        let key = saved.key();
        let is_same = self.domains.may_be(key.domid, saved.vm).await?;
        Ok(is_same && !self.read_backend(key).await?.removed)
    }

    /// A controller has been removed that is not served: what an earlier vusbd has left of it is said to be
    /// gone.
    pub(super) fn forget_unserved(&self, key: Key) {
        if let Some(saved) = self.state.files(key).saved() {
            self.say_gone(saved);
        }
    }

    /// A controller whose state says that somebody has served it.
    pub(super) async fn adopt(&mut self, key: Key, backend: XenbusState) -> Result<(), Error> {
        let Some(domain) = self.domains.read(key.domid).await? else {
            return Ok(());
        };
        let log = self.log.new(slog::o!("controller" => key.to_string()));
        let mut files = self.state.files(key);
        let (mut arrives, mut first_connect, mut of_others) = (false, false, false);
        let (journal, devices) = match files.open(domain.vm) {
            Some((journal, saved)) => {
                arrives = saved.arrives;
                first_connect = saved.first_connect;
                let me = self.holder(key);
                of_others = first_connect && saved.devices.iter().any(|d| d.lease.holder != me);
                (journal, Some(self.known(saved)))
            }
            None => {
                warn!(
                    log,
                    "an earlier vusbd served this controller and left no record of it"
                );
                (files.create(&log), None)
            }
        };
        let gather = devices.is_none();
        let adopted = Adopted {
            backend,
            devices: devices.unwrap_or_default(),
            arrives,
            first_connect,
        };
        if !self
            .start(key, &domain, files, journal, Some(adopted))
            .await?
        {
            return Ok(());
        }
        let Some(entry) = self.admin.controllers.get(key) else {
            return Ok(());
        };
        if gather {
            // The frontend waits until the leases are known.
            self.gather(key, &domain, Occasion::Made);
            return Ok(());
        }
        entry.decided.set(true);
        entry.look_again.set(of_others);
        if backend == XenbusState::Closing {
            // Its ring was corrupt. It is looked at again when the frontend closes.
            entry.frontend.set(XenbusState::Connected);
        }
        self.frontend_changed(key.domid, &key.frontend()).await
    }

    fn known(&self, saved: Saved) -> Vec<(config::Exporter, SavedDevice)> {
        let exporters = &self.admin.exporters;
        let known = saved.devices.into_iter().filter_map(|device| {
            let Some(exporter) = exporters.get(&device.exporter) else {
                error!(
                    self.log,
                    "device {}/{} is unplugged: its exporter is not configured any more",
                    device.exporter,
                    device.lease.device.id
                );
                return None;
            };
            Some((exporter.config().clone(), device))
        });
        known.collect()
    }

    /// The domain of these devices went away while nobody was there to tell their exporters, or the
    /// exporters could not be told: tells them, however long that takes.
    pub(super) fn say_gone(&self, saved: Saved) {
        let key = saved.key();
        if !self.telling.borrow_mut().insert(key) {
            return;
        }
        let files = self.state.files(key);
        let (sessions, suspended) = files.left();
        info!(self.log, "domain went away unnoticed"; "controller" => %saved.key(),
            "devices" => saved.devices.len());
        let tell = saved.devices.into_iter().filter_map(|device| {
            let port = device.lease.port;
            let session = sessions.iter().find(|(at, _)| *at == port);
            let exporter = self.admin.exporters.get(&device.exporter)?;
            let SavedDevice { lease, fresh, .. } = device;
            Some(Gone {
                exporter: exporter.config().clone(),
                identity: self.identity.clone(),
                domid: saved.domid,
                suspended,
                // Nobody comes after us.
                attempt: session.map_or(Attempt::default(), |(_, session)| Attempt {
                    life: session.life,
                    number: u64::MAX,
                }),
                how: match session {
                    Some((_, session)) => How::Resume {
                        epoch: Epoch(session.epoch),
                        completions_received: session.completions_received,
                    },
                    // Never claimed by the one who kept this.
                    None if fresh => How::Claim { seen: lease.epoch },
                    None => return None,
                },
                lease,
            })
        });
        let tell: Vec<_> = tell.collect();
        let (log, telling) = (self.log.clone(), self.telling.clone());
        spawn_local(async move {
            for gone in tell {
                gone.say(&log).await;
            }
            files.remove();
            telling.borrow_mut().remove(&key);
        });
    }
}

/// A lease whose domain is gone.
struct Gone {
    exporter: config::Exporter,
    identity: Identity,
    lease: Lease,
    domid: u16,
    /// Whether the guest was suspended before: then it was saved.
    suspended: bool,
    attempt: Attempt,
    how: How,
}

impl Gone {
    async fn say(mut self, log: &slog::Logger) {
        let mut pause = RETRY_MIN;
        loop {
            match self.try_say().await {
                Ok(Opened::Ready { .. }) => {
                    info!(log, "exporter told that the domain is gone";
                        "exporter" => &self.exporter.name, "device" => %self.lease.device.id);
                    return;
                }
                // Restarted meanwhile: it knows the holder by its name and domain.
                Ok(Opened::Refused(refusal)) => {
                    if let How::Resume { epoch, .. } = self.how {
                        self.how = How::Claim { seen: epoch };
                        continue;
                    }
                    debug!(log, "lease is somebody else's"; "reason" => %refusal);
                    return;
                }
                Err(e) => debug!(log, "exporter not told yet: {}", e),
            }
            sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    async fn try_say(&self) -> Result<Opened, transport::Error> {
        let config::Exporter { name, address, .. } = &self.exporter;
        let mut stream = transport::connect(&self.identity, address, name).await?;
        transport::greet(&mut stream, Purpose::Device).await?;
        let (ack, how) = match self.how {
            How::Resume {
                completions_received,
                ..
            } => (completions_received, self.how),
            How::Claim { .. } => (0, self.how),
        };
        let open = Open {
            device: self.lease.device.id.clone(),
            vm: self.lease.vm,
            domid: self.domid,
            attempt: self.attempt,
            frontend_resumes: self.lease.frontend_resumes,
            evidence: Evidence::Uuid,
            how,
        };
        transport::send(&mut stream, &open).await?;
        let opened = transport::receive::<Opened>(&mut stream).await?;
        if let Opened::Ready { .. } = opened {
            let mut bytes = Vec::new();
            if self.suspended {
                encode_plain(&mut bytes, Kind::Freeze, 0, ack, &[]);
            }
            encode_plain(&mut bytes, Kind::Orphan, 0, ack, &[]);
            let lost = |e| transport::Error::from_io(e, name);
            stream.write_all(&bytes).await.map_err(lost)?;
            stream.shutdown().await.map_err(lost)?;
            // It closes in order when it has read and saved that.
            let mut rest = Vec::new();
            match timeout(CLOSE_TIMEOUT, stream.read_to_end(&mut rest)).await {
                Ok(read) => drop(read.map_err(lost)?),
                Err(_) => return Err(transport::Error::Closed),
            }
        }
        Ok(opened)
    }
}

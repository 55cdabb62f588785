// SPDX-License-Identifier: GPL-3.0-or-later
//! Connections as they come in.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use session::message::Purpose;
use slog::{debug, warn};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, spawn_local, yield_now};
use tokio::time::timeout;
use transport::{Acceptor, Error, greeted};

use crate::admission::{Admission, Ticket, Verdict};
use crate::hub::Hub;
use crate::limits::Limits;
use crate::{control, device};

/// A peer that belongs here begins its handshake as soon as it is connected.
const FIRST_BYTES_TIMEOUT: Duration = Duration::from_secs(2);
/// Most connections of one host: two for every device that it may have, several times over.
const MAX_PER_HOST: usize = 256;

/// A host that has been here.
struct Host {
    /// Its connections now.
    connections: usize,
    limits: Rc<Limits>,
}

/// The hosts by name. They are never forgotten: only the pool's CA makes new ones.
type Hosts = Rc<RefCell<HashMap<String, Host>>>;

/// One of a host's connections.
struct Place {
    hosts: Hosts,
    host: String,
    limits: Rc<Limits>,
}

impl Place {
    /// `None` when the host has too many.
    fn take(hosts: &Hosts, host: &str) -> Option<Self> {
        let mut known = hosts.borrow_mut();
        let entry = known.entry(host.to_owned()).or_insert_with(|| Host {
            connections: 0,
            limits: Rc::new(Limits::new(Instant::now())),
        });
        if entry.connections >= MAX_PER_HOST {
            return None;
        }
        entry.connections += 1;
        Some(Self {
            hosts: hosts.clone(),
            host: host.to_owned(),
            limits: entry.limits.clone(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(host) = self.hosts.borrow_mut().get_mut(&self.host) {
            host.connections -= 1;
        }
    }
}

/// Connections in their handshake, each with what ends it.
type Handshakes = Rc<RefCell<Admission<AbortHandle>>>;

/// Takes a connection out of [`Handshakes`] when its handshake has ended, in whatever way.
struct Handshake {
    all: Handshakes,
    ticket: Ticket,
    is_host: bool,
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut all = self.all.borrow_mut();
        all.ended(self.ticket, self.is_host, Instant::now());
    }
}

/// Accepts connections. Never ends.
pub(crate) async fn accept(hub: Rc<Hub>, listener: TcpListener, acceptor: Acceptor) {
    let handshakes: Handshakes = Rc::new(RefCell::new(Admission::new()));
    let hosts = Hosts::default();
    // Of all who have not shown a certificate.
    let strangers = logging::limited(hub.log());
    loop {
        let (tcp, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                // Too many open files, mostly; accepting again at once would only spin.
                warn!(hub.log(), "cannot accept a connection: {}", e);
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (hub, acceptor, hosts) = (hub.clone(), acceptor.clone(), hosts.clone());
        let (all, log) = (handshakes.clone(), strangers.clone());
        let verdict = handshakes
            .borrow_mut()
            .admit(address.ip(), Instant::now(), move |ticket| {
                // Not run before we wait for the next connection: the table is ours until then.
                let task = spawn_local(async move {
                    let handshake = Handshake {
                        all,
                        ticket,
                        is_host: false,
                    };
                    match serve(&hub, tcp, &acceptor, &hosts, handshake).await {
                        Ok(()) | Err(Error::Closed) => debug!(log, "{} closed", address),
                        Err(e) => warn!(log, "connection of {}: {}", address, e),
                    }
                });
                task.abort_handle()
            });
        match verdict {
            Verdict::In(None) => (),
            Verdict::In(Some(oldest)) => {
                warn!(
                    strangers,
                    "too many connections have not shown a certificate, {} is the newest; closed another",
                    address
                );
                oldest.abort();
            }
            Verdict::TooMany => warn!(strangers, "{} connects too often; refused it", address),
        }
        // A handshake that can go on does so before it can be the oldest.
        yield_now().await;
    }
}

async fn serve(
    hub: &Rc<Hub>,
    tcp: TcpStream,
    acceptor: &Acceptor,
    hosts: &Hosts,
    mut handshake: Handshake,
) -> Result<(), Error> {
    let first = timeout(FIRST_BYTES_TIMEOUT, tcp.readable()).await;
    first
        .map_err(|_| Error::TimedOut {
            peer: "it".to_owned(),
            during: "beginning of the TLS handshake",
            seconds: FIRST_BYTES_TIMEOUT.as_secs(),
        })?
        .map_err(Error::Io)?;
    let (mut stream, host) = acceptor.accept(tcp).await?;
    handshake.is_host = true;
    drop(handshake);
    let log = hub.log_of(&host);
    let Some(place) = Place::take(hosts, &host) else {
        warn!(log, "{} has too many connections; refused another", host);
        return Ok(());
    };
    let served = match greeted(&mut stream).await {
        Ok(Purpose::Control) => control::serve(hub, stream, &host, &log, &place.limits).await,
        Ok(Purpose::Device) => device::serve(hub, stream, &host, &log, &place.limits).await,
        Err(e) => Err(e),
    };
    match served {
        Ok(()) | Err(Error::Closed) => (),
        // It is the host's part of the log that this fills.
        Err(e) => warn!(log, "connection of {}: {}", host, e),
    }
    Ok(())
}

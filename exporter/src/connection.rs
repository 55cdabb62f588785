// SPDX-License-Identifier: GPL-3.0-or-later
//! Connections as they come in.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use session::message::Purpose;
use slog::{Logger, debug, warn};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_local;
use transport::{Acceptor, Error, greeted};

use crate::hub::Hub;
use crate::{control, device};

/// Most connections whose peer is not known yet. Who has no certificate cannot hold more than
/// these, and each no longer than a handshake may take.
const MAX_HANDSHAKES: usize = 64;
/// Most connections of one host: two for every device that it may have, several times over.
const MAX_PER_HOST: usize = 256;

/// A host that has been here: its connections now, and its part of the log.
struct Host {
    connections: usize,
    log: Logger,
}

/// The hosts by name. They are never forgotten: only the pool's CA makes new ones.
type Hosts = Rc<RefCell<HashMap<String, Host>>>;

/// One of a host's connections.
struct Place {
    hosts: Hosts,
    host: String,
    log: Logger,
}

impl Place {
    /// An error, with the host's log, when the host has too many.
    fn take(hosts: &Hosts, host: &str, log: &Logger) -> Result<Self, Logger> {
        let mut known = hosts.borrow_mut();
        let entry = known.entry(host.to_owned()).or_insert_with(|| Host {
            connections: 0,
            log: logging::limited(log),
        });
        let log = entry.log.clone();
        if entry.connections >= MAX_PER_HOST {
            return Err(log);
        }
        entry.connections += 1;
        Ok(Self {
            hosts: hosts.clone(),
            host: host.to_owned(),
            log,
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

/// Accepts connections. Never ends.
pub(crate) async fn accept(hub: Rc<Hub>, listener: TcpListener, acceptor: Acceptor) {
    let room = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let hosts = Hosts::default();
    // Of all who have not shown a certificate.
    let strangers = logging::limited(hub.log());
    loop {
        // The semaphore is never closed.
        let Ok(handshake) = room.clone().acquire_owned().await else {
            return;
        };
        let tcp = match listener.accept().await {
            Ok((tcp, _)) => tcp,
            Err(e) => {
                // Too many open files, mostly; accepting again at once would only spin.
                warn!(hub.log(), "cannot accept a connection: {}", e);
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let (hub, acceptor, hosts) = (hub.clone(), acceptor.clone(), hosts.clone());
        let log = strangers.clone();
        spawn_local(async move {
            let address = tcp.peer_addr().map(|a| a.to_string()).unwrap_or_default();
            match serve(&hub, tcp, &acceptor, &hosts, handshake).await {
                Ok(()) | Err(Error::Closed) => debug!(log, "{} closed", address),
                Err(e) => warn!(log, "connection of {}: {}", address, e),
            }
        });
    }
}

async fn serve(
    hub: &Rc<Hub>,
    tcp: TcpStream,
    acceptor: &Acceptor,
    hosts: &Hosts,
    handshake: OwnedSemaphorePermit,
) -> Result<(), Error> {
    let (mut stream, host) = acceptor.accept(tcp).await?;
    drop(handshake);
    let place = match Place::take(hosts, &host, hub.log()) {
        Ok(place) => place,
        Err(log) => {
            warn!(log, "{} has too many connections; refused another", host);
            return Ok(());
        }
    };
    match greeted(&mut stream).await? {
        Purpose::Control => control::serve(hub, stream, &host).await,
        Purpose::Device => device::serve(hub, stream, &host, &place.log).await,
    }
}

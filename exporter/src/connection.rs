// SPDX-License-Identifier: GPL-3.0-or-later
//! Connections as they come in.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use session::message::Purpose;
use slog::{debug, warn};
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

/// How many connections each host has.
type Hosts = Rc<RefCell<HashMap<String, usize>>>;

/// One of a host's connections.
struct Place {
    hosts: Hosts,
    host: String,
}

impl Place {
    /// `None` when the host has too many.
    fn take(hosts: &Hosts, host: &str) -> Option<Self> {
        let mut counts = hosts.borrow_mut();
        let count = counts.entry(host.to_owned()).or_default();
        (*count < MAX_PER_HOST).then(|| {
            *count += 1;
            Self {
                hosts: hosts.clone(),
                host: host.to_owned(),
            }
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.hosts.borrow_mut();
        if let Some(count) = counts.get_mut(&self.host) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.host);
            }
        }
    }
}

/// Accepts connections. Never ends.
pub(crate) async fn accept(hub: Rc<Hub>, listener: TcpListener, acceptor: Acceptor) {
    let room = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let hosts = Hosts::default();
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
        spawn_local(async move {
            let address = tcp.peer_addr().map(|a| a.to_string()).unwrap_or_default();
            match serve(&hub, tcp, &acceptor, &hosts, handshake).await {
                Ok(()) | Err(Error::Closed) => debug!(hub.log(), "{} closed", address),
                Err(e) => warn!(hub.log(), "connection of {}: {}", address, e),
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
    let Some(_place) = Place::take(hosts, &host) else {
        warn!(
            hub.log(),
            "{} has too many connections; refused another", host
        );
        return Ok(());
    };
    match greeted(&mut stream).await? {
        Purpose::Control => control::serve(hub, stream, &host).await,
        Purpose::Device => device::serve(hub, stream, &host).await,
    }
}

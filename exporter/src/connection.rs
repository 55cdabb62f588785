// SPDX-License-Identifier: GPL-3.0-or-later
//! Connections as they come in.

use std::rc::Rc;
use std::sync::Arc;

use session::message::Purpose;
use slog::{debug, warn};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::spawn_local;
use transport::{Acceptor, Error, greeted};

use crate::hub::Hub;
use crate::{control, device};

/// Most connections at a time: two for every device of the largest machine, several times over.
const MAX_CONNECTIONS: usize = 512;

/// Accepts connections. Never ends.
pub(crate) async fn accept(hub: Rc<Hub>, listener: TcpListener, acceptor: Acceptor) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(place) = room.clone().acquire_owned().await else {
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
        let (hub, acceptor) = (hub.clone(), acceptor.clone());
        spawn_local(async move {
            let address = tcp.peer_addr().map(|a| a.to_string()).unwrap_or_default();
            match serve(&hub, tcp, &acceptor).await {
                Ok(()) | Err(Error::Closed) => debug!(hub.log(), "{} closed", address),
                Err(e) => warn!(hub.log(), "connection of {}: {}", address, e),
            }
            drop(place);
        });
    }
}

async fn serve(hub: &Rc<Hub>, tcp: TcpStream, acceptor: &Acceptor) -> Result<(), Error> {
    let (mut stream, host) = acceptor.accept(tcp).await?;
    match greeted(&mut stream).await? {
        Purpose::Control => control::serve(hub, stream, &host).await,
        Purpose::Device => device::serve(hub, stream, &host).await,
    }
}

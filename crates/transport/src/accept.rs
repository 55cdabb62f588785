// SPDX-License-Identifier: GPL-3.0-or-later
//! The exporter's end: accepting.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::identity::host_name;
use crate::{Error, Identity, TlsStream, socket};

/// Longest handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Authenticates incoming connections. Cheap to clone.
#[derive(Clone)]
pub struct Acceptor {
    tls: TlsAcceptor,
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acceptor").finish_non_exhaustive()
    }
}

impl Acceptor {
    /// An acceptor that shows `identity` and demands a certificate of the same CA.
    pub fn new(identity: &Identity) -> Self {
        Self {
            tls: TlsAcceptor::from(identity.server()),
        }
    }

    /// The handshake on a new TCP connection: the stream, and the peer's name in the pool. Run it
    /// in a task of its own, since a peer may take its time.
    pub async fn accept(&self, tcp: TcpStream) -> Result<(TlsStream, String), Error> {
        socket::configure(&tcp).map_err(Error::Io)?;
        let peer = match tcp.peer_addr() {
            Ok(address) => address.to_string(),
            Err(e) => return Err(Error::Io(e)),
        };
        let stream = timeout(HANDSHAKE_TIMEOUT, self.tls.accept(tcp))
            .await
            .map_err(|_| Error::TimedOut {
                peer: peer.clone(),
                during: "TLS handshake",
                seconds: HANDSHAKE_TIMEOUT.as_secs(),
            })?
            .map_err(|e| Error::from_handshake(e, &peer, None))?;
        let host = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(<[_]>::first)
            .and_then(host_name)
            .ok_or(Error::NoHostName(peer))?;
        Ok((TlsStream::from(stream), host))
    }
}

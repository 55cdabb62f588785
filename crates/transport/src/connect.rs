// SPDX-License-Identifier: GPL-3.0-or-later
//! The backend's end: connecting.

use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::{Error, Identity, TlsStream, socket};

/// Longest wait for the TCP connection (all addresses together), and again for the handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Connects to the exporter called `exporter` at `address` (`HOST:PORT`). Its certificate must be
/// of our CA and for the name `exporter`, whatever the address is.
///
/// An exporter that does not accept our certificate is noticed only when its first message is
/// waited for: see [`Error::from_io`].
pub async fn connect(
    identity: &Identity,
    address: &str,
    exporter: &str,
) -> Result<TlsStream, Error> {
    let name = ServerName::try_from(exporter.to_owned())
        .ok()
        .filter(|name| matches!(name, ServerName::DnsName(_)))
        .ok_or_else(|| Error::InvalidName(exporter.to_owned()))?;
    let timed_out = |during| Error::TimedOut {
        peer: format!("{exporter} ({address})"),
        during,
        seconds: CONNECT_TIMEOUT.as_secs(),
    };
    let tcp = timeout(CONNECT_TIMEOUT, connect_tcp(address))
        .await
        .map_err(|_| timed_out("connecting"))??;
    socket::configure(&tcp).map_err(Error::Io)?;
    let connector = TlsConnector::from(identity.client());
    let stream = timeout(CONNECT_TIMEOUT, connector.connect(name, tcp))
        .await
        .map_err(|_| timed_out("TLS handshake"))?
        .map_err(|e| {
            let peer = format!("{exporter} ({address})");
            Error::from_handshake(e, &peer, Some(exporter))
        })?;
    Ok(TlsStream::from(stream))
}

async fn connect_tcp(address: &str) -> Result<TcpStream, Error> {
    let candidates = lookup_host(address)
        .await
        .map_err(|source| Error::Resolve {
            address: address.to_owned(),
            source,
        })?;
    let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
    for candidate in candidates {
        match TcpStream::connect(candidate).await {
            Ok(stream) => return Ok(stream),
            Err(e) => last = e,
        }
    }
    Err(Error::Unreachable {
        address: address.to_owned(),
        source: last,
    })
}

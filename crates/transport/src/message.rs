// SPDX-License-Identifier: GPL-3.0-or-later
//! Messages ([`session::message`]) on a connection.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use session::message::{self, MAX_MESSAGE_LEN, MessageError, Purpose};
use session::{Hello, PROTOCOL_VERSION};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::Error;

/// Longest wait for a message that is due now, and for one to be taken by the peer.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads messages and nothing beyond them, so that what follows the last message is still in the
/// stream.
#[derive(Debug, Default)]
pub struct MessageReader {
    buffer: Vec<u8>,
    filled: usize,
}

impl MessageReader {
    /// A reader at the start of a message.
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits for the next message, however long that takes.
    ///
    /// May be dropped and called again: nothing is lost. [`Error::Closed`] when the peer closed
    /// the connection.
    pub async fn receive<T: DeserializeOwned>(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
    ) -> Result<T, Error> {
        loop {
            let filled = &self.buffer[..self.filled];
            if let Some((value, taken)) = message::decode(filled)? {
                debug_assert_eq!(taken, self.filled);
                self.filled = 0;
                return Ok(value);
            }
            let wanted = match filled.first_chunk::<4>() {
                None => 4,
                Some(prefix) => 4 + u32::from_le_bytes(*prefix) as usize,
            };
            // decode() has refused anything longer; this keeps the buffer bounded by itself.
            if wanted > 4 + MAX_MESSAGE_LEN {
                return Err(MessageError::TooLong(wanted - 4).into());
            }
            if self.buffer.len() < wanted {
                self.buffer.resize(wanted, 0);
            }
            let into = &mut self.buffer[self.filled..wanted];
            match stream.read(into).await {
                Ok(0) => return Err(Error::Closed),
                Ok(n) => self.filled += n,
                Err(e) => return Err(Error::from_io(e, "the other end")),
            }
        }
    }
}

/// Sends one message.
pub async fn send<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    value: &T,
) -> Result<(), Error> {
    let mut bytes = Vec::new();
    message::encode(value, &mut bytes)?;
    let write = async {
        stream.write_all(&bytes).await?;
        stream.flush().await
    };
    match timeout(MESSAGE_TIMEOUT, write).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(e)) => Err(Error::from_io(e, "the other end")),
        Err(_) => Err(timed_out("sending")),
    }
}

/// Waits for a message that is due now, at most five seconds. For waits without an end, and where
/// something else is waited for at the same time, use a [`MessageReader`].
pub async fn receive<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<T, Error> {
    timeout(MESSAGE_TIMEOUT, MessageReader::new().receive(stream))
        .await
        .map_err(|_| timed_out("waiting for a message"))?
}

/// The backend's first step on a new connection: says what it is for, and checks the versions.
pub async fn greet(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    purpose: Purpose,
) -> Result<(), Error> {
    let version = PROTOCOL_VERSION;
    send(stream, &Hello { version, purpose }).await?;
    check(receive::<Hello>(stream).await?, "the exporter").map(|_| ())
}

/// The exporter's first step on a new connection: learns what it is for, and checks the versions.
pub async fn greeted(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<Purpose, Error> {
    let theirs = receive::<Hello>(stream).await?;
    let ours = Hello {
        version: PROTOCOL_VERSION,
        purpose: theirs.purpose,
    };
    // Also to a peer of another version: it can then say the same to its administrator.
    send(stream, &ours).await?;
    check(theirs, "the backend")
}

fn check(hello: Hello, peer: &str) -> Result<Purpose, Error> {
    if hello.version == PROTOCOL_VERSION {
        return Ok(hello.purpose);
    }
    Err(Error::Version {
        peer: peer.to_owned(),
        theirs: hello.version,
        ours: PROTOCOL_VERSION,
    })
}

fn timed_out(during: &'static str) -> Error {
    Error::TimedOut {
        peer: "the other end".to_owned(),
        during,
        seconds: MESSAGE_TIMEOUT.as_secs(),
    }
}

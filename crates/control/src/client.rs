// SPDX-License-Identifier: GPL-3.0-or-later
//! The caller's half: one request, one answer.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::{MAX_LINE_LEN, Request, Response};

#[cfg(test)]
mod tests;

/// How long an answer may take. The daemon gives up on an exporter long before.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Why there is no answer. The texts are for the administrator, one line each.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no socket, or nobody listens.
    #[error("vusbd is not running: systemctl start vusbd (no answer at {0})")]
    NotRunning(PathBuf),
    /// The socket is for root only.
    #[error("{0} is for root only: run this as root")]
    Permission(PathBuf),
    /// Another failure of the socket.
    #[error("cannot talk to vusbd at {path}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// The daemon closed the connection without an answer.
    #[error("vusbd at {0} closed the connection without an answer: see journalctl -u vusbd")]
    Closed(PathBuf),
    /// The daemon took longer than [`ANSWER_TIMEOUT`].
    #[error(
        "vusbd at {path} did not answer within {seconds} s: see journalctl -u vusbd",
        seconds = .after.as_secs()
    )]
    Timeout {
        /// The socket.
        path: PathBuf,
        /// How long it had.
        after: Duration,
    },
    /// The answer is longer than [`MAX_LINE_LEN`].
    #[error("the answer of {0} is longer than {MAX_LINE_LEN} bytes: is that vusbd?")]
    TooLong(PathBuf),
    /// The answer is none that this version knows.
    #[error("cannot read the answer of {path}: {source}; xl-vusb and vusbd must be of one version")]
    Malformed {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// Asks the daemon that listens at `socket`. [`Response::Error`] is an answer, not a failure of the call.
///
/// # Errors
/// See [`ClientError`].
pub async fn call(socket: &Path, request: &Request) -> Result<Response, ClientError> {
    call_within(socket, request, ANSWER_TIMEOUT).await
}

/// As [`call`], with another limit for the whole exchange.
///
/// # Errors
/// See [`ClientError`].
pub async fn call_within(
    socket: &Path,
    request: &Request,
    limit: Duration,
) -> Result<Response, ClientError> {
    tokio::time::timeout(limit, exchange(socket, request))
        .await
        .unwrap_or_else(|_| {
            Err(ClientError::Timeout {
                path: socket.to_owned(),
                after: limit,
            })
        })
}

async fn exchange(socket: &Path, request: &Request) -> Result<Response, ClientError> {
    let path = || socket.to_owned();
    let malformed = |source| ClientError::Malformed {
        path: path(),
        source,
    };
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|e| connect_error(socket, e))?;
    let (reader, mut writer) = stream.into_split();

    let mut line = serde_json::to_vec(request).map_err(malformed)?;
    line.push(b'\n');
    // A daemon that refuses early (too many callers) may answer and close before it has read
    // everything; its answer says more than our broken pipe.
    let written = writer.write_all(&line).await;

    let mut answer = Vec::new();
    let limit = MAX_LINE_LEN as u64 + 1;
    let read = BufReader::new(reader)
        .take(limit)
        .read_until(b'\n', &mut answer)
        .await;
    if answer.is_empty() {
        return Err(match read.and(written) {
            Ok(_) => ClientError::Closed(path()),
            Err(e) if is_closed(&e) => ClientError::Closed(path()),
            Err(source) => ClientError::Io {
                path: path(),
                source,
            },
        });
    }
    if answer.len() > MAX_LINE_LEN {
        return Err(ClientError::TooLong(path()));
    }
    serde_json::from_slice(&answer).map_err(malformed)
}

fn connect_error(socket: &Path, error: io::Error) -> ClientError {
    let path = socket.to_owned();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NotRunning(path),
        io::ErrorKind::PermissionDenied => ClientError::Permission(path),
        _ => ClientError::Io {
            path,
            source: error,
        },
    }
}

fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! The control socket: a line of JSON in, a line of JSON out.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use control::{MAX_LINE_LEN, Request, Response};
use slog::{Logger, debug, warn};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use crate::admin::Admin;

/// Longest wait for a client's request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes the socket; only root may use it.
///
/// # Errors
/// When another vusbd has it, or the directory cannot be written.
pub fn bind(path: &Path) -> Result<UnixListener> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    if std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            bail!("another vusbd is running: it answers on {}", path.display());
        }
        std::fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot protect {}", path.display()))?;
    Ok(listener)
}

/// Serves clients for ever.
pub async fn serve(listener: UnixListener, admin: Rc<Admin>, log: Logger) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (admin, log) = (admin.clone(), log.clone());
                spawn_local(async move {
                    if let Err(e) = client(stream, &admin).await {
                        debug!(log, "control client: {:#}", e);
                    }
                });
            }
            Err(e) => {
                warn!(log, "control socket: {}", e);
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn client(stream: UnixStream, admin: &Admin) -> Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(reader.take(MAX_LINE_LEN as u64));
    timeout(REQUEST_TIMEOUT, reader.read_line(&mut line))
        .await
        .context("no request came")??;
    let response = match serde_json::from_str::<Request>(&line) {
        Ok(request) => admin.answer(request).await,
        Err(e) => Response::Error(format!(
            "vusbd does not understand the request ({e}); are xl-vusb and vusbd of one version?"
        )),
    };
    let mut bytes = serde_json::to_vec(&response)?;
    bytes.push(b'\n');
    writer.write_all(&bytes).await?;
    Ok(())
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! The control socket: a line of JSON in, a line of JSON out.

use std::cell::RefCell;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use control::{MAX_LINE_LEN, Request, Response};
use slog::{Logger, debug, warn};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, spawn_local, yield_now};
use tokio::time::{sleep, timeout};
use transport::Strangers;

use crate::admin::Admin;

/// Longest wait for a client's request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for a client to take its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Clients that have not sent their request; the oldest makes room for another.
const MAX_SILENT: usize = 256;
/// Requests that are carried out at once.
const MAX_REQUESTS: usize = 64;

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
    let answer = move |request| {
        let admin = admin.clone();
        async move { admin.answer(request).await }
    };
    serve_with(listener, Rc::new(answer), log).await;
}

/// Clients that have not sent their request, each with what ends it.
type Silent = Rc<RefCell<Strangers<(), AbortHandle>>>;

async fn serve_with<F, A>(listener: UnixListener, answer: Rc<F>, log: Logger)
where
    F: Fn(Request) -> A + 'static,
    A: Future<Output = Response>,
{
    let silent: Silent = Rc::new(RefCell::new(Strangers::new(MAX_SILENT)));
    let requests = Arc::new(Semaphore::new(MAX_REQUESTS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                warn!(log, "control socket: {}", e);
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (answer, requests, log) = (answer.clone(), requests.clone(), log.clone());
        let all = silent.clone();
        let oldest = silent.borrow_mut().admit((), move |number| {
            let client = async move {
                let said = Said { all, number };
                if let Err(e) = client(stream, &*answer, &requests, said).await {
                    debug!(log, "control client: {:#}", e);
                }
            };
            spawn_local(client).abort_handle()
        });
        if let Some(oldest) = oldest {
            oldest.abort();
        }
        // Whoever has said something already is heard before it can be the oldest.
        yield_now().await;
    }
}

/// Dropped when a client has said what it wants, or is gone.
struct Said {
    all: Silent,
    number: u64,
}

impl Drop for Said {
    fn drop(&mut self) {
        self.all.borrow_mut().leave(self.number);
    }
}

async fn client<A: Future<Output = Response>>(
    stream: UnixStream,
    answer: &impl Fn(Request) -> A,
    requests: &Arc<Semaphore>,
    said: Said,
) -> Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(reader.take(MAX_LINE_LEN as u64));
    timeout(REQUEST_TIMEOUT, reader.read_line(&mut line))
        .await
        .context("no request came")??;
    drop(said);
    let permit = requests.clone().try_acquire_owned();
    let response = match (serde_json::from_str::<Request>(&line), &permit) {
        (Ok(_), Err(_)) => Response::Error(format!(
            "vusbd carries out {MAX_REQUESTS} requests already; try again when some are done"
        )),
        (Ok(request), Ok(_)) => answer(request).await,
        (Err(e), _) => Response::Error(format!(
            "vusbd does not understand the request ({e}); are xl-vusb and vusbd of one version?"
        )),
    };
    let mut bytes = serde_json::to_vec(&response)?;
    bytes.push(b'\n');
    timeout(ANSWER_TIMEOUT, writer.write_all(&bytes))
        .await
        .context("the answer was not taken")??;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tokio::task::LocalSet;

    use super::*;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("vusbd-socket-{}-{name}", std::process::id()))
    }

    /// Runs `test` beside a daemon that answers each request when `may_answer` lets it.
    fn beside_a_daemon(name: &str, may_answer: Arc<Semaphore>, test: impl AsyncFnOnce(&Path)) {
        let path = path(name);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let answer = Rc::new(move |_| {
            let may_answer = may_answer.clone();
            async move {
                let _permit = may_answer.acquire().await;
                Response::Exporters(Vec::new())
            }
        });
        LocalSet::new().block_on(&runtime, async {
            let listener = bind(&path).unwrap();
            let log = Logger::root(slog::Discard, slog::o!());
            let daemon = spawn_local(serve_with(listener, answer, log));
            test(&path).await;
            daemon.abort();
        });
        std::fs::remove_file(path).unwrap();
    }

    async fn ask(path: &Path) -> Response {
        control::client::call(path, &Request::Exporters)
            .await
            .unwrap()
    }

    #[test]
    fn silent_clients_keep_no_other_out_and_are_not_kept_without_limit() {
        beside_a_daemon("silent", Arc::new(Semaphore::new(1)), async |path| {
            let mut silent = Vec::new();
            for _ in 0..2 * MAX_SILENT {
                silent.push(UnixStream::connect(path).await.unwrap());
            }
            assert!(matches!(ask(path).await, Response::Exporters(_)));
            let closed = silent[0].read_u8();
            let closed = timeout(REQUEST_TIMEOUT / 2, closed).await;
            assert!(closed.expect("the first one is still there").is_err());
        });
    }

    #[test]
    fn more_requests_than_are_carried_out_at_once_are_refused() {
        let may_answer = Arc::new(Semaphore::new(0));
        beside_a_daemon("requests", may_answer.clone(), async |path| {
            let mut waiting = Vec::new();
            for _ in 0..MAX_REQUESTS {
                let path = path.to_owned();
                waiting.push(spawn_local(async move { ask(&path).await }));
            }
            loop {
                // All of them may not be there yet.
                let refused = timeout(Duration::from_millis(50), ask(path)).await;
                if let Ok(Response::Error(why)) = refused {
                    assert!(why.contains("try again"), "{why}");
                    break;
                }
            }
            may_answer.add_permits(MAX_REQUESTS);
            for one in waiting {
                one.await.unwrap();
            }
            assert!(matches!(ask(path).await, Response::Exporters(_)));
        });
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! A `vusbd`'s connection to xenstored that can be lost.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Passes connections on to a xenstored.
#[derive(Debug)]
pub(super) struct StoreLink {
    path: PathBuf,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    down: AtomicBool,
    streams: Mutex<Vec<UnixStream>>,
}

impl StoreLink {
    /// Starts it. Its threads end with the process.
    ///
    /// # Errors
    /// When it cannot listen.
    pub(super) fn start(path: &Path, to: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        let shared = Arc::new(Shared::default());
        let (accepting, to) = (shared.clone(), to.to_owned());
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                // What fails here is for the client to notice.
                let _ = accepting.pass_on(&client, &to);
            }
        });
        Ok(Self {
            path: path.to_owned(),
            shared,
        })
    }

    /// The socket.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Breaks every connection, and takes none for a while.
    pub(super) fn lose(&self, how_long: Duration) {
        self.shared.down.store(true, Ordering::Relaxed);
        let mut streams = self.shared.streams.lock().expect("no holder panics");
        for stream in streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        drop(streams);
        thread::sleep(how_long);
        self.shared.down.store(false, Ordering::Relaxed);
    }
}

impl Shared {
    fn pass_on(&self, client: &UnixStream, to: &Path) -> io::Result<()> {
        if self.down.load(Ordering::Relaxed) {
            return client.shutdown(Shutdown::Both);
        }
        let server = UnixStream::connect(to)?;
        let mut streams = self.streams.lock().expect("no holder panics");
        streams.push(client.try_clone()?);
        streams.push(server.try_clone()?);
        drop(streams);
        for (mut from, mut to) in [
            (client.try_clone()?, server.try_clone()?),
            (server, client.try_clone()?),
        ] {
            thread::spawn(move || {
                let _ = io::copy(&mut from, &mut to);
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
            });
        }
        Ok(())
    }
}

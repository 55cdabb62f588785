// SPDX-License-Identifier: GPL-3.0-or-later
//! The sockets around the store: `xenstored.sock` for domain 0, `dom-<id>.sock` for each guest.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufReader};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use xen::DomId;

use super::wire::Message;
use super::{ConnectionId, Store, Surroundings};
use crate::hypervisor::Hypervisor;

/// Xenstored of one host.
#[derive(Debug)]
pub(crate) struct Server {
    dir: PathBuf,
    store: Mutex<Store>,
    sockets: Mutex<Sockets>,
    hypervisor: Arc<Hypervisor>,
}

#[derive(Debug, Default)]
struct Sockets {
    listeners: BTreeMap<DomId, UnixListener>,
    streams: HashMap<ConnectionId, (DomId, UnixStream)>,
}

impl Server {
    pub(crate) fn start(dir: PathBuf, hypervisor: Arc<Hypervisor>) -> io::Result<Arc<Server>> {
        let server = Arc::new(Server {
            dir,
            store: Mutex::new(Store::new()),
            sockets: Mutex::default(),
            hypervisor,
        });
        server.listen(DomId(0))?;
        Ok(server)
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().expect("no holder panics")
    }

    fn sockets(&self) -> MutexGuard<'_, Sockets> {
        self.sockets.lock().expect("no holder panics")
    }

    fn socket_path(&self, domid: DomId) -> PathBuf {
        match domid {
            DomId(0) => self.dir.join("xenstored.sock"),
            DomId(number) => self.dir.join(format!("dom-{number}.sock")),
        }
    }

    fn listen(self: &Arc<Self>, domid: DomId) -> io::Result<()> {
        let path = self.socket_path(domid);
        match std::fs::remove_file(&path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        self.sockets()
            .listeners
            .insert(domid, listener.try_clone()?);
        let server = self.clone();
        std::thread::Builder::new()
            .name(format!("xenstore-{domid}"))
            .spawn(move || {
                while let Ok((stream, _)) = listener.accept() {
                    if let Err(err) = server.serve(domid, stream) {
                        eprintln!("xen-sim: cannot serve xenstore: {err}");
                    }
                }
            })?;
        Ok(())
    }

    fn serve(self: &Arc<Self>, domid: DomId, stream: UnixStream) -> io::Result<()> {
        let mut writer = stream.try_clone()?;
        let kept = stream.try_clone()?;
        let (id, outbox) = self.store().connect(domid);
        self.sockets().streams.insert(id, (domid, kept));
        std::thread::Builder::new()
            .name("xenstore-out".into())
            .spawn(move || {
                outbox.send_all(&mut writer);
                let _ = writer.shutdown(Shutdown::Both);
            })?;
        let server = self.clone();
        std::thread::Builder::new()
            .name("xenstore-in".into())
            .spawn(move || {
                let mut reader = BufReader::new(stream);
                // A client that breaks the protocol is cut off.
                while let Ok(Some(message)) = Message::read(&mut reader) {
                    server.handle(id, &message);
                }
                server.store().disconnect(id);
                server.sockets().streams.remove(&id);
            })?;
        Ok(())
    }

    fn handle(self: &Arc<Self>, id: ConnectionId, message: &Message) {
        self.store().handle(id, message, self);
    }

    /// The hypervisor says that some domain has shut down or is gone.
    pub(crate) fn check_domains(self: &Arc<Self>) {
        self.store().check_domains(self);
    }

    /// Closes everything.
    pub(crate) fn stop(self: &Arc<Self>) {
        let domids: Vec<DomId> = self.sockets().listeners.keys().copied().collect();
        for domid in domids {
            self.close(domid);
        }
    }
}

impl Surroundings for Arc<Server> {
    fn domain_state(&self, domid: DomId) -> Option<bool> {
        self.hypervisor.domain_state(domid)
    }

    fn open(&self, domid: DomId) {
        if let Err(err) = self.listen(domid) {
            eprintln!("xen-sim: no xenstore for domain {domid}: {err}");
        }
    }

    fn close(&self, domid: DomId) {
        let mut sockets = self.sockets();
        if let Some(listener) = sockets.listeners.remove(&domid) {
            shutdown_listener(&listener);
            let _ = std::fs::remove_file(self.socket_path(domid));
        }
        for (owner, stream) in sockets.streams.values() {
            if *owner == domid {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }
}

/// Wakes the thread that accepts.
fn shutdown_listener(listener: &UnixListener) {
    use std::os::fd::AsRawFd;
    // SAFETY: no pointers are passed.
    unsafe { libc::shutdown(listener.as_raw_fd(), libc::SHUT_RDWR) };
}

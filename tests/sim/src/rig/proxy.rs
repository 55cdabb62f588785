// SPDX-License-Identifier: GPL-3.0-or-later
//! A network between the hosts and the exporter that can be cut.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// Passes TCP connections on to a port of this machine.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    down: AtomicBool,
    swallowing: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// Starts it. Its threads end with the process.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(port: u16) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let accepting = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                // What fails here is for the client to notice.
                let _ = accepting.pass_on(client, port);
            }
        });
        Ok(Self { address, shared })
    }

    /// `HOST:PORT`, for the hosts' configuration.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Breaks every connection. New ones are taken.
    pub fn cut(&self) {
        let mut streams = self.shared.streams.lock().expect("no holder panics");
        for stream in streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// From now on new connections are refused, or taken again.
    pub fn set_down(&self, down: bool) {
        self.shared.down.store(down, Ordering::Relaxed);
    }

    /// From now on there is nobody: every connection breaks, and new ones are refused.
    pub fn take_down(&self) {
        self.set_down(true);
        self.cut();
    }

    /// From now on everything that is sent disappears, while all connections stand: half-open ones.
    /// One that has lost something never passes anything on again, whatever comes later.
    pub fn set_swallowing(&self, swallowing: bool) {
        self.shared.swallowing.store(swallowing, Ordering::Relaxed);
    }
}

impl Shared {
    /// Passes one direction of a connection on until it ends.
    fn copy(&self, mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        let mut lost = false;
        loop {
            let len = from.read(&mut buffer)?;
            if len == 0 {
                return Ok(());
            }
            lost |= self.swallowing.load(Ordering::Relaxed);
            if !lost {
                to.write_all(&buffer[..len])?;
            }
        }
    }

    fn pass_on(self: &Arc<Self>, client: TcpStream, port: u16) -> io::Result<()> {
        if self.down.load(Ordering::Relaxed) {
            return client.shutdown(Shutdown::Both);
        }
        let server = TcpStream::connect(("127.0.0.1", port))?;
        for stream in [&client, &server] {
            stream.set_nodelay(true)?;
        }
        {
            let mut streams = self.streams.lock().expect("no holder panics");
            streams.push(client.try_clone()?);
            streams.push(server.try_clone()?);
        }
        for (from, to) in [(client.try_clone()?, server.try_clone()?), (server, client)] {
            let shared = self.clone();
            thread::spawn(move || {
                let _ = shared.copy(&from, &to);
                // The other direction ends, too: a connection is cut, or it is not.
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
            });
        }
        Ok(())
    }
}

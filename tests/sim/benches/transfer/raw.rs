// SPDX-License-Identifier: GPL-3.0-or-later
//! TLS alone: the exporter's transport, to a thread that echoes, sends or swallows.

use std::path::Path;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use transport::{Acceptor, Identity, TlsStream};
use xl_hooks::pool;

/// What a small request is on the wire, about: a header, and a little.
const ECHO_BYTES: usize = 64;
const CHUNK: usize = 64 * 1024;

/// What the thread is asked to do: a byte, and a length of 8 bytes.
const ECHO: u8 = 0;
const SEND: u8 = 1;
const SWALLOW: u8 = 2;

/// A connection to the thread.
pub struct Raw {
    runtime: Runtime,
    stream: TlsStream,
    chunk: Vec<u8>,
}

fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

impl Raw {
    /// Starts the thread, with the certificate in `tls` at both ends.
    pub fn start(tls: &Path) -> Result<Self> {
        let file = |name: &str| tls.join(name);
        let identity = Identity::load(
            &file(pool::CA_CERT),
            &file(pool::HOST_CERT),
            &file(pool::HOST_KEY),
        )?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?.to_string();
        let acceptor = Acceptor::new(&identity);
        let server = runtime()?;
        std::thread::spawn(move || {
            server.block_on(async {
                let listener = TcpListener::from_std(listener).expect("a listener");
                let (tcp, _) = listener.accept().await.expect("a connection");
                let (stream, _) = acceptor.accept(tcp).await.expect("a handshake");
                // Ends when the bench does.
                let _ = serve(stream).await;
            });
        });
        let runtime = runtime()?;
        let name = identity.name().to_owned();
        let stream = runtime
            .block_on(transport::connect(&identity, &address, &name))
            .context("no connection to the own thread")?;
        Ok(Self {
            runtime,
            stream,
            chunk: vec![0; CHUNK],
        })
    }

    /// A small message there and back.
    pub fn echo(&mut self) {
        let Self {
            runtime, stream, ..
        } = self;
        runtime
            .block_on(async {
                let mut message = [0; ECHO_BYTES];
                message[0] = ECHO;
                stream.write_all(&message).await?;
                stream.flush().await?;
                stream.read_exact(&mut message).await
            })
            .expect("an echo");
    }

    /// So many bytes from there.
    pub fn stream_in(&mut self, len: usize) {
        let Self {
            runtime,
            stream,
            chunk,
        } = self;
        runtime
            .block_on(async {
                stream.write_all(&request(SEND, len)).await?;
                stream.flush().await?;
                let mut left = len;
                while left > 0 {
                    let most = left.min(CHUNK);
                    left -= stream.read(&mut chunk[..most]).await?;
                }
                Ok::<_, std::io::Error>(())
            })
            .expect("a stream");
    }

    /// So many bytes to there, until the last one has arrived.
    pub fn stream_out(&mut self, len: usize) {
        let Self {
            runtime,
            stream,
            chunk,
        } = self;
        runtime
            .block_on(async {
                stream.write_all(&request(SWALLOW, len)).await?;
                for _ in 0..len / CHUNK {
                    stream.write_all(chunk).await?;
                }
                stream.flush().await?;
                stream.read_u8().await
            })
            .expect("a stream");
    }
}

fn request(what: u8, len: usize) -> [u8; ECHO_BYTES] {
    let mut request = [0; ECHO_BYTES];
    request[0] = what;
    request[1..9].copy_from_slice(&(len as u64).to_le_bytes());
    request
}

async fn serve(mut stream: TlsStream) -> std::io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut request = [0; ECHO_BYTES];
    loop {
        stream.read_exact(&mut request).await?;
        let mut len = [0; 8];
        len.copy_from_slice(&request[1..9]);
        let mut left = u64::from_le_bytes(len) as usize;
        match request[0] {
            SEND => {
                while left > 0 {
                    let most = left.min(CHUNK);
                    stream.write_all(&chunk[..most]).await?;
                    left -= most;
                }
            }
            SWALLOW => {
                while left > 0 {
                    let most = left.min(CHUNK);
                    left -= stream.read(&mut chunk[..most]).await?;
                }
                stream.write_all(&[1]).await?;
            }
            _ => stream.write_all(&request).await?,
        }
        stream.flush().await?;
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! The other ends of QEMU's character devices: a serial line that answers with numbered records,
//! and a smart card.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::traffic::{Records, Tally, record};

/// A thread that serves one socket of QEMU's.
pub struct Peer {
    stop: Arc<AtomicBool>,
    so_far: Arc<Mutex<Tally>>,
    thread: JoinHandle<io::Result<Tally>>,
}

impl Peer {
    fn start(
        socket: &Path,
        work: impl FnOnce(UnixStream, &AtomicBool, &Mutex<Tally>) -> io::Result<Tally> + Send + 'static,
    ) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("connecting to {}", socket.display()))?;
        stream.set_read_timeout(Some(Duration::from_millis(5)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let so_far = Arc::new(Mutex::new(Tally::default()));
        let shown = Arc::clone(&so_far);
        let thread = std::thread::spawn(move || work(stream, &flag, &shown));
        Ok(Self {
            stop,
            so_far,
            thread,
        })
    }

    /// A serial line: checks the numbered records that arrive, and from the first one on sends
    /// its own at this interval.
    pub fn line(socket: &Path, interval: Duration) -> Result<Self> {
        Self::start(socket, move |stream, stop, so_far| {
            line(stream, stop, so_far, interval)
        })
    }

    /// A card that answers numbered commands.
    pub fn card(socket: &Path) -> Result<Self> {
        Self::start(socket, |stream, stop, _| {
            let mut tally = Tally::default();
            Card::default().serve(stream, stop, &mut tally)?;
            Ok(tally)
        })
    }

    /// What came and went so far, on a line.
    pub fn tally(&self) -> Tally {
        let so_far = self.so_far.lock();
        so_far.map_or_else(|poisoned| poisoned.into_inner().clone(), |t| t.clone())
    }

    /// End it; what came and went.
    pub fn finish(self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        let tally = self
            .thread
            .join()
            .map_err(|_| anyhow!("the peer's thread has panicked"))??;
        Ok(tally)
    }

    /// Nothing more is sent; what is on its way still arrives.
    pub fn quiet(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Bytes that came, none if nothing came in the socket's time-out.
fn read(stream: &mut UnixStream, buffer: &mut [u8]) -> io::Result<usize> {
    match stream.read(buffer) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
            ) =>
        {
            Ok(0)
        }
        other => other,
    }
}

fn line(
    mut stream: UnixStream,
    stop: &AtomicBool,
    so_far: &Mutex<Tally>,
    interval: Duration,
) -> io::Result<Tally> {
    /// How long after the stop records may still arrive.
    const LINGER: Duration = Duration::from_secs(6);
    stream.set_write_timeout(Some(Duration::from_millis(5)))?;
    let mut tally = Tally::default();
    let mut records = Records::default();
    let mut buffer = [0; 4096];
    let mut unsent: Vec<u8> = Vec::new();
    let mut due = Instant::now();
    let mut stopped: Option<Instant> = None;
    loop {
        if stop.load(Ordering::Relaxed) && stopped.is_none() {
            stopped = Some(Instant::now());
        }
        if stopped.is_some_and(|at| at.elapsed() > LINGER) {
            tally.finished = true;
            return Ok(tally);
        }
        // An adapter forgets what came before its port was opened, so the first word is the
        // other end's.
        if tally.received == 0 {
            due = Instant::now();
        } else if stopped.is_none() && unsent.is_empty() && Instant::now() >= due {
            due += interval;
            tally.sent += 1;
            unsent.extend_from_slice(&record(tally.sent));
        }
        if !unsent.is_empty() {
            match stream.write(&unsent) {
                Ok(len) => drop(unsent.drain(..len)),
                // The adapter's buffer is full: the line waits.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) => {}
                Err(error) => return Err(error),
            }
        }
        let len = read(&mut stream, &mut buffer)?;
        records.feed(&buffer[..len], &mut tally);
        if len > 0
            && let Ok(mut so_far) = so_far.lock()
        {
            so_far.clone_from(&tally);
        }
    }
}

/// Message types of the protocol between a reader and its card (libcacard's `vscard_common.h`).
const INIT: u32 = 1;
const ATR: u32 = 5;
const APDU: u32 = 7;
/// "VSCD", in the order that a little-endian machine has it in memory.
const MAGIC: [u8; 4] = *b"VSCD";
const VERSION: u32 = 2;
/// Bytes of a message's header: type, reader, length.
const HEADER_BYTES: usize = 12;

/// The answer to reset of our card: direct convention, T=0 only, four historical bytes.
pub const CARD_ATR: [u8; 6] = [0x3b, 0x04, b'V', b'U', b'S', b'B'];

#[derive(Default)]
struct Card {
    input: Vec<u8>,
    last: Option<u32>,
}

impl Card {
    fn serve(
        mut self,
        mut stream: UnixStream,
        stop: &AtomicBool,
        tally: &mut Tally,
    ) -> io::Result<()> {
        let mut init = MAGIC.to_vec();
        init.extend_from_slice(&VERSION.to_be_bytes());
        init.extend_from_slice(&[0; 4]);
        send(&mut stream, INIT, &init)?;
        send(&mut stream, ATR, &CARD_ATR)?;
        let mut buffer = [0; 4096];
        while !stop.load(Ordering::Relaxed) {
            let len = read(&mut stream, &mut buffer)?;
            self.input.extend_from_slice(&buffer[..len]);
            while let Some((kind, data)) = self.message() {
                if kind == APDU {
                    let answer = self.command(&data, tally);
                    send(&mut stream, APDU, &answer)?;
                }
            }
        }
        tally.finished = true;
        Ok(())
    }

    fn message(&mut self) -> Option<(u32, Vec<u8>)> {
        let word = |at: usize| -> Option<u32> {
            let bytes = self.input.get(at..at + 4)?;
            Some(u32::from_be_bytes(bytes.try_into().ok()?))
        };
        let (kind, length) = (word(0)?, word(8)? as usize);
        if self.input.len() < HEADER_BYTES + length {
            return None;
        }
        let data = self.input[HEADER_BYTES..HEADER_BYTES + length].to_vec();
        self.input.drain(..HEADER_BYTES + length);
        Some((kind, data))
    }

    /// The one command that it knows, 80 10 00 00 04 N N N N, gives N back.
    fn command(&mut self, data: &[u8], tally: &mut Tally) -> Vec<u8> {
        let [0x80, 0x10, 0, 0, 4, n @ ..] = data else {
            tally.malformed += 1;
            return vec![0x6d, 0x00];
        };
        let Ok(bytes) = <[u8; 4]>::try_from(n) else {
            tally.malformed += 1;
            return vec![0x67, 0x00];
        };
        let number = u32::from_be_bytes(bytes);
        tally.arrived(number.into(), 0, self.last.is_none());
        self.last = Some(number);
        tally.sent += 1;
        let mut answer = bytes.to_vec();
        answer.extend_from_slice(&[0x90, 0x00]);
        answer
    }
}

fn send(stream: &mut UnixStream, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut message = Vec::with_capacity(HEADER_BYTES + data.len());
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&0_u32.to_be_bytes());
    message.extend_from_slice(&(data.len() as u32).to_be_bytes());
    message.extend_from_slice(data);
    stream.write_all(&message)
}

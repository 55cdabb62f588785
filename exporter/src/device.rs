// SPDX-License-Identifier: GPL-3.0-or-later
//! A device connection: frames in, transfers, frames out.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use session::control::Refusal;
use session::frame::{HEADER_LEN, MAX_BODY_LEN};
use session::lease::Change;
use session::open::{Open, Opened};
use session::server::{Event, ServerError};
use session::{DeviceId, Epoch};
use slog::{Logger, info, o, warn};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::task::spawn_local;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use transport::{Error, MessageReader, TlsStream, send};

use crate::hub::{Hub, SharedSession};
use crate::limits::Limits;
use crate::session_state::{Connection, forget_later};

/// Several of the longest frames, so that the rest of one is rarely moved.
const INPUT_LEN: usize = 4 * (HEADER_LEN + MAX_BODY_LEN);
/// Silence of a backend after which its connection counts as lost: it asks whether we are there after 2 s.
/// Else the holder of a machine that nobody answers for any more, behind a device that keeps its connections
/// open, would be connected for ever.
const SILENT_AFTER: Duration = Duration::from_secs(6);
/// How long the last bytes of a connection may take.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a device connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("closed by the backend")]
    Closed,
    #[error("lost: {0}")]
    Lost(io::Error),
    #[error("closed, because of the backend's frames: {0}")]
    Fault(#[from] ServerError),
    #[error("lost: no sign of life for {} s", SILENT_AFTER.as_secs())]
    Silent,
    #[error("superseded")]
    Dismissed,
}

/// Serves `host` until the connection ends; `log` is the host's.
pub(crate) async fn serve(
    hub: &Rc<Hub>,
    mut stream: TlsStream,
    host: &str,
    log: &Logger,
    limits: &Limits,
) -> Result<(), Error> {
    // However long it takes: the target of a migration connects early.
    let open: Open = MessageReader::new().receive(&mut stream).await?;
    limits.change().await;
    let (opened, session, connection) = match hub.open(&open, host).await {
        Ok(opened) => opened,
        Err(refusal) => {
            // It may say that a lease is over, and a lease that comes back with us after a crash would be
            // nobody's: its guest has seen the device go.
            let _ = hub.save().await;
            return refuse(log, &mut stream, host, refusal).await;
        }
    };
    let Opened::Ready { epoch, .. } = opened else {
        return Ok(());
    };
    let mut serving = Serving {
        log: log.new(
            o!("device" => open.device.to_string(), "host" => host.to_owned(),
            "epoch" => epoch.0),
        ),
        hub,
        device: &open.device,
        epoch,
        session,
        connection,
        input: vec![0; INPUT_LEN].into_boxed_slice(),
        filled: 0,
        heard: Instant::now(),
    };
    let ended = match send(&mut stream, &opened).await {
        Ok(()) => serving.run(&mut stream).await,
        Err(e) => Ended::Lost(io::Error::other(e)),
    };
    serving.end(&mut stream, &ended).await;
    Ok(())
}

async fn refuse(
    log: &Logger,
    stream: &mut TlsStream,
    host: &str,
    refusal: Refusal,
) -> Result<(), Error> {
    info!(log, "refused"; "host" => host, "reason" => %refusal);
    send(stream, &Opened::Refused(refusal)).await?;
    let _ = timeout(FAREWELL_TIMEOUT, stream.shutdown()).await;
    Ok(())
}

struct Serving<'a> {
    log: Logger,
    hub: &'a Rc<Hub>,
    device: &'a DeviceId,
    epoch: Epoch,
    session: SharedSession,
    connection: Rc<Connection>,
    /// What arrived and is not handled yet, at the front.
    input: Box<[u8]>,
    filled: usize,
    /// When something arrived last.
    heard: Instant,
}

impl Serving<'_> {
    async fn run(&mut self, stream: &mut TlsStream) -> Ended {
        let connection = self.connection.clone();
        let mut alarm = pin!(sleep_until(self.heard + SILENT_AFTER));
        loop {
            let mut woken = pin!(connection.wake.notified());
            let step = poll_fn(|cx| {
                // Registers for the next wake before output is looked at.
                let is_woken = woken.as_mut().poll(cx).is_ready();
                match self.poll(cx, stream) {
                    Poll::Pending if is_woken => Poll::Ready(Ok(())),
                    // After the read: what waited while we did not run counts.
                    Poll::Pending => self.poll_alarm(cx, alarm.as_mut()).map(Err),
                    other => other,
                }
            });
            if let Err(ended) = step.await {
                return ended;
            }
        }
    }

    /// Ready when the backend has been silent for too long. The alarm is set again only when it rings.
    fn poll_alarm(&self, cx: &mut Context<'_>, mut alarm: Pin<&mut Sleep>) -> Poll<Ended> {
        while alarm.as_mut().poll(cx).is_ready() {
            if self.heard.elapsed() >= SILENT_AFTER {
                return Poll::Ready(Ended::Silent);
            }
            alarm.as_mut().reset(self.heard + SILENT_AFTER);
        }
        Poll::Pending
    }

    /// Reads, executes and writes as much as is possible now. Ready when the connection is over.
    fn poll(&mut self, cx: &mut Context<'_>, stream: &mut TlsStream) -> Poll<Result<(), Ended>> {
        loop {
            if self.connection.is_dismissed() {
                return Poll::Ready(Err(Ended::Dismissed));
            }
            let read = match self.poll_read(cx, stream) {
                Poll::Ready(Ok(())) => self.handle_input().map_err(Ended::from).map(|()| true),
                Poll::Ready(Err(ended)) => Err(ended),
                Poll::Pending => Ok(false),
            };
            // Also after a fault: completions that are there already are the holder's.
            let written = self.write(cx, stream);
            match (read, written) {
                (Err(ended), _) | (_, Err(ended)) => return Poll::Ready(Err(ended)),
                (Ok(true), Ok(())) => (),
                (Ok(false), Ok(())) => return Poll::Pending,
            }
        }
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut TlsStream,
    ) -> Poll<Result<(), Ended>> {
        let mut into = ReadBuf::new(&mut self.input[self.filled..]);
        match Pin::new(stream).poll_read(cx, &mut into) {
            Poll::Ready(Ok(())) if into.filled().is_empty() => Poll::Ready(Err(Ended::Closed)),
            Poll::Ready(Ok(())) => {
                self.filled += into.filled().len();
                self.heard = Instant::now();
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(Ended::Lost(e))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn handle_input(&mut self) -> Result<(), ServerError> {
        let mut taken = 0;
        let result = self.handle_frames(&mut taken);
        if let Ok(true) = result {
            forget_later(&self.session);
        }
        if taken > 0 {
            self.input.copy_within(taken..self.filled, 0);
            self.filled -= taken;
        }
        result.map(drop)
    }

    /// Answers whether the guest goes on after a suspend that was cancelled.
    fn handle_frames(&self, taken: &mut usize) -> Result<bool, ServerError> {
        let mut thawed = false;
        let mut session = self.session.borrow_mut();
        let session = &mut *session;
        while let Some((event, len)) = session
            .server
            .next_event(&self.input[*taken..self.filled])?
        {
            *taken += len;
            let (device, epoch) = (self.device, self.epoch);
            match event {
                Event::Submit {
                    request,
                    transfer,
                    body,
                } => {
                    session.before(&transfer);
                    session
                        .executor
                        .submit(&mut session.server, request, &transfer, body);
                }
                Event::Keep { request } => session.keep(request),
                Event::Recall { request } => session.recall(request),
                Event::Cancel { request } => session.executor.cancel(&mut session.server, request),
                Event::Reset { request } => session.executor.reset(&mut session.server, request),
                Event::Cookie(cookie) => self.hub.save_cookie(device, epoch, cookie),
                Event::Save { request } => self.answer_saved(request),
                Event::Freeze => self.hub.apply(device, epoch, Change::Freeze),
                Event::Thaw => {
                    self.hub.apply(device, epoch, Change::Thaw);
                    thawed = true;
                }
                Event::Orphan => self.hub.apply(device, epoch, Change::Orphan),
                Event::FrontendResumes(resumes) => {
                    self.hub.set_frontend_resumes(device, epoch, resumes);
                }
                Event::Handled => (),
            }
            session.carry_out();
        }
        Ok(thawed)
    }

    /// Answers a request when the leases are on the disk as they are now.
    fn answer_saved(&self, request: u64) {
        let (hub, session, epoch) = (self.hub.clone(), self.session.clone(), self.epoch);
        spawn_local(async move {
            let pause = session.borrow_mut().may_save();
            sleep(pause).await;
            // A disk that fails is in the log. It is no reason to keep the guest from its device: whoever
            // serves it next asks us, and we know the address as long as we live.
            let _ = hub.save().await;
            session.borrow_mut().answer(epoch, request);
        });
    }

    fn write(&mut self, cx: &mut Context<'_>, stream: &mut TlsStream) -> Result<(), Ended> {
        let mut session = self.session.borrow_mut();
        let session = &mut *session;
        session.pump();
        if session.server.take_reconfigured() {
            let configured = session.server.configured();
            self.hub.set_configured(self.device, self.epoch, configured);
        }
        loop {
            let output = session.server.output();
            if output.is_empty() {
                break;
            }
            match Pin::new(&mut *stream).poll_write(cx, output) {
                Poll::Ready(Ok(len)) => session.server.sent(len),
                Poll::Ready(Err(e)) => return Err(Ended::Lost(e)),
                Poll::Pending => break,
            }
        }
        match Pin::new(stream).poll_flush(cx) {
            Poll::Ready(Err(e)) => Err(Ended::Lost(e)),
            _ => Ok(()),
        }
    }

    async fn end(&self, stream: &mut TlsStream, ended: &Ended) {
        match ended {
            Ended::Fault(_) => warn!(self.log, "device connection {}", ended),
            _ => info!(self.log, "device connection {}", ended),
        }
        self.hub
            .disconnected(self.device, self.epoch, &self.session, &self.connection);
        // Who closes in order after its last words may take our answer for their receipt.
        let _ = self.hub.save().await;
        if matches!(ended, Ended::Dismissed) {
            let farewell = self.connection.take_farewell().unwrap_or_default();
            let say = async {
                stream.write_all(&farewell).await?;
                stream.flush().await
            };
            let _ = timeout(FAREWELL_TIMEOUT, say).await;
        }
        let _ = timeout(FAREWELL_TIMEOUT, stream.shutdown()).await;
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! The task of one attached device: connects to its exporter, claims the lease, moves frames.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use session::client::{Client, ClientError, Event};
use session::control::Refusal;
use session::frame::{HEADER_LEN, Kind, MAX_BODY_LEN};
use session::message::Purpose;
use session::open::{How, Open, Opened};
use session::{Epoch, Lease};
use slog::{Logger, debug, info, warn};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Instant, sleep, sleep_until};
use transport::{Identity, TlsStream};
use usbif::PortNumber;
use xen::xenstore::XenStore;
use xen::{Backend, DomId};

use super::serving::{Serving, Unanswered};
use crate::config;
use crate::domain::Domain;

const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// Silence after which the exporter is asked whether it is there.
const PING_AFTER: Duration = Duration::from_secs(2);
/// Silence after which the connection counts as lost.
const LOST_AFTER: Duration = Duration::from_secs(6);

/// Completions are acknowledged in passing by the next request. A message of their own, which costs
/// both ends a wake-up, they get only when no request comes for this long…
const ACKNOWLEDGE_AFTER: Duration = Duration::from_millis(5);
/// … or when more than this many have gathered: the exporter keeps them and their data.
const ACKNOWLEDGE_ABOVE: u64 = 16;

/// What becomes of an attached device.
#[derive(Debug)]
pub enum News {
    /// The lease is claimed; requests go to the device.
    Claimed(PortNumber),
    /// It will not be: the device is to be unplugged. The text is for people.
    Lost(PortNumber, String),
    /// The exporter is out of reach for longer than the configuration allows. Said again and again.
    Unreachable(PortNumber),
    /// It is not any more.
    Reached(PortNumber),
    /// The device is pulled out, and its lease waits for it.
    Absent {
        /// Where it was.
        port: PortNumber,
        /// Whether the guest stays connected.
        paused: bool,
        /// The epoch that it was last held under.
        epoch: Option<Epoch>,
    },
}

/// Says at the end of each such time that the exporter is out of reach, until it is dropped.
struct Away(AbortHandle);

impl Away {
    fn start(after: Duration, port: PortNumber, news: mpsc::UnboundedSender<News>) -> Self {
        let task = spawn_local(async move {
            loop {
                sleep(after).await;
                let _ = news.send(News::Unreachable(port));
            }
        });
        Self(task.abort_handle())
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Transport(#[from] transport::Error),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Session(#[from] ClientError),
    #[error("no sign of life for {} s", LOST_AFTER.as_secs())]
    Silent,
    #[error("the exporter refuses: {0}")]
    Refused(Refusal),
    #[error("the lease is at epoch {0} meanwhile")]
    Outdated(Epoch),
    #[error("the device is gone")]
    Gone,
    #[error("the device is unplugged")]
    Unplugged,
    #[error("another host has taken the device over")]
    Fenced,
}

impl Broken {
    /// Whether trying again is of no use.
    fn is_final(&self) -> bool {
        match self {
            Self::Gone | Self::Unplugged | Self::Fenced => true,
            // Limits pass, and a policy can be mended while we wait.
            Self::Refused(refusal) => !matches!(refusal, Refusal::Limit(_)),
            _ => false,
        }
    }

    /// Whether the exporter has said that the device is not there.
    fn is_absent(&self) -> bool {
        matches!(
            self,
            Self::Unplugged | Self::Refused(Refusal::Absent { .. })
        )
    }
}

/// What the task needs.
pub struct DeviceTask<B: Backend> {
    pub(super) serving: Rc<RefCell<Serving<B>>>,
    pub(super) port: PortNumber,
    pub(super) lease: Lease,
    pub(super) domid: u16,
    pub(super) store: XenStore,
    pub(super) exporter: config::Exporter,
    pub(super) identity: Identity,
    pub(super) wake: Rc<Notify>,
    /// True once the guest runs here: only then is the lease claimed. False again tells nothing.
    pub(super) may_claim: watch::Receiver<bool>,
    /// Whether it has held the lease.
    pub(super) held: bool,
    /// The epoch under which an earlier process held it.
    pub(super) session: Option<Epoch>,
    /// Whether the frontend can resume.
    pub(super) frontend_resumes: watch::Receiver<bool>,
    pub(super) news: mpsc::UnboundedSender<News>,
    pub(super) log: Logger,
}

impl<B: Backend> DeviceTask<B> {
    /// Runs until the device is lost; dropped when it is detached.
    pub async fn run(mut self) {
        let mut epoch = self.session;
        let mut pause = RETRY_MIN;
        let mut said = String::new();
        let mut away = None;
        loop {
            let Err(broken) = self.connection(&mut epoch, &mut pause, &mut away).await;
            if let Some(client) = self.serving.borrow_mut().client(self.port) {
                client.lost();
            }
            let text = broken.to_string();
            if broken.is_absent() && self.lease.exchange.is_some() {
                let mut serving = self.serving.borrow_mut();
                let paused = serving.pauses(self.port);
                if paused {
                    // Where the exporter has not said what came of them, nobody knows.
                    serving.pause(self.port, Unanswered::Unknown);
                    serving.flush();
                }
                let port = self.port;
                let _ = self.news.send(News::Absent {
                    port,
                    paused,
                    epoch,
                });
                return;
            }
            if broken.is_final() {
                let _ = self.news.send(News::Lost(self.port, text));
                return;
            }
            if let Some(after) = self.exporter.disconnect_after() {
                away.get_or_insert_with(|| Away::start(after, self.port, self.news.clone()));
            }
            if text != said {
                warn!(self.log, "connection to the exporter lost: {}", text);
                said = text;
            }
            sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    async fn connection(
        &mut self,
        epoch: &mut Option<Epoch>,
        pause: &mut Duration,
        away: &mut Option<Away>,
    ) -> Result<std::convert::Infallible, Broken> {
        let config::Exporter { name, address, .. } = &self.exporter;
        let mut stream = transport::connect(&self.identity, address, name).await?;
        transport::greet(&mut stream, Purpose::Device).await?;
        // Connected ahead of time; the rest of the hand-off is one round trip.
        let running = self.may_claim.wait_for(|&may| may).await.map(|_| ());
        running.map_err(|_| Broken::Gone)?;
        let how = match self.serving.borrow_mut().client(self.port) {
            Some(client) if *epoch == Some(client.epoch()) => client.resume(),
            _ => How::Claim {
                seen: epoch.unwrap_or(self.lease.epoch),
            },
        };
        let open = Open {
            device: self.lease.device.id.clone(),
            vm: self.lease.vm,
            domid: self.domid,
            frontend_resumes: *self.frontend_resumes.borrow_and_update(),
            how,
        };
        transport::send(&mut stream, &open).await?;
        match transport::receive::<Opened>(&mut stream).await? {
            // The epoch has grown since the lease was read, for example because the source was
            // restarted. The frontend is connected here, so here is where the guest runs, unless it
            // has moved on before it could claim.
            // A task that has held it before does not do this: who fenced it off is where the guest
            // is.
            Opened::Refused(Refusal::Fenced { current, .. })
                if matches!(how, How::Claim { .. }) && !self.held && current > self.lease.epoch =>
            {
                match Domain::read(&self.store, DomId(self.domid)).await {
                    Ok(Some(domain)) if !domain.has_left() => self.lease.epoch = current,
                    Ok(_) => return Err(Broken::Fenced),
                    // Asked again with the next attempt.
                    Err(e) => warn!(self.log, "xenstore: {}", e),
                }
                return Err(Broken::Outdated(current));
            }
            // The exporter was restarted and knows nothing of what was in flight, or somebody else
            // holds the lease. A claim tells: only the holder of before may make it with its old
            // epoch.
            Opened::Refused(Refusal::Fenced { current, .. })
                if matches!(how, How::Resume { .. }) =>
            {
                self.lease.epoch = epoch.take().unwrap_or(self.lease.epoch);
                return Err(Broken::Outdated(current));
            }
            Opened::Refused(refusal) => return Err(Broken::Refused(refusal)),
            Opened::Ready {
                epoch: now,
                requests_received,
                ..
            } => {
                *pause = RETRY_MIN;
                let mut serving = self.serving.borrow_mut();
                if let How::Claim { .. } = how {
                    info!(self.log, "lease claimed"; "epoch" => now.0);
                    *epoch = Some(now);
                    self.held = true;
                    serving.fail_submitted(self.port);
                    serving.open(self.port, Client::new(now));
                    serving.flush();
                    let _ = self.news.send(News::Claimed(self.port));
                } else {
                    info!(self.log, "connection to the exporter resumed"; "epoch" => now.0);
                    if let Some(client) = serving.client(self.port) {
                        client.resumed(requests_received)?;
                    }
                    serving.resume(self.port, requests_received);
                }
            }
        }
        if away.take().is_some() {
            let _ = self.news.send(News::Reached(self.port));
        }
        let (reader, writer) = split(stream);
        self.wake.notify_one();
        tokio::select! {
            broken = self.receive(reader) => broken,
            broken = self.send(writer) => broken,
            broken = self.announce_resume() => broken,
        }
    }

    /// Feeds what arrives to the session. A whole batch is completed before the ring is published.
    async fn receive(
        &self,
        mut reader: ReadHalf<TlsStream>,
    ) -> Result<std::convert::Infallible, Broken> {
        let mut buffer = Vec::with_capacity(4 * (HEADER_LEN + MAX_BODY_LEN));
        let mut heard = Instant::now();
        let mut asked = false;
        let mut owing = false;
        loop {
            let patience = if asked { LOST_AFTER } else { PING_AFTER };
            tokio::select! {
                read = reader.read_buf(&mut buffer) => {
                    if read? == 0 {
                        return Err(transport::Error::Closed.into());
                    }
                    (heard, asked) = (Instant::now(), false);
                    let taken = self.take(&buffer)?;
                    match taken == buffer.len() {
                        true => buffer.clear(),
                        // At most a part of one frame.
                        false => drop(buffer.drain(..taken)),
                    }
                    owing = true;
                }
                () = sleep_until(heard + ACKNOWLEDGE_AFTER), if owing => {
                    self.acknowledge();
                    owing = false;
                }
                () = sleep_until(heard + patience) => {
                    if asked {
                        return Err(Broken::Silent);
                    }
                    asked = true;
                    if let Some(client) = self.serving.borrow_mut().client(self.port) {
                        client.say(Kind::Ping);
                        self.wake.notify_one();
                    }
                }
            }
        }
    }

    /// Takes whole frames off the input and says how many bytes they were.
    fn take(&self, input: &[u8]) -> Result<usize, Broken> {
        let mut serving = self.serving.borrow_mut();
        let serving = &mut *serving;
        let mut taken = 0;
        let mut end = None;
        while end.is_none() {
            let Some(client) = serving.client(self.port) else {
                return Err(Broken::Gone);
            };
            let Some((event, len)) = client.next_event(&input[taken..])? else {
                break;
            };
            taken += len;
            match event {
                Event::Completed { completion, body } => {
                    serving.completed(self.port, &completion, body);
                }
                Event::Gone => {
                    if serving.pauses(self.port) {
                        serving.pause(self.port, Unanswered::NotBegun);
                    }
                    end = Some(Broken::Unplugged);
                }
                Event::Fenced => end = Some(Broken::Fenced),
                Event::Ping | Event::Pong => {}
            }
        }
        serving.flush();
        if let Some(client) = serving.client(self.port) {
            if client.unacknowledged() > ACKNOWLEDGE_ABOVE {
                client.acknowledge();
            }
            if !client.output().is_empty() {
                self.wake.notify_one();
            }
        }
        end.map_or(Ok(taken), Err)
    }

    fn acknowledge(&self) {
        if let Some(client) = self.serving.borrow_mut().client(self.port) {
            client.acknowledge();
            self.wake.notify_one();
        }
    }

    /// Sends the session's output whenever there is some.
    async fn send(
        &self,
        mut writer: WriteHalf<TlsStream>,
    ) -> Result<std::convert::Infallible, Broken> {
        let mut bytes = Vec::new();
        loop {
            self.wake.notified().await;
            loop {
                bytes.clear();
                match self.serving.borrow_mut().client(self.port) {
                    Some(client) => std::mem::swap(&mut bytes, client.output()),
                    None => return Err(Broken::Gone),
                }
                if bytes.is_empty() {
                    break;
                }
                writer.write_all(&bytes).await?;
                writer.flush().await?;
            }
        }
    }

    /// Tells the exporter when the frontend says that it can resume, or takes it back.
    async fn announce_resume(&self) -> Result<std::convert::Infallible, Broken> {
        let mut resumes = self.frontend_resumes.clone();
        loop {
            if resumes.changed().await.is_err() {
                return std::future::pending().await;
            }
            let yes = *resumes.borrow_and_update();
            debug!(self.log, "frontend's ability to resume changed"; "resumes" => yes);
            if let Some(client) = self.serving.borrow_mut().client(self.port) {
                client.say(if yes { Kind::ResumeYes } else { Kind::ResumeNo });
                self.wake.notify_one();
            }
        }
    }
}

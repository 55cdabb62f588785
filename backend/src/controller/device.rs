// SPDX-License-Identifier: GPL-3.0-or-later
//! The task of one attached device: connects to its exporter, claims the lease, moves frames.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use session::client::ClientError;
use session::control::Refusal;
use session::frame::{HEADER_LEN, Kind, MAX_BODY_LEN};
use session::message::Purpose;
use session::open::{Open, Opened};
use session::{Epoch, Holder, Lease};
use slog::{Logger, debug, info, warn};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Instant, sleep, sleep_until};
use transport::{Identity, TlsStream};
use usbif::PortNumber;
use xen::{Backend, DomId};

use super::serving::{End, Serving, Unanswered};
use super::tenure::{Next, Tenure, Waiting};
use crate::config;
use crate::domain::Domains;

const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// The guest may be one that was moved, and waits for its device.
const RETRY_UNDECIDED: Duration = Duration::from_millis(200);
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
    /// Another domain with the VM's uuid has the device, or has had it since: the guest is not shown it
    /// before [`News::Claimed`]. The text is for people.
    HeldElsewhere(PortNumber, String),
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

impl News {
    /// The port that it is about.
    pub fn port(&self) -> PortNumber {
        match *self {
            Self::Claimed(port)
            | Self::Lost(port, _)
            | Self::Unreachable(port)
            | Self::Reached(port)
            | Self::HeldElsewhere(port, _)
            | Self::Absent { port, .. } => port,
        }
    }
}

/// Tells one task of a controller from all others that it has had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskId(pub u64);

/// Where a task sends its news, with its own number: when the news are read, another device may be at
/// the port.
#[derive(Clone)]
pub struct NewsSender {
    pub(super) task: TaskId,
    pub(super) sender: mpsc::UnboundedSender<(TaskId, News)>,
}

impl NewsSender {
    fn send(&self, news: News) {
        // The controller ends: nobody is left to whom it means anything.
        let _ = self.sender.send((self.task, news));
    }
}

/// Says at the end of each such time that the exporter is out of reach, until it is dropped.
struct Away(AbortHandle);

impl Away {
    fn start(after: Duration, port: PortNumber, news: NewsSender) -> Self {
        let task = spawn_local(async move {
            loop {
                sleep(after).await;
                news.send(News::Unreachable(port));
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
    #[error("{0}")]
    HeldElsewhere(String),
    #[error(
        "the VM is suspended at {0}: whether it has moved here is known when that domain goes on or ends"
    )]
    Undecided(Holder),
    #[error("the device is gone")]
    Gone,
    #[error("the device is unplugged")]
    Unplugged,
    #[error("another host has taken the device over")]
    Fenced,
}

impl Broken {
    /// Whether trying again is of no use, `now` after `waiting` began to count.
    fn is_final(&self, waiting: &mut Waiting, now: Duration) -> bool {
        match self {
            Self::Refused(refusal) => waiting.refused(refusal, now),
            Self::Gone | Self::Unplugged | Self::Fenced => true,
            Self::Transport(_)
            | Self::Io(_)
            | Self::Session(_)
            | Self::Silent
            | Self::Outdated(_)
            | Self::HeldElsewhere(_)
            | Self::Undecided(_) => {
                waiting.over();
                false
            }
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

/// What an administrator is told of a device that another domain with the same uuid holds.
pub(super) fn held_elsewhere(holder: &Holder, connected: bool) -> String {
    match connected {
        true => format!(
            "the VM runs at {holder}, and this domain has the same uuid. It gets the device when that domain \
             is gone: shut one of the two down, or give this one a uuid of its own"
        ),
        false => format!(
            "the VM ran last at {holder}, which is not connected to the exporter, and this domain has the \
             same uuid. It gets the device when that domain is known to be gone, or its host has been \
             silent for the exporter's takeover_seconds"
        ),
    }
}

/// What the task needs.
pub struct DeviceTask<B: Backend> {
    pub(super) serving: Rc<RefCell<Serving<B>>>,
    pub(super) port: PortNumber,
    pub(super) lease: Lease,
    pub(super) domid: u16,
    pub(super) domains: Domains,
    pub(super) exporter: config::Exporter,
    pub(super) identity: Identity,
    pub(super) wake: Rc<Notify>,
    /// True once the guest runs here: only then is the lease claimed. False again tells nothing.
    pub(super) may_claim: watch::Receiver<bool>,
    /// What it knows of its lease.
    pub(super) tenure: Tenure,
    /// Whether the frontend can resume.
    pub(super) frontend_resumes: watch::Receiver<bool>,
    pub(super) news: NewsSender,
    /// Since when the connection is lost.
    pub(super) lost_at: Rc<Cell<Option<Instant>>>,
    pub(super) log: Logger,
}

impl<B: Backend> DeviceTask<B> {
    /// Runs until the device is lost; dropped when it is detached.
    pub async fn run(mut self) {
        let mut pause = RETRY_MIN;
        let mut said = String::new();
        let mut away = None;
        let (started, mut waiting) = (Instant::now(), Waiting::default());
        loop {
            let Err(broken) = self.connection(&mut pause, &mut away).await;
            if let Some(client) = self.serving.borrow_mut().client(self.port) {
                client.lost();
            }
            if self.lost_at.get().is_none() {
                self.lost_at.set(Some(Instant::now()));
            }
            if let Broken::Session(_) = broken {
                // Resumed, it would be told the same again.
                self.tenure.lose_session();
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
                self.news.send(News::Absent {
                    port,
                    paused,
                    epoch: self.tenure.session(),
                });
                return;
            }
            if broken.is_final(&mut waiting, started.elapsed()) {
                self.news.send(News::Lost(self.port, text));
                return;
            }
            let is_there = matches!(
                broken,
                Broken::HeldElsewhere(_) | Broken::Outdated(_) | Broken::Undecided(_)
            );
            if let Some(after) = self.exporter.disconnect_after().filter(|_| !is_there) {
                away.get_or_insert_with(|| Away::start(after, self.port, self.news.clone()));
            }
            if text != said {
                match &broken {
                    Broken::HeldElsewhere(_) => {
                        warn!(self.log, "device not plugged in: {}", text);
                        self.news.send(News::HeldElsewhere(self.port, text.clone()));
                    }
                    Broken::Undecided(_) => info!(self.log, "lease not claimed yet: {}", text),
                    _ => warn!(self.log, "connection to the exporter lost: {}", text),
                }
                said = text;
            }
            let most = match broken {
                Broken::Undecided(_) => RETRY_UNDECIDED,
                _ => RETRY_MAX,
            };
            pause = pause.min(most);
            sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    async fn connection(
        &mut self,
        pause: &mut Duration,
        away: &mut Option<Away>,
    ) -> Result<std::convert::Infallible, Broken> {
        let config::Exporter { name, address, .. } = &self.exporter;
        let mut stream = transport::connect(&self.identity, address, name).await?;
        transport::greet(&mut stream, Purpose::Device).await?;
        // Connected ahead of time; the rest of the hand-off is one round trip.
        let running = self.may_claim.wait_for(|&may| may).await.map(|_| ());
        running.map_err(|_| Broken::Gone)?;
        let how = self
            .tenure
            .how(self.serving.borrow_mut().client(self.port).as_deref());
        let open = Open {
            device: self.lease.device.id.clone(),
            vm: self.lease.vm,
            domid: self.domid,
            attempt: self.serving.borrow_mut().next_attempt(self.port),
            frontend_resumes: *self.frontend_resumes.borrow_and_update(),
            evidence: self.tenure.evidence(),
            how,
        };
        transport::send(&mut stream, &open).await?;
        let opened = transport::receive::<Opened>(&mut stream).await?;
        match self.tenure.answered(how, opened) {
            Next::Elsewhere(current) => {
                match self.domains.read(DomId(self.domid)).await {
                    Ok(Some(domain)) if !domain.leaves => {
                        self.tenure.stays(current);
                        if self.tenure.waits() {
                            let text = "another domain with the same uuid has had the device since \
                                        this one was made; it is connected anew when it is free";
                            return Err(Broken::HeldElsewhere(text.to_owned()));
                        }
                    }
                    Ok(_) => return Err(Broken::Fenced),
                    // Asked again with the next attempt.
                    Err(e) => warn!(self.log, "xenstore: {}", e),
                }
                return Err(Broken::Outdated(current));
            }
            Next::Again(current) => return Err(Broken::Outdated(current)),
            Next::Undecided(holder) => {
                if self.is_gone(&holder).await {
                    self.tenure.holder_is_gone(holder.domid);
                    return Err(Broken::Outdated(self.lease.epoch));
                }
                return Err(Broken::Undecided(holder));
            }
            Next::HeldElsewhere { holder, connected } => {
                if self.is_gone(&holder).await {
                    self.tenure.holder_is_gone(holder.domid);
                    return Err(Broken::Outdated(self.lease.epoch));
                }
                let text = held_elsewhere(&holder, connected);
                return Err(Broken::HeldElsewhere(text));
            }
            Next::Refused(refusal) => return Err(Broken::Refused(refusal)),
            Next::Claimed(epoch) => {
                *pause = RETRY_MIN;
                info!(self.log, "lease claimed"; "epoch" => epoch.0);
                self.serving.borrow_mut().claimed(self.port, epoch);
                self.news.send(News::Claimed(self.port));
            }
            Next::Resumed(requests_received) => {
                *pause = RETRY_MIN;
                info!(self.log, "connection to the exporter resumed");
                let mut serving = self.serving.borrow_mut();
                serving.resumed(self.port, requests_received)?;
            }
        }
        self.lost_at.set(None);
        if away.take().is_some() {
            self.news.send(News::Reached(self.port));
        }
        let (reader, writer) = split(stream);
        self.wake.notify_one();
        tokio::select! {
            broken = self.receive(reader) => broken,
            broken = self.send(writer) => broken,
            broken = self.announce_resume() => broken,
        }
    }

    /// Whether this was a domain of this host, which is no more.
    async fn is_gone(&self, holder: &Holder) -> bool {
        if holder.host != self.identity.name() {
            return false;
        }
        match self
            .domains
            .may_be(DomId(holder.domid), self.lease.vm)
            .await
        {
            Ok(may_be) => !may_be,
            Err(e) => {
                warn!(self.log, "xenstore: {}", e);
                false
            }
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
        let (taken, end) = serving.receive(self.port, input)?;
        if let Some(client) = serving.client(self.port) {
            if client.unacknowledged() > ACKNOWLEDGE_ABOVE {
                client.acknowledge();
            }
            if !client.output().is_empty() {
                self.wake.notify_one();
            }
        }
        match end {
            None => Ok(taken),
            Some(End::Gone) => Err(Broken::Gone),
            Some(End::Unplugged) => Err(Broken::Unplugged),
            Some(End::Fenced) => Err(Broken::Fenced),
        }
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

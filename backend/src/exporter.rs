// SPDX-License-Identifier: GPL-3.0-or-later
//! The control connection to an exporter: kept open, asked many things at a time.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use control::ExporterStatus;
use session::control::{Event, FromBackend, Reply, Request, ToBackend};
use session::hosts::Software;
use session::message::{self, Purpose};
use session::{Lease, VmUuid};
use slog::{Logger, info, warn};
use tokio::io::{AsyncWriteExt, split};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use transport::{Identity, MessageReader, TlsStream};

use crate::config;

/// First pause after a failed connection; it doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(3);
/// Longest wait for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The same where a device is opened for it: the exporter resets it, and reads its descriptors.
const OPENING_TIMEOUT: Duration = Duration::from_secs(15);
/// Silence after which it is asked something, only to hear whether it is there.
const ASK_AFTER: Duration = Duration::from_secs(2);
/// Requests that may wait for an answer.
const QUEUE: usize = 64;

/// Whether this version makes the PV USB controller of a VM that arrives and has none.
const MAKES_CONTROLLERS: bool = true;

/// What exporters tell other hosts of this one.
fn software() -> Software {
    Software {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        makes_controllers: MAKES_CONTROLLERS,
    }
}

/// Why an exporter could not be asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AskError {
    /// No connection, or it broke before the answer came.
    #[error("exporter {exporter} does not answer: {why}")]
    Unreachable {
        /// The exporter.
        exporter: String,
        /// What went wrong last.
        why: String,
    },
    /// It answered, and said no.
    #[error("exporter {exporter}: {refusal}")]
    Refused {
        /// The exporter.
        exporter: String,
        /// Why.
        refusal: session::control::Refusal,
    },
    /// It answered something else than it was asked.
    #[error("exporter {0} answered what was not asked; its version differs from ours")]
    Nonsense(String),
}

struct Question {
    request: Request,
    answer: oneshot::Sender<Reply>,
}

/// A request without an answer yet.
struct Waiting {
    /// Who asked; nobody where we only want to hear that the exporter is there.
    answer: Option<oneshot::Sender<Reply>>,
    /// It may take longer than others.
    opens: bool,
}

fn opens(request: &Request) -> bool {
    matches!(request, Request::Acquire(_))
}

/// A handle to one exporter. Clones share the connection.
#[derive(Clone)]
pub struct Exporter {
    config: Rc<config::Exporter>,
    error: Rc<RefCell<Option<String>>>,
    questions: mpsc::Sender<Question>,
}

impl Exporter {
    /// Starts the connection on the current `LocalSet`. Its events go to `events`, with the
    /// exporter's name; `None` says that the connection is (again) there.
    pub fn start(
        config: config::Exporter,
        identity: Identity,
        events: mpsc::UnboundedSender<(String, Option<Event>)>,
        log: &Logger,
    ) -> Self {
        let (questions, incoming) = mpsc::channel(QUEUE);
        let exporter = Self {
            config: Rc::new(config),
            error: Rc::new(RefCell::new(Some("not connected yet".into()))),
            questions,
        };
        let connection = Connection {
            config: exporter.config.clone(),
            error: exporter.error.clone(),
            identity,
            events,
            log: log.new(slog::o!("exporter" => exporter.config.name.clone())),
        };
        tokio::task::spawn_local(connection.run(incoming));
        exporter
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Its name and address.
    pub fn config(&self) -> &config::Exporter {
        &self.config
    }

    /// For people.
    pub fn status(&self) -> ExporterStatus {
        ExporterStatus {
            name: self.config.name.clone(),
            address: self.config.address.clone(),
            error: self.error.borrow().clone(),
        }
    }

    /// Asks. A refusal is an error.
    pub async fn ask(&self, request: Request) -> Result<Reply, AskError> {
        let unreachable = |why: Option<String>| AskError::Unreachable {
            exporter: self.config.name.clone(),
            why: why.unwrap_or_else(|| "the connection was lost".into()),
        };
        if let Some(why) = self.error.borrow().clone() {
            return Err(unreachable(Some(why)));
        }
        let patience = match opens(&request) {
            true => OPENING_TIMEOUT,
            false => ANSWER_TIMEOUT,
        };
        let (answer, reply) = oneshot::channel();
        let sent = self.questions.try_send(Question { request, answer });
        sent.map_err(|_| unreachable(Some("too many requests are waiting".into())))?;
        match timeout(patience, reply).await {
            Ok(Ok(Reply::Refused(refusal))) => Err(AskError::Refused {
                exporter: self.config.name.clone(),
                refusal,
            }),
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => Err(unreachable(self.error.borrow().clone())),
            Err(_) => Err(self.too_slow(patience)),
        }
    }

    /// The error of an answer that did not come in time.
    pub fn too_slow(&self, waited: Duration) -> AskError {
        let why = format!("no answer within {} s", waited.as_secs());
        AskError::Unreachable {
            exporter: self.config.name.clone(),
            why,
        }
    }

    /// The error of an answer of the wrong kind.
    pub fn nonsense(&self) -> AskError {
        AskError::Nonsense(self.config.name.clone())
    }
}

struct Connection {
    config: Rc<config::Exporter>,
    error: Rc<RefCell<Option<String>>>,
    identity: Identity,
    events: mpsc::UnboundedSender<(String, Option<Event>)>,
    log: Logger,
}

impl Connection {
    async fn run(self, mut questions: mpsc::Receiver<Question>) {
        let mut pause = RETRY_MIN;
        loop {
            let result = match self.connect().await {
                Ok(stream) => {
                    info!(self.log, "exporter connected"; "address" => &self.config.address);
                    *self.error.borrow_mut() = None;
                    pause = RETRY_MIN;
                    let _ = self.events.send((self.config.name.clone(), None));
                    self.serve(stream, &mut questions).await
                }
                Err(e) => Err(e),
            };
            let Err(error) = result else { return };
            let text = error.to_string();
            // Said once per cause, not once per attempt.
            if self.error.borrow().as_ref() != Some(&text) {
                warn!(self.log, "exporter not connected: {}", text);
            }
            *self.error.borrow_mut() = Some(text);
            while questions.try_recv().is_ok() {}
            sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    async fn connect(&self) -> Result<TlsStream, transport::Error> {
        let config::Exporter { name, address, .. } = &*self.config;
        let mut stream = transport::connect(&self.identity, address, name).await?;
        transport::greet(&mut stream, Purpose::Control).await?;
        Ok(stream)
    }

    /// Serves until the connection is lost; `Ok` when nobody asks any more.
    async fn serve(
        &self,
        stream: TlsStream,
        questions: &mut mpsc::Receiver<Question>,
    ) -> Result<(), transport::Error> {
        let (mut reader, mut writer) = split(stream);
        let mut messages = MessageReader::new();
        let mut waiting = Outstanding::default();
        let mut heard = Instant::now();
        // Since when something is waited for that is answered at once.
        let mut asked = heard;
        let mut bytes = Vec::new();
        waiting.ask(Request::Subscribe, None, &mut bytes)?;
        waiting.ask(Request::Introduce(software()), None, &mut bytes)?;
        loop {
            // TCP notices a host that is gone; this, one that is there and does not answer.
            let patience = match waiting.is_quiet() {
                true => heard + ASK_AFTER,
                false => heard.max(asked) + ANSWER_TIMEOUT,
            };
            if !bytes.is_empty() {
                let written = async {
                    writer.write_all(&bytes).await?;
                    writer.flush().await
                };
                written
                    .await
                    .map_err(|e| transport::Error::from_io(e, &self.config.name))?;
                bytes.clear();
            }
            tokio::select! {
                received = messages.receive::<ToBackend>(&mut reader) => {
                    heard = Instant::now();
                    match received? {
                        ToBackend::Event(event) => {
                            let _ = self.events.send((self.config.name.clone(), Some(event)));
                        }
                        ToBackend::Reply { number, reply } => {
                            let Some(asker) = waiting.answered(number) else {
                                return Err(transport::Error::Closed);
                            };
                            let Some(asker) = asker else { continue };
                            // Whoever asked has given up, and does not know that there is a lease.
                            if let Err(Reply::Lease(lease)) = asker.send(reply) {
                                info!(self.log, "device opened too late, given back";
                                    "device" => %lease.device.id, "vm" => %lease.vm);
                                waiting.ask(release(*lease), None, &mut bytes)?;
                            }
                        }
                    }
                }
                question = questions.recv() => {
                    let Some(Question { request, answer }) = question else { return Ok(()) };
                    if waiting.is_quiet() {
                        asked = Instant::now();
                    }
                    waiting.ask(request, Some(answer), &mut bytes)?;
                }
                () = sleep_until(patience) => {
                    if !waiting.is_quiet() {
                        return Err(transport::Error::TimedOut {
                            peer: self.config.name.clone(),
                            during: "waiting for an answer",
                            seconds: ANSWER_TIMEOUT.as_secs(),
                        });
                    }
                    // Nobody has this one, so the answer is short.
                    let nobody = Request::Leases { vm: Some(VmUuid(uuid::Uuid::nil())) };
                    asked = Instant::now();
                    waiting.ask(nobody, None, &mut bytes)?;
                }
            }
        }
    }
}

/// The requests of a connection that have no answer yet, by their numbers.
#[derive(Default)]
struct Outstanding {
    next: u64,
    requests: HashMap<u64, Waiting>,
}

impl Outstanding {
    /// Appends a request to `bytes`.
    fn ask(
        &mut self,
        request: Request,
        answer: Option<oneshot::Sender<Reply>>,
        bytes: &mut Vec<u8>,
    ) -> Result<(), transport::Error> {
        let (number, opens) = (self.next, opens(&request));
        message::encode(&FromBackend { number, request }, bytes)?;
        self.next += 1;
        self.requests.insert(number, Waiting { answer, opens });
        Ok(())
    }

    /// Who waits for this answer; `None` where it was not asked for.
    fn answered(&mut self, number: u64) -> Option<Option<oneshot::Sender<Reply>>> {
        self.requests.remove(&number).map(|waiting| waiting.answer)
    }

    /// Whether nothing is waited for that is answered at once.
    fn is_quiet(&self) -> bool {
        self.requests.values().all(|waiting| waiting.opens)
    }
}

fn release(lease: Lease) -> Request {
    Request::Release {
        device: lease.device.id,
        vm: lease.vm,
        epoch: lease.epoch,
        force: false,
    }
}

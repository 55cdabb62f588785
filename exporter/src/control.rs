// SPDX-License-Identifier: GPL-3.0-or-later
//! A control connection: requests, answers as they come, events in between.

use std::cell::Cell;
use std::future::pending;
use std::rc::Rc;

use session::control::{Event, FromBackend, Refusal, Reply, Request, ToBackend};
use session::message::MessageError;
use slog::Logger;
use tokio::io::{AsyncWrite, split};
use tokio::task::JoinSet;
use transport::{Error, MessageReader, TlsStream, send};

use crate::hub::{Events, Hub};
use crate::limits::Limits;

/// Requests of a connection that are carried out at once: more wait unread. Those that take long are for
/// devices that open slowly, one for each.
const MAX_REQUESTS: usize = 256;

/// Who asks.
pub(crate) struct Peer {
    /// The host, from its certificate.
    pub(crate) host: String,
    /// Its part of the log.
    pub(crate) log: Logger,
    /// The number of the connection.
    pub(crate) connection: u64,
    /// It has ended; what it asked for may still go on.
    pub(crate) is_gone: Cell<bool>,
}

/// Serves `host` until the connection ends; `log` is the host's.
pub(crate) async fn serve(
    hub: &Rc<Hub>,
    stream: TlsStream,
    host: &str,
    log: &Logger,
    limits: &Limits,
) -> Result<(), Error> {
    let peer = Rc::new(Peer {
        host: host.to_owned(),
        log: log.clone(),
        connection: hub.next_connection(),
        is_gone: Cell::new(false),
    });
    hub.host_connected(host);
    let mut answers = JoinSet::new();
    let result = talk(hub, stream, &peer, limits, &mut answers).await;
    // A device that is being opened is not left half open: its lease ends, and the device is given back.
    answers.detach_all();
    peer.is_gone.set(true);
    hub.control_ended(peer.connection);
    hub.host_disconnected(host);
    result
}

async fn talk(
    hub: &Rc<Hub>,
    stream: TlsStream,
    peer: &Rc<Peer>,
    limits: &Limits,
    answers: &mut JoinSet<(u64, Reply)>,
) -> Result<(), Error> {
    let (mut from, mut to) = split(stream);
    let mut reader = MessageReader::new();
    let mut events: Option<Events> = None;
    loop {
        tokio::select! {
            asked = reader.receive::<FromBackend>(&mut from), if answers.len() < MAX_REQUESTS => {
                let FromBackend { number, request } = asked?;
                limits.request().await;
                if changes_leases(&request) {
                    limits.change().await;
                }
                if request == Request::Subscribe && events.is_none() {
                    events = Some(hub.subscribe(&peer.host));
                }
                if let Request::Arriving {
                    vm,
                    domid,
                    arriving,
                } = request
                {
                    hub.arriving(peer.connection, &peer.host, vm, domid, arriving);
                }
                let (hub, peer) = (hub.clone(), peer.clone());
                answers.spawn_local(async move { (number, hub.answer(request, &peer).await) });
            }
            Some(answered) = answers.join_next(), if !answers.is_empty() => {
                // One that panicked, or the exporter ends.
                let Ok((number, reply)) = answered else { return Err(Error::Closed) };
                answer(&mut to, number, reply).await?;
            }
            event = next(&mut events) => send(&mut to, &ToBackend::Event(event)).await?,
        }
    }
}

fn changes_leases(request: &Request) -> bool {
    matches!(
        request,
        Request::Acquire(_)
            | Request::Confirm { .. }
            | Request::Release { .. }
            | Request::Note { .. }
            | Request::Ended { .. }
    )
}

/// Leases of others are part of some answers: one that does not fit into a message costs who asked the
/// answer, not the connection.
async fn answer(
    to: &mut (impl AsyncWrite + Unpin),
    number: u64,
    reply: Reply,
) -> Result<(), Error> {
    match send(to, &ToBackend::Reply { number, reply }).await {
        Err(Error::Message(MessageError::TooLong(len))) => {
            let why = format!("the answer has {len} bytes, more than a message may have");
            let reply = Reply::Refused(Refusal::Limit(why));
            send(to, &ToBackend::Reply { number, reply }).await
        }
        sent => sent,
    }
}

async fn next(events: &mut Option<Events>) -> Event {
    match events {
        Some(events) => events.next().await,
        None => pending().await,
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! A control connection: requests and answers in order, events in between.

use std::future::pending;
use std::rc::Rc;

use session::control::{Event, Request, ToBackend};
use tokio::io::split;
use tokio::sync::mpsc::Receiver;
use transport::{Error, MessageReader, TlsStream, send};

use crate::hub::Hub;

/// Serves `host` until the connection ends.
pub(crate) async fn serve(hub: &Rc<Hub>, stream: TlsStream, host: &str) -> Result<(), Error> {
    let connection = hub.next_connection();
    let result = talk(hub, stream, host, connection).await;
    hub.control_ended(connection);
    result
}

async fn talk(hub: &Rc<Hub>, stream: TlsStream, host: &str, connection: u64) -> Result<(), Error> {
    let (mut from, mut to) = split(stream);
    let mut reader = MessageReader::new();
    let mut events: Option<Receiver<Event>> = None;
    loop {
        tokio::select! {
            request = reader.receive::<Request>(&mut from) => {
                let request = request?;
                if request == Request::Subscribe && events.is_none() {
                    events = Some(hub.subscribe(host));
                }
                if let Request::Arriving {
                    vm,
                    domid,
                    arriving,
                } = request
                {
                    hub.arriving(connection, host, vm, domid, arriving);
                }
                let reply = hub.answer(request, host).await;
                send(&mut to, &ToBackend::Reply(reply)).await?;
            }
            event = next(&mut events) => match event {
                Some(event) => send(&mut to, &ToBackend::Event(event)).await?,
                // Too far behind.
                None => return Err(Error::Closed),
            }
        }
    }
}

async fn next(events: &mut Option<Receiver<Event>>) -> Option<Event> {
    match events {
        Some(events) => events.recv().await,
        None => pending().await,
    }
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! The two rings and the event channel.

use std::io;

use usbif::{Conn, ConnRequest, FrontRing, RingKind, Urb};
use xen::{Access, DomId, EventChannel, GrantRef, Guest, RingPage};

use super::RingGrants;
use crate::{Front, HostError};

type Page<G> = RingPage<<G as Guest>::Pages>;

pub(super) struct Link<G: Guest> {
    urb: FrontRing<Page<G>, Urb>,
    conn: FrontRing<Page<G>, Conn>,
    /// `None` once the domain has moved: the memory is still there, nobody listens.
    channel: Option<G::Channel>,
    grants: RingGrants,
}

impl<G: Guest> Link<G> {
    pub(super) fn new(guest: &G, backend: DomId) -> Result<Self, HostError> {
        let (urb_page, urb_ring) = ring_page(guest, backend)?;
        let (conn_page, conn_ring) = ring_page(guest, backend)?;
        let channel = guest.alloc_unbound(backend).map_err(HostError::Channel)?;
        let urb = FrontRing::new(urb_page);
        let mut conn = FrontRing::new(conn_page);
        for id in 0..Conn::SLOTS {
            // 512 requests into 512 slots.
            let _ = conn.push_request(&ConnRequest { id: id as u16 });
        }
        // The backend is not bound yet; it looks at the ring when it is.
        let _ = conn.publish();
        let event_channel = channel.local_port();
        let grants = RingGrants {
            urb_ring,
            conn_ring,
            event_channel,
        };
        Ok(Self {
            urb,
            conn,
            channel: Some(channel),
            grants,
        })
    }

    pub(super) fn grants(&self) -> RingGrants {
        self.grants
    }

    pub(super) fn pages(&self) -> (&G::Pages, &G::Pages) {
        (self.urb.memory().mapping(), self.conn.memory().mapping())
    }

    pub(super) fn channel(&self) -> Option<&G::Channel> {
        self.channel.as_ref()
    }

    /// Responses and events in, requests out, until nothing is left to do.
    pub(super) fn step(&mut self, front: &mut Front) -> io::Result<()> {
        let Some(channel) = &self.channel else {
            // What is submitted before there are new rings goes to the dead one.
            self.push_requests(front);
            let _ = self.urb.publish();
            return Ok(());
        };
        // Before looking at the rings, or an event in between would be lost.
        channel.take_event()?;
        loop {
            self.take_responses(front);
            self.take_events(front);
            self.push_requests(front);
            // Both, always: each has its own index to publish.
            let notify_urb = self.urb.publish();
            let notify_conn = self.conn.publish();
            if (notify_urb || notify_conn)
                && let Some(channel) = &self.channel
            {
                channel.notify()?;
            }
            if front.is_dead() {
                return Ok(());
            }
            let more_responses = self.urb.final_check();
            let more_events = self.conn.final_check();
            if !more_responses && !more_events {
                return Ok(());
            }
        }
    }

    fn push_requests(&mut self, front: &mut Front) {
        while self.urb.free() > 0 && front.has_requests() {
            let Some(request) = front.next_request() else {
                break;
            };
            // There is a free slot.
            let _ = self.urb.push_request(&request);
        }
    }

    fn take_responses(&mut self, front: &mut Front) {
        while !front.is_dead() {
            match self.urb.next_response() {
                Ok(Some(response)) => front.handle_response(response),
                Ok(None) => break,
                Err(corrupt) => front.handle_corrupt_ring(corrupt),
            }
        }
    }

    fn take_events(&mut self, front: &mut Front) {
        while !front.is_dead() {
            match self.conn.next_response() {
                Ok(Some(event)) => {
                    let id = match &event {
                        Ok(event) => event.id,
                        Err(bad) => bad.id,
                    };
                    // The form goes back for the next event, into the slot just emptied.
                    let _ = self.conn.push_request(&ConnRequest { id });
                    front.handle_event(event);
                }
                Ok(None) => break,
                Err(corrupt) => front.handle_corrupt_ring(corrupt),
            }
        }
    }

    /// The domain has moved. What the old backend answered last is still in memory, and true.
    pub(super) fn die(&mut self, front: &mut Front) {
        self.take_responses(front);
        self.channel = None;
    }

    /// Ends the grants; false when the backend still maps one of the pages.
    pub(super) fn end(self, guest: &G) -> bool {
        drop(self.channel);
        let urb = guest.end_access(self.urb.into_memory().into_mapping());
        let conn = guest.end_access(self.conn.into_memory().into_mapping());
        urb && conn
    }
}

fn ring_page<G: Guest>(guest: &G, backend: DomId) -> Result<(Page<G>, GrantRef), HostError> {
    let (pages, refs) = guest.grant_pages(backend, 1, Access::ReadWrite)?;
    let gref = refs[0];
    Ok((RingPage::new(pages, 0), gref))
}

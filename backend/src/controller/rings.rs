// SPDX-License-Identifier: GPL-3.0-or-later
//! The rings of a frontend: where they are, and the mapped ones.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use journal::Corrupt;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use usbif::{BackRing, Conn, RingCorrupt, Urb};
use xen::{Backend, EventChannel, EvtchnPort, GrantError, GrantRef, RingPage};

/// What the frontend's directory says of its rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingDetails {
    /// `urb-ring-ref`.
    pub urb: GrantRef,
    /// `conn-ring-ref`.
    pub conn: GrantRef,
    /// `event-channel`.
    pub channel: EvtchnPort,
    /// `feature-recall` is 1: before a suspend the frontend itself asks for its requests, and every
    /// answer counts.
    pub recalls: bool,
}

/// Why the rings of a frontend cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// A ring page.
    #[error("cannot map the rings: {0}")]
    Map(#[from] GrantError),
    /// The event channel.
    #[error("cannot bind event channel {port}: {source}")]
    Channel {
        /// The guest's port.
        port: EvtchnPort,
        /// Why.
        source: std::io::Error,
    },
    /// We were started again, and cannot go on with them.
    #[error(transparent)]
    Lost(#[from] Corrupt),
    /// As above.
    #[error(transparent)]
    Indices(#[from] RingCorrupt),
}

/// The mapped rings.
pub(super) struct Rings<B: Backend> {
    pub(super) urb: BackRing<RingPage<B::Mapping>, Urb>,
    pub(super) conn: BackRing<RingPage<B::Mapping>, Conn>,
    pub(super) channel: Rc<B::Channel>,
}

/// Whether the runtime looks at the channel's descriptor.
enum Watched {
    Yes(AsyncFd<OwnedFd>),
    No(OwnedFd),
    /// Watching it again has failed.
    Lost,
}

/// Resolves whenever the frontend has signalled.
pub struct Signal<B: Backend> {
    watched: Watched,
    channel: Rc<B::Channel>,
}

impl<B: Backend> Signal<B> {
    /// Watches a channel, on the runtime of this thread. `port` is the guest's, for the error.
    ///
    /// # Errors
    /// [`RingError::Channel`], when its descriptor cannot be watched.
    pub fn new(channel: Rc<B::Channel>, port: EvtchnPort) -> Result<Self, RingError> {
        let failed = |source| RingError::Channel { port, source };
        let descriptor = channel.as_fd().try_clone_to_owned().map_err(failed)?;
        let watched = Watched::Yes(watch(descriptor).map_err(failed)?);
        Ok(Self { watched, channel })
    }

    /// Leaves the channel alone, or takes notice of it again. Not asking for an event is not
    /// enough: each one would still wake the thread.
    ///
    /// # Errors
    /// When it cannot be watched again. It stays so.
    pub fn set_watched(&mut self, wanted: bool) -> std::io::Result<()> {
        self.watched = match (std::mem::replace(&mut self.watched, Watched::Lost), wanted) {
            (Watched::Yes(watched), false) => Watched::No(watched.into_inner()),
            // An event that came meanwhile is seen at once.
            (Watched::No(descriptor), true) => Watched::Yes(watch(descriptor)?),
            (as_it_is, _) => as_it_is,
        };
        Ok(())
    }

    /// Waits for an event and takes it.
    pub async fn wait(&self) -> std::io::Result<()> {
        let Watched::Yes(watched) = &self.watched else {
            return std::future::pending().await;
        };
        let mut guard = watched.readable().await?;
        // First, so that an event between the two is not forgotten.
        guard.clear_ready();
        self.channel.take_event().map(drop)
    }
}

fn watch(descriptor: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is a duplicate of our own, owned by the AsyncFd and so open and the same
    // for as long as that lives.
    let watched = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    Ok(watched?)
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! The machine, as one table.

use std::fmt;

/// Where a controller is between two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// The toolstack has made the controller; the VM's leases are being asked for.
    Expecting,
    /// libxl may go on. The domain is paused, or boots; its frontend has not connected.
    WaitingForFrontend,
    /// The guest runs here: the leases are being claimed, requests wait.
    Claiming,
    /// Requests go to their devices.
    Serving,
    /// The guest was asked to suspend; its USB core unlinks what it has submitted. Leases that were not
    /// claimed are still being claimed.
    Quiescing,
    /// Nothing is in flight. The ring stays mapped: a cancelled suspend comes back to it.
    Frozen,
    /// The frontend was connected and has closed. The leases are held; it may connect again.
    Closed,
    /// The domain is gone from here.
    Released,
    /// The domain never ran here. The leases were not touched.
    Abandoned,
    /// The guest cannot move with its devices; the toolstack has been told so.
    Refused,
}

/// What happens to a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The leases are known, and nothing speaks against taking the guest.
    LeasesKnown,
    /// A lease forbids that the guest moves.
    MoveForbidden,
    /// The frontend has switched to Connected.
    FrontendConnected,
    /// Every lease is claimed, or was lost to somebody else.
    Claimed,
    /// `control/shutdown` was set to `suspend`.
    SuspendRequested,
    /// Every request is answered, and has been for a moment.
    Idle,
    /// A request has come in.
    Request,
    /// A request has come in so late after [`Event::SuspendRequested`] that the guest cannot be
    /// suspending any more: it was cancelled, or was refused.
    SuspendForgotten,
    /// The frontend has closed: driver unloaded, or the guest reboots inside the same domain.
    FrontendClosed,
    /// The domain, or the controller, was destroyed.
    DomainGone,
}

/// What is to be done, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Switch to InitWait, which is what libxl waits for.
    AnswerInitWait,
    /// Remove the backend's `state` node: libxl gives up at once, and the guest goes on at the
    /// source.
    RemoveStateNode,
    /// Map the rings, bind the event channel, read requests.
    MapRings,
    /// Claim the leases.
    Claim,
    /// Switch to Connected.
    SwitchToConnected,
    /// Let OUT transfers that are unlinked finish, for a bounded time, to report what is true.
    StartQuiescing,
    /// Unlinked transfers are cancelled at once again.
    StopQuiescing,
    /// Tell the exporters that nothing is in flight.
    Freeze,
    /// Tell the exporters that the guest goes on here.
    Thaw,
    /// Unmap the rings, close the event channel; cancel what is in flight.
    UnmapRings,
    /// Tell the exporters that the domain is gone: the hold time of the leases starts.
    Orphan,
    /// Switch to Closed, or forget the controller where its nodes are gone.
    Close,
}

use Action as A;
use Event as E;
use State as S;

/// What follows when `event` happens in `state`: the next state, and what to do. A pair that means
/// nothing changes nothing: events of the guest, the toolstack and the exporters cross.
pub fn step(state: State, event: Event) -> (State, &'static [Action]) {
    match (state, event) {
        (S::Expecting, E::LeasesKnown) => (S::WaitingForFrontend, &[A::AnswerInitWait]),
        (S::Expecting, E::MoveForbidden) => (S::Refused, &[A::RemoveStateNode]),
        (S::Expecting | S::WaitingForFrontend | S::Refused, E::DomainGone) => {
            (S::Abandoned, &[A::Close])
        }

        (S::WaitingForFrontend | S::Closed, E::FrontendConnected) => {
            (S::Claiming, &[A::MapRings, A::Claim, A::SwitchToConnected])
        }
        (S::Claiming, E::Claimed) => (S::Serving, &[]),

        // Claiming lasts until the last exporter answers, which may be long after the guest is suspended.
        // The claims go on.
        (S::Claiming | S::Serving, E::SuspendRequested) => (S::Quiescing, &[A::StartQuiescing]),
        // Its driver is not loaded, or has connected and was not looked at yet: events of xenstore cross.
        // The guest is suspended all the same, and whoever looks at its frontend next is to know.
        (S::Expecting | S::WaitingForFrontend | S::Closed, E::SuspendRequested) => {
            (state, &[A::Freeze])
        }
        (S::Quiescing, E::Idle) => (S::Frozen, &[A::Freeze]),
        (S::Quiescing, E::SuspendForgotten) => (S::Serving, &[A::StopQuiescing]),
        (S::Frozen, E::Request) => (S::Quiescing, &[A::Thaw]),
        (S::Frozen, E::SuspendForgotten) => (S::Serving, &[A::Thaw, A::StopQuiescing]),

        (S::Claiming | S::Serving | S::Quiescing, E::FrontendClosed) => {
            (S::Closed, &[A::UnmapRings])
        }
        // A guest that does something runs: the suspend was cancelled.
        (S::Frozen, E::FrontendClosed) => (S::Closed, &[A::UnmapRings, A::Thaw]),
        // A guest that shuts down in order closes its frontend first. One that was suspended since then
        // was saved, which its exporters have heard.
        (S::Closed, E::DomainGone) => (S::Released, &[A::Orphan, A::Close]),
        // Asked to suspend, silent since then, and gone: it was saved, and perhaps we were not quick enough
        // to say so. Said again, whoever did not hear it hears it with the rest.
        (S::Quiescing | S::Frozen, E::DomainGone) => (
            S::Released,
            &[A::UnmapRings, A::Freeze, A::Orphan, A::Close],
        ),
        (S::Claiming | S::Serving, E::DomainGone) => {
            (S::Released, &[A::UnmapRings, A::Orphan, A::Close])
        }
        (other, _) => (other, &[]),
    }
}

impl State {
    /// Every state.
    pub const ALL: [Self; 10] = [
        S::Expecting,
        S::WaitingForFrontend,
        S::Claiming,
        S::Serving,
        S::Quiescing,
        S::Frozen,
        S::Closed,
        S::Released,
        S::Abandoned,
        S::Refused,
    ];

    /// Whether nothing more can happen.
    pub fn is_final(self) -> bool {
        matches!(self, S::Released | S::Abandoned)
    }

    /// Whether the rings are mapped.
    pub fn has_rings(self) -> bool {
        matches!(self, S::Claiming | S::Serving | S::Quiescing | S::Frozen)
    }
}

impl Event {
    /// Every event.
    pub const ALL: [Self; 10] = [
        E::LeasesKnown,
        E::MoveForbidden,
        E::FrontendConnected,
        E::Claimed,
        E::SuspendRequested,
        E::Idle,
        E::Request,
        E::SuspendForgotten,
        E::FrontendClosed,
        E::DomainGone,
    ];
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests;

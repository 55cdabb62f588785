// SPDX-License-Identifier: GPL-3.0-or-later
//! What follows from what xenstore says. Decisions only: the daemon reads and acts, and so does the
//! world of `tests/model`, in which every order of events is tried.

use handoff::State;

use crate::xenbus::XenbusState;

/// The directory of a controller's backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendNode {
    /// Its `state`.
    pub state: XenbusState,
    /// Whether the toolstack has removed it, or is about to: it is gone, or `online` is 0.
    pub removed: bool,
}

/// What is to be done about a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// It was just made.
    Begin,
    /// An earlier vusbd has served it.
    Adopt,
    /// It goes away.
    End,
    /// The toolstack waits for Closed, and nobody else will say it.
    Close,
}

/// `known`: it is served here. `leaving`: it was, and its thread has not let go of everything yet.
pub fn due(node: BackendNode, known: bool, leaving: bool) -> Due {
    match (known, node.removed, node.state) {
        (true, true, _) => Due::End,
        (true, false, _) => Due::Nothing,
        (false, false, XenbusState::Initialising) => Due::Begin,
        // Its thread says so when it has let go of everything.
        (false, ..) if leaving => Due::Nothing,
        (false, false, XenbusState::Unknown) => Due::Nothing,
        (false, false, _) => Due::Adopt,
        // For example because it came and went while we were away.
        (false, true, XenbusState::Closing) => Due::Close,
        (false, true, _) => Due::Nothing,
    }
}

/// What a controller is told of its frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing new.
    Nothing,
    /// It has connected: its rings are to be read.
    Connected,
    /// It is Closing or Closed.
    Closed(XenbusState),
    /// It starts anew.
    Initialising,
}

/// The frontend's state was `before` when it was last looked at. `other_rings`: it has written its state,
/// and names other rings than those that we were told to use.
///
/// A frontend may connect again without closing: after a guest has slept by itself, Linux resumes every
/// frontend as if its domain had been migrated. Its state was Connected, and is again.
pub fn heard(before: XenbusState, now: XenbusState, other_rings: bool) -> Heard {
    use XenbusState as X;
    match now {
        X::Initialised | X::Connected if other_rings => Heard::Connected,
        _ if now == before => Heard::Nothing,
        // Initialised says that the rings are there; the change to Connected adds nothing to it.
        X::Connected if before == X::Initialised => Heard::Nothing,
        X::Initialised | X::Connected => Heard::Connected,
        X::Closing | X::Closed => Heard::Closed(now),
        X::Initialising => Heard::Initialising,
        _ => Heard::Nothing,
    }
}

/// Whether the guest was asked to suspend, by the values of `control/shutdown`: `before`, when it was
/// last looked at (`None` if never), and `now`.
///
/// The guest clears the node as soon as it has read it, often before we have. So when it is found
/// cleared and was not set before, it was a suspend: else a guest shuts down, and then nothing is lost
/// by thinking so. The first look follows from the watch, not from a change.
pub fn suspend_asked(before: Option<Option<&str>>, now: Option<&str>) -> bool {
    match (before, now) {
        (_, Some("suspend")) => true,
        (Some(before), Some("")) => before.is_none_or(str::is_empty),
        _ => false,
    }
}

/// Where the controller of an earlier vusbd is, by the state of its backend. The frontend's state says
/// the rest: one that is connected connects again.
pub fn adopted(backend: XenbusState) -> State {
    match backend {
        XenbusState::InitWait => State::WaitingForFrontend,
        _ => State::Closed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use XenbusState as X;

    fn node(state: XenbusState, removed: bool) -> BackendNode {
        BackendNode { state, removed }
    }

    #[test]
    fn a_controller_is_begun_once_and_ended_once() {
        assert_eq!(due(node(X::Initialising, false), false, false), Due::Begin);
        assert_eq!(due(node(X::Initialising, false), true, false), Due::Nothing);
        assert_eq!(due(node(X::Connected, true), true, false), Due::End);
        assert_eq!(due(node(X::Unknown, true), false, false), Due::Nothing);
        // Its number is used again before the thread of the first has ended.
        assert_eq!(due(node(X::Initialising, false), false, true), Due::Begin);
    }

    #[test]
    fn what_an_earlier_process_served_is_adopted_unless_it_is_our_own_that_ends() {
        for state in [X::InitWait, X::Connected, X::Closing, X::Closed] {
            assert_eq!(due(node(state, false), false, false), Due::Adopt);
            assert_eq!(due(node(state, false), false, true), Due::Nothing);
        }
        assert_eq!(due(node(X::Unknown, false), false, false), Due::Nothing);
    }

    #[test]
    fn the_toolstack_gets_the_closed_that_it_waits_for() {
        assert_eq!(due(node(X::Closing, true), false, false), Due::Close);
        assert_eq!(due(node(X::Closing, true), false, true), Due::Nothing);
    }

    #[test]
    fn a_frontend_is_heard_when_it_changes() {
        let heard = |before, now| heard(before, now, false);
        assert_eq!(heard(X::Unknown, X::Connected), Heard::Connected);
        assert_eq!(heard(X::Initialising, X::Initialised), Heard::Connected);
        assert_eq!(heard(X::Initialised, X::Connected), Heard::Nothing);
        assert_eq!(heard(X::Connected, X::Connected), Heard::Nothing);
        assert_eq!(heard(X::Connected, X::Closing), Heard::Closed(X::Closing));
        assert_eq!(heard(X::Closing, X::Initialising), Heard::Initialising);
        assert_eq!(heard(X::Connected, X::Unknown), Heard::Nothing);
    }

    #[test]
    fn a_frontend_that_names_other_rings_has_connected_again() {
        for before in [X::Unknown, X::Initialised, X::Connected] {
            assert_eq!(heard(before, X::Connected, true), Heard::Connected);
        }
        assert_eq!(heard(X::Connected, X::Initialised, true), Heard::Connected);
        // What a closed frontend's nodes say counts when it connects.
        assert_eq!(
            heard(X::Connected, X::Closed, true),
            Heard::Closed(X::Closed)
        );
        assert_eq!(heard(X::Closed, X::Closed, true), Heard::Nothing);
        assert_eq!(heard(X::Closed, X::Initialising, true), Heard::Initialising);
    }

    #[test]
    fn a_suspend_that_was_taken_already_is_one() {
        assert!(suspend_asked(None, Some("suspend")));
        assert!(suspend_asked(Some(None), Some("")));
        assert!(suspend_asked(Some(Some("")), Some("")));
        assert!(!suspend_asked(None, Some("")), "the watch's own event");
        assert!(!suspend_asked(Some(Some("suspend")), Some("")));
        assert!(!suspend_asked(Some(Some("")), Some("poweroff")));
        assert!(!suspend_asked(Some(Some("")), None));
    }
}

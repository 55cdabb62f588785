// SPDX-License-Identifier: GPL-3.0-or-later
use std::collections::BTreeSet;

use super::*;

fn table() -> String {
    let mut lines = String::new();
    for state in State::ALL {
        for event in Event::ALL {
            let (next, actions) = step(state, event);
            if next != state || !actions.is_empty() {
                lines += &format!("{state} + {event:?} -> {next} {actions:?}\n");
            }
        }
    }
    lines
}

/// The whole machine, frozen: whoever changes it changes this file too, and sees every effect.
#[test]
fn the_table_is_as_written_down() {
    assert_eq!(table(), include_str!("table.txt"));
}

/// Rings are mapped on the way into the states that have them and unmapped on the way out.
#[test]
fn rings_are_mapped_exactly_in_the_states_that_have_them() {
    for state in State::ALL {
        for event in Event::ALL {
            let (next, actions) = step(state, event);
            let maps = actions.contains(&Action::MapRings);
            let unmaps = actions.contains(&Action::UnmapRings);
            assert_eq!(
                maps,
                !state.has_rings() && next.has_rings(),
                "{state} {event:?}"
            );
            assert_eq!(
                unmaps,
                state.has_rings() && !next.has_rings(),
                "{state} {event:?}"
            );
        }
    }
}

/// Leases are claimed only when the guest runs here, and orphaned only by who may have them.
#[test]
fn a_target_that_never_ran_touches_no_lease() {
    for event in Event::ALL {
        for state in [
            State::Expecting,
            State::Refused,
            State::Abandoned,
            State::Released,
        ] {
            let (_, actions) = step(state, event);
            assert!(!actions.contains(&Action::Claim), "{state} {event:?}");
            assert!(!actions.contains(&Action::Orphan), "{state} {event:?}");
        }
        let (_, actions) = step(State::WaitingForFrontend, event);
        assert!(
            !actions.contains(&Action::Orphan),
            "WaitingForFrontend {event:?}"
        );
        assert_eq!(
            actions.contains(&Action::Claim),
            event == Event::FrontendConnected
        );
    }
}

#[test]
fn every_state_comes_to_an_end_when_the_domain_goes() {
    for state in State::ALL {
        assert!(step(state, Event::DomainGone).0.is_final(), "{state}");
    }
}

#[test]
fn every_state_can_be_reached() {
    let mut seen = BTreeSet::from(["Expecting".to_owned()]);
    let mut todo = vec![State::Expecting];
    while let Some(state) = todo.pop() {
        for event in Event::ALL {
            let (next, _) = step(state, event);
            if seen.insert(next.to_string()) {
                todo.push(next);
            }
        }
    }
    assert_eq!(seen.len(), State::ALL.len());
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! Each toolstack's steps as tables: what the nodes say, and which VM the domain is then.

use super::*;
use Arrival::*;

const VM: &str = "6f7d3c1e-8b0a-4f0e-9d6e-2a1b3c4d5e6f";
const OTHER: &str = "11111111-2222-4333-8444-555555555555";
const TARGET: &str = "6f7d3c1e-8b0a-4f0e-9d6e-000000000001";
const SOURCE: &str = "6f7d3c1e-8b0a-4f0e-9d6e-000000000000";

fn vm(text: &str) -> VmUuid {
    text.parse().unwrap()
}

fn nodes(uuid: &str) -> Nodes {
    Nodes {
        uuid: vm(uuid),
        name: "web".into(),
        final_uuid: None,
        origin_uuid: None,
        by_libxl: false,
    }
}

fn named(uuid: &str, name: &str) -> Nodes {
    Nodes {
        name: name.into(),
        by_libxl: true,
        ..nodes(uuid)
    }
}

fn arriving(uuid: &str, final_uuid: &str) -> Nodes {
    Nodes {
        final_uuid: Some(final_uuid.into()),
        ..nodes(uuid)
    }
}

fn renamed(uuid: &str, origin_uuid: &str) -> Nodes {
    Nodes {
        origin_uuid: Some(origin_uuid.into()),
        ..nodes(uuid)
    }
}

/// Reads the nodes of one domain step by step: which VM it is, whether it arrives by what is known, whether
/// the toolstack still says so, and whether it has left.
fn follow(steps: &[(Nodes, Option<&str>, Arrival, bool, bool)]) {
    let mut known = None;
    for (step, (nodes, expected, arrival, incoming, leaves)) in steps.iter().enumerate() {
        let seen = identify(known, nodes);
        let found = seen.identity.map(|i| (i.vm, i.arrival));
        let expected = expected.map(|uuid| (vm(uuid), *arrival));
        assert_eq!(found, expected, "step {step}: {nodes:?}");
        assert_eq!(seen.incoming, *incoming, "step {step}: {nodes:?}");
        assert_eq!(seen.leaves, *leaves, "step {step}: {nodes:?}");
        assert_eq!(seen.nonsense, [], "step {step}: {nodes:?}");
        known = seen.identity.or(known);
    }
}

#[test]
fn the_target_of_xl() {
    follow(&[
        (named(VM, "web--incoming"), Some(VM), Arrives, true, false),
        // Renamed before it is unpaused.
        (named(VM, "web"), Some(VM), Arrives, false, false),
    ]);
}

#[test]
fn the_source_of_xl() {
    follow(&[
        (named(VM, "web"), Some(VM), NoSign, false, false),
        (
            named(VM, "web--migratedaway"),
            Some(VM),
            NoSign,
            false,
            true,
        ),
    ]);
}

#[test]
fn the_target_of_xenopsd() {
    follow(&[
        (arriving(TARGET, VM), Some(VM), Arrives, true, false),
        // final-uuid is removed first, then /local/domain/N/vm is changed.
        (nodes(TARGET), Some(VM), Arrives, false, false),
        (nodes(VM), Some(VM), Arrives, false, false),
    ]);
}

#[test]
fn the_source_of_xenopsd() {
    follow(&[
        (nodes(VM), Some(VM), NoSign, false, false),
        (renamed(SOURCE, VM), Some(VM), NoSign, false, true),
        // Whatever becomes of the node, the domain stays that VM's.
        (nodes(SOURCE), Some(VM), NoSign, false, false),
    ]);
}

#[test]
fn both_ends_of_libvirt_show_nothing() {
    follow(&[(named(VM, "web"), Some(VM), NoSign, false, false)]);
}

/// A `vusbd` that starts in the middle, and whose predecessor left nothing.
#[test]
fn one_that_sees_the_middle_first() {
    follow(&[
        (nodes(TARGET), None, NoSign, false, false),
        (nodes(VM), Some(VM), NoSign, false, false),
    ]);
    follow(&[(renamed(SOURCE, VM), Some(VM), NoSign, false, true)]);
    follow(&[(nodes(SOURCE), None, NoSign, false, false)]);
    follow(&[(nodes(TARGET), None, NoSign, false, false)]);
}

#[test]
fn a_vm_that_runs_does_not_arrive_again() {
    let known = Identity {
        vm: vm(VM),
        arrival: Runs,
    };
    for nodes in [named(VM, "web--incoming"), arriving(TARGET, VM)] {
        let seen = identify(Some(known), &nodes);
        assert_eq!(seen.identity, Some(known));
        assert!(!seen.incoming);
    }
}

#[test]
fn a_number_that_another_domain_has_now() {
    let known = Identity {
        vm: vm(OTHER),
        arrival: Runs,
    };
    let is = |nodes: Nodes| {
        identify(Some(known), &nodes)
            .identity
            .map(|i| (i.vm, i.arrival))
    };
    assert_eq!(is(nodes(VM)), Some((vm(VM), NoSign)));
    assert_eq!(is(arriving(TARGET, VM)), Some((vm(VM), Arrives)));
    // A temporary uuid of a VM that is not the one that was known.
    assert_eq!(is(nodes(TARGET)), None);
    assert_eq!(is(nodes(SOURCE)), None);
}

#[test]
fn nonsense_is_ignored_and_said() {
    let dom0 = "00000000-0000-0000-0000-000000000000";
    let own_prefix = "6f7d3c1e-8b0a-4f0e-9d6e-ffffffffffff";
    for (nodes, expected) in [
        (arriving(TARGET, "web"), None),
        (arriving(TARGET, ""), None),
        (arriving(TARGET, dom0), None),
        (arriving(TARGET, TARGET), None),
        // The uuid of another VM, which may be running.
        (arriving(TARGET, OTHER), None),
        (arriving(SOURCE, VM), None),
        (arriving(VM, OTHER), Some(VM)),
        (arriving(VM, own_prefix), Some(VM)),
        (arriving(VM, VM), Some(VM)),
        (arriving("00000000-0000-0000-0000-000000000001", dom0), None),
        (renamed(SOURCE, OTHER), None),
        (renamed(TARGET, VM), None),
        (renamed(VM, OTHER), Some(VM)),
        (renamed(SOURCE, "\u{0}\u{0}"), None),
    ] {
        let seen = identify(None, &nodes);
        assert_eq!(seen.identity.map(|i| i.vm), expected.map(vm), "{nodes:?}");
        assert_eq!(seen.nonsense.len(), 1, "{nodes:?}");
        assert!(!seen.incoming && !seen.leaves, "{nodes:?}");
        // What was known is not changed by it either.
        let known = Identity::of(vm(VM));
        let seen = identify(Some(known), &nodes);
        if expected.is_some() {
            assert_eq!(seen.identity, Some(known), "{nodes:?}");
        }
    }
}

/// Two rules of one VM, or dom0's own.
#[test]
fn dom0_is_no_vm() {
    let dom0 = nodes("00000000-0000-0000-0000-000000000000");
    assert_eq!(identify(None, &dom0).identity, None);
    let by_libxl = Nodes {
        by_libxl: true,
        ..dom0
    };
    assert_eq!(identify(None, &by_libxl).identity, None);
}

/// An administrator of `xl` may number the VMs.
#[test]
fn a_uuid_of_libxl_is_never_temporary() {
    let first = "00000000-0000-0000-0000-000000000001";
    let seen = identify(None, &named(first, "first"));
    assert_eq!(seen.identity, Some(Identity::of(vm(first))));
    assert_eq!(identify(None, &nodes(first)).identity, None);
}

#[test]
fn names_without_what_a_migration_adds() {
    for name in ["web", "web--incoming", "web--migratedaway"] {
        assert_eq!(plain_name(name), "web");
    }
}

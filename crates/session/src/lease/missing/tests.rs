// SPDX-License-Identifier: GPL-3.0-or-later
use super::super::tests::{allow, any, claimant, device, devices, id, vm, wanted};
use super::super::{Change, HoldTimes, Policy, Saved, TAKEOVER_MS};
use super::*;
use crate::control::Acquire;
use crate::lease::Claimant;
use crate::open::Evidence;
use crate::{DeviceState, Epoch, Exchange, LeasePhase, OnExchange};

const HOLD: HoldTimes = HoldTimes {
    gone_ms: 60_000,
    saved_ms: Some(600_000),
    startup_ms: 30_000,
    disconnected_ms: None,
    takeover_ms: TAKEOVER_MS,
};

/// VM 1 holds device 1 on host a, in domain 5; what the exporter saved.
fn saved(changes: &[Change]) -> Saved {
    let mut table = LeaseTable::new(any(), HOLD);
    let lease = table
        .acquire(&wanted("1-1", vm(1), 1), "a", &devices())
        .unwrap();
    let epoch = table
        .claim(&id(1), &claimant("a", 5), true, lease.epoch)
        .unwrap();
    for &change in changes {
        table.apply(&id(1), epoch, change, 0);
    }
    table.saved()
}

/// After a start at 1 s at which device 1 was not there.
fn started(saved: Saved) -> LeaseTable {
    let mut table = LeaseTable::restore(any(), HOLD, saved, 1_000);
    assert!(matches!(
        table.missing(&id(1), 1_000),
        Some(Unplugged::Waits(_))
    ));
    table
}

fn not_ready(result: Result<Epoch, Refusal>) -> bool {
    matches!(result, Err(Refusal::NotReady { .. }))
}

#[test]
fn a_device_that_comes_late_is_its_holders_again() {
    let before = saved(&[]);
    let mut table = started(before.clone());
    let seen = before.leases[0].epoch;
    assert!(not_ready(table.claim(
        &id(1),
        &claimant("a", 5),
        true,
        seen
    )));
    let refused = table.check_missing(&id(1), vm(1), "a", 11_000).unwrap_err();
    assert!(
        matches!(refused, Refusal::NotReady { seconds: 20, .. }),
        "{refused}"
    );
    // It is listed, and saved, as before; its port is taken.
    assert_eq!(table.leases().count(), 1);
    assert_eq!(table.saved().leases.len(), 1);
    assert_eq!(table.get(&id(1)), None);
    let refused = table.acquire(&wanted("1-2", vm(1), 1), "a", &devices());
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("has device 1-1 already")
    );

    let lease = table.plugged(&device(1), 20_000).unwrap();
    assert_eq!(lease.phase, LeasePhase::Disconnected);
    // With the epoch of before the restart, which only the holder may use.
    assert!(table.claim(&id(1), &claimant("b", 5), true, seen).is_err());
    assert!(table.claim(&id(1), &claimant("a", 5), true, seen).is_ok());
    assert_eq!(table.next_deadline_ms(), None);
    assert_eq!(table.leases().count(), 1);
}

#[test]
fn it_waits_so_long_and_no_longer() {
    let mut table = started(saved(&[]));
    assert_eq!(table.next_deadline_ms(), Some(31_000));
    assert!(table.expire(30_999).is_empty());
    let changes = table.changes();
    let expired = table.expire(31_000);
    assert_eq!(expired.len(), 1);
    assert_eq!(expired[0].phase, LeasePhase::Disconnected);
    assert!(table.changes() > changes);
    assert_eq!(table.leases().count(), 0);
    assert_eq!(table.plugged(&device(1), 31_001), None);
    let claimed = table.claim(&id(1), &claimant("a", 5), true, Epoch(1));
    assert!(matches!(claimed, Err(Refusal::NoLease { .. })));
}

#[test]
fn a_vm_that_is_gone_is_waited_for_as_long_as_it_was() {
    for (changes, phase, until) in [
        (
            &[Change::Freeze, Change::Orphan][..],
            LeasePhase::Saved,
            601_000,
        ),
        (&[Change::Orphan], LeasePhase::Orphaned, 61_000),
    ] {
        let mut table = started(saved(changes));
        assert_eq!(table.leases().next().unwrap().phase, phase);
        assert_eq!(table.next_deadline_ms(), Some(until));
        assert!(table.expire(until - 1).is_empty());
        // Another start without the device takes nothing from it.
        let again = started(table.saved());
        assert_eq!(again.next_deadline_ms(), Some(until));
        // Nobody knows for how long, so nobody is asked to wait for all that time.
        let refused = table.check_missing(&id(1), vm(1), "a", 2_000).unwrap_err();
        assert!(
            matches!(refused, Refusal::NotReady { seconds: 0, .. }),
            "{refused}"
        );
        let lease = table.plugged(&device(1), 2_000).unwrap();
        assert_eq!(lease.phase, phase);
        assert_eq!(table.next_deadline_ms(), Some(until));
        let seen = table.get(&id(1)).unwrap().epoch;
        assert!(table.claim(&id(1), &claimant("b", 9), true, seen).is_ok());
    }
}

#[test]
fn another_device_at_the_place_does_not_end_it() {
    let mut table = LeaseTable::restore(any(), HOLD, saved(&[]), 0);
    let modem = DeviceInfo {
        product: 0x1446,
        ..device(1)
    };
    assert_eq!(table.plugged(&modem, 0), None);
    // Not for the same VM: a claim names only the device and the VM.
    let own = table.acquire(&wanted("1-1", vm(1), 2), "a", std::slice::from_ref(&modem));
    assert!(own.unwrap_err().to_string().contains("detach that first"));
    // Its own mode is switched, or somebody else has it meanwhile: both leases are kept.
    let theirs = table.acquire(&wanted("1-1", vm(2), 1), "a", std::slice::from_ref(&modem));
    let theirs = theirs.unwrap();
    assert!(not_ready(table.claim(
        &id(1),
        &claimant("a", 5),
        true,
        Epoch(1)
    )));
    assert_eq!(table.check(&id(1), vm(2), "a"), Ok(()));
    for first in [&modem, &device(1)] {
        let mut again = LeaseTable::restore(any(), HOLD, table.saved(), 0);
        assert_eq!(again.leases().count(), 2);
        let vm_of = |l: Option<&Lease>| l.map(|l| l.vm);
        let expected = if first.product == 0x1446 { 2 } else { 1 };
        assert_eq!(vm_of(again.plugged(first, 0)), Some(vm(expected)));
    }
    table.unplugged(&id(1), 0);
    assert_eq!(table.leases().count(), 1);
    assert_eq!(table.plugged(&device(1), 0).map(|l| l.vm), Some(vm(1)));
    assert!(theirs.epoch > Epoch(1));
}

#[test]
fn it_can_be_given_back() {
    let policy = Policy {
        allow: vec![allow("*", "*", "a")],
    };
    let mut table = LeaseTable::restore(policy, HOLD, saved(&[]), 0);
    table.missing(&id(1), 0);
    let epoch = table.leases().next().unwrap().epoch;
    let old = Epoch(epoch.0 - 1);
    let refused = table.release(&id(1), vm(1), "a", old, false);
    assert!(matches!(refused, Err(Refusal::Fenced { .. })));
    let refused = table.release(&id(1), vm(1), "b", epoch, false);
    assert!(matches!(refused, Err(Refusal::Policy { .. })));
    assert!(table.release(&id(1), vm(2), "a", epoch, false).is_err());
    assert!(table.release(&id(1), vm(1), "a", epoch, false).is_ok());
    assert_eq!(table.leases().count(), 0);
}

/// Its holder cannot connect meanwhile, which is no silence.
#[test]
fn whose_device_was_missing_is_not_silent() {
    let mut table = started(saved(&[]));
    let now = 1_000_000;
    let epoch = table.plugged(&device(1), now).unwrap().epoch;
    let copy = Claimant {
        evidence: Evidence::Uuid,
        now_ms: now,
        ..claimant("b", 9)
    };
    let refused = table.claim(&id(1), &copy, true, epoch);
    assert!(
        matches!(refused, Err(Refusal::HeldElsewhere { .. })),
        "{refused:?}"
    );
    let holder = claimant("a", 5);
    assert!(table.claim(&id(1), &holder, true, epoch).is_ok());
}

/// Another host does not give back what it does not hold.
#[test]
fn one_whose_holder_may_run_is_released_by_force_only() {
    let mut table = started(saved(&[]));
    let epoch = table.leases().next().unwrap().epoch;
    let refused = table.release(&id(1), vm(1), "b", epoch, false);
    assert!(
        matches!(refused, Err(Refusal::HeldElsewhere { .. })),
        "{refused:?}"
    );
    assert!(table.release(&id(1), vm(1), "b", epoch, true).is_ok());
}

#[test]
fn one_that_follows_its_device_waits_for_it_anywhere() {
    let exchange = Some(Exchange {
        on: OnExchange::Replug,
        seconds: 10,
        at_place: false,
    });
    let wanted = Acquire {
        exchange,
        ..wanted("1-1", vm(1), 1)
    };
    let mut table = LeaseTable::new(any(), HOLD);
    table.acquire(&wanted, "a", &devices()).unwrap();
    let mut table = LeaseTable::restore(any(), HOLD, table.saved(), 1_000);
    table.missing(&id(1), 1_000);
    assert!(table.is_absent(&id(1), vm(1)));
    // As long as a device may take after a start, which is longer than it was asked for.
    assert_eq!(table.next_deadline_ms(), Some(31_000));
    let table = LeaseTable::restore(any(), HOLD, table.saved(), 2_000);
    assert_eq!(table.next_deadline_ms(), Some(32_000));
}

/// The guest's disk is mounted: that its device came late after a power cut must not have it replugged.
#[test]
fn a_saved_vm_goes_on_with_a_device_that_comes_late_and_follows_one_that_does_not() {
    let exchange = Some(Exchange {
        on: OnExchange::Replug,
        seconds: 10,
        at_place: true,
    });
    let mut saved = saved(&[Change::Freeze, Change::Orphan]);
    saved.leases[0].exchange = exchange;
    assert_eq!(saved.clone().after_reboot(), saved);
    let mut table = started(saved.clone());
    assert_eq!(table.next_deadline_ms(), Some(31_000));
    let lease = table.plugged(&device(1), 30_000).unwrap();
    assert_eq!(lease.phase, LeasePhase::Saved);
    assert_eq!(table.next_deadline_ms(), Some(601_000));

    let mut table = started(saved);
    assert!(table.expire(31_000).is_empty());
    assert!(table.is_absent(&id(1), vm(1)));
    assert_eq!(table.next_deadline_ms(), Some(601_000));
    assert_eq!(table.saved().absent[0].phase, LeasePhase::Saved);
    assert_eq!(table.expire(601_000).len(), 1);
}

#[test]
fn a_state_is_no_part_of_what_a_device_is() {
    let leased = DeviceInfo {
        state: DeviceState::Unavailable {
            reason: String::new(),
        },
        ..device(1)
    };
    assert!(leased.is_same(&device(1)));
    assert!(!device(2).is_same(&device(1)));
}

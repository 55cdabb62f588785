// SPDX-License-Identifier: GPL-3.0-or-later
use super::super::tests::{any, claimant, device, devices, id, vm, wanted};
use super::super::{Change, HoldTimes, Saved, TAKEOVER_MS};
use super::*;
use crate::control::Acquire;
use crate::{Epoch, Exchange, OnExchange, Persistence};

const YEAR_MS: u64 = 365 * 24 * 60 * 60 * 1000;

fn hold() -> HoldTimes {
    HoldTimes {
        disconnected_ms: Some(60_000),
        ..1_000.into()
    }
}

fn persistent(place: &str, at_place: bool) -> Acquire {
    Acquire {
        exchange: Some(Exchange {
            on: OnExchange::Replug,
            seconds: 30,
            at_place,
        }),
        persistence: Persistence::Persistent,
        ..wanted(place, vm(1), 1)
    }
}

fn by(host: &str, domid: u16, evidence: Evidence, now_ms: u64) -> Claimant<'_> {
    Claimant {
        evidence,
        now_ms,
        ..claimant(host, domid)
    }
}

/// VM 1 runs in domain 5 of host a, with device 1.
fn serving() -> (LeaseTable, Epoch) {
    let mut table = LeaseTable::new(any(), hold());
    let lease = table.acquire(&persistent("1-1", false), "a", &devices());
    let epoch = table.claim(&id(1), &claimant("a", 5), true, lease.unwrap().epoch);
    (table, epoch.unwrap())
}

fn restart(table: &LeaseTable, reboot: bool, now_ms: u64) -> LeaseTable {
    let saved: Saved = table.saved();
    let saved = match reboot {
        true => saved.after_reboot(),
        false => saved,
    };
    LeaseTable::restore(any(), hold(), saved, now_ms)
}

fn phase(table: &LeaseTable) -> LeasePhase {
    let mut leases = table.leases();
    let lease = leases.next().expect("the lease has ended");
    assert!(leases.next().is_none());
    lease.phase
}

fn claims(table: &mut LeaseTable, by: &Claimant<'_>) -> Result<Epoch, Refusal> {
    let seen = table.get(&id(1)).unwrap().epoch;
    table.claim(&id(1), by, true, seen)
}

/// The whole table: how the VM or its host went, and what became of the exporter meanwhile. The lease is
/// there a year later, and who starts the VM has it.
#[test]
fn a_persistent_lease_stays_whatever_goes() {
    let went: [&[Change]; 4] = [
        &[Change::Orphan],
        &[Change::Freeze, Change::Orphan],
        &[Change::Disconnect],
        &[],
    ];
    for went in went {
        for restarted in [None, Some(false), Some(true)] {
            let what = format!("{went:?} {restarted:?}");
            let (mut table, epoch) = serving();
            for change in went {
                table.apply(&id(1), epoch, *change, 1_000);
            }
            assert!(table.expire(YEAR_MS).is_empty(), "{what}");
            if let Some(reboot) = restarted {
                table = restart(&table, reboot, 0);
                table.plugged(&device(1), 10);
                table.take_unfetched(10 + TAKEOVER_MS);
            } else if went.is_empty() {
                table.apply(&id(1), epoch, Change::Disconnect, 0);
            }
            assert!(table.expire(YEAR_MS).is_empty(), "{what}");
            let other = table.acquire(&wanted("1-1", vm(2), 1), "a", &devices());
            assert!(matches!(other, Err(Refusal::Busy { .. })), "{what}");
            let starts = by("b", 9, Evidence::Uuid, YEAR_MS);
            assert!(claims(&mut table, &starts).is_ok(), "{what}");
        }
    }
}

/// The same lease without the word, for comparison.
#[test]
fn a_temporary_lease_ends() {
    let mut table = LeaseTable::new(any(), hold());
    let lease = table.acquire(&wanted("1-1", vm(1), 1), "a", &devices());
    let epoch = table.claim(&id(1), &claimant("a", 5), true, lease.unwrap().epoch);
    table.apply(&id(1), epoch.unwrap(), Change::Orphan, 1_000);
    assert_eq!(table.expire(2_000).len(), 1);
}

#[test]
fn of_two_that_start_at_once_one_has_the_device() {
    let (mut table, epoch) = serving();
    table.apply(&id(1), epoch, Change::Orphan, 0);
    let seen = table.get(&id(1)).unwrap().epoch;
    let first = table.claim(&id(1), &by("b", 1, Evidence::FirstConnect, 0), true, seen);
    assert!(first.is_ok());
    let late = by("c", 1, Evidence::FirstConnect, 0);
    let second = table.claim(&id(1), &late, true, seen);
    assert!(matches!(second, Err(Refusal::Fenced { .. })), "{second:?}");
    let again = claims(&mut table, &late);
    assert!(
        matches!(&again, Err(Refusal::HeldElsewhere { holder, .. }) if holder.host == "b"),
        "{again:?}"
    );
}

/// A copy beside the VM, which runs with another device: also a lease without a holder is not the copy's.
#[test]
fn a_copy_of_a_vm_that_runs_is_given_no_second_device() {
    let (mut table, _) = serving();
    let second = Acquire {
        port: 2,
        ..persistent("1-2", false)
    };
    let second = table.acquire(&second, "a", &devices()).unwrap();
    assert_eq!(table.domain_ended(vm(1), "a", 5, 0), [id(2)]);
    let seen = second.epoch;
    let copy = by("b", 9, Evidence::FirstConnect, 0);
    let refused = table.claim(&id(2), &copy, true, seen);
    assert!(
        matches!(&refused, Err(Refusal::HeldElsewhere { holder, device, .. })
            if holder.host == "a" && *device == id(2)),
        "{refused:?}"
    );
    // The VM itself, and the VM where it moves to.
    let mut moved = table.clone();
    let arrives = by("b", 9, Evidence::Arrival, 0);
    assert!(moved.claim(&id(2), &arrives, true, seen).is_ok());
    let itself = by("a", 5, Evidence::Uuid, 0);
    assert!(table.claim(&id(2), &itself, true, seen).is_ok());
}

#[test]
fn it_waits_for_a_device_that_is_pulled_out_without_a_limit() {
    let (mut table, epoch) = serving();
    assert!(table.unplugged(&id(1), 0).is_some());
    assert!(table.expire(YEAR_MS).is_empty());
    assert_eq!(phase(&table), LeasePhase::Absent);
    // Nobody else is given what comes back, and its guest fetches it.
    table.plugged(&device(1), YEAR_MS);
    let here = devices();
    let seen = table.visible_devices(&here, "b");
    assert!(!matches!(seen[0].state, crate::DeviceState::Free));
    let other = table.acquire(&wanted("1-1", vm(2), 1), "b", &here);
    assert!(matches!(other, Err(Refusal::Busy { .. })), "{other:?}");
    let fetch = Acquire {
        returns: Some(Default::default()),
        ..persistent("0951:1666:S1", false)
    };
    let lease = table.acquire(&fetch, "a", &here).unwrap();
    assert!(lease.epoch > epoch && lease.persistence == Persistence::Persistent);
    assert!(table.take_unfetched(2 * YEAR_MS).is_empty());
}

/// Plugged in while the VM is off, at the same place or another: the VM has it as soon as it starts.
#[test]
fn a_device_that_comes_while_the_vm_is_off_is_the_vms_again() {
    for (place, serial, at_place, back) in [
        (1, Some("S1"), false, true),
        (7, Some("S1"), false, true),
        (1, Some("S2"), false, false),
        // A place: whatever is there.
        (1, Some("S2"), true, true),
        (7, Some("S1"), true, false),
        (1, None, false, false),
    ] {
        let mut table = LeaseTable::new(any(), hold());
        let lease = table.acquire(&persistent("1-1", at_place), "a", &devices());
        let epoch = table.claim(&id(1), &claimant("a", 5), true, lease.unwrap().epoch);
        let epoch = epoch.unwrap();
        table.save_cookie(&id(1), epoch, &[1, 2, 3]);
        table.apply(&id(1), epoch, Change::Freeze, 0);
        table.apply(&id(1), epoch, Change::Orphan, 0);
        table.unplugged(&id(1), 0);
        let comes = DeviceInfo {
            id: id(place),
            serial: serial.map(str::to_owned),
            ..device(1)
        };
        let lease = table.plugged(&comes, 1_000).cloned();
        assert_eq!(lease.is_some(), back, "{place} {serial:?} {at_place}");
        let Some(lease) = lease else {
            assert_eq!(phase(&table), LeasePhase::Absent);
            continue;
        };
        // A saved guest must not go on with what it remembers of it.
        assert_eq!(lease.phase, LeasePhase::Orphaned);
        assert!(lease.cookie.is_empty() && lease.epoch > epoch);
        let starts = by("b", 1, Evidence::Uuid, 1_000);
        assert!(table.claim(&comes.id, &starts, true, lease.epoch).is_ok());
    }
}

/// Nobody has said that the VM is off: its host lost power while the device was pulled out. A `vusbd` that
/// served the guest would have fetched the device by now.
#[test]
fn what_nobody_fetches_belongs_to_a_vm_that_is_off() {
    let (mut table, _) = serving();
    table.unplugged(&id(1), 0);
    assert_eq!(table.plugged(&device(1), 1_000), None);
    assert_eq!(table.next_deadline_ms(), Some(1_000 + TAKEOVER_MS));
    assert!(table.take_unfetched(1_000 + TAKEOVER_MS - 1).is_empty());
    // Pulled out again: not counted.
    assert_eq!(table.unplugged(&id(1), 2_000), None);
    assert!(table.take_unfetched(YEAR_MS).is_empty());
    table.plugged(&device(1), YEAR_MS);
    let taken = table.take_unfetched(YEAR_MS + TAKEOVER_MS);
    assert_eq!(taken, [id(1)]);
    assert_eq!(phase(&table), LeasePhase::Orphaned);
}

#[test]
fn the_end_of_the_domain_is_heard_where_no_device_connection_says_it() {
    let (mut table, _) = serving();
    // Connected: it says itself whether the guest was saved.
    assert!(table.domain_ended(vm(1), "a", 5, 0).is_empty());
    table.unplugged(&id(1), 0);
    table.plugged(&device(1), 0);
    for (whose, host, domid) in [(vm(2), "a", 5), (vm(1), "b", 5), (vm(1), "a", 6)] {
        assert!(table.domain_ended(whose, host, domid, 0).is_empty());
        assert_eq!(phase(&table), LeasePhase::Absent);
    }
    assert_eq!(table.domain_ended(vm(1), "a", 5, 0), [id(1)]);
    assert_eq!(phase(&table), LeasePhase::Orphaned);
    // Attached to a domain whose frontend never connected.
    let mut table = LeaseTable::new(any(), hold());
    let lease = table.acquire(&persistent("1-1", false), "a", &devices());
    assert_eq!(lease.unwrap().phase, LeasePhase::Disconnected);
    assert_eq!(table.domain_ended(vm(1), "a", 5, 0), [id(1)]);
    let starts = by("b", 1, Evidence::Uuid, 0);
    assert!(claims(&mut table, &starts).is_ok());
}

#[test]
fn it_is_released_from_any_host_while_the_vm_is_off() {
    let (mut table, epoch) = serving();
    assert!(table.release(&id(1), vm(1), "b", epoch, true).is_err());
    table.apply(&id(1), epoch, Change::Orphan, 0);
    let mut away = table.clone();
    away.unplugged(&id(1), 0);
    for mut table in [table, away] {
        let released = table.release(&id(1), vm(1), "b", epoch, false);
        assert!(released.is_ok(), "{released:?}");
        assert_eq!(table.leases().count(), 0);
    }
}

#[test]
fn an_attachment_that_does_not_wait_for_its_device_is_not_persistent() {
    let mut table = LeaseTable::new(any(), hold());
    let none = Acquire {
        exchange: None,
        ..persistent("1-1", false)
    };
    let text = table
        .acquire(&none, "a", &devices())
        .unwrap_err()
        .to_string();
    assert!(text.contains("--on-exchange replug"), "{text}");
}

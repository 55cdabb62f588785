// SPDX-License-Identifier: GPL-3.0-or-later
use proptest::prelude::*;

use super::*;
use crate::control::Acquire;
use crate::frame::MAX_COOKIE_LEN;
use crate::open::Evidence;
use crate::{DeviceSelector, OnMigrate, Speed};

pub(super) fn vm(number: u8) -> VmUuid {
    VmUuid(uuid::Uuid::from_bytes([number; 16]))
}

pub(super) fn device(number: u8) -> DeviceInfo {
    DeviceInfo {
        id: id(number),
        vendor: 0x0951,
        product: 0x1666,
        serial: Some(format!("S{number}")),
        name: "stick".to_owned(),
        speed: Speed::High,
        classes: vec![8],
        state: DeviceState::Free,
    }
}

pub(super) fn id(number: u8) -> DeviceId {
    DeviceId(format!("1-{number}"))
}

pub(super) fn devices() -> Vec<DeviceInfo> {
    (1..=3).map(device).collect()
}

pub(super) fn any() -> Policy {
    Policy {
        allow: vec![allow("*", "*", "*")],
    }
}

pub(super) fn allow(device: &str, vm: &str, host: &str) -> Allow {
    Allow {
        device: device.parse().unwrap(),
        vm: vm.parse().unwrap(),
        host: host.parse().unwrap(),
    }
}

pub(super) fn wanted(device: &str, vm: VmUuid, port: u8) -> Acquire {
    Acquire {
        device: device.parse().unwrap(),
        vm,
        vm_name: "guest".to_owned(),
        domid: 5,
        controller: 0,
        port,
        on_migrate: None,
        exchange: None,
        own_controller: None,
        persistence: Default::default(),
        returns: None,
    }
}

pub(super) fn claimant(host: &str, domid: u16) -> Claimant<'_> {
    Claimant {
        host,
        domid,
        attempt: Attempt::default(),
        vm: vm(1),
        evidence: Evidence::Arrival,
        now_ms: 0,
    }
}

/// A table in which VM 1 on host a holds device 1, unclaimed.
fn lent() -> (LeaseTable, Lease) {
    let mut table = LeaseTable::new(any(), 60_000);
    let lease = table
        .acquire(&wanted("1-1", vm(1), 1), "a", &devices())
        .unwrap();
    (table, lease)
}

#[test]
fn nothing_is_allowed_without_a_rule() {
    let mut table = LeaseTable::new(Policy::default(), 0);
    assert!(table.visible_devices(&devices(), "a").is_empty());
    let refused = table.acquire(&wanted("1-1", vm(1), 1), "a", &devices());
    assert!(matches!(refused, Err(Refusal::Policy { .. })));
}

#[test]
fn a_rule_allows_what_matches_all_of_it() {
    let vm1 = vm(1).to_string();
    for (rule, allowed) in [
        (allow("1-1", &vm1, "a"), true),
        (allow("0951:1666", &vm1, "a"), true),
        (allow("0951:1666:S1", "*", "*"), true),
        (allow("1-2", &vm1, "a"), false),
        (allow("0951:1666:S2", "*", "*"), false),
        (allow("*", &vm(2).to_string(), "*"), false),
        (allow("*", "*", "b"), false),
    ] {
        let policy = Policy {
            allow: vec![allow("1-9", "*", "*"), rule.clone()],
        };
        assert_eq!(
            policy.allows(&device(1), vm(1), "guest", "a"),
            allowed,
            "{rule:?}"
        );
    }
    assert!("not a device".parse::<Match<DeviceSelector>>().is_err());
    assert!("not a uuid".parse::<Match<VmUuid>>().is_err());
}

#[test]
fn a_device_is_lent_to_one_vm_at_a_time() {
    let (mut table, lease) = lent();
    assert_eq!(lease.phase, LeasePhase::Disconnected);
    assert_eq!(lease.on_migrate, OnMigrate::Refuse, "a disk");
    // Asked again, as after a lost answer.
    let again = table.acquire(&wanted("1-1", vm(1), 1), "a", &devices());
    assert_eq!(again, Ok(lease));
    for other in [wanted("1-1", vm(2), 1), wanted("1-1", vm(1), 2)] {
        let refused = table.acquire(&other, "a", &devices());
        assert!(matches!(refused, Err(Refusal::Busy { .. })), "{refused:?}");
    }
    let seen = table.visible_devices(&devices(), "b");
    assert!(matches!(&seen[0].state, DeviceState::Leased { vm: whose, .. } if *whose == vm(1)));
    assert_eq!(seen[1].state, DeviceState::Free);
}

#[test]
fn impossible_wishes_are_refused() {
    let (mut table, _) = lent();
    let mut devices = devices();
    devices[2].state = DeviceState::Unavailable {
        reason: "a hub".to_owned(),
    };
    let mut long = wanted("1-2", vm(1), 2);
    long.vm_name = "n".repeat(MAX_VM_NAME_LEN + 1);
    for (wish, refused) in [
        (wanted("1-9", vm(1), 2), "no device 1-9"),
        (wanted("0951:1666", vm(1), 2), "matches 3 devices"),
        (wanted("1-3", vm(1), 2), "a hub"),
        (wanted("1-2", vm(1), 1), "has device 1-1 already"),
        (wanted("1-2", vm(1), 0), "no port 0"),
        (wanted("1-2", vm(1), MAX_PORT + 1), "no port 32"),
        (long, "at most 256 bytes"),
    ] {
        let error = table.acquire(&wish, "a", &devices).unwrap_err();
        assert!(error.to_string().contains(refused), "{error}");
    }
    // The same port of another VM is another port.
    table
        .acquire(&wanted("1-2", vm(2), 1), "a", &devices)
        .unwrap();
}

#[test]
fn a_claim_fences_who_held_it() {
    let (mut table, lease) = lent();
    let device = id(1);
    let first = table
        .claim(&device, &claimant("a", 5), true, lease.epoch)
        .unwrap();
    let second = table
        .claim(&device, &claimant("b", 9), true, first)
        .unwrap();
    assert!(lease.epoch < first && first < second);
    // The old holder can do nothing any more, not even what changes no epoch.
    let fenced = Err(Refusal::Fenced {
        yours: first,
        current: second,
    });
    assert_eq!(
        table.resume(&device, &claimant("a", 5), true, first),
        fenced.clone()
    );
    assert_eq!(
        table.claim(&device, &claimant("a", 5), true, first),
        fenced.clone().map(|()| Epoch(0))
    );
    assert!(!table.apply(&device, first, Change::Orphan, 0));
    assert!(!table.save_cookie(&device, first, b"stale"));
    assert!(!table.set_frontend_resumes(&device, first, false));
    assert!(matches!(
        table.release(&device, vm(1), "a", first, false),
        Err(Refusal::Fenced { .. })
    ));
    // Nor can it name the new epoch and be somebody else.
    assert!(
        table
            .resume(&device, &claimant("a", 5), true, second)
            .is_err()
    );
    assert!(
        table
            .resume(&device, &claimant("b", 8), true, second)
            .is_err()
    );
    assert_eq!(
        table.resume(&device, &claimant("b", 9), true, second),
        Ok(())
    );
}

#[test]
fn a_claim_whose_answer_was_lost_can_be_repeated() {
    let (mut table, lease) = lent();
    let target = claimant("b", 9);
    let first = table.claim(&id(1), &target, true, lease.epoch).unwrap();
    let again = table.claim(&id(1), &target, true, lease.epoch).unwrap();
    assert!(again > first);
    // The other domain of the same host, in a migration to localhost, cannot.
    let other = claimant("b", 8);
    assert!(table.claim(&id(1), &other, true, lease.epoch).is_err());
    // An epoch that never was is no key.
    assert!(table.claim(&id(1), &other, true, Epoch(99)).is_err());
}

#[test]
fn who_is_not_the_vm_or_not_allowed_gets_nothing() {
    let policy = Policy {
        allow: vec![allow("*", "*", "a")],
    };
    let mut table = LeaseTable::new(policy, 0);
    let lease = table
        .acquire(&wanted("1-1", vm(1), 1), "a", &devices())
        .unwrap();
    let mut other_vm = claimant("a", 5);
    other_vm.vm = vm(2);
    let refused = table.claim(&id(1), &other_vm, true, lease.epoch);
    assert!(matches!(refused, Err(Refusal::NoLease { .. })));
    let refused = table.claim(&id(1), &claimant("b", 5), true, lease.epoch);
    assert!(matches!(refused, Err(Refusal::Policy { .. })));
    let refused = table.release(&id(1), vm(1), "b", lease.epoch, false);
    assert!(matches!(refused, Err(Refusal::Policy { .. })));
    let refused = table.note(&id(1), vm(1), "b", "text");
    assert!(matches!(refused, Err(Refusal::Policy { .. })));
    assert!(table.visible_leases(None, "b").is_empty());
    assert_eq!(table.visible_leases(Some(vm(1)), "a").len(), 1);
    assert!(table.visible_leases(Some(vm(2)), "a").is_empty());
}

#[test]
fn an_orphan_waits_for_a_claim_and_no_longer() {
    let (mut table, lease) = lent();
    let epoch = table
        .claim(&id(1), &claimant("a", 5), true, lease.epoch)
        .unwrap();
    assert!(table.apply(&id(1), epoch, Change::Freeze, 1_000));
    assert!(table.apply(&id(1), epoch, Change::Thaw, 1_500));
    assert_eq!(table.next_deadline_ms(), None);
    assert!(table.apply(&id(1), epoch, Change::Orphan, 2_000));
    // Neither saying it again nor losing the connection starts the time anew.
    assert!(!table.apply(&id(1), epoch, Change::Orphan, 30_000));
    assert!(!table.apply(&id(1), epoch, Change::Disconnect, 30_000));
    assert_eq!(table.get(&id(1)).unwrap().phase, LeasePhase::Orphaned);
    assert_eq!(table.next_deadline_ms(), Some(62_000));
    assert!(table.expire(61_999).is_empty());

    let mut claimed = table.clone();
    claimed
        .claim(&id(1), &claimant("b", 7), true, epoch)
        .unwrap();
    assert_eq!(claimed.next_deadline_ms(), None);
    assert!(claimed.expire(u64::MAX).is_empty());

    assert_eq!(table.expire(62_000).len(), 1);
    assert!(table.get(&id(1)).is_none());
}

#[test]
fn a_frozen_holder_is_frozen_when_it_comes_back() {
    let (mut table, lease) = lent();
    let holder = claimant("a", 5);
    let phase = |table: &LeaseTable| table.get(&id(1)).unwrap().phase;
    let epoch = table.claim(&id(1), &holder, true, lease.epoch).unwrap();
    assert_eq!(phase(&table), LeasePhase::Serving);
    table.apply(&id(1), epoch, Change::Freeze, 0);
    table.apply(&id(1), epoch, Change::Disconnect, 0);
    assert_eq!(phase(&table), LeasePhase::Disconnected);
    table.resume(&id(1), &holder, true, epoch).unwrap();
    assert_eq!(phase(&table), LeasePhase::Frozen);
    table.apply(&id(1), epoch, Change::Thaw, 0);
    assert_eq!(phase(&table), LeasePhase::Serving);
}

#[test]
fn a_restored_table_has_the_leases_and_newer_epochs() {
    let (mut table, lease) = lent();
    let holder = claimant("a", 5);
    let epoch = table.claim(&id(1), &holder, true, lease.epoch).unwrap();
    assert!(table.save_cookie(&id(1), epoch, b"cookie"));
    table.note(&id(1), vm(1), "a", "note").unwrap();
    let orphan = table
        .acquire(&wanted("1-2", vm(2), 1), "a", &devices())
        .unwrap();
    table.apply(&id(2), orphan.epoch, Change::Orphan, 5);

    let mut restored = LeaseTable::restore(any(), 60_000, table.saved(), 1_000);
    let lease = restored.get(&id(1)).unwrap().clone();
    assert!(lease.epoch > orphan.epoch);
    assert_eq!(
        (lease.cookie.as_slice(), lease.note.as_deref()),
        (&b"cookie"[..], Some("note"))
    );
    assert_eq!(lease.phase, LeasePhase::Disconnected);
    assert_eq!(restored.get(&id(2)).unwrap().phase, LeasePhase::Orphaned);
    assert_eq!(restored.next_deadline_ms(), Some(61_000));
    // What was in flight is unknown: nobody resumes. The holder may claim with what it knows.
    assert!(restored.resume(&id(1), &holder, true, epoch).is_err());
    assert!(
        restored
            .claim(&id(1), &claimant("b", 1), true, epoch)
            .is_err()
    );
    assert!(restored.claim(&id(1), &holder, true, epoch).is_ok());
}

/// Suspended, and then gone: hours later it may be restored, here or elsewhere, or never.
#[test]
fn a_saved_guest_has_a_hold_time_of_its_own() {
    const HOUR_MS: u64 = 3_600_000;
    for saved_ms in [Some(5 * HOUR_MS), None] {
        let hold = HoldTimes {
            gone_ms: 60_000,
            saved_ms,
            startup_ms: 0,
            ..60_000.into()
        };
        let mut table = LeaseTable::new(any(), hold);
        let lease = table
            .acquire(&wanted("1-1", vm(1), 1), "a", &devices())
            .unwrap();
        let by = claimant("a", 5);
        let epoch = table.claim(&id(1), &by, true, lease.epoch).unwrap();
        table.apply(&id(1), epoch, Change::Freeze, 1_000);
        table.apply(&id(1), epoch, Change::Orphan, 2_000);
        assert_eq!(table.get(&id(1)).unwrap().phase, LeasePhase::Saved);
        assert_eq!(table.next_deadline_ms(), saved_ms.map(|ms| 2_000 + ms));
        assert!(!table.apply(&id(1), epoch, Change::Disconnect, 3_000));
        assert!(table.expire(4 * HOUR_MS).is_empty());

        // The exporter is started again: the time starts anew, and it is still a saved guest's.
        let restored = LeaseTable::restore(any(), hold, table.saved(), 10_000);
        assert_eq!(restored.next_deadline_ms(), saved_ms.map(|ms| 10_000 + ms));
        for mut table in [table, restored] {
            let seen = table.get(&id(1)).unwrap().epoch;
            let mut claimed = table.clone();
            let epoch = claimed
                .claim(&id(1), &claimant("b", 9), true, seen)
                .unwrap();
            assert_eq!(claimed.get(&id(1)).unwrap().phase, LeasePhase::Serving);
            // Destroyed there, it is a guest like any other.
            claimed.apply(&id(1), epoch, Change::Orphan, 5 * HOUR_MS);
            let deadline_ms = claimed.next_deadline_ms();
            assert_eq!(deadline_ms, Some(5 * HOUR_MS + 60_000));
            let expired = usize::from(saved_ms.is_some());
            assert_eq!(table.expire(u64::MAX).len(), expired);
        }
    }
}

/// A claim that is overtaken on its way by another of the same holder, for example because the process
/// that had sent it was killed and started again.
#[test]
fn an_attempt_that_was_overtaken_does_not_disturb_a_session() {
    let (mut table, lease) = lent();
    let by = |number| Claimant {
        attempt: Attempt { life: 9, number },
        ..claimant("a", 1)
    };
    let epoch = table.claim(&id(1), &by(5), true, lease.epoch).unwrap();
    let late = table.claim(&id(1), &by(4), true, lease.epoch);
    assert!(matches!(late, Err(Refusal::Fenced { .. })), "{late:?}");
    assert!(table.resume(&id(1), &by(4), true, epoch).is_err());
    assert_eq!(table.get(&id(1)).unwrap().epoch, epoch);
    // The answer to this one may have been lost.
    table.resume(&id(1), &by(6), true, epoch).unwrap();
    assert!(table.claim(&id(1), &by(5), true, lease.epoch).is_err());
    let late = table.claim(&id(1), &by(5), true, epoch);
    assert!(late.is_err(), "also where it knows the epoch");
    assert!(table.claim(&id(1), &by(7), true, lease.epoch).is_ok());
    // Of another life nobody knows.
    let epoch = table.get(&id(1)).unwrap().epoch;
    assert!(table.claim(&id(1), &claimant("a", 1), true, epoch).is_ok());
}

#[test]
fn an_epoch_is_never_used_again() {
    let (mut table, lease) = lent();
    table
        .release(&id(1), vm(1), "a", lease.epoch, false)
        .unwrap();
    let restored = LeaseTable::restore(any(), 0, table.saved(), 0);
    for mut table in [table, restored] {
        let next = table
            .acquire(&wanted("1-1", vm(1), 1), "a", &devices())
            .unwrap();
        assert!(next.epoch > lease.epoch);
    }
}

#[test]
fn texts_and_cookies_are_bounded() {
    let (mut table, lease) = lent();
    let refused = table.note(&id(1), vm(1), "a", &"n".repeat(MAX_NOTE_LEN + 1));
    assert!(matches!(refused, Err(Refusal::Limit(_))));
    assert!(!table.save_cookie(&id(1), lease.epoch, &[0; MAX_COOKIE_LEN + 1]));
    assert!(table.save_cookie(&id(1), lease.epoch, &[0; MAX_COOKIE_LEN]));
}

/// What backends on three hosts may do, with what they believe the epoch to be.
#[derive(Clone, Debug)]
enum Step {
    Acquire { vm: u8 },
    Claim { host: u8, back: u64 },
    Resume { host: u8, back: u64 },
    Release { host: u8, back: u64 },
    Apply { back: u64, change: Change },
    Pass { ms: u64 },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let host = 0..3_u8;
    let back = prop_oneof![3 => Just(0_u64), 1 => 0..4_u64];
    let change = prop_oneof![
        Just(Change::Freeze),
        Just(Change::Thaw),
        Just(Change::Orphan),
        Just(Change::Disconnect),
    ];
    prop_oneof![
        (1..3_u8).prop_map(|vm| Step::Acquire { vm }),
        (host.clone(), back.clone()).prop_map(|(host, back)| Step::Claim { host, back }),
        (host.clone(), back.clone()).prop_map(|(host, back)| Step::Resume { host, back }),
        (host, back.clone()).prop_map(|(host, back)| Step::Release { host, back }),
        (back, change).prop_map(|(back, change)| Step::Apply { back, change }),
        (0..100_u64).prop_map(|ms| Step::Pass { ms }),
        Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// At every moment at most one backend may have requests executed: the one that was told the
    /// current epoch by the last claim. All others are refused whatever they say.
    #[test]
    fn at_most_one_may_execute(steps in prop::collection::vec(step(), 0..80)) {
        const HOSTS: [&str; 3] = ["a", "b", "c"];
        let mut table = LeaseTable::new(any(), 50);
        let mut now_ms = 0;
        let mut highest = Epoch(0);
        // Who was last told an epoch, and which.
        let mut told: Option<(u8, Epoch)> = None;
        for step in steps {
            let current = table.get(&id(1)).map(|l| (l.vm, l.epoch));
            // Whether another domain holds it than the one that is attached to below.
            let moved = table.get(&id(1)).is_some_and(|l| !l.phase.is_orphaned() && l.holder.domid != 5);
            let whose = current.map_or(vm(1), |c| c.0);
            let epoch = |back: u64| Epoch(current.map_or(0, |c| c.1.0).saturating_sub(back));
            let by = |host: u8| Claimant { host: HOSTS[usize::from(host)], domid: 1, attempt: Attempt::default(), vm: whose, evidence: Evidence::Arrival, now_ms };
            match step {
                Step::Acquire { vm: number } => {
                    let lease = table.acquire(&wanted("1-1", vm(number), 1), "a", &devices());
                    match (lease, current) {
                        (Ok(lease), None) => {
                            prop_assert!(lease.epoch > highest);
                            highest = lease.epoch;
                            told = None;
                        }
                        (Ok(lease), Some(held)) => prop_assert_eq!((lease.vm, lease.epoch), held),
                        (Err(_), held) => prop_assert!(held.is_some_and(|h| h.0 != vm(number) || moved)),
                    }
                }
                Step::Claim { host, back } => {
                    let holder = table.get(&id(1)).map(|l| l.holder.clone());
                    let claimed = table.claim(&id(1), &by(host), true, epoch(back));
                    let own = holder.is_some_and(|h| by(host).is(&h));
                    let known = current.is_some_and(|c| c.1 == epoch(back));
                    prop_assert_eq!(claimed.is_ok(), current.is_some() && (known || own));
                    if let Ok(claimed) = claimed {
                        prop_assert!(claimed > highest);
                        highest = claimed;
                        told = Some((host, claimed));
                    }
                }
                Step::Resume { host, back } => {
                    if table.resume(&id(1), &by(host), true, epoch(back)).is_ok() {
                        prop_assert_eq!(Some(epoch(back)), current.map(|c| c.1));
                        // After an acquire the holder named there may begin without a claim.
                        prop_assert!(told.is_none_or(|t| t == (host, epoch(back))));
                    }
                }
                Step::Release { host, back } => {
                    let before = table.get(&id(1)).cloned();
                    let may_release = |host: &str| before.as_ref().is_some_and(|l| l.phase.is_orphaned() || l.holder.host == host);
                    let released = table.release(&id(1), whose, HOSTS[usize::from(host)], epoch(back), false);
                    let known = current.is_some_and(|c| c.1 == epoch(back));
                    prop_assert_eq!(released.is_ok(), known && may_release(HOSTS[usize::from(host)]));
                }
                Step::Apply { back, change } => {
                    let before = table.saved();
                    let changed = table.apply(&id(1), epoch(back), change, now_ms);
                    if current.is_none_or(|c| c.1 != epoch(back)) {
                        prop_assert!(!changed && table.saved() == before);
                    }
                }
                Step::Pass { ms } => {
                    now_ms += ms;
                    let orphaned = table.get(&id(1)).is_some_and(|l| l.phase.is_orphaned());
                    prop_assert_eq!(orphaned, table.next_deadline_ms().is_some());
                    let due = table.next_deadline_ms().is_some_and(|d| d <= now_ms);
                    prop_assert_eq!(table.expire(now_ms).len(), usize::from(due));
                }
                Step::Restart => {
                    table = LeaseTable::restore(any(), 50, table.saved(), now_ms);
                    if let Some(lease) = table.get(&id(1)) {
                        prop_assert!(lease.epoch > highest);
                        highest = lease.epoch;
                        told = None;
                        // Whoever was told the epoch before cannot go on with it.
                        let (host, before) = (0, current.map_or(Epoch(0), |c| c.1));
                        let by = Claimant { vm: lease.vm, ..by(host) };
                        prop_assert!(table.resume(&id(1), &by, true, before).is_err());
                    }
                }
            }
        }
    }
}

/// Found by the simulation: an exporter that crashes before it has saved a claim, whose epoch
/// somebody has seen already.
#[test]
fn an_epoch_that_was_seen_and_not_saved_is_older_than_any_after_a_crash() {
    let (mut table, lease) = lent();
    let device = id(1);
    let saved = table.saved();
    let claimed = table.claim(&device, &claimant("b", 9), true, lease.epoch);
    let seen = claimed.unwrap();
    let mut table = LeaseTable::restore(any(), 60_000, saved, 0);
    let current = table.get(&device).unwrap().epoch;
    assert!(seen < current);
    assert!(
        table
            .claim(&device, &claimant("a", 7), true, current)
            .unwrap()
            > current
    );
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! A second domain with the uuid of a VM that runs, at the lease of the VM's device.

use proptest::prelude::*;

use super::super::tests::{any as anybody, claimant, devices, id, vm, wanted};
use super::*;
use crate::lease::{Saved, TAKEOVER_MS};

const HOLDER: (&str, u16) = ("a", 5);

/// VM 1 runs on host a, with device 1.
fn serving(hold: HoldTimes) -> (LeaseTable, Epoch) {
    let mut table = LeaseTable::new(anybody(), hold);
    let lease = table.acquire(&wanted("1-1", vm(1), 1), "a", &devices());
    let epoch = lease.unwrap().epoch;
    let epoch = table.claim(&id(1), &claimant(HOLDER.0, HOLDER.1), true, epoch);
    (table, epoch.unwrap())
}

/// Another domain with the VM's uuid.
fn copy(host: &str, evidence: Evidence, now_ms: u64) -> Claimant<'_> {
    Claimant {
        evidence,
        now_ms,
        ..claimant(host, 9)
    }
}

fn refuses(table: &mut LeaseTable, by: &Claimant<'_>, seen: Epoch) -> Option<u64> {
    let before = table.get(&id(1)).cloned();
    let refused = table.claim(&id(1), by, true, seen);
    let Err(Refusal::HeldElsewhere {
        holder,
        epoch,
        silent_seconds,
        ..
    }) = refused
    else {
        panic!("{refused:?}");
    };
    assert_eq!(
        (holder.host.as_str(), holder.domid, epoch),
        (HOLDER.0, HOLDER.1, seen)
    );
    assert_eq!(table.get(&id(1)).cloned(), before, "nothing has changed");
    silent_seconds
}

#[test]
fn a_copy_is_refused_as_long_as_the_vm_may_run() {
    let (mut table, epoch) = serving(60_000.into());
    let uuid = |now_ms| copy("b", Evidence::Uuid, now_ms);
    assert_eq!(refuses(&mut table, &uuid(0), epoch), None);
    refuses(&mut table, &copy("b", Evidence::FirstConnect, 0), epoch);
    table.apply(&id(1), epoch, Change::Freeze, 1_000);
    refuses(&mut table, &uuid(1_000), epoch);
    table.apply(&id(1), epoch, Change::Thaw, 1_000);
    // A restart of the holder's vusbd, again and again: never long enough.
    for round in 1..10 {
        let now = round * TAKEOVER_MS;
        table.apply(&id(1), epoch, Change::Disconnect, now);
        assert_eq!(refuses(&mut table, &uuid(now), epoch), Some(0));
        let late = now + TAKEOVER_MS - 1;
        assert_eq!(refuses(&mut table, &uuid(late), epoch), Some(29));
        let holder = claimant(HOLDER.0, HOLDER.1);
        table.resume(&id(1), &holder, true, epoch).unwrap();
        assert_eq!(refuses(&mut table, &uuid(late), epoch), None);
    }
    table.apply(&id(1), epoch, Change::Disconnect, 1_000_000);
    let silent = uuid(1_000_000 + TAKEOVER_MS);
    assert!(table.claim(&id(1), &silent, true, epoch).unwrap() > epoch);
}

#[test]
fn whose_domain_is_gone_is_nobodys_rival() {
    for changes in [&[Change::Orphan][..], &[Change::Freeze, Change::Orphan]] {
        let (mut table, epoch) = serving(60_000.into());
        for change in changes {
            table.apply(&id(1), epoch, *change, 0);
        }
        let by = copy("b", Evidence::Uuid, 0);
        assert!(table.claim(&id(1), &by, true, epoch).is_ok());
    }
}

#[test]
fn what_arrives_fences_at_once() {
    let (mut table, epoch) = serving(60_000.into());
    let by = copy("b", Evidence::Arrival, 0);
    assert!(table.claim(&id(1), &by, true, epoch).is_ok());
}

/// A copy that waits is migrated: it arrives, but not from the holder.
#[test]
fn a_copy_that_waits_is_no_vm_where_it_is_migrated_to() {
    let (mut table, epoch) = serving(60_000.into());
    refuses(&mut table, &copy("b", Evidence::FirstConnect, 1_000), epoch);
    let arrives = |now_ms| Claimant {
        domid: 3,
        ..copy("c", Evidence::Arrival, now_ms)
    };
    refuses(&mut table, &arrives(5_000), epoch);
    // It asks on, as a copy.
    refuses(&mut table, &copy("c", Evidence::Uuid, 5_000), epoch);
    refuses(&mut table, &arrives(5_000 + TAKEOVER_MS - 1), epoch);
    // The VM itself is suspended when it arrives, and its domain of before ends.
    let mut moved = table.clone();
    moved.apply(&id(1), epoch, Change::Freeze, 6_000);
    undecided(&mut moved, &arrives(6_000), epoch);
    moved.apply(&id(1), epoch, Change::Orphan, 6_500);
    assert!(moved.claim(&id(1), &arrives(6_500), true, epoch).is_ok());
    // The copy is gone for long.
    let by = arrives(5_000 + TAKEOVER_MS);
    assert!(table.claim(&id(1), &by, true, epoch).is_ok());
}

/// Is put off until it is known what becomes of the VM.
fn undecided(table: &mut LeaseTable, by: &Claimant<'_>, seen: Epoch) {
    let before = table.get(&id(1)).cloned();
    let refused = table.claim(&id(1), by, true, seen);
    let Err(Refusal::SuspendedElsewhere { holder, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!((holder.host.as_str(), holder.domid), HOLDER);
    assert_eq!(table.get(&id(1)).cloned(), before, "nothing has changed");
}

/// A toolstack without a sign: the guest is suspended, a frontend connects elsewhere, and the domain ends
/// where the guest was.
#[test]
fn a_suspended_guest_arrives_where_a_frontend_connects() {
    let (mut table, epoch) = serving(60_000.into());
    table.apply(&id(1), epoch, Change::Freeze, 0);
    refuses(&mut table, &copy("b", Evidence::Uuid, 0), epoch);
    let by = copy("b", Evidence::FirstConnect, 0);
    undecided(&mut table, &by, epoch);
    undecided(&mut table, &by, epoch);
    table.apply(&id(1), epoch, Change::Orphan, 0);
    assert!(table.claim(&id(1), &by, true, epoch).is_ok());
}

/// `xl save -c`: the guest goes on where it was, so the other domain is a copy. Also where the copy asks next
/// when the VM is suspended once more, or has been saved meanwhile.
#[test]
fn a_copy_is_no_vm_that_is_suspended_for_a_checkpoint() {
    for then in [
        &[][..],
        &[Change::Freeze],
        &[Change::Freeze, Change::Orphan],
        &[Change::Orphan],
    ] {
        let (mut table, epoch) = serving(60_000.into());
        // Two copies, and one whose toolstack says that it arrives.
        let first = copy("b", Evidence::FirstConnect, 0);
        let second = Claimant {
            domid: 12,
            ..copy("a", Evidence::FirstConnect, 0)
        };
        let arrives = copy("c", Evidence::Arrival, 0);
        table.apply(&id(1), epoch, Change::Freeze, 0);
        for by in [&first, &second, &arrives] {
            undecided(&mut table, by, epoch);
        }
        table.apply(&id(1), epoch, Change::Thaw, 0);
        for change in then {
            table.apply(&id(1), epoch, *change, 0);
        }
        for by in [&first, &second, &arrives] {
            refuses(&mut table, by, epoch);
        }
        // From then on it asks without a sign, and is admitted when the VM's domain is gone.
        let later = copy("b", Evidence::Uuid, 0);
        let ended = then.contains(&Change::Orphan);
        let claimed = table.claim(&id(1), &later, true, epoch);
        assert_eq!(claimed.is_ok(), ended, "{then:?}: {claimed:?}");
    }
}

/// The holder's host dies during a checkpoint: nobody knows whether the guest went on, so the other domain is
/// told that it waits, and sees a new device after the silence.
#[test]
fn a_silence_does_not_make_a_copy_the_vm() {
    let (mut table, epoch) = serving(60_000.into());
    table.apply(&id(1), epoch, Change::Freeze, 0);
    let first = |now_ms| copy("b", Evidence::FirstConnect, now_ms);
    undecided(&mut table, &first(0), epoch);
    table.apply(&id(1), epoch, Change::Disconnect, 0);
    undecided(&mut table, &first(TAKEOVER_MS - 1), epoch);
    assert_eq!(refuses(&mut table, &first(TAKEOVER_MS), epoch), Some(30));
    let by = copy("b", Evidence::Uuid, TAKEOVER_MS);
    assert!(table.claim(&id(1), &by, true, epoch).is_ok());
}

/// Whoever makes domains without end takes no memory of the exporter.
#[test]
fn few_domains_may_be_the_vm_at_a_time() {
    let (mut table, epoch) = serving(60_000.into());
    let by = |domid| Claimant {
        domid,
        ..copy("b", Evidence::FirstConnect, 0)
    };
    for round in 0..3 {
        table.apply(&id(1), epoch, Change::Freeze, 0);
        for at in 0..MOST_UNDECIDED as u16 {
            undecided(&mut table, &by(1000 * round + at), epoch);
        }
        refuses(&mut table, &by(999), epoch);
        table.apply(&id(1), epoch, Change::Thaw, 0);
        let entry = &table.entries[&id(1)];
        assert_eq!(
            (entry.undecided.len(), entry.copies.len()),
            (0, MOST_UNDECIDED)
        );
    }
}

#[test]
fn a_host_knows_which_of_its_own_domains_are_gone() {
    let (mut table, epoch) = serving(60_000.into());
    refuses(
        &mut table,
        &copy("b", Evidence::HolderGone(HOLDER.1), 0),
        epoch,
    );
    refuses(&mut table, &copy("a", Evidence::HolderGone(6), 0), epoch);
    let by = copy("a", Evidence::HolderGone(HOLDER.1), 0);
    assert!(table.claim(&id(1), &by, true, epoch).is_ok());
}

/// It paused while another took the lease: its epoch is refused, and so is the current one.
#[test]
fn a_newer_epoch_is_no_evidence() {
    let (mut table, old) = serving(60_000.into());
    let moved = Claimant {
        evidence: Evidence::Arrival,
        ..claimant("c", 3)
    };
    let current = table.claim(&id(1), &moved, true, old).unwrap();
    let paused = copy("b", Evidence::Uuid, 0);
    let fenced = table.claim(&id(1), &paused, true, old);
    assert!(matches!(fenced, Err(Refusal::Fenced { .. })), "{fenced:?}");
    let refused = table.claim(&id(1), &paused, true, current);
    assert!(
        matches!(&refused, Err(Refusal::HeldElsewhere { holder, .. }) if holder.host == "c"),
        "{refused:?}"
    );
}

/// A restart of the exporter is no silence of the holder.
#[test]
fn silence_begins_anew_with_the_exporter() {
    let (table, _) = serving(60_000.into());
    let mut table = LeaseTable::restore(anybody(), 60_000, table.saved(), 5_000);
    let epoch = table.get(&id(1)).unwrap().epoch;
    assert_eq!(table.silent_seconds(&id(1), 7_000), Some(2));
    let by = |now_ms| copy("b", Evidence::Uuid, now_ms);
    refuses(&mut table, &by(5_000 + TAKEOVER_MS - 1), epoch);
    let by = by(5_000 + TAKEOVER_MS);
    assert!(table.claim(&id(1), &by, true, epoch).is_ok());
}

/// Its device cannot be opened for a while, so it is refused.
#[test]
fn a_holder_that_asks_is_not_silent() {
    let (mut table, epoch) = serving(60_000.into());
    table.apply(&id(1), epoch, Change::Disconnect, 0);
    let late = 2 * TAKEOVER_MS;
    let holder = Claimant {
        now_ms: late - 1,
        ..claimant(HOLDER.0, HOLDER.1)
    };
    table.heard(&id(1), &holder);
    refuses(&mut table, &copy("b", Evidence::Uuid, late), epoch);
    // Who is not the holder does not speak for it.
    let by = copy("b", Evidence::Uuid, 3 * TAKEOVER_MS);
    table.heard(&id(1), &by);
    assert!(table.claim(&id(1), &by, true, epoch).is_ok());
}

/// Attached to a domain that has not connected yet: its silence is counted from when somebody else asks.
#[test]
fn a_lease_that_was_never_claimed_is_not_silent() {
    let mut table = LeaseTable::new(anybody(), 60_000);
    let lease = table.acquire(&wanted("1-1", vm(1), 1), "a", &devices());
    let epoch = lease.unwrap().epoch;
    let day_ms = 86_400_000;
    let by = |now_ms| copy("b", Evidence::Uuid, now_ms);
    refuses(&mut table, &by(day_ms), epoch);
    refuses(&mut table, &by(day_ms + TAKEOVER_MS - 1), epoch);
    let by = by(day_ms + TAKEOVER_MS);
    assert!(table.claim(&id(1), &by, true, epoch).is_ok());
}

#[test]
fn a_copy_is_not_given_the_lease_of_the_vm() {
    let (mut table, epoch) = serving(60_000.into());
    let asked = table.acquire(&wanted("1-1", vm(1), 1), "b", &devices());
    assert!(
        matches!(asked, Err(Refusal::HeldElsewhere { .. })),
        "{asked:?}"
    );
    let refused = table.release(&id(1), vm(1), "b", epoch, false);
    assert!(
        matches!(refused, Err(Refusal::HeldElsewhere { .. })),
        "{refused:?}"
    );
    assert!(
        table.release(&id(1), vm(1), "b", epoch, true).is_err(),
        "connected"
    );
    assert!(table.release(&id(1), vm(1), "a", epoch, false).is_ok());
}

/// The host died, and nobody will ever say that its domain is gone.
#[test]
fn the_lease_of_a_host_that_died_is_released_by_force_or_after_a_while() {
    for disconnected_ms in [None, Some(50_000)] {
        let hold = HoldTimes {
            disconnected_ms,
            ..60_000.into()
        };
        let (mut table, epoch) = serving(hold);
        table.apply(&id(1), epoch, Change::Disconnect, 1_000);
        assert_eq!(table.silent_seconds(&id(1), 11_500), Some(10));
        assert_eq!(
            table.next_deadline_ms(),
            disconnected_ms.map(|ms| ms + 1_000)
        );
        assert!(table.release(&id(1), vm(1), "b", epoch, false).is_err());
        let stale = Epoch(epoch.0 - 1);
        assert!(table.release(&id(1), vm(1), "b", stale, true).is_err());
        let mut forced = table.clone();
        assert!(forced.release(&id(1), vm(1), "b", epoch, true).is_ok());
        // Who is back keeps it.
        let holder = claimant(HOLDER.0, HOLDER.1);
        table.resume(&id(1), &holder, true, epoch).unwrap();
        assert_eq!(table.next_deadline_ms(), None);
        table.apply(&id(1), epoch, Change::Disconnect, 60_000);
        let expired = table.expire(120_000).len();
        assert_eq!(expired, usize::from(disconnected_ms.is_some()));
        // Also where the exporter was started again.
        let saved: Saved = table.saved();
        let restored = LeaseTable::restore(anybody(), hold, saved, 200_000);
        let held = restored.get(&id(1)).is_some();
        let deadline = disconnected_ms.filter(|_| held).map(|ms| ms + 200_000);
        assert_eq!(restored.next_deadline_ms(), deadline);
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Disconnect,
    Resume,
    Claim { host: bool, uuid_only: bool },
    Pass { ms: u64 },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Disconnect),
        Just(Step::Resume),
        (any::<bool>(), any::<bool>())
            .prop_map(|(host, uuid_only)| Step::Claim { host, uuid_only }),
        (0..40_000_u64).prop_map(|ms| Step::Pass { ms }),
        Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Without evidence nobody has the lease before its holder was silent for the whole time, in one go.
    #[test]
    fn only_silence_gives_a_copy_the_lease(steps in prop::collection::vec(step(), 0..60)) {
        let (mut table, mut epoch) = serving(60_000.into());
        let mut now_ms = 0;
        let mut silent_since = None;
        for step in steps {
            match step {
                Step::Disconnect => {
                    if table.apply(&id(1), epoch, Change::Disconnect, now_ms) {
                        silent_since = Some(now_ms);
                    }
                }
                Step::Resume => {
                    let holder = claimant(HOLDER.0, HOLDER.1);
                    if table.resume(&id(1), &holder, true, epoch).is_ok() {
                        silent_since = None;
                    }
                }
                Step::Claim { host, uuid_only } => {
                    let seen = table.get(&id(1)).unwrap().epoch;
                    let evidence = [Evidence::FirstConnect, Evidence::Uuid][usize::from(uuid_only)];
                    let by = copy(["a", "b"][usize::from(host)], evidence, now_ms);
                    let silent = silent_since.is_some_and(|since| now_ms - since >= TAKEOVER_MS);
                    let claimed = table.claim(&id(1), &by, true, seen);
                    prop_assert_eq!(claimed.is_ok(), silent);
                    if claimed.is_ok() {
                        return Ok(());
                    }
                }
                Step::Pass { ms } => now_ms += ms,
                Step::Restart => {
                    table = LeaseTable::restore(anybody(), 60_000, table.saved(), now_ms);
                    epoch = table.get(&id(1)).unwrap().epoch;
                    silent_since = Some(now_ms);
                }
            }
        }
    }
}

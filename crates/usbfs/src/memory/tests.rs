// SPDX-License-Identifier: GPL-3.0-or-later

use super::*;
use crate::wake::is_set;

const KIB: usize = 1024;
const LONG: usize = 65 * KIB;

fn share(memory: &Memory, owner: &str) -> (Share, Arc<EventFd>) {
    let wake = Arc::new(EventFd::new().unwrap());
    let share = memory.share(wake.clone());
    share.set_owner(owner);
    (share, wake)
}

/// Whether it was woken; it is not any more.
fn woken(wake: &EventFd) -> bool {
    let set = is_set(wake);
    wake.clear();
    set
}

/// Takes as much as it gets.
fn fill(share: &Share) -> usize {
    let taken = (0..1000).take_while(|_| share.take(0, LONG, false)).count();
    share.stop_waiting();
    taken
}

#[test]
fn one_device_gets_a_ring_full_and_no_more() {
    for limit in [None, Some(16 << 20)] {
        let memory = Memory::new(limit);
        let (a, _) = share(&memory, "a");
        assert_eq!(fill(&a), 16, "{limit:?}");
        // Another endpoint, which has nothing yet.
        assert!(a.take(0, LONG, true));
    }
}

#[test]
fn one_owner_cannot_take_it_all() {
    let memory = Memory::new(Some(16 << 20));
    let theirs: Vec<_> = (0..16).map(|_| share(&memory, "greedy")).collect();
    let taken: usize = theirs.iter().map(|(s, _)| fill(s)).sum();
    // Half of the pool, which is half of all, and a reserve for each.
    assert!(taken * LONG <= (4 << 20) + 16 * RESERVE, "{taken}");
    let (ours, _) = share(&memory, "another");
    assert_eq!(fill(&ours), 16);
    // With both, nobody is left without.
    for _ in 0..20 {
        let (late, _) = share(&memory, "greedy");
        assert!(late.take(0, LONG, false), "its reserve");
    }
    assert!(memory.used() <= 16 << 20);
}

#[test]
fn every_device_has_its_reserve_however_many_there_are() {
    let memory = Memory::new(Some(2 << 20));
    let (first, _) = share(&memory, "a");
    while first.take(0, 10 * KIB, true) {}
    let others: Vec<_> = (0..10).map(|_| share(&memory, "b")).collect();
    for (other, _) in &others {
        assert!(other.take(0, LONG, false));
    }
    assert!(memory.used() <= 2 << 20, "{}", memory.used());
}

/// What is given back goes to those who wait, one transfer each, in turns.
#[test]
fn those_who_wait_are_served_in_turns() {
    let memory = Memory::new(Some(1 << 20));
    let (hog, _) = share(&memory, "hog");
    let mut hogged = 0;
    while hog.take(0, LONG, true) {
        hogged += 1;
    }
    hog.stop_waiting();
    let waiting: Vec<_> = ["a", "b", "c"].map(|o| share(&memory, o)).into();
    for (share, wake) in &waiting {
        assert!(share.take(0, LONG, true), "its reserve");
        assert!(!share.take(0, LONG, true));
        assert!(!woken(wake));
    }
    let mut served = Vec::new();
    for _ in 0..hogged.min(6) {
        hog.release(LONG);
        for (at, (share, wake)) in waiting.iter().enumerate() {
            if woken(wake) {
                assert!(share.take(0, LONG, true), "it was given");
                served.push(at);
                // It wants more at once.
                assert!(!share.take(0, LONG, true));
            }
        }
    }
    assert!(served.len() >= 3, "{served:?}");
    for (at, who) in served.iter().enumerate() {
        assert_eq!(*who, at % 3, "{served:?}");
    }
}

/// Who comes later does not overtake who waits for the pool; who is held up by its own limit holds nobody up.
#[test]
fn only_the_own_limit_is_overtaken() {
    let memory = Memory::new(Some(16 << 20));
    let (full, full_wake) = share(&memory, "full");
    assert_eq!(fill(&full), 16);
    assert!(!full.take(0, LONG, false));
    let (other, _) = share(&memory, "other");
    assert_eq!(
        fill(&other),
        16,
        "a limit of another device is in nobody's way"
    );
    full.release(LONG);
    assert!(woken(&full_wake));
    assert!(full.take(0, LONG, false));
}

#[test]
fn what_was_granted_and_is_not_wanted_any_more_goes_back() {
    let memory = Memory::new(Some(16 << 20));
    let (full, _) = share(&memory, "full");
    fill(&full);
    assert!(!full.take(0, LONG, false));
    full.release(LONG);
    let used = memory.used();
    full.stop_waiting();
    assert_eq!(memory.used(), used - LONG);
    // A smaller one instead of what was granted.
    assert!(full.take(0, LONG, false));
    assert!(!full.take(0, LONG, false));
    full.release(LONG);
    assert!(full.take(0, KIB, false));
    assert_eq!(memory.used(), used - LONG + KIB);
}

#[test]
fn a_device_that_goes_leaves_nothing_behind() {
    let memory = Memory::new(Some(1 << 20));
    let (a, _) = share(&memory, "a");
    while a.take(0, LONG, true) {}
    let (b, wake) = share(&memory, "b");
    assert!(b.take(0, LONG, true));
    assert!(!b.take(0, LONG, true));
    drop(a);
    assert!(woken(&wake));
    assert!(b.take(0, LONG, true));
    drop(b);
    assert_eq!(memory.used(), 0);
}

/// The kernel had nothing for any of these: each thing given back is news for one, in turns.
#[test]
fn those_whom_the_kernel_refused_try_again_in_turns() {
    let memory = Memory::new(None);
    let starved: Vec<_> = ["a", "b"].map(|o| share(&memory, o)).into();
    for (share, _) in &starved {
        share.starve();
        share.starve();
    }
    let (c, _) = share(&memory, "c");
    for expected in [[true, false], [false, true], [false, false]] {
        assert!(c.take(0, KIB, false));
        c.release(KIB);
        let got = [woken(&starved[0].1), woken(&starved[1].1)];
        assert_eq!(got, expected);
    }
}

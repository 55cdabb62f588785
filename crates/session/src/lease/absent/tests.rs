// SPDX-License-Identifier: GPL-3.0-or-later
use super::super::tests::{allow, any, claimant, device, devices, id, vm, wanted};
use super::super::{Change, Claimant, HoldTimes, Policy};
use super::*;
use crate::control::{Acquire, Returns};
use crate::{Configured, DeviceInfo, Digest, Exchange, OnExchange};

const FOLLOWS: Exchange = Exchange {
    on: OnExchange::Pause,
    seconds: 30,
    at_place: false,
};

fn following(device: &str) -> Acquire {
    Acquire {
        exchange: Some(FOLLOWS),
        ..wanted(device, vm(1), 1)
    }
}

fn back(configured: Configured) -> Acquire {
    Acquire {
        returns: Some(Returns {
            configured,
            cookie: vec![1, 5, 3],
            descriptors: Some(Digest([7; 32])),
            frontend_resumes: true,
        }),
        ..following("0951:1666:S1")
    }
}

/// VM 1 has device 1, claimed on host a.
fn serving() -> (LeaseTable, Lease) {
    let mut table = LeaseTable::new(any(), 60_000);
    let lease = table.acquire(&following("1-1"), "a", &devices()).unwrap();
    let epoch = table.claim(&id(1), &claimant("a", 5), true, lease.epoch);
    let mut lease = table.get(&id(1)).unwrap().clone();
    lease.epoch = epoch.unwrap();
    (table, lease)
}

fn waiting() -> (LeaseTable, Lease) {
    let (mut table, _) = serving();
    let Some(Unplugged::Waits(lease)) = table.unplugged(&id(1), 1_000) else {
        panic!("it does not follow its device");
    };
    (table, *lease)
}

/// Device 1, plugged in at another place.
fn moved(place: u8) -> DeviceInfo {
    DeviceInfo {
        id: id(place),
        ..device(1)
    }
}

#[test]
fn a_lease_that_does_not_follow_ends_with_its_device() {
    let mut table = LeaseTable::new(any(), 60_000);
    table
        .acquire(&wanted("1-1", vm(1), 1), "a", &devices())
        .unwrap();
    assert!(matches!(
        table.unplugged(&id(1), 0),
        Some(Unplugged::Ended(_))
    ));
    assert_eq!(table.unplugged(&id(1), 0), None);
    assert_eq!(table.leases().count(), 0);
}

#[test]
fn only_what_has_a_serial_number_pauses_its_guest() {
    let mut table = LeaseTable::new(any(), 60_000);
    for serial in [None, Some(String::new())] {
        let nameless = DeviceInfo {
            serial,
            ..device(1)
        };
        let refused = table.acquire(&following("1-1"), "a", std::slice::from_ref(&nameless));
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("no serial number"), "{text}");
        let mut replug = following("1-1");
        replug.exchange = Some(Exchange {
            on: OnExchange::Replug,
            ..FOLLOWS
        });
        assert!(table.acquire(&replug, "a", &[nameless]).is_ok());
        table.remove(&id(1));
    }
    for seconds in [0, Exchange::MAX_SECONDS + 1] {
        let mut wanted = following("1-1");
        wanted.exchange = Some(Exchange { seconds, ..FOLLOWS });
        assert!(table.acquire(&wanted, "a", &devices()).is_err());
    }
}

#[test]
fn a_waiting_lease_is_seen_and_nobody_can_claim_it() {
    let (mut table, lease) = waiting();
    assert_eq!(lease.phase, LeasePhase::Absent);
    assert_eq!(
        table.visible_leases(Some(vm(1)), "b"),
        std::slice::from_ref(&lease)
    );
    assert!(table.is_absent(&id(1), vm(1)) && !table.is_absent(&id(1), vm(2)));
    assert_eq!(table.get(&id(1)), None);
    for by in [claimant("a", 5), claimant("b", 9)] {
        assert!(table.claim(&id(1), &by, true, lease.epoch).is_err());
        assert!(table.resume(&id(1), &by, true, lease.epoch).is_err());
    }
    // Whatever is plugged in there now is anybody's.
    let other = DeviceInfo {
        serial: Some("other".into()),
        ..device(1)
    };
    let theirs = table
        .acquire(&wanted("1-1", vm(2), 1), "a", &[other])
        .unwrap();
    let by = Claimant {
        vm: vm(2),
        ..claimant("a", 6)
    };
    assert!(table.claim(&id(1), &by, true, theirs.epoch).is_ok());
    assert_eq!(table.leases().count(), 2);
}

#[test]
fn it_waits_so_long_and_no_longer() {
    let (mut table, lease) = waiting();
    assert_eq!(table.next_deadline_ms(), Some(31_000));
    assert!(table.expire(30_999).is_empty());
    assert_eq!(table.expire(31_000), [lease]);
    assert_eq!(table.next_deadline_ms(), None);
    assert_eq!(table.leases().count(), 0);
}

#[test]
fn a_saved_guest_is_waited_for_longer() {
    let (mut table, lease) = serving();
    table.apply(&id(1), lease.epoch, Change::Freeze, 0);
    table.apply(&id(1), lease.epoch, Change::Orphan, 0);
    // The machine's restart takes nothing from it.
    assert_eq!(table.saved().after_reboot(), table.saved());
    assert!(matches!(
        table.unplugged(&id(1), 0),
        Some(Unplugged::Waits(_))
    ));
    assert_eq!(table.next_deadline_ms(), Some(60_000));
    // A restart of the exporter takes nothing from it either.
    let hold = HoldTimes {
        gone_ms: 1,
        saved_ms: Some(600_000),
        startup_ms: 1,
        ..1.into()
    };
    let mut again = LeaseTable::restore(any(), hold, table.saved(), 0);
    assert!(again.is_absent(&id(1), vm(1)));
    assert!(again.leases().all(|l| l.phase == LeasePhase::Absent));
    assert!(again.expire(599_999).is_empty());
    assert_eq!(again.expire(600_000).len(), 1);
}

#[test]
fn a_device_comes_back_to_its_port_elsewhere() {
    let (mut table, lease) = waiting();
    let before = table.changes();
    let mut configured = Configured::default();
    configured.apply([0, 9, 1, 0, 0, 0, 0, 0]);
    // The port is taken for all but the one who comes back.
    let refused = table.acquire(&wanted("1-2", vm(1), 1), "a", &devices());
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("waits for device 1-1"), "{text}");
    let new = table
        .acquire(&back(configured.clone()), "b", &[moved(3)])
        .unwrap();
    assert!(new.epoch > lease.epoch && new.device.id == id(3));
    assert_eq!(
        (new.controller, new.port, new.exchange),
        (0, 1, Some(FOLLOWS))
    );
    assert_eq!((new.configured, new.cookie), (configured, vec![1, 5, 3]));
    // Else a guest that is moved before the claim would be refused.
    assert!(new.frontend_resumes);
    assert!(table.changes() > before);
    assert_eq!(table.leases().count(), 1);
    // Asked again, by whom the guest has moved to.
    let again = table
        .acquire(&back(Configured::default()), "c", &[moved(3)])
        .unwrap();
    assert_eq!(again.epoch, new.epoch);
}

/// A modem whose mode is switched, a bootloader, a stick that is swapped for another.
#[test]
fn what_comes_back_by_its_place_is_what_was_there_or_the_place_is_what_was_attached() {
    let switched = DeviceInfo {
        product: 0x1001,
        serial: None,
        ..device(1)
    };
    for at_place in [false, true] {
        let exchange = Some(Exchange {
            on: OnExchange::Replug,
            at_place,
            ..FOLLOWS
        });
        let place = Acquire {
            exchange,
            ..following("1-1")
        };
        let back = Acquire {
            returns: Some(Returns::default()),
            ..place.clone()
        };
        for (now, may) in [(device(1), true), (switched.clone(), at_place)] {
            let mut table = LeaseTable::new(any(), 60_000);
            table.acquire(&place, "a", &devices()).unwrap();
            table.unplugged(&id(1), 0);
            let answer = table.acquire(&back, "b", std::slice::from_ref(&now));
            assert_eq!(answer.is_ok(), may, "{now:?}");
            // Either way there is one lease for the port.
            assert_eq!(table.leases().count(), 1);
            assert_eq!(table.is_absent(&id(1), vm(1)), !may);
            if may {
                let lease = answer.unwrap();
                assert_eq!(
                    (&lease.device.product, lease.exchange),
                    (&now.product, exchange)
                );
            }
        }
        // Nothing waits for what is at another place, nor for another port.
        let mut table = LeaseTable::new(any(), 60_000);
        table.acquire(&place, "a", &devices()).unwrap();
        table.unplugged(&id(1), 0);
        let elsewhere = Acquire {
            device: "1-2".parse().unwrap(),
            ..back.clone()
        };
        assert!(table.acquire(&elsewhere, "a", &devices()).is_err());
        let port = Acquire { port: 2, ..back };
        assert!(table.acquire(&port, "a", &devices()).is_err());
        assert!(table.is_absent(&id(1), vm(1)));
    }
}

/// What appears at a place must itself be allowed.
#[test]
fn policy_is_asked_about_what_is_at_the_place_now() {
    let policy = Policy {
        allow: vec![allow("0951:1666", "*", "*")],
    };
    let mut table = LeaseTable::new(policy, 60_000);
    let place = Acquire {
        exchange: Some(Exchange {
            on: OnExchange::Replug,
            at_place: true,
            ..FOLLOWS
        }),
        ..following("1-1")
    };
    table.acquire(&place, "a", &devices()).unwrap();
    table.unplugged(&id(1), 0);
    let other = DeviceInfo {
        product: 0x1001,
        ..device(1)
    };
    let back = Acquire {
        returns: Some(Returns::default()),
        ..place
    };
    let refused = table.acquire(&back, "a", &[other]);
    assert!(
        matches!(refused, Err(Refusal::Policy { .. })),
        "{refused:?}"
    );
    assert!(table.acquire(&back, "a", &devices()).is_ok());
}

#[test]
fn two_that_say_the_same_are_not_lent() {
    let (mut table, _) = waiting();
    let refused = table.acquire(&back(Configured::default()), "a", &[moved(2), moved(3)]);
    assert!(
        matches!(refused, Err(Refusal::Ambiguous { count: 2, .. })),
        "{refused:?}"
    );
    assert_eq!(table.leases().count(), 1);
}

#[test]
fn another_vm_never_gets_it_nor_its_place() {
    let (mut table, _) = waiting();
    let theirs = Acquire {
        vm: vm(2),
        ..back(Configured::default())
    };
    let lease = table.acquire(&theirs, "a", &[moved(3)]).unwrap();
    // It is free, so another may ask for it; what waits goes on waiting.
    assert_eq!(lease.vm, vm(2));
    assert!(table.is_absent(&id(1), vm(1)));
    let refused = table.acquire(&back(Configured::default()), "a", &[moved(3)]);
    assert!(matches!(refused, Err(Refusal::Busy { .. })), "{refused:?}");
}

#[test]
fn who_gives_up_says_so_with_the_right_epoch() {
    let (mut table, lease) = waiting();
    let old = Epoch(lease.epoch.0 - 1);
    assert!(table.release(&id(1), vm(1), "a", old, false).is_err());
    assert!(
        table
            .release(&id(1), vm(2), "a", lease.epoch, false)
            .is_err()
    );
    assert_eq!(
        table.release(&id(1), vm(1), "a", lease.epoch, false),
        Ok(lease)
    );
    assert_eq!(table.leases().count(), 0);
}

#[test]
fn policy_is_asked_at_the_new_place_too() {
    let policy = Policy {
        allow: vec![allow("1-1", "*", "*")],
    };
    let mut table = LeaseTable::new(policy, 60_000);
    table.acquire(&following("1-1"), "a", &devices()).unwrap();
    assert!(matches!(
        table.unplugged(&id(1), 0),
        Some(Unplugged::Waits(_))
    ));
    let refused = table.acquire(&back(Configured::default()), "a", &[moved(3)]);
    assert!(
        matches!(refused, Err(Refusal::Policy { .. })),
        "{refused:?}"
    );
    assert!(table.is_absent(&id(1), vm(1)));
}

#[test]
fn a_machine_that_was_restarted_has_unplugged_its_devices() {
    let (table, lease) = serving();
    let mut other = LeaseTable::restore(any(), 60_000, table.saved(), 0);
    other
        .acquire(&wanted("1-2", vm(2), 1), "a", &devices())
        .unwrap();
    let mut table = LeaseTable::restore(any(), 60_000, other.saved().after_reboot(), 0);
    assert_eq!(table.get(&id(1)), None);
    assert!(table.is_absent(&id(1), vm(1)));
    assert_eq!(table.get(&id(2)).map(|l| l.vm), Some(vm(2)));
    let by = claimant("a", 5);
    assert!(table.claim(&id(1), &by, true, lease.epoch).is_err());
    let new = table
        .acquire(&back(Configured::default()), "a", &devices())
        .unwrap();
    assert!(new.epoch > lease.epoch);
    assert_eq!(table.leases().count(), 2);
}

#[test]
fn it_survives_a_restart_with_what_the_guest_had_set() {
    let (mut table, lease) = serving();
    let before = table.changes();
    let mut configured = Configured::default();
    configured.apply([0, 9, 1, 0, 0, 0, 0, 0]);
    assert!(table.set_configured(&id(1), lease.epoch, &configured));
    assert!(!table.set_configured(&id(1), lease.epoch, &configured));
    table.set_descriptors(&id(1), lease.epoch, Some(Digest([7; 32])));
    assert_eq!(table.changes(), before + 1);
    // Of an epoch that is over.
    assert!(!table.set_configured(&id(1), Epoch(0), &Configured::default()));
    table.unplugged(&id(1), 0);
    let mut table = LeaseTable::restore(any(), 60_000, table.saved(), 5_000);
    let waits: Vec<_> = table.leases().cloned().collect();
    assert_eq!(waits.len(), 1);
    assert_eq!(waits[0].phase, LeasePhase::Absent);
    assert_eq!(waits[0].configured, configured);
    assert_eq!(waits[0].descriptors, Some(Digest([7; 32])));
    // At least as long as the exporter waits for any device after its start.
    assert_eq!(table.next_deadline_ms(), Some(65_000));
    let new = table.acquire(&back(configured), "a", &[moved(1)]).unwrap();
    assert!(new.epoch > lease.epoch);
}

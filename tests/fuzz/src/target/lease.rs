// SPDX-License-Identifier: GPL-3.0-or-later
//! What hosts may ask of an exporter's leases, with restarts in between: epochs only grow, and one
//! holder has a device.

use std::collections::BTreeMap;

use session::control::Acquire;
use session::lease::{Allow, Change, Claimant, DeviceMatch, LeaseTable, Match, Policy, VmMatch};
use session::open::{Attempt, Evidence};
use session::{DeviceId, DeviceInfo, DeviceSelector, DeviceState, Epoch, Speed, VmUuid};

use crate::{Input, Target};

/// See the module's documentation.
pub const TARGET: Target = Target {
    name: "lease",
    seeds,
    run,
};

const HOSTS: [&str; 3] = ["a", "b", "c"];
const HOLD_MS: u64 = 1000;

fn seeds() -> Vec<Vec<u8>> {
    let acquire = [0, 0, 0, 0, 1, 0];
    let mut life = acquire.to_vec();
    life.extend([
        1, 0, 0, 0, 0, 4, 0, 0, 0, 1, 0, 1, 0, 0, 4, 0, 0, 2, 6, 200, 7,
    ]);
    vec![acquire.to_vec(), life]
}

fn devices() -> Vec<DeviceInfo> {
    (1..=3)
        .map(|n| DeviceInfo {
            id: DeviceId(format!("1-{n}")),
            vendor: 0x951,
            product: 0x1600 + n,
            serial: (n > 1).then(|| format!("{n}")),
            name: String::new(),
            speed: Speed::High,
            classes: vec![if n == 1 { 8 } else { 3 }],
            state: DeviceState::Free,
        })
        .collect()
}

fn policy() -> Policy {
    let rule = |host: Match<String>| Allow {
        device: DeviceMatch::Any,
        vm: VmMatch::Any,
        host,
    };
    // Host c may nothing.
    Policy {
        allow: HOSTS[..2]
            .iter()
            .map(|h| rule(Match::Only((*h).into())))
            .collect(),
    }
}

fn run(input: &mut Input<'_>) {
    let devices = devices();
    let mut table = LeaseTable::new(policy(), HOLD_MS);
    let mut now = 0;
    // The highest epoch ever seen, and who claimed under which.
    let mut highest = Epoch(0);
    let mut claimed: BTreeMap<Epoch, (DeviceId, &str)> = BTreeMap::new();
    while !input.is_empty() {
        // A place may have a lease of the device that is there, and one that waits for another.
        let before: BTreeMap<(DeviceId, VmUuid), Epoch> = table
            .leases()
            .map(|l| ((l.device.id.clone(), l.vm), l.epoch))
            .collect();
        assert_eq!(before.len(), table.leases().count(), "claims are ambiguous");
        let op = input.below(11);
        let device = &devices[input.below(3)].id;
        let host = HOSTS[input.below(3)];
        let vm = VmUuid(uuid::Uuid::from_u128(1 + input.below(2) as u128));
        let domid = input.u16() & 3;
        let claimant = Claimant {
            host,
            domid,
            attempt: Attempt::default(),
            vm,
            evidence: match domid {
                0 => Evidence::Arrival,
                1 => Evidence::FirstConnect,
                2 => Evidence::HolderGone(1),
                _ => Evidence::Uuid,
            },
            now_ms: now,
        };
        // An epoch near those that exist, more often than any.
        let epoch = match input.chance(8) {
            true => Epoch(input.u64()),
            false => {
                let current = table.get(device).map_or(0, |l| l.epoch.0);
                Epoch(current.wrapping_sub(u64::from(input.byte() & 3)))
            }
        };
        let done = match op {
            0 => {
                let wanted = Acquire {
                    device: DeviceSelector::Place(device.clone()),
                    vm,
                    vm_name: "vm".into(),
                    domid,
                    controller: input.u16() & 1,
                    port: input.byte() & 0x23,
                    on_migrate: None,
                    exchange: None,
                    own_controller: None,
                    persistence: Default::default(),
                    returns: None,
                };
                table.acquire(&wanted, host, &devices).is_ok()
            }
            1 => match table.claim(device, &claimant, false, epoch) {
                Ok(now) => {
                    assert!(now > highest, "an epoch is never given out twice");
                    let old = claimed.insert(now, (device.clone(), host));
                    assert!(old.is_none());
                    assert_ne!(host, "c");
                    true
                }
                Err(_) => false,
            },
            2 => {
                let resumed = table.resume(device, &claimant, true, epoch).is_ok();
                if resumed {
                    let lease = table.get(device).unwrap();
                    assert_eq!((lease.epoch, lease.holder.domid), (epoch, domid));
                    assert_eq!(lease.holder.host, host);
                }
                resumed
            }
            3 => table
                .release(device, vm, host, epoch, input.chance(2))
                .is_ok(),
            4 => {
                let change = [
                    Change::Freeze,
                    Change::Thaw,
                    Change::Orphan,
                    Change::Disconnect,
                ];
                let changed = table.apply(device, epoch, change[input.below(4)], now);
                assert!(!changed || table.get(device).is_some_and(|l| l.epoch == epoch));
                changed
            }
            5 => {
                let cookie = input.take(3);
                table.save_cookie(device, epoch, cookie)
            }
            6 => {
                now += u64::from(input.byte()) * 10;
                let expired = table.expire(now);
                // Of VMs that are gone, or of devices that did not come after a start.
                let may = |l: &session::Lease| {
                    l.phase.is_orphaned() || l.phase == session::LeasePhase::Disconnected
                };
                assert!(expired.iter().all(may));
                assert!(table.next_deadline_ms().is_none_or(|d| d > now));
                !expired.is_empty()
            }
            7 => {
                let saved = serde_json::to_vec(&table.saved()).unwrap();
                let saved = serde_json::from_slice(&saved).unwrap();
                table = LeaseTable::restore(policy(), HOLD_MS, saved, now);
                true
            }
            8 => table.missing(device, now).is_some(),
            9 => {
                let info = devices.iter().find(|d| d.id == *device).unwrap();
                let lease = table.plugged(info, now);
                assert!(lease.is_none_or(|l| l.device.is_same(info)));
                lease.is_some()
            }
            _ => table.note(device, vm, host, "text").is_ok(),
        };
        input.did((op, done));
        for lease in table.leases() {
            if let Some(before) = before.get(&(lease.device.id.clone(), lease.vm)) {
                assert!(lease.epoch >= *before, "epochs only grow");
            }
            highest = highest.max(lease.epoch);
            assert!((1..=31).contains(&lease.port));
            let phase = lease.phase;
            input.did((phase as u8, table.next_deadline_ms().is_some()));
            let same_port = |l: &&session::Lease| {
                (l.vm, l.controller, l.port) == (lease.vm, lease.controller, lease.port)
            };
            assert_eq!(
                table.leases().filter(same_port).count(),
                1,
                "one device at a port"
            );
        }
        assert!(table.visible_leases(None, "c").is_empty());
    }
}

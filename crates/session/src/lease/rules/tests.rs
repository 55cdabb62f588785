// SPDX-License-Identifier: GPL-3.0-or-later
use super::super::tests::{allow, any, device, vm};
use super::*;
use crate::Lease;
use crate::lease::{Allow, HoldTimes, Policy};

fn rule(device: &str, vm: &str, port: Option<u8>) -> AttachRule {
    AttachRule {
        device: match device.strip_prefix("class:") {
            Some(text) => DeviceMatch::Class(class(text).unwrap()),
            None => DeviceMatch::Device(device.parse().unwrap()),
        },
        vm: match vm.parse() {
            Ok(vm) => VmMatch::Uuid(vm),
            Err(_) => VmMatch::Name(vm.into()),
        },
        controller: 0,
        port,
        on_migrate: None,
    }
}

fn table(policy: Policy, rules: &[AttachRule]) -> LeaseTable {
    let mut table = LeaseTable::new(policy, 60_000);
    table.set_rules(rules.to_vec(), 0);
    table
}

/// VM 1, "web", runs on host a; devices 1 and 2 are plugged in.
fn start(table: &mut LeaseTable) -> Applied {
    start_beside(table, 1, &[])
}

fn start_beside(table: &mut LeaseTable, number: u8, others: &[u8]) -> Applied {
    let others = others.iter().map(|n| vm(*n)).collect();
    let devices = [device(1), device(2)];
    table.apply_rules((vm(number), "web"), "a", &others, &devices)
}

fn lease(table: &LeaseTable, number: u8) -> &Lease {
    table.get(&device(number).id).unwrap()
}

#[test]
fn a_rule_lends_to_its_vm_what_it_names() {
    for (of, by) in [("1-1", vm(1).to_string()), ("0951:1666:S1", "web".into())] {
        let mut table = table(any(), &[rule(of, &by, Some(3))]);
        let applied = start(&mut table);
        assert_eq!(applied.lent, [device(1).id], "{of} {by}");
        let lease = lease(&table, 1);
        assert_eq!((lease.vm, lease.port), (vm(1), 3));
        assert_eq!(lease.phase, LeasePhase::Orphaned);
        assert_eq!(lease.persistence, Persistence::Rule);
        // Asked again, nothing is done again.
        assert_eq!(start(&mut table), Applied::default());
    }
    let mut table = table(any(), &[rule("1-1", "db", Some(3))]);
    assert_eq!(start(&mut table), Applied::default());
}

#[test]
fn a_rule_of_a_class_gives_each_device_a_port_of_its_own() {
    let mut table = table(any(), &[rule("class:mass-storage", "web", None)]);
    assert_eq!(start(&mut table).lent, [device(1).id, device(2).id]);
    assert_eq!((lease(&table, 1).port, lease(&table, 2).port), (1, 2));
}

#[test]
fn a_rule_needs_an_allow() {
    let of = |name: &str| Policy {
        allow: vec![Allow {
            vm: VmMatch::Name(name.into()),
            ..allow("1-1", "*", "*")
        }],
    };
    let policy = of("db");
    let mut table = table(policy, &[rule("1-1", "web", None)]);
    let applied = start(&mut table);
    assert!(applied.lent.is_empty());
    assert!(applied.refused[0].contains("[[allow]]"), "{applied:?}");
    let mut table = self::table(of("web"), &[rule("1-1", "web", None)]);
    assert_eq!(start(&mut table).lent, [device(1).id]);
}

#[test]
fn of_two_rules_for_one_device_or_port_neither_wins() {
    let twins = [rule("1-1", "web", None), rule("class:08", "db", None)];
    let mut table = table(any(), &twins);
    let applied = start(&mut table);
    assert!(applied.lent.is_empty());
    assert!(applied.refused[0].contains("wants it, too"), "{applied:?}");

    let ports = [
        rule("1-1", "web", Some(1)),
        rule("1-2", &vm(1).to_string(), Some(1)),
    ];
    let mut table = self::table(any(), &ports);
    let applied = start(&mut table);
    assert!(applied.lent.is_empty());
    assert_eq!(applied.refused.len(), 2);
    assert!(
        applied.refused[0].contains("wants port 1, too"),
        "{applied:?}"
    );
}

#[test]
fn what_contradicts_itself_is_found_without_a_device() {
    assert!(conflicts(&[rule("1-1", "web", Some(1)), rule("1-2", "web", Some(2))]).is_empty());
    let wrong = [
        [rule("1-1", "web", Some(1)), rule("1-1", "db", Some(1))],
        [rule("1-1", "web", Some(1)), rule("1-2", "web", Some(1))],
        [rule("1-1", "web", Some(32)), rule("1-2", "web", Some(1))],
    ];
    for rules in wrong {
        assert_eq!(conflicts(&rules).len(), 1, "{rules:?}");
    }
}

#[test]
fn a_name_that_two_running_vms_have_names_neither() {
    let mut table = table(any(), &[rule("1-1", "web", None)]);
    let applied = start_beside(&mut table, 1, &[2]);
    assert!(applied.lent.is_empty());
    let second = vm(2).to_string();
    assert!(applied.refused[0].contains(&second), "{applied:?}");
}

/// `xl create` without `uuid=`.
#[test]
fn a_vm_that_is_made_anew_gets_what_the_one_before_had() {
    let mut table = table(any(), &[rule("1-1", "web", None)]);
    start_beside(&mut table, 1, &[]);
    assert_eq!(start_beside(&mut table, 2, &[]).lent, [device(1).id]);
    assert_eq!(lease(&table, 1).vm, vm(2));
    // Not one that an administrator has attached, nor that of a VM that runs.
    let mut table = self::table(any(), &[rule("1-1", &vm(1).to_string(), None)]);
    start_beside(&mut table, 1, &[]);
    assert!(start_beside(&mut table, 2, &[]).lent.is_empty());
}

#[test]
fn a_lease_of_a_rule_that_is_no_more_waits_as_others_do() {
    let mut table = table(any(), &[rule("1-1", "web", None)]);
    start(&mut table);
    let saved = table.saved();
    let hold = HoldTimes::from(60_000);
    let mut table = LeaseTable::restore(any(), hold, saved.clone(), 0);
    table.set_rules(vec![rule("1-1", "web", None)], 0);
    assert_eq!(lease(&table, 1).persistence, Persistence::Rule);
    let mut table = LeaseTable::restore(any(), hold, saved, 0);
    table.set_rules(Vec::new(), 0);
    assert_eq!(lease(&table, 1).persistence, Persistence::Temporary);
    assert_eq!(table.expire(60_000).len(), 1);
}

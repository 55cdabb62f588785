// SPDX-License-Identifier: GPL-3.0-or-later
use super::*;

fn software(version: &str) -> Software {
    Software {
        version: version.to_owned(),
        makes_controllers: true,
    }
}

fn names(table: &HostTable) -> Vec<(String, bool, u64)> {
    let known = table.known(1000, |_| Vec::new());
    known
        .into_iter()
        .map(|h| (h.name, h.connected, h.seen_seconds))
        .collect()
}

#[test]
fn a_host_is_known_until_it_is_forgotten_also_after_a_restart() {
    let mut table = HostTable::default();
    table.connected("host-a", 100);
    table.introduced("host-a", software("1"));
    table.connected("host-b", 200);
    // Of two connections, the last one that ends counts.
    table.connected("host-b", 300);
    table.disconnected("host-b", 400);
    assert!(table.any_connected());
    let all = [("host-a".into(), true, 0), ("host-b".into(), true, 0)];
    assert_eq!(names(&table), all);
    table.disconnected("host-b", 500);
    let saved = table.saved(900);
    assert_eq!(saved[0].seen, 900);

    let mut table = HostTable::restore(saved);
    assert!(!table.any_connected());
    let all = [("host-a".into(), false, 100), ("host-b".into(), false, 500)];
    assert_eq!(names(&table), all);
    assert_eq!(
        table.known(1000, |_| Vec::new())[0].software,
        Some(software("1"))
    );
    table.forget("host-b").unwrap();
    assert_eq!(names(&table), [("host-a".into(), false, 100)]);
    let again = table.forget("host-b").unwrap_err().to_string();
    assert!(again.contains("no host host-b"), "{again}");
}

#[test]
fn a_host_that_is_connected_is_not_forgotten() {
    let mut table = HostTable::default();
    table.connected("host-a", 1);
    let refused = table.forget("host-a").unwrap_err().to_string();
    assert!(refused.contains("stop vusbd there"), "{refused}");
    assert_eq!(names(&table).len(), 1);
}

#[test]
fn a_vusbd_that_says_nothing_is_not_taken_for_the_one_before() {
    let mut table = HostTable::default();
    table.connected("host-a", 1);
    table.introduced("host-a", software("2"));
    table.disconnected("host-a", 2);
    // An earlier version, after a downgrade.
    table.connected("host-a", 3);
    assert_eq!(table.known(3, |_| Vec::new())[0].software, None);
}

#[test]
fn what_changes_nothing_is_not_saved_again() {
    let mut table = HostTable::default();
    table.connected("host-a", 1);
    table.introduced("host-a", software("1"));
    let before = table.changes();
    table.introduced("host-a", software("1"));
    table.introduced("host-b", software("1"));
    table.disconnected("host-b", 9);
    assert_eq!(table.changes(), before);
}

#[test]
fn the_table_is_bounded_and_its_answer_fits_into_a_message() {
    let name = |n: usize| format!("{n:0>253}");
    let mut table = HostTable::default();
    for n in 0..MAX_HOSTS {
        table.connected(&name(n), n as u64);
        table.introduced(&name(n), software(&"v".repeat(MAX_VERSION_LEN)));
    }
    // All are connected: another one is not noted, and does no harm.
    table.connected("one-more", 5000);
    table.disconnected("one-more", 5000);
    assert_eq!(table.known(5000, |_| Vec::new()).len(), MAX_HOSTS);
    table.disconnected(&name(7), 4000);
    table.disconnected(&name(9), 3000);
    table.connected("one-more", 5000);
    let known = table.known(5000, |_| vec![DeviceId("1-2".into()); 8]);
    assert_eq!(known.len(), MAX_HOSTS);
    let has = |n: &str| known.iter().any(|h| h.name == n);
    assert!(has("one-more") && has(&name(7)) && !has(&name(9)));
    let mut bytes = Vec::new();
    crate::message::encode(&known, &mut bytes).unwrap();
}

#[test]
fn a_version_is_a_short_line() {
    assert_eq!(software("0.1.0").check(), Ok(()));
    for version in ["v".repeat(MAX_VERSION_LEN + 1), "1\n2".into()] {
        let refused = software(&version).check().unwrap_err().to_string();
        assert!(refused.contains("version of vusbd"), "{refused}");
    }
}

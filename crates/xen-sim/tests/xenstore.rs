// SPDX-License-Identifier: GPL-3.0-or-later
//! The xenstore protocol, over the sockets, as domain 0 and as a guest.

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use common::{TestHost, events, no_event, soon};

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

fn pair(path: &str, token: &str) -> (String, String) {
    (path.to_owned(), token.to_owned())
}

#[test]
fn nodes_are_written_listed_and_removed() {
    let host = TestHost::start();
    let mut store = host.store();
    assert_eq!(store.read("/a/b/c").unwrap(), None);
    store.write("/a/b/c", "value").unwrap();
    store.mkdir("/a/b/d").unwrap();
    store.mkdir("/a/b/c").unwrap();
    assert_eq!(store.read("/a/b/c").unwrap().unwrap(), "value");
    assert_eq!(store.read("/a").unwrap().unwrap(), "");
    assert_eq!(store.directory("/a/b").unwrap(), ["c", "d"]);
    store.rm("/a/b").unwrap();
    assert_eq!(store.directory("/a").unwrap(), Vec::<String>::new());
    assert_eq!(store.read("/a/b/c").unwrap(), None);
    for bad in ["/a//b", "/a/", "/a b", "@introduceDomain", ""] {
        assert_eq!(errno(store.write(bad, "")), libc::EINVAL, "{bad}");
    }
    assert_eq!(errno(store.rm("/")), libc::EINVAL);
    assert_eq!(errno(store.introduce(999)), libc::ENOENT);
}

#[test]
fn long_directories_come_in_parts() {
    let host = TestHost::start();
    let mut store = host.store();
    let names: Vec<String> = (0..1000).map(|i| format!("node-number-{i}")).collect();
    for name in &names {
        store.write(&format!("/many/{name}"), "").unwrap();
    }
    assert_eq!(store.directory("/many").unwrap(), names);
}

#[test]
fn a_guest_sees_only_what_it_may() {
    let host = TestHost::start();
    let domid = host.domain("guest");
    let other = host.domain("other");
    let mut dom0 = host.store();
    let mut guest = host.guest_store(domid);
    // Relative to its own directory.
    assert_eq!(guest.read("name").unwrap().unwrap(), "guest");
    guest.write("data/mine", "1").unwrap();
    let absolute = format!("/local/domain/{domid}/data/mine");
    assert_eq!(dom0.read(&absolute).unwrap().unwrap(), "1");
    assert_eq!(dom0.perms(&absolute).unwrap(), [format!("n{domid}")]);
    // Read-only, and not at all.
    assert_eq!(errno(guest.write("name", "other")), libc::EACCES);
    assert_eq!(
        errno(guest.read(&format!("/local/domain/{other}/name"))),
        libc::EACCES
    );
    dom0.write("/secret/a", "1").unwrap();
    assert_eq!(errno(guest.read("/secret/a")), libc::EACCES);
    // Whether it exists is a secret too.
    assert_eq!(errno(guest.read("/secret/none")), libc::EACCES);
    dom0.set_perms("/secret/a", &["n0".into(), format!("r{domid}")])
        .unwrap();
    assert_eq!(guest.read("/secret/a").unwrap().unwrap(), "1");
    assert_eq!(errno(guest.write("/secret/a", "2")), libc::EACCES);
    // Its own nodes it may share, but not give away.
    guest
        .set_perms("data/mine", &[format!("n{domid}"), format!("r{other}")])
        .unwrap();
    let mut neighbour = host.guest_store(other);
    assert_eq!(neighbour.read(&absolute).unwrap().unwrap(), "1");
    assert_eq!(
        errno(guest.set_perms("data/mine", &[format!("n{other}")])),
        libc::EPERM
    );
    assert_eq!(errno(guest.introduce(other.0)), libc::EACCES);
}

#[test]
fn a_guest_has_quotas() {
    let host = TestHost::start();
    let domid = host.domain("guest");
    let mut guest = host.guest_store(domid);
    let mut made = 0;
    let refused = loop {
        match guest.write(&format!("data/{made}"), "") {
            Ok(()) => made += 1,
            Err(err) => break err,
        }
        assert!(made < 2000);
    };
    assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC));
    assert!(made > 900, "{made}");
    guest.rm("data/0").unwrap();
    guest.write("data/again", "").unwrap();
    let big = "x".repeat(2049);
    assert_eq!(errno(guest.write("data/again", &big)), libc::ENOSPC);
    for i in 0..128 {
        guest.watch("data", &i.to_string()).unwrap();
    }
    assert_eq!(errno(guest.watch("data", "one more")), libc::ENOSPC);
}

#[test]
fn watches_fire_at_once_and_at_every_change_below() {
    let host = TestHost::start();
    let mut store = host.store();
    let mut writer = host.store();
    store.watch("/w", "token").unwrap();
    assert_eq!(events(&mut store, 1), [pair("/w", "token")]);
    assert_eq!(errno(store.watch("/w", "token")), libc::EEXIST);
    writer.write("/w/a/b", "1").unwrap();
    assert_eq!(events(&mut store, 1), [pair("/w/a/b", "token")]);
    writer.write("/wide", "1").unwrap();
    // One event for the whole subtree; those below it have their own.
    store.watch("/w/a/b", "leaf").unwrap();
    events(&mut store, 1);
    writer.rm("/w/a").unwrap();
    let mut seen = events(&mut store, 2);
    seen.sort();
    assert_eq!(seen[0], pair("/w/a", "token"));
    assert_eq!(seen[1], pair("/w/a/b", "leaf"));
    store.unwatch("/w", "token").unwrap();
    assert_eq!(errno(store.unwatch("/w", "token")), libc::ENOENT);
    writer.write("/w/c", "1").unwrap();
    // An answer after the write: anything the write caused would be here.
    store.read("/").unwrap();
    no_event(&mut store);
}

#[test]
fn events_have_the_watch_s_kind_of_path() {
    let host = TestHost::start();
    let domid = host.domain("guest");
    let mut guest = host.guest_store(domid);
    guest.watch("data", "relative").unwrap();
    let absolute = format!("/local/domain/{domid}/data");
    guest.watch(&absolute, "absolute").unwrap();
    assert_eq!(
        events(&mut guest, 2),
        [pair("data", "relative"), pair(&absolute, "absolute")]
    );
    host.store().write(&format!("{absolute}/x"), "1").unwrap();
    assert_eq!(
        events(&mut guest, 2),
        [
            pair("data/x", "relative"),
            pair(&format!("{absolute}/x"), "absolute")
        ]
    );
}

#[test]
fn a_watch_tells_nothing_of_hidden_nodes() {
    let host = TestHost::start();
    let domid = host.domain("guest");
    let mut guest = host.guest_store(domid);
    let mut dom0 = host.store();
    guest.watch("/hidden", "spy").unwrap();
    events(&mut guest, 1);
    dom0.write("/hidden/a", "1").unwrap();
    guest.read("name").unwrap();
    no_event(&mut guest);
    let shown = ["n0".to_owned(), format!("r{domid}")];
    dom0.set_perms("/hidden/a", &shown).unwrap();
    assert_eq!(events(&mut guest, 1), [pair("/hidden/a", "spy")]);
    // Losing sight of a node is the last that is seen of it.
    dom0.set_perms("/hidden/a", &["n0".into()]).unwrap();
    assert_eq!(events(&mut guest, 1), [pair("/hidden/a", "spy")]);
    dom0.write("/hidden/a", "2").unwrap();
    guest.read("name").unwrap();
    no_event(&mut guest);
}

#[test]
fn ten_thousand_events_arrive_while_nobody_reads() {
    let host = TestHost::start();
    let mut store = host.store();
    let mut writer = host.store();
    store.watch("/burst", "t").unwrap();
    events(&mut store, 1);
    for i in 0..10_000 {
        writer.write(&format!("/burst/{i}"), "").unwrap();
    }
    // Reads go on in between.
    assert_eq!(store.read("/burst/77").unwrap().unwrap(), "");
    let seen = events(&mut store, 10_000);
    for (i, event) in seen.iter().enumerate() {
        assert_eq!(event.0, format!("/burst/{i}"));
    }
}

#[test]
fn domains_come_and_go_with_special_events() {
    let host = TestHost::start();
    let mut store = host.store();
    store.watch("@introduceDomain", "in").unwrap();
    store.watch("@releaseDomain", "out").unwrap();
    assert_eq!(
        events(&mut store, 2),
        [
            pair("@introduceDomain", "in"),
            pair("@releaseDomain", "out")
        ]
    );
    let domid = host.domain("guest");
    assert_eq!(events(&mut store, 1), [pair("@introduceDomain", "in")]);
    assert!(store.is_introduced(domid.0).unwrap());
    let mut guest = host.guest_store(domid);
    guest.write("data/x", "1").unwrap();
    host.xl.destroy(domid).unwrap();
    assert_eq!(events(&mut store, 1), [pair("@releaseDomain", "out")]);
    assert!(!store.is_introduced(domid.0).unwrap());
    assert!(guest.read("data/x").is_err());
    assert!(!host.dir.join(format!("dom-{domid}.sock")).exists());
}

#[test]
fn a_transaction_is_isolated_and_fires_at_its_end() {
    let host = TestHost::start();
    let mut store = host.store();
    let mut other = host.store();
    other.watch("/t", "w").unwrap();
    events(&mut other, 1);
    store.begin().unwrap();
    store.write("/t/a", "1").unwrap();
    store.write("/t/a", "2").unwrap();
    assert_eq!(store.read("/t/a").unwrap().unwrap(), "2");
    assert_eq!(other.read("/t/a").unwrap(), None);
    no_event(&mut other);
    assert!(store.end(true).unwrap());
    assert_eq!(other.read("/t/a").unwrap().unwrap(), "2");
    assert_eq!(events(&mut other, 1), [pair("/t/a", "w")]);
    no_event(&mut other);
    store.begin().unwrap();
    store.rm("/t/a").unwrap();
    assert!(store.end(false).unwrap());
    assert_eq!(other.read("/t/a").unwrap().unwrap(), "2");
    no_event(&mut other);
    assert_eq!(errno(store.end(true)), libc::ENOENT);
}

#[test]
fn transactions_that_conflict_are_refused() {
    let host = TestHost::start();
    let mut store = host.store();
    let mut other = host.store();
    store.write("/c/a", "1").unwrap();
    // Something read has changed.
    store.begin().unwrap();
    store.read("/c/a").unwrap();
    store.write("/c/b", "1").unwrap();
    other.write("/c/a", "2").unwrap();
    assert!(!store.end(true).unwrap());
    assert_eq!(store.read("/c/b").unwrap(), None);
    // Something that was missing is there.
    store.begin().unwrap();
    assert_eq!(store.read("/c/new").unwrap(), None);
    other.write("/c/new", "").unwrap();
    store.write("/d", "1").unwrap();
    assert!(!store.end(true).unwrap());
    // A directory that both add to.
    store.begin().unwrap();
    store.write("/c/x", "").unwrap();
    other.write("/c/y", "").unwrap();
    assert!(!store.end(true).unwrap());
    // Apart from each other they do not conflict.
    store.begin().unwrap();
    store.write("/c/a", "3").unwrap();
    other.write("/elsewhere/z", "").unwrap();
    assert!(store.end(true).unwrap());
    assert_eq!(other.read("/c/a").unwrap().unwrap(), "3");
}

#[test]
fn concurrent_transactions_lose_nothing() {
    let host = TestHost::start();
    host.store().write("/counter", "0").unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut store = host.store();
                for _ in 0..50 {
                    store
                        .transaction(|t| {
                            let value: u32 = t.read("/counter")?.unwrap().parse().unwrap();
                            t.write("/counter", &(value + 1).to_string())
                        })
                        .unwrap();
                }
            });
        }
    });
    assert_eq!(host.store().read("/counter").unwrap().unwrap(), "200");
}

#[test]
fn a_client_that_breaks_the_protocol_is_cut_off() {
    let host = TestHost::start();
    let mut stream = UnixStream::connect(host.dir.join("xenstored.sock")).unwrap();
    let header: Vec<u8> = [2u32, 0, 0, 5000]
        .iter()
        .flat_map(|w| w.to_ne_bytes())
        .collect();
    stream.write_all(&header).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
    // An unknown operation only gets an error.
    let mut stream = UnixStream::connect(host.dir.join("xenstored.sock")).unwrap();
    let header: Vec<u8> = [99u32, 7, 0, 0]
        .iter()
        .flat_map(|w| w.to_ne_bytes())
        .collect();
    stream.write_all(&header).unwrap();
    let mut reply = [0; 23];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[0], 16);
    assert_eq!(reply[4], 7);
    assert_eq!(&reply[16..], b"ENOSYS\0");
    assert!(
        host.store()
            .next_event(soon() - std::time::Duration::from_secs(20))
            .unwrap()
            .is_none()
    );
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! Grants: mapped, copied, refused, revoked, and left behind by the dead.

mod common;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::TestHost;
use xen::{
    Access, Backend, CopyBuffer, CopyOp, CopyStatus, DomId, EventChannel, GrantError, GrantRef,
    Guest, Mapping, PAGE_SIZE,
};
use xen_sim::{SimGuest, SimXen};

fn refused<T: std::fmt::Debug>(result: Result<T, GrantError>) -> i16 {
    match result {
        Err(GrantError::Refused { status, .. }) => status,
        other => panic!("{other:?}"),
    }
}

#[test]
fn both_sides_see_one_memory() {
    let host = TestHost::start();
    let guest = host.guest("guest");
    let xen = SimXen::connect(&host.dir).unwrap();
    let (pages, mut refs) = guest.grant_pages(DomId(0), 3, Access::ReadWrite).unwrap();
    refs.reverse();
    let mapping = xen.map(guest.domid(), &refs, Access::ReadWrite).unwrap();
    assert_eq!(mapping.len_bytes(), 3 * PAGE_SIZE);
    // Across the boundary of the last two of the backend's pages: the guest's first two.
    let data: Vec<u8> = (0..100).collect();
    mapping.write(2 * PAGE_SIZE - 50, &data);
    let mut seen = vec![0; 50];
    pages.read(2 * PAGE_SIZE - 50, &mut seen);
    assert_eq!(seen, data[..50]);
    pages.read(0, &mut seen);
    assert_eq!(seen, data[50..]);
    pages.store_release(PAGE_SIZE + 8, 0x1234_5678);
    assert_eq!(mapping.load_acquire(PAGE_SIZE + 8), 0x1234_5678);
}

#[test]
fn a_grant_in_use_cannot_be_revoked() {
    let host = TestHost::start();
    let guest = host.guest("guest");
    let xen = SimXen::connect(&host.dir).unwrap();
    let (pages, refs) = guest.grant_pages(DomId(0), 1, Access::ReadWrite).unwrap();
    let first = xen.map(guest.domid(), &refs, Access::ReadWrite).unwrap();
    let second = xen.map(guest.domid(), &refs, Access::ReadOnly).unwrap();
    drop(first);
    assert!(!guest.end_access(pages));
    drop(second);
    let (pages, refs) = guest.grant_pages(DomId(0), 1, Access::ReadWrite).unwrap();
    drop(xen.map(guest.domid(), &refs, Access::ReadWrite).unwrap());
    assert!(guest.end_access(pages));
    assert_eq!(refused(xen.map(guest.domid(), &refs, Access::ReadOnly)), -1);
}

#[test]
fn what_xen_refuses_is_refused() {
    let host = TestHost::start();
    let guest = host.guest("guest");
    let xen = SimXen::connect(&host.dir).unwrap();
    let domid = guest.domid();
    let map = |gref| refused(xen.map(domid, &[gref], Access::ReadWrite));
    assert_eq!(map(GrantRef(9)), -1);
    assert_eq!(map(GrantRef(1 << 20)), -3);
    let (_other, to_other) = guest.grant_pages(DomId(7), 1, Access::ReadWrite).unwrap();
    assert_eq!(map(to_other[0]), -1);
    let (_readable, read_only) = guest.grant_pages(DomId(0), 1, Access::ReadOnly).unwrap();
    assert_eq!(map(read_only[0]), -1);
    xen.map(domid, &read_only, Access::ReadOnly).unwrap();
    assert_eq!(
        refused(xen.map(DomId(999), &read_only, Access::ReadOnly)),
        -2
    );
    // One bad reference spoils the call and leaves nothing mapped.
    let (pages, good) = guest.grant_pages(DomId(0), 1, Access::ReadWrite).unwrap();
    let refs = [good[0], GrantRef(9)];
    assert_eq!(refused(xen.map(domid, &refs, Access::ReadWrite)), -1);
    assert!(guest.end_access(pages));
}

#[test]
fn copies_have_a_status_for_each_segment() {
    let host = TestHost::start();
    let guest = host.guest("guest");
    let xen = SimXen::connect(&host.dir).unwrap();
    let domid = guest.domid();
    let (pages, refs) = guest.grant_pages(DomId(0), 2, Access::ReadWrite).unwrap();
    let (_readable, read_only) = guest.grant_pages(DomId(0), 1, Access::ReadOnly).unwrap();
    pages.write(PAGE_SIZE, b"from the guest");
    let mut got = [0; 14];
    let pending = CopyStatus::Pending;
    let too_long = [0; 100];
    let mut ops = [
        CopyOp {
            gref: refs[0],
            offset: 4093,
            buffer: CopyBuffer::ToGuest(b"abc"),
            status: pending,
        },
        CopyOp {
            gref: GrantRef(5000),
            offset: 0,
            buffer: CopyBuffer::ToGuest(b"x"),
            status: pending,
        },
        CopyOp {
            gref: read_only[0],
            offset: 0,
            buffer: CopyBuffer::ToGuest(b"x"),
            status: pending,
        },
        CopyOp {
            gref: refs[0],
            offset: 4000,
            buffer: CopyBuffer::ToGuest(&too_long),
            status: pending,
        },
        CopyOp {
            gref: refs[1],
            offset: 0,
            buffer: CopyBuffer::FromGuest(&mut got),
            status: pending,
        },
    ];
    xen.copy(domid, &mut ops).unwrap();
    let statuses: Vec<CopyStatus> = ops.iter().map(|op| op.status).collect();
    assert_eq!(
        statuses,
        [
            CopyStatus::Done,
            CopyStatus::Refused(-1),
            CopyStatus::Refused(-1),
            CopyStatus::Refused(-10),
            CopyStatus::Done
        ]
    );
    assert_eq!(&got, b"from the guest");
    let mut written = [0; 3];
    pages.read(4093, &mut written);
    assert_eq!(&written, b"abc");
    assert!(guest.end_access(pages), "a copy left a grant in use");
}

#[test]
fn a_mapping_that_outlives_its_domain_is_a_violation() {
    let host = TestHost::start();
    let guest = host.guest("guest");
    let xen = SimXen::connect(&host.dir).unwrap();
    let domid = guest.domid();
    let (pages, refs) = guest.grant_pages(DomId(0), 2, Access::ReadWrite).unwrap();
    let mapping = xen.map(domid, &refs, Access::ReadWrite).unwrap();
    let port = guest.alloc_unbound(DomId(0)).unwrap();
    let channel = xen.bind_interdomain(domid, port.local_port()).unwrap();
    host.xl.destroy(domid).unwrap();
    // The memory stays as long as it is mapped.
    mapping.write(0, b"still there");
    assert_eq!(refused(xen.map(domid, &refs, Access::ReadOnly)), -2);
    let mut op = [CopyOp {
        gref: refs[0],
        offset: 0,
        buffer: CopyBuffer::ToGuest(b"x"),
        status: CopyStatus::Pending,
    }];
    xen.copy(domid, &mut op).unwrap();
    assert_eq!(op[0].status, CopyStatus::Refused(-2));
    let found = host.xl.violations().unwrap();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("2 grants still mapped"), "{found:?}");
    assert!(found[1].contains("event channel"), "{found:?}");
    let written = std::fs::read_to_string(host.dir.join("violations")).unwrap();
    assert_eq!(written.lines().count(), 2);
    drop((pages, port, guest));
    let found = host.stop();
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[2].contains("still mapped"), "{found:?}");
    drop((mapping, channel));
}

#[test]
fn rings_are_watched() {
    let host = TestHost::start();
    let guest = host.guest("guest");
    let xen = SimXen::connect(&host.dir).unwrap();
    let (pages, refs) = guest.grant_pages(DomId(0), 1, Access::ReadWrite).unwrap();
    let (req_prod, rsp_prod) = (0, 8);
    // About to wrap around.
    pages.store_release(req_prod, u32::MAX);
    pages.store_release(rsp_prod, u32::MAX);
    guest.register_rings(&pages).unwrap();
    let ring = xen.map(guest.domid(), &refs, Access::ReadWrite).unwrap();
    pages.store_release(req_prod, 3);
    ring.store_release(rsp_prod, 2);
    assert_eq!(host.xl.violations().unwrap(), Vec::<String>::new());
    ring.store_release(rsp_prod, 4);
    ring.store_release(rsp_prod, 3);
    ring.store_release(req_prod, 4);
    let found = host.xl.violations().unwrap();
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].contains("rsp_prod 4 ahead of req_prod 3"));
    assert!(found[1].contains("went back"));
    guest.report_violation("answered twice");
    assert_eq!(host.xl.violations().unwrap()[3], "answered twice");
    // The same frame, no longer a ring.
    drop(ring);
    assert!(guest.end_access(pages));
    let (_pages, refs) = guest.grant_pages(DomId(0), 1, Access::ReadWrite).unwrap();
    let data = xen.map(guest.domid(), &refs, Access::ReadWrite).unwrap();
    data.store_release(rsp_prod, 100);
    assert_eq!(host.xl.violations().unwrap().len(), 4);
}

#[test]
fn dom0_reads_the_table_and_maps_without_a_grant() {
    let host = TestHost::start();
    let guest = host.guest("guest");
    let xen = SimXen::connect(&host.dir).unwrap();
    let domid = guest.domid();
    let (pages, refs) = guest.grant_pages(DomId(0), 1, Access::ReadWrite).unwrap();
    let frame = xen.granted_frame(domid, refs[0]).unwrap().unwrap();
    assert_eq!(xen.granted_frame(domid, GrantRef(5000)).unwrap(), None);
    let foreign = xen.map_foreign(domid, &[frame], Access::ReadWrite).unwrap();
    foreign.write(0, b"foreign");
    let mut seen = [0; 7];
    pages.read(0, &mut seen);
    assert_eq!(&seen, b"foreign");
    // It is no use of the grant.
    assert!(guest.end_access(pages));
    assert!(
        xen.map_foreign(domid, &[1 << 20], Access::ReadOnly)
            .is_err()
    );
}

const CHILD: &str = "XEN_SIM_TEST_CHILD";

/// Not a test by itself: the backend that `a_killed_backend_leaves_nothing` kills.
#[test]
fn child_backend() {
    let Ok(arguments) = std::env::var(CHILD) else {
        return;
    };
    let fields: Vec<&str> = arguments.split(' ').collect();
    let number = |i: usize| fields[i].parse::<u32>().unwrap();
    let domid = DomId(number(1) as u16);
    let xen = SimXen::connect(&PathBuf::from(fields[0])).unwrap();
    let refs = [GrantRef(number(2)), GrantRef(number(3))];
    let mapping = xen.map(domid, &refs, Access::ReadWrite).unwrap();
    let channel = xen
        .bind_interdomain(domid, xen::EvtchnPort(number(4)))
        .unwrap();
    mapping.write(0, b"from the child");
    channel.notify().unwrap();
    println!("\nbound");
    let data = [7; PAGE_SIZE];
    loop {
        // Killed, most likely, with the table's lock held.
        let mut ops = refs.map(|gref| CopyOp {
            gref,
            offset: 0,
            buffer: CopyBuffer::ToGuest(&data),
            status: CopyStatus::Pending,
        });
        xen.copy(domid, &mut ops).unwrap();
    }
}

fn spawn_child(guest: &SimGuest, refs: &[GrantRef], port: xen::EvtchnPort) -> std::process::Child {
    let dir = guest.host_dir();
    let arguments = format!(
        "{} {} {} {} {port}",
        dir.display(),
        guest.domid(),
        refs[0],
        refs[1]
    );
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "child_backend",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(CHILD, arguments)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "bound"));
    child
}

#[test]
fn a_killed_backend_leaves_nothing() {
    let host = TestHost::start();
    let guest = host.guest("guest");
    let (pages, refs) = guest.grant_pages(DomId(0), 2, Access::ReadWrite).unwrap();
    let port = guest.alloc_unbound(DomId(0)).unwrap();
    let survivor = SimXen::connect(&host.dir).unwrap();
    for round in 0..8 {
        let mut child = spawn_child(&guest, &refs, port.local_port());
        // Another backend's use of the same grant must outlive the child.
        let kept = survivor
            .map(guest.domid(), &refs[1..], Access::ReadWrite)
            .unwrap();
        assert!(
            survivor
                .bind_interdomain(guest.domid(), port.local_port())
                .is_err()
        );
        child.kill().unwrap();
        child.wait().unwrap();
        // The port becomes free when the host has noticed.
        let rebound = std::iter::repeat_with(|| {
            std::thread::yield_now();
            survivor.bind_interdomain(guest.domid(), port.local_port())
        })
        .take(1_000_000)
        .find_map(Result::ok);
        assert!(rebound.is_some(), "round {round}");
        kept.write(0, b"still mapped");
        drop(kept);
    }
    let (more, _) = guest.grant_pages(DomId(0), 1, Access::ReadWrite).unwrap();
    assert!(guest.end_access(more));
    // The tables are put right shortly after the port.
    let released = (0..1_000_000).any(|_| {
        std::thread::yield_now();
        survivor
            .map(guest.domid(), &refs, Access::ReadWrite)
            .is_ok()
    });
    assert!(released);
    drop(port);
    host.xl.destroy(guest.domid()).unwrap();
    assert_eq!(host.xl.violations().unwrap(), Vec::<String>::new());
    drop(pages);
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! Event channels.

mod common;

use std::os::fd::{AsFd, AsRawFd};

use common::TestHost;
use xen::{Backend, DomId, EventChannel, EvtchnPort, Guest};
use xen_sim::SimXen;

/// Whether the channel's descriptor polls readable within `timeout_ms`.
fn readable(channel: &impl AsFd, timeout_ms: i32) -> bool {
    let mut poll = libc::pollfd {
        fd: channel.as_fd().as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid pollfd.
    unsafe { libc::poll(&mut poll, 1, timeout_ms) == 1 }
}

#[test]
fn events_go_both_ways_and_coalesce() {
    let host = TestHost::start();
    let guest = host.guest("guest");
    let xen = SimXen::connect(&host.dir).unwrap();
    let front = guest.alloc_unbound(DomId(0)).unwrap();
    // Before anyone is there: lost, but for the event that every binding starts with.
    front.notify().unwrap();
    front.notify().unwrap();
    let back = xen
        .bind_interdomain(guest.domid(), front.local_port())
        .unwrap();
    assert!(readable(&back, 0));
    assert!(back.take_event().unwrap());
    assert!(!back.take_event().unwrap());
    assert!(!readable(&back, 0));
    assert!(!readable(&front, 0));
    for _ in 0..1000 {
        front.notify().unwrap();
    }
    assert!(readable(&back, 0));
    assert!(back.take_event().unwrap());
    assert!(!back.take_event().unwrap());
    back.notify().unwrap();
    assert!(readable(&front, 0));
    assert!(front.take_event().unwrap());
    assert!(!front.take_event().unwrap());
    // Taken and fired again.
    back.notify().unwrap();
    assert!(readable(&front, 0));
}

#[test]
fn a_port_is_bound_once_and_again_after_the_peer_has_closed() {
    let host = TestHost::start();
    let guest = host.guest("guest");
    let xen = SimXen::connect(&host.dir).unwrap();
    let domid = guest.domid();
    let front = guest.alloc_unbound(DomId(0)).unwrap();
    let port = front.local_port();
    let back = xen.bind_interdomain(domid, port).unwrap();
    let twice = xen.bind_interdomain(domid, port).unwrap_err();
    assert_eq!(twice.raw_os_error(), Some(libc::EINVAL));
    drop(back);
    // Nobody listens: no error, no trace.
    front.notify().unwrap();
    let back = xen.bind_interdomain(domid, port).unwrap();
    assert!(back.take_event().unwrap());
    front.notify().unwrap();
    assert!(back.take_event().unwrap());
    drop(front);
    back.notify().unwrap();
    assert!(xen.bind_interdomain(domid, port).is_err());
    assert!(xen.bind_interdomain(domid, EvtchnPort(1000)).is_err());
    let gone = xen.bind_interdomain(DomId(999), port).unwrap_err();
    assert_eq!(gone.raw_os_error(), Some(libc::ESRCH));
    // A port for another domain is not for dom0.
    let other = guest.alloc_unbound(DomId(5)).unwrap();
    assert!(xen.bind_interdomain(domid, other.local_port()).is_err());
}

#[test]
fn spurious_events_come() {
    let host = TestHost::with(|options| options.spurious_per_s = 1000);
    let guest = host.guest("guest");
    let xen = SimXen::connect(&host.dir).unwrap();
    let front = guest.alloc_unbound(DomId(0)).unwrap();
    let back = xen
        .bind_interdomain(guest.domid(), front.local_port())
        .unwrap();
    back.take_event().unwrap();
    for _ in 0..3 {
        assert!(readable(&front, 20_000));
        assert!(front.take_event().unwrap());
        assert!(readable(&back, 20_000));
        assert!(back.take_event().unwrap());
    }
}

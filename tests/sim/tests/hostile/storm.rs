// SPDX-License-Identifier: GPL-3.0-or-later
//! A guest that does not stop: it scribbles, floods, never reads its answers, revokes its pages,
//! reconnects for ever. `vusbd` stays up and small, its log readable, and the guest beside it at work.

use sim_scenarios::random::Random;

use crate::frontend::{CONTROL, IN, Raw, SLOT};
use crate::scene::Scene;

/// More than this is not noise of the allocator any more.
const GROWTH_KIB: u64 = 8 * 1024;
/// Lines that one guest may cause: a burst, what is refilled meanwhile, and everybody else's.
const LINES: usize = 400;

/// The seed: of the environment's `SEED`, to run a failure again.
fn seed() -> u64 {
    let seed = std::env::var("SEED").map_or(7, |s| s.parse().expect("SEED is a number"));
    println!("SEED={seed}");
    seed
}

/// What a guest may do to the daemon's memory and log.
struct Bounds {
    rss_kib: u64,
}

impl Bounds {
    fn of(scene: &Scene) -> Self {
        Self {
            rss_kib: scene.rig.hosts[0].vusbd_rss_kib().unwrap(),
        }
    }

    fn hold(&self, scene: &Scene) {
        let host = &scene.rig.hosts[0];
        let now = host.vusbd_rss_kib().unwrap();
        assert!(
            now < self.rss_kib + GROWTH_KIB,
            "vusbd had {} KiB and has {now} KiB",
            self.rss_kib
        );
        let lines = host.vusbd_log().lines().count();
        assert!(lines < LINES, "{lines} lines in vusbd's log");
    }
}

#[test]
fn scribbling_while_the_backend_reads() {
    let seed = seed();
    for round in 0..4 {
        let mut scene = Scene::new();
        let bounds = Bounds::of(&scene);
        let hostile = &mut scene.hostile;
        let mut random = Random::new(seed + round);
        for i in 0..20_000u32 {
            let mut bytes = [0; 8];
            random.fill(&mut bytes);
            // Every second round leaves the indices alone but for a producer that moves on.
            let from = if round % 2 == 0 { 0 } else { 64 };
            let at = from + random.next_u64() as usize % (64 + 16 * SLOT - from - 8);
            hostile.scribble(at, &bytes);
            if i % 16 == 0 {
                match round % 2 {
                    0 => hostile.notify(),
                    _ => hostile.show(i / 16),
                }
            }
        }
        scene.neighbour_is_well();
        bounds.hold(&scene);
        scene.end();
    }
}

#[test]
fn answers_that_are_never_read() {
    let mut scene = Scene::new();
    let bounds = Bounds::of(&scene);
    let request = Raw {
        id: 1,
        pipe: CONTROL | IN | 3,
        ..Raw::default()
    };
    scene.hostile.push(&vec![request; 16]);
    for _ in 0..50_000 {
        scene.hostile.notify();
    }
    scene.neighbour_is_well();
    bounds.hold(&scene);
    scene.end();
}

#[test]
fn pages_revoked_while_they_are_used() {
    let mut scene = Scene::new();
    let bounds = Bounds::of(&scene);
    for _ in 0..2_000 {
        let (page, gref) = scene.hostile.page();
        scene.hostile.push(&[Raw::descriptor(gref)]);
        scene.hostile.revoke(page);
        assert_eq!(scene.hostile.answer().id, 1);
    }
    scene.neighbour_is_well();
    bounds.hold(&scene);
    scene.end();
}

#[test]
fn reconnecting_for_ever() {
    let mut scene = Scene::new();
    let bounds = Bounds::of(&scene);
    for _ in 0..40 {
        scene.hostile.reconnect();
    }
    scene.neighbour_is_well();
    bounds.hold(&scene);
    scene.end();
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! A guest that gives its device an address and moves at once.

use std::time::{Duration, Instant};

use frontend_shim::{Target, Urb};
use sim_scenarios::programs;
use sim_scenarios::rig::RigOptions;
use sim_scenarios::scene::{LIMIT, Scene};
use usbif::{DeviceAddress, Setup, UrbKind};

/// `xl migrate` while the guest does nothing but follow.
fn follow(scene: &mut Scene) {
    let Scene {
        rig,
        domain,
        kernel,
        ..
    } = scene;
    std::thread::scope(|scope| {
        let rig = &*rig;
        let migration = scope.spawn(move || domain.travel(rig, false));
        let deadline = Instant::now() + LIMIT;
        while !kernel.suspend_requested().unwrap() {
            assert!(Instant::now() < deadline, "{}", rig.log_tails());
            kernel.host().wait(Duration::from_millis(1)).unwrap();
        }
        kernel.acknowledge_suspend().unwrap();
        kernel.freeze().unwrap();
        assert!(!kernel.suspend(|_| ()).unwrap());
        migration.join().unwrap().unwrap();
    });
}

/// The word of the address is lost on the way to the exporter, which the next host asks. The guest has no
/// answer until it is there; and from then on it may go anywhere.
#[test]
fn an_address_is_known_wherever_the_guest_goes() {
    programs::build().unwrap();
    let mut options = RigOptions {
        devices: "[[simulated]]\nkind = \"serial\"\n".into(),
        ..RigOptions::default()
    };
    let proxy = options.cuttable().unwrap();
    let _second = options.second_host_cuttable().unwrap();
    let mut scene = Scene::with(&options).unwrap();
    let at = scene.plug("0-2", 1).unwrap().target;
    let new = Target {
        address: DeviceAddress::new(99).unwrap(),
        ..at
    };
    let setup = Setup::new(0, Setup::SET_ADDRESS, 99, 0, 0);
    proxy.set_swallowing(true);
    let urb = Urb {
        target: at,
        endpoint: 0,
        kind: UrbKind::Control { setup },
        data: None,
        short_not_ok: false,
        tag: 0,
    };
    let host = scene.kernel.host();
    host.submit(&urb).unwrap();
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        host.wait(Duration::from_millis(10)).unwrap();
        let answer = host.next_completion();
        assert!(answer.is_none(), "nobody knows it yet: {answer:?}");
    }
    proxy.set_swallowing(false);
    let answer = scene.kernel.completion(LIMIT).unwrap();
    assert_eq!(answer.result, Ok(()));
    follow(&mut scene);
    let descriptor = Setup::new(0x80, 6, 0x0100, 0, 0);
    let there = scene.control_in(new, descriptor, 18).unwrap();
    assert_eq!(there.map(|d| d.len()), Ok(18), "{}", scene.rig.log_tails());
    assert_eq!(scene.kernel.host().counters().disconnects, 0);
    scene.end().unwrap();
}

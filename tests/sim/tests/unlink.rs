// SPDX-License-Identifier: GPL-3.0-or-later
//! A guest takes its transfers back while their exporter is away: it waits for that once, not once for each.

use std::time::{Duration, Instant};

use sim_scenarios::programs;
use sim_scenarios::scene::Scene;
use usbif::UrbKind;

const PLACE: &str = "0-2";
const REPORTS: u8 = 0x81;
const URBS: usize = 8;
/// Many times what all of them together may take, and what three took, each for itself.
const ALL_WITHIN: Duration = Duration::from_secs(20);

#[test]
fn a_guest_waits_once_for_an_exporter_that_is_away() {
    programs::build().unwrap();
    let mut scene = Scene::start("[[simulated]]\nkind = \"keyboard\"\n").unwrap();
    let device = scene.plug(PLACE, 1).unwrap();
    let mut urbs = Vec::new();
    for _ in 0..URBS {
        let data = scene.kernel.host().alloc_buffer(8).unwrap().slice(0, 8);
        let kind = UrbKind::Interrupt { interval: 8 };
        urbs.push(scene.submit(device.target, REPORTS, kind, data).unwrap());
    }
    scene.wait_for_waiting(PLACE, REPORTS, URBS).unwrap();
    scene.rig.exporter.kill().unwrap();
    let start = Instant::now();
    // As usb_kill_urb does: the next one when this one is over.
    for urb in urbs {
        assert!(scene.kernel.host().unlink(urb));
        let over = scene.kernel.completion(ALL_WITHIN).unwrap();
        assert_eq!(over.urb, urb);
        assert!(over.result.is_err(), "{over:?}");
    }
    let took = start.elapsed();
    assert!(took < ALL_WITHIN, "{URBS} transfers took {took:?}");
    println!("{URBS} transfers were over after {took:?}");
    scene.rig.exporter.start_again().unwrap();
    scene.end().unwrap();
}

// SPDX-License-Identifier: GPL-3.0-or-later
//! Controllers of USB 1.1, and such as no toolstack makes.

use control::{Attachment, Response};
use sim_scenarios::programs;
use sim_scenarios::rig::{Rig, RigOptions};
use xen_sim::toolstack::{DomainConfig, UsbController};

fn rig() -> Rig {
    programs::build().unwrap();
    Rig::start(&RigOptions {
        devices: "[[simulated]]\nkind = \"keyboard\"\n".into(),
        ..RigOptions::default()
    })
    .unwrap()
}

fn with_controllers(versions: &[u8]) -> DomainConfig {
    let controller = |&version| UsbController { version, ports: 2 };
    DomainConfig {
        usbctrl: versions.iter().map(controller).collect(),
        ..DomainConfig::new("guest")
    }
}

fn attach(rig: &Rig, arguments: &[&str]) -> Result<Attachment, String> {
    match rig.xl_vusb_json(0, &[&["attach", "guest"], arguments].concat()) {
        Ok(Response::Attached(attachment)) => Ok(*attachment),
        Ok(other) => panic!("{other:?}"),
        Err(e) => Err(e.to_string()),
    }
}

#[test]
fn a_high_speed_device_is_not_for_a_usb_1_1_controller() {
    let rig = rig();
    let domid = rig.hosts[0].xl.create(&with_controllers(&[1])).unwrap();
    for arguments in [
        &["exporter/0-1"][..],
        &["exporter/0-1", "--controller", "0"],
    ] {
        let refused = attach(&rig, arguments).unwrap_err();
        assert!(refused.contains("type=pv version=2 ports=4"), "{refused}");
    }
    rig.wait_until_free().unwrap();
    // A keyboard is slower.
    assert_eq!(attach(&rig, &["exporter/0-2"]).unwrap().controller, 0);
    rig.hosts[0].xl.destroy(domid).unwrap();
    assert_eq!(rig.stop().unwrap(), Vec::<String>::new());
}

#[test]
fn a_device_goes_to_a_controller_that_can_have_it() {
    let rig = rig();
    let domid = rig.hosts[0].xl.create(&with_controllers(&[1, 2])).unwrap();
    assert_eq!(attach(&rig, &["exporter/0-1"]).unwrap().controller, 1);
    assert_eq!(attach(&rig, &["exporter/0-2"]).unwrap().controller, 0);
    rig.hosts[0].xl.destroy(domid).unwrap();
    assert_eq!(rig.stop().unwrap(), Vec::<String>::new());
}

/// As QEMU's backend does, but at once.
#[test]
fn a_controller_of_no_known_version_is_refused() {
    let rig = rig();
    let refused = rig.hosts[0].xl.create(&with_controllers(&[3])).unwrap_err();
    let log = rig.hosts[0].vusbd_log();
    assert!(log.contains("usb-ver not 1 or 2"), "{refused}\n{log}");
    assert_eq!(rig.stop().unwrap(), Vec::<String>::new());
}

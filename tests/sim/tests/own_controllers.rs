// SPDX-License-Identifier: GPL-3.0-or-later
//! PV USB controllers that vusbd makes, in domains whose toolstack makes none.

use std::time::{Duration, Instant};

use control::{Controller, Response};
use frontend_shim::ResumeMode;
use sim_scenarios::guest::{Kernel, Serial, UnlinkedData, Workload};
use sim_scenarios::programs;
use sim_scenarios::random::Seed;
use sim_scenarios::rig::{Domain, Rig, RigOptions};
use usbif::PortNumber;
use xen::DomId;
use xen_sim::toolstack::{DomainConfig, UsbController};

const SERIAL: &str = "0-2";
const DEVID: u16 = 64;
/// Only what has failed waits for it.
const LIMIT: Duration = Duration::from_secs(20);

fn rig() -> Rig {
    programs::build().unwrap();
    let options = RigOptions {
        devices: "[[simulated]]\nkind = \"serial\"\n".into(),
        ..RigOptions::default()
    };
    Rig::start(&options).unwrap()
}

/// A running domain whose toolstack has made no controller.
fn domain(rig: &Rig) -> Domain {
    let mut config = DomainConfig::new("guest");
    config.usbctrl.clear();
    let domid = rig.hosts[0].xl.create(&config).unwrap();
    rig.hosts[0].xl.unpause(domid).unwrap();
    Domain {
        name: config.name,
        host: 0,
        domid,
    }
}

fn add(rig: &Rig, arguments: &[&str]) -> Result<Controller, String> {
    let arguments = [&["controller", "add"], arguments].concat();
    match rig.xl_vusb_json(0, &arguments) {
        Ok(Response::ControllerAdded(controller)) => Ok(*controller),
        Ok(other) => panic!("{other:?}"),
        Err(e) => Err(format!("{e:#}")),
    }
}

fn list(rig: &Rig, host: usize) -> Vec<Controller> {
    match rig.xl_vusb_json(host, &["controller", "list"]).unwrap() {
        Response::Controllers(controllers) => controllers,
        other => panic!("{other:?}"),
    }
}

/// Until nothing is left of a domain's controllers in a host's xenstore.
fn wait_until_removed(rig: &Rig, host: usize, domid: DomId) {
    let path = format!("/local/domain/0/backend/vusb/{domid}");
    let start = Instant::now();
    loop {
        let left = rig.hosts[host].xl.store().unwrap().directory(&path);
        let left = left.unwrap_or_default();
        if left.is_empty() {
            return;
        }
        assert!(start.elapsed() < LIMIT, "{left:?}\n{}", rig.log_tails());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_controller_of_our_own_goes_with_its_vm() {
    let rig = rig();
    let mut domain = domain(&rig);
    let refused = domain.attach(&rig, SERIAL, 1).unwrap_err().to_string();
    assert!(refused.contains("xl usbctrl-attach guest"), "{refused}");
    assert!(
        refused.contains("xl-vusb controller add guest"),
        "{refused}"
    );

    let made = add(&rig, &["guest", "--ports", "3"]).unwrap();
    assert_eq!(
        (made.controller, made.ports, made.usb_version),
        (DEVID, 3, 2)
    );
    let dir = rig.hosts[0].dir();
    let mut kernel =
        Kernel::boot_with(dir, domain.domid, DEVID.into(), ResumeMode::Recall).unwrap();
    domain.attach(&rig, SERIAL, 2).unwrap();
    let port = PortNumber::new(2).unwrap();
    kernel.host().wait_for_device(port, LIMIT).unwrap();
    while kernel.host().next_port_change().is_some() {}
    let device = kernel.host().enumerate(port).unwrap();
    let seed = Seed::new().random(1).next_u64();
    let serial = Serial::open(kernel.host(), &device, seed, UnlinkedData::Taken).unwrap();
    let streamed = serial.streamed();
    let workload = Workload::start(kernel, vec![Box::new(serial)]);
    let shared = workload.shared().clone();
    let mut old = Vec::new();
    for round in 0..6_u64 {
        let goal = streamed.lock().unwrap().received + 2000;
        let moved = workload
            .wait_until("bytes came back", || {
                streamed.lock().unwrap().received >= goal
            })
            .and_then(|()| {
                if round == 2 {
                    rig.hosts[domain.host].restart_vusbd()?;
                }
                old.push((domain.host, domain.domid));
                domain.travel(&rig, round % 3 == 1)?;
                workload.wait_until("the suspend was over", || shared.suspends() == round + 1)
            });
        if let Err(e) = moved {
            panic!("round {round}: {e:#}\n{}", rig.log_tails());
        }
        assert_eq!(list(&rig, domain.host)[0].ports, 3);
    }
    shared.set_quiet(true);
    let so_far = || streamed.lock().unwrap().received;
    workload
        .wait_while("every byte had come back", so_far, || {
            let streamed = streamed.lock().unwrap();
            streamed.received >= streamed.sent && streamed.sent > 0
        })
        .unwrap();
    let kernel = workload.finish().unwrap();
    let streamed = streamed.lock().unwrap();
    assert_eq!(
        (streamed.lost, streamed.dropped, shared.disconnects()),
        (0, 0, 0),
        "{streamed:?}"
    );
    old.push((domain.host, domain.domid));
    domain.end(&rig, kernel).unwrap();
    for (host, domid) in old {
        wait_until_removed(&rig, host, domid);
    }
    assert_eq!(rig.stop().unwrap(), Vec::<String>::new());
}

#[test]
fn what_cannot_be_made_or_removed_is_refused_with_a_reason() {
    let rig = rig();
    let domain = domain(&rig);
    let has = |result: Result<Controller, String>, text: &str| {
        let refused = result.unwrap_err();
        assert!(refused.contains(text), "{refused}");
    };
    has(add(&rig, &["0"]), "domain 0 has no PV USB");
    has(add(&rig, &["nobody"]), "no domain 'nobody'");
    for wrong in [
        ["guest", "--ports", "32"],
        ["guest", "--ports", "0"],
        ["guest", "--usb", "3"],
        ["guest", "--devid", "63"],
    ] {
        let arguments = [&["controller", "add"], &wrong[..]].concat();
        let output = rig.xl_vusb(0, &arguments).unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
    assert_eq!(add(&rig, &["guest", "--usb", "1"]).unwrap().usb_version, 1);
    has(
        add(&rig, &["guest", "--devid", "64"]),
        "has a PV USB controller 64 already",
    );
    assert_eq!(add(&rig, &["guest"]).unwrap().controller, DEVID + 1);

    let xl = &rig.hosts[0].xl;
    // libxl looks for a free number where ours are not.
    let kernel = Kernel::boot_with(
        rig.hosts[0].dir(),
        domain.domid,
        DEVID.into(),
        ResumeMode::Recall,
    );
    let kernel = kernel.unwrap();
    let by_libxl = xl.usbctrl_attach(domain.domid, UsbController::default());
    assert_eq!(by_libxl.unwrap(), 0);
    let devids: Vec<_> = list(&rig, 0).iter().map(|c| c.controller).collect();
    assert_eq!(devids, [0, DEVID, DEVID + 1]);

    let remove = |devid: &str| {
        let output = rig.xl_vusb(0, &["controller", "remove", "guest", devid]);
        let output = output.unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), text)
    };
    let (status, text) = remove("0");
    assert_eq!(status, Some(1));
    assert!(text.contains("xl usbctrl-detach guest 0"), "{text}");
    let (status, text) = remove("70");
    assert_eq!(status, Some(1));
    assert!(text.contains("xl-vusb controller list"), "{text}");
    let device = format!("exporter/{SERIAL}");
    let port = [
        "attach",
        "guest",
        &device,
        "--controller",
        "64",
        "--port",
        "1",
    ];
    assert!(rig.xl_vusb(0, &port).unwrap().status.success());
    let (status, text) = remove("64");
    assert_eq!(status, Some(1));
    assert!(
        text.contains("xl-vusb detach --controller 64 guest 1"),
        "{text}"
    );
    let detach = ["detach", "--controller", "64", "guest", "1"];
    assert!(rig.xl_vusb(0, &detach).unwrap().status.success());
    for devid in ["65", "64"] {
        let removed = remove(devid);
        assert_eq!(removed, (Some(0), String::new()), "{}", rig.log_tails());
    }
    let devids: Vec<_> = list(&rig, 0).iter().map(|c| c.controller).collect();
    assert_eq!(devids, [0]);
    drop(kernel);
    xl.destroy(domain.domid).unwrap();
    wait_until_removed(&rig, 0, domain.domid);
}

/// A controller of a domain that was destroyed while nobody served it.
#[test]
fn a_vusbd_that_starts_removes_what_is_left_of_a_domain() {
    let rig = rig();
    let domain = domain(&rig);
    add(&rig, &["guest"]).unwrap();
    rig.hosts[0].kill_vusbd().unwrap();
    rig.hosts[0].xl.destroy(domain.domid).unwrap();
    let path = format!("/local/domain/0/backend/vusb/{}", domain.domid);
    let left = rig.hosts[0].xl.store().unwrap().directory(&path).unwrap();
    assert_eq!(left, ["64"]);
    rig.hosts[0].start_vusbd().unwrap();
    wait_until_removed(&rig, 0, domain.domid);
}

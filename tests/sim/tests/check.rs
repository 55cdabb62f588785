// SPDX-License-Identifier: GPL-3.0-or-later
//! `xl-vusb check`: what a migration would do on each host of the pool, from what the exporters know of them.

use std::time::{Duration, Instant};

use sim_scenarios::programs;
use sim_scenarios::rig::{Guest, GuestOptions, Rig, RigOptions};
use xen_sim::toolstack::DomainConfig;

/// Status, standard output and standard error of `xl-vusb`.
fn run(rig: &Rig, host: usize, arguments: &[&str]) -> (i32, String, String) {
    let output = rig.xl_vusb(host, arguments).unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let status = output.status.code().unwrap();
    (status, text(output.stdout), text(output.stderr))
}

/// Repeats a command until its output has all these parts.
fn wait_for(rig: &Rig, arguments: &[&str], parts: &[&str]) -> i32 {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let (status, out, err) = run(rig, 0, arguments);
        if parts.iter().all(|part| out.contains(part)) {
            return status;
        }
        assert!(Instant::now() < deadline, "{out}{err}\n{}", rig.log_tails());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn each_host_of_the_pool_has_a_line_and_the_worst_decides() {
    programs::build().unwrap();
    let options = RigOptions {
        devices: "[[simulated]]\nkind = \"keyboard\"\n".into(),
        policy: "[[allow]]\ndevice = \"0-1\"\nvm = \"*\"\nhost = \"*\"\n\
                 [[allow]]\ndevice = \"0-2\"\nvm = \"*\"\nhost = \"host-a\"\n"
            .into(),
        ..RigOptions::default()
    };
    let mut rig = Rig::start(&options).unwrap();
    let vm = GuestOptions::new("guest");
    let guest = Guest::start_working(&rig, &vm).unwrap();

    // The other host is connected, and has the version that we have.
    let version = env!("CARGO_PKG_VERSION");
    let (_, hosts, _) = run(&rig, 0, &["hosts"]);
    for host in ["host-a", "host-b"] {
        let line = format!("{host}  exporter  connected  {version}");
        assert!(hosts.contains(&line), "{hosts}");
    }
    let (status, out, _) = run(&rig, 0, &["check", "guest"]);
    assert_eq!(status, 0, "{out}");
    assert!(out.contains("host-b  connected  exporter/0-1"), "{out}");
    assert!(out.contains(" seamless "), "{out}");
    // Nothing is said of the host that it is on, unless it is asked for.
    assert!(!out.contains("host-a "), "{out}");
    let (status, out, _) = run(&rig, 0, &["check", "guest", "--to", "HOST-A"]);
    assert_eq!(status, 0, "{out}");
    assert!(out.contains("host-a  connected"), "{out}");

    // The policy lets only this host have the keyboard, and the VM has both devices.
    let (status, _, err) = run(&rig, 0, &["attach", "guest", "exporter/0-2"]);
    assert_eq!(status, 0, "{err}");
    let (status, out, _) = run(&rig, 0, &["check", "guest", "--quiet"]);
    assert_eq!(status, 1, "{out}");
    assert_eq!(out.lines().count(), 1, "{out}");
    for part in [
        "to host-b: exporter/0-2",
        "[[allow]]",
        "xl-vusb detach guest 2",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    assert_eq!(run(&rig, 0, &["detach", "guest", "2"]).0, 0);
    assert_eq!(run(&rig, 0, &["check", "guest"]).0, 0);

    // The VM is not here but there; nobody knows the host; nothing is attached; two have the name.
    let (status, _, err) = run(&rig, 1, &["check", "guest"]);
    assert_eq!(status, 1);
    assert!(err.contains("not run on this host but on host-a"), "{err}");
    // The same host, asked whether the VM would keep its device here.
    let vm_uuid = rig.status(0).unwrap().attachments[0].vm.to_string();
    let (status, out, err) = run(
        &rig,
        1,
        &["check", &vm_uuid, "--to", "host-b", "--toolstack", "xl"],
    );
    assert_eq!(status, 0, "{out}{err}");
    assert!(out.contains("host-b  connected  exporter/0-1"), "{out}");
    assert!(out.contains(" seamless "), "{out}");
    // libvirt makes no controller like the one that it has.
    let arrival = [
        "check",
        &vm_uuid,
        "--to",
        "host-b",
        "--toolstack",
        "libvirt",
        "-q",
    ];
    let (status, out, _) = run(&rig, 1, &arrival);
    assert_eq!(status, 1, "{out}");
    assert!(out.contains("`xl-vusb detach guest 1` on host-a"), "{out}");
    let nobody = "00000000-1111-2222-3333-444444444444";
    let (status, out, err) = run(&rig, 1, &["check", nobody, "--to", "host-b", "-q"]);
    assert_eq!((status, out.as_str()), (0, ""), "{err}");
    let (status, _, err) = run(&rig, 1, &["check", "nobody"]);
    assert_eq!(status, 1);
    assert!(err.contains("no domain 'nobody'"), "{err}");
    let (status, _, err) = run(&rig, 0, &["check", "guest", "--to", "host-x"]);
    assert_eq!(status, 1);
    for part in ["'host-x'", "Known: host-a, host-b"] {
        assert!(err.contains(part), "{part}: {err}");
    }
    let xl = &rig.hosts[0].xl;
    // libxl takes a name once; XAPI does not mind.
    let twin = xl.create(&DomainConfig::new("twin")).unwrap();
    let mut store = xl.store().unwrap();
    store
        .write(&format!("/local/domain/{twin}/name"), "guest")
        .unwrap();
    let (status, _, err) = run(&rig, 0, &["check", "guest"]);
    assert_eq!(status, 1, "{err}");
    for domid in [guest.domid, twin] {
        assert!(err.contains(&format!("domain {domid} (guest")), "{err}");
    }
    let (status, out, _) = run(&rig, 0, &["check", &twin.to_string()]);
    assert_eq!(status, 0, "{out}");
    assert!(out.contains("no devices attached"), "{out}");
    let (status, _, err) = run(&rig, 0, &["detach", "guest", "1"]);
    assert_eq!(status, 1, "{err}");
    xl.destroy(twin).unwrap();

    // A copy of the VM says where the device is, and that it has none to lose.
    let copy = Guest::start(&rig, 1, &vm).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let (status, out, _) = run(&rig, 1, &["check", "guest"]);
        // A guest that is still booting cannot be shut down.
        let serves = |c: &control::Controller| c.hand_off == "Serving";
        let booted = rig.status(1).unwrap().controllers.iter().any(serves);
        if booted && out.contains(" elsewhere ") {
            assert!(out.contains("runs at host-a"), "{out}");
            assert_eq!(status, 0, "{out}");
            break;
        }
        assert!(Instant::now() < deadline, "{out}\n{}", rig.log_tails());
        std::thread::sleep(Duration::from_millis(50));
    }
    copy.stop(&rig).unwrap();

    // A host that is not connected now, also for an exporter that was started again.
    rig.hosts[1].terminate_vusbd().unwrap();
    let gone = ["check", "guest"];
    let parts = [
        "host-b  last seen ",
        " refused ",
        "vusbd of host-b is not connected",
    ];
    assert_eq!(wait_for(&rig, &gone, &parts), 1);
    rig.exporter.restart().unwrap();
    assert_eq!(wait_for(&rig, &gone, &parts), 1);
    // It is gone for good.
    let (status, out, err) = run(&rig, 0, &["hosts", "forget", "host-b"]);
    assert_eq!(
        (status, out.as_str()),
        (0, "forgot host host-b at exporter\n"),
        "{err}"
    );
    let (status, out, _) = run(&rig, 0, &["check", "guest"]);
    assert_eq!(status, 1, "{out}");
    assert!(
        out.contains("no other host has ever been connected"),
        "{out}"
    );
    let (status, _, err) = run(&rig, 0, &["hosts", "forget", "host-b"]);
    assert_eq!(status, 1);
    assert!(err.contains("xl-vusb hosts"), "{err}");
    let (status, _, err) = run(&rig, 0, &["hosts", "forget", "host-a"]);
    assert_eq!(status, 1);
    assert!(err.contains("stop vusbd there"), "{err}");
    // Back again.
    rig.hosts[1].start_vusbd().unwrap();
    assert_eq!(
        wait_for(&rig, &gone, &["host-b  connected", " seamless "]),
        0
    );
    rig.end(guest);
}

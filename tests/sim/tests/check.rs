// SPDX-License-Identifier: GPL-3.0-or-later
//! `xl-vusb check`: what a migration would do on each host of the pool, from what the exporters know of them.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use sim_scenarios::programs;
use sim_scenarios::rig::{Guest, GuestOptions, Rig, RigOptions};
use xen_sim::toolstack::{Dialect, DomainConfig, MigrateOptions};

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

/// A hook of a toolstack at a host, as its script is installed; the host's `xl-vusb` is on its path.
fn hook(rig: &Rig, host: usize, script: &str, arguments: &[&str], input: &str) -> Output {
    let bin = rig.dir().join(format!("bin-{host}"));
    std::fs::create_dir_all(&bin).unwrap();
    let program = bin.join("xl-vusb");
    if !program.exists() {
        let text = format!(
            "#!/bin/sh\nexec {} --socket {} \"$@\"\n",
            programs::path("xl-vusb").unwrap().display(),
            rig.hosts[host].socket().display()
        );
        // A child writes it: see `xl-hooks/tests/command.rs`.
        let write = r#"printf '%s' "$1" >"$0" && chmod 755 "$0""#;
        let written = Command::new("sh")
            .args(["-c", write])
            .arg(&program)
            .arg(text)
            .status();
        assert!(written.unwrap().success());
    }
    let hooks = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../xl-hooks");
    let path = std::env::var("PATH").unwrap_or_default();
    let mut child = Command::new(hooks.join(script))
        .args(arguments)
        .env("PATH", format!("{}:{path}", bin.display()))
        .env("XEN_VUSB_XAPI_CONF", rig.dir().join("xapi.conf"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// The guest has gone on without noticing more than a pause.
fn moves_unnoticed(rig: &Rig, guest: &mut Guest) {
    let moved = rig.migrate(guest, 1, &MigrateOptions::default());
    moved.unwrap_or_else(|e| panic!("{e:?}\n{}", rig.log_tails()));
    assert!(!guest.wait_resumed().unwrap().0);
    guest.wait_commands(10).unwrap();
    let report = guest.report().unwrap();
    let noticed = (report.disconnects, report.errors, report.lost);
    assert_eq!(noticed, (0, 0, 0), "{report:?}\n{}", rig.log_tails());
}

#[test]
fn the_hook_of_xapi_lets_go_what_xenopsd_then_moves_unnoticed() {
    programs::build().unwrap();
    let options = RigOptions {
        dialect: Dialect::Xenopsd,
        ..RigOptions::default()
    };
    let rig = Rig::start(&options).unwrap();
    let mut guest = Guest::start_working(&rig, &GuestOptions::new("guest")).unwrap();
    let vm = rig.status(0).unwrap().attachments[0].vm.to_string();
    let pre_migrate = || {
        let arguments = ["-vmuuid", &vm, "-reason", "source"];
        let output = hook(&rig, 0, "xapi/vm-pre-migrate", &arguments, "");
        let said = String::from_utf8(output.stdout).unwrap();
        (output.status.code().unwrap(), said)
    };
    assert_eq!(pre_migrate(), (0, String::new()));
    // A host on which vusbd has never run.
    let conf = rig.dir().join("xapi.conf");
    std::fs::write(&conf, "hosts = host-b host-c\n").unwrap();
    let (status, said) = pre_migrate();
    assert_eq!(status, 2, "{said}");
    assert!(said.contains("no host 'host-c'"), "{said}");
    std::fs::write(&conf, "hosts = host-b\n").unwrap();
    // One on which it does not run now.
    rig.hosts[1].terminate_vusbd().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let said = loop {
        let (status, said) = pre_migrate();
        if status == 2 {
            break said;
        }
        assert!(Instant::now() < deadline, "{}", rig.log_tails());
        std::thread::sleep(Duration::from_millis(50));
    };
    for part in [
        "to host-b: exporter/0-1",
        "vusbd of host-b is not connected",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    rig.hosts[1].start_vusbd().unwrap();
    rig.wait_for_exporter().unwrap();
    assert_eq!(pre_migrate(), (0, String::new()));
    moves_unnoticed(&rig, &mut guest);
    rig.end_unnoticed(guest);
}

#[test]
fn the_hook_of_libvirt_lets_come_what_libvirt_then_moves_unnoticed() {
    programs::build().unwrap();
    let options = RigOptions {
        dialect: Dialect::Libvirt,
        ..RigOptions::default()
    };
    let rig = Rig::start(&options).unwrap();
    let mut guest = Guest::start_working(&rig, &GuestOptions::new("guest")).unwrap();
    let vm = rig.status(0).unwrap().attachments[0].vm;
    let xml =
        format!("<domain type='xen'>\n  <name>guest</name>\n  <uuid>{vm}</uuid>\n</domain>\n");
    let begin = || {
        let arguments = ["guest", "migrate", "begin", "-"];
        let output = hook(&rig, 1, "libvirt/libxl", &arguments, &xml);
        assert_eq!(output.stdout, b"");
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), said)
    };
    rig.hosts[1].terminate_vusbd().unwrap();
    let (status, said) = begin();
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("vusbd is not running"), "{said}");
    rig.hosts[1].start_vusbd().unwrap();
    rig.wait_for_exporter().unwrap();
    assert_eq!(begin(), (0, String::new()));
    moves_unnoticed(&rig, &mut guest);
    rig.end_unnoticed(guest);
}

/// `VM.other_config` with the real `vusbd`, and an `xe` that has one value.
#[test]
fn what_other_config_declares_is_attached_persistently_until_it_does_not() {
    programs::build().unwrap();
    let options = RigOptions {
        dialect: Dialect::Xenopsd,
        devices: "[[simulated]]\nkind = \"keyboard\"\nserial = \"K1\"\n".into(),
        ..RigOptions::default()
    };
    let rig = Rig::start(&options).unwrap();
    // The disk is attached by hand, and not persistently.
    let mut guest = Guest::start_working(&rig, &GuestOptions::new("guest")).unwrap();
    let vm = rig.status(0).unwrap().attachments[0].vm.to_string();
    let bin = rig.dir().join("xe-bin");
    std::fs::create_dir_all(&bin).unwrap();
    let value = rig.dir().join("value");
    let write = r#"printf '#!/bin/sh\nexec cat %s\n' "$1" >"$0" && chmod 755 "$0""#;
    let written = Command::new("sh")
        .args(["-c", write])
        .args([&bin.join("xe"), &value])
        .status();
    assert!(written.unwrap().success());
    let program = programs::path("xl-vusb").unwrap();
    let apply = |declared: &str| {
        std::fs::write(&value, format!("{declared}\n")).unwrap();
        let path = std::env::var("PATH").unwrap_or_default();
        let of_program = program.parent().unwrap().display();
        let output = Command::new(&program)
            .arg("--socket")
            .arg(rig.hosts[0].socket())
            .args(["apply-other-config", &vm])
            .env("PATH", format!("{}:{of_program}:{path}", bin.display()))
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let status = output.status.code().unwrap();
        (status, text(output.stdout), text(output.stderr))
    };
    let attached = || {
        let attachments = rig.status(0).unwrap().attachments;
        let all = attachments.iter().map(|a| a.device.id.to_string());
        all.collect::<Vec<_>>()
    };
    let (status, out, err) = apply("exporter/1209:0002:K1");
    assert_eq!(status, 0, "{out}{err}");
    assert!(out.contains("attached exporter/0-2"), "{out}");
    assert_eq!(attached(), ["0-1", "0-2"]);
    // There is nothing left to do.
    assert_eq!(
        apply("exporter/1209:0002:K1"),
        (0, String::new(), String::new())
    );
    // A slip of the pen ends nothing, nor does a device that is not there.
    for (bad, part) in [
        ("exporter/1209:0002:K1,disk", "nothing was changed"),
        ("exporter/1209:0002:K1,exporter/9-9", "9-9"),
    ] {
        let (status, _, err) = apply(bad);
        assert_eq!(status, 1, "{err}");
        assert!(err.contains(part), "{err}");
        assert_eq!(attached(), ["0-1", "0-2"]);
    }
    // Declared no more.
    let (status, out, err) = apply("");
    assert_eq!(status, 0, "{out}{err}");
    assert_eq!(attached(), ["0-1"]);
    guest.wait_commands(10).unwrap();
    // The one that went is the keyboard.
    let report = rig.end(guest);
    assert_eq!((report.errors, report.disconnects), (0, 1), "{report:?}");
}

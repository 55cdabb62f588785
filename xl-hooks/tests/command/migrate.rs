// SPDX-License-Identifier: GPL-3.0-or-later
//! `xl-vusb migrate` and the hooks around `xl migrate`.

use crate::*;

#[test]
fn migrate_runs_plain_xl_when_nothing_refuses() {
    let host = Host::new();
    host.program(
        "xl",
        &format!("echo \"$@\" >{}/called; exit 7", host.0.display()),
    );
    let daemon = host.daemon(check(Outcome::Replug));
    let output = host.xl_vusb(&["migrate", "web", "xen2", "--", "--debug", "-s", "ssh -p 2"]);
    // xl's own status is passed on.
    assert_eq!(status(&output), 7, "{}", stderr(&output));
    assert!(
        matches!(daemon.join().unwrap(), Request::Check { domain, toolstack: Some(Toolstack::Xl), .. } if domain == "web")
    );
    let called = fs::read_to_string(host.0.join("called")).unwrap();
    assert_eq!(called, "migrate --debug -s ssh -p 2 web xen2\n");
    assert!(stderr(&output).contains("replug"));
}

#[test]
fn migrate_does_not_start_what_a_device_refuses() {
    let host = Host::new();
    host.program("xl", &format!("touch {}/called", host.0.display()));
    let _daemon = host.daemon(check(Outcome::Refused));
    let output = host.xl_vusb(&["migrate", "web", "xen2"]);
    assert_eq!(status(&output), 1);
    assert_eq!(
        stderr(&output),
        "xl-vusb: web was not migrated; to xen2: pi4/1-1.2 (Kingston DataTraveler), controller 0 port 1: \
         its driver cannot resume: load xen-vusb-hcd in web\n"
    );
    assert!(!host.0.join("called").exists());
}

/// Only what is about the host that is meant counts, and of one that has another name in the pool only what is
/// so everywhere.
#[test]
fn migrate_looks_at_the_host_that_it_is_to_go_to() {
    let forecast = |hosts: &[(&str, Outcome)]| {
        let hosts: Vec<_> = hosts.iter().map(|(h, o)| on_host(h, *o)).collect();
        Response::Check(vec![Forecast {
            attachment: attachment(),
            outcome: hosts.iter().map(|h| h.outcome).max().unwrap(),
            reason: REASON.into(),
            hosts,
        }])
    };
    let mixed = [
        ("xen2.example.org", Outcome::Seamless),
        ("xen3", Outcome::Lost),
    ];
    let bad = [("xen2", Outcome::Refused), ("xen3", Outcome::Lost)];
    for (hosts, to, expected) in [
        (&mixed, "xen2", 0),
        (&mixed, "xen2.example.org", 0),
        (&mixed, "xen3", 1),
        (&mixed, "10.0.0.2", 0),
        (&bad, "10.0.0.2", 1),
    ] {
        let host = Host::new();
        host.program("xl", "exit 0");
        let _daemon = host.daemon(forecast(hosts));
        let output = host.xl_vusb(&["migrate", "web", to]);
        assert_eq!(status(&output), expected, "{to}: {}", stderr(&output));
        let other = stderr(&output).contains(" xen3") || stderr(&output).contains("\nxen3");
        assert_eq!(other, expected == 1, "{to}: {}", stderr(&output));
    }
}

/// Runs a hook as XAPI does; `xl-vusb` on its path is ours with the test's socket.
fn hook(host: &Host, name: &str, domid: Option<&str>) -> Output {
    host.program(
        "xl-vusb",
        &format!(
            "exec {} --socket {} \"$@\"",
            env!("CARGO_BIN_EXE_xl-vusb"),
            host.socket().display()
        ),
    );
    host.program("uname", "echo xen1");
    // A file of the machine that the tests run on is not ours.
    let conf = host.0.join("xapi.conf");
    host.program(
        "env-hook",
        &format!(
            "XEN_VUSB_XAPI_CONF={} exec {}/xapi/{name} \"$@\"",
            conf.display(),
            env!("CARGO_MANIFEST_DIR"),
        ),
    );
    let hook = host.0.join("bin/env-hook");
    let mut arguments = vec!["-vmuuid", VM, "-reason", "source"];
    if let Some(domid) = domid {
        arguments.extend(["-vmdomid", domid]);
    }
    host.run(hook, &arguments)
}

/// `xenstore-list` and `xenstore-read` over a tree of files.
fn xenstore(host: &Host, nodes: &[(&str, &str)]) {
    let tree = host.0.join("xenstore");
    for (node, value) in nodes {
        let node = tree.join(node);
        fs::create_dir_all(&node).unwrap();
        fs::write(node.join(".value"), value).unwrap();
    }
    let tree = tree.display();
    host.program("xenstore-list", &format!("exec ls {tree}$1"));
    host.program("xenstore-read", &format!("exec cat {tree}$1/.value"));
}

const CHECK: Request = Request::Check {
    domain: String::new(),
    toolstack: Some(Toolstack::Xapi),
    to: Vec::new(),
};

fn checked(request: Request) -> Request {
    match request {
        Request::Check {
            domain,
            toolstack,
            to,
        } if domain == VM => Request::Check {
            domain: String::new(),
            toolstack,
            to,
        },
        other => other,
    }
}

#[test]
fn the_pre_migrate_hook_aborts_what_would_be_lost_on_any_host() {
    let host = Host::new();
    let daemon = host.daemon(check(Outcome::Lost));
    let output = hook(&host, "vm-pre-migrate", None);
    assert_eq!(status(&output), 2);
    let text = stdout(&output);
    assert!(text.starts_with("xen-vusb: to xen2: pi4/1-1.2"), "{text}");
    assert!(text.contains(REASON), "{text}");
    assert_eq!(checked(daemon.join().unwrap()), CHECK);
}

#[test]
fn the_pre_migrate_hook_lets_go_what_is_safe_on_every_host() {
    for outcome in [Outcome::Seamless, Outcome::Replug, Outcome::Elsewhere] {
        let host = Host::new();
        let daemon = host.daemon(check(outcome));
        let output = hook(&host, "vm-pre-migrate", Some("5"));
        assert_eq!((status(&output), stdout(&output)), (0, ""), "{outcome}");
        assert_eq!(checked(daemon.join().unwrap()), CHECK);
    }
}

/// Else it is every host that an exporter knows.
#[test]
fn the_pre_migrate_hook_asks_about_the_hosts_of_its_configuration() {
    for text in [
        "hosts = xen2 xen3.example.org\n",
        "# where VMs go\n\nhosts=xen2\txen3.example.org",
    ] {
        let host = Host::new();
        fs::write(host.0.join("xapi.conf"), text).unwrap();
        let daemon = host.daemon(check(Outcome::Seamless));
        let output = hook(&host, "vm-pre-migrate", None);
        assert_eq!((status(&output), stdout(&output)), (0, ""), "{text}");
        let asked = daemon.join().unwrap();
        let Request::Check { domain, to, .. } = asked else {
            panic!("{asked:?}");
        };
        assert_eq!(domain, VM);
        assert_eq!(to, ["xen2", "xen3.example.org"]);
    }
}

/// It must not let go because of a slip of the pen, and asks nobody then.
#[test]
fn the_pre_migrate_hook_aborts_with_a_configuration_that_it_does_not_understand() {
    for (text, part) in [
        ("host = xen2\n", "not `hosts = NAME NAME …`"),
        ("hosts\n", "not `hosts = NAME NAME …`"),
        ("hosts = xen2\nhosts = xen3\n", "a second one: hosts = xen3"),
        ("hosts =\n", "names none"),
        ("hosts = xen2, xen3\n", "between spaces"),
        ("hosts = *\n", "between spaces"),
        ("hosts = $(touch called)\n", "between spaces"),
    ] {
        let host = Host::new();
        fs::write(host.0.join("xapi.conf"), text).unwrap();
        let output = hook(&host, "vm-pre-migrate", None);
        assert_eq!(status(&output), 2, "{text}");
        let said = stdout(&output);
        for part in [part, "xapi.conf on xen1"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}

#[test]
fn the_pre_migrate_hook_lets_go_a_vm_with_nothing_attached() {
    let host = Host::new();
    let daemon = host.daemon(Response::Check(vec![]));
    let output = hook(&host, "vm-pre-migrate", Some("5"));
    assert_eq!((status(&output), stdout(&output)), (0, ""));
    assert_eq!(checked(daemon.join().unwrap()), CHECK);
}

#[test]
fn the_pre_migrate_hook_aborts_where_vusbd_refuses_to_answer() {
    let host = Host::new();
    let _daemon = host.daemon(Response::Error("xenstore does not answer".into()));
    let output = hook(&host, "vm-pre-migrate", None);
    assert_eq!(status(&output), 2);
    assert!(stdout(&output).contains("xenstore does not answer"));
}

#[test]
fn without_vusbd_the_pre_migrate_hook_aborts_for_a_vm_with_a_controller() {
    let vm = format!("/vm/{VM}");
    let of_uuid = ("local/domain/7/vm", vm.as_str());
    let frontend = ("local/domain/7/device/vusb/0/state", "4");
    let backend = ("local/domain/0/backend/vusb/7/0/state", "4");
    let renamed = (
        "local/domain/7/vm",
        "/vm/00000000-0000-0000-0000-000000000000",
    );
    for (nodes, domid) in [
        (vec![of_uuid, frontend], None),
        (vec![of_uuid, frontend], Some("7")),
        // A guest may remove what is in its own directory.
        (vec![of_uuid, backend], None),
        // The domain's uuid is another one while XAPI migrates it.
        (vec![renamed, frontend], Some("7")),
    ] {
        let host = Host::new();
        xenstore(&host, &nodes);
        let output = hook(&host, "vm-pre-migrate", domid);
        let text = stdout(&output);
        assert_eq!(status(&output), 2, "{nodes:?}: {text}");
        for part in [
            "on xen1",
            "(domain 7)",
            "systemctl start vusbd",
            "xl-vusb detach",
            VM,
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

#[test]
fn without_vusbd_the_pre_migrate_hook_lets_go_a_vm_without_a_controller() {
    let host = Host::new();
    let vm = format!("/vm/{VM}");
    // Domain 8 has a controller, and is another VM.
    xenstore(
        &host,
        &[
            ("local/domain/7/vm", vm.as_str()),
            ("local/domain/7/device/vbd/51712/state", "4"),
            ("local/domain/8/device/vusb/0/state", "4"),
            ("local/domain/0/backend/vusb/8/0/state", "4"),
        ],
    );
    let output = hook(&host, "vm-pre-migrate", None);
    assert_eq!(status(&output), 1, "{}", stdout(&output));
    assert!(stdout(&output).contains("no PV USB controller"));
}

/// One that does not know what a forecast is about answers without hosts.
#[test]
fn the_pre_migrate_hook_takes_no_promise_of_an_earlier_vusbd() {
    let host = Host::new();
    let vm = format!("/vm/{VM}");
    xenstore(
        &host,
        &[
            ("local/domain/7/vm", vm.as_str()),
            ("local/domain/7/device/vusb/0/state", "4"),
        ],
    );
    let mut answer = serde_json::to_value(check(Outcome::Seamless)).unwrap();
    let forecast = answer["check"][0].as_object_mut().unwrap();
    forecast.remove("hosts").unwrap();
    let _daemon = host.daemon_that_says(&answer.to_string());
    let output = hook(&host, "vm-pre-migrate", None);
    assert_eq!(status(&output), 2, "{}", stdout(&output));
    assert!(stdout(&output).contains("must be of one version"));
}

#[test]
fn the_pre_migrate_hook_aborts_what_it_cannot_find_out() {
    // Xenstore knows no domain of this VM.
    let host = Host::new();
    xenstore(&host, &[("local/domain/8/vm", "/vm/another")]);
    let output = hook(&host, "vm-pre-migrate", Some("7"));
    assert_eq!(status(&output), 2, "{}", stdout(&output));
    assert!(stdout(&output).contains("knows no domain"));

    // Xenstore does not answer.
    let host = Host::new();
    host.program("xenstore-list", "echo no xenstored >&2; exit 1");
    let output = hook(&host, "vm-pre-migrate", Some("7"));
    assert_eq!(status(&output), 2, "{}", stdout(&output));
    assert!(stdout(&output).contains("no xenstored"));
}

#[test]
fn the_post_migrate_hook_never_endangers_the_vm() {
    for response in [None, Some(check(Outcome::Lost))] {
        let host = Host::new();
        host.program("logger", &format!("cat >{}/log", host.0.display()));
        let daemon = response.map(|response| host.daemon(response));
        assert_eq!(status(&hook(&host, "vm-post-migrate", None)), 0);
        let log = fs::read_to_string(host.0.join("log")).unwrap();
        let expected = if daemon.is_some() {
            "pi4/1-1.2"
        } else {
            "not running"
        };
        assert!(log.contains(expected), "{log}");
    }
}

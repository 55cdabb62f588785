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
    assert!(matches!(daemon.join().unwrap(), Request::Check { domain } if domain == "web"));
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
        "xl-vusb: web was not migrated; pi4/1-1.2 (Kingston DataTraveler), controller 0 port 1: \
         its driver cannot resume: install xen-vusb-dkms in web\n"
    );
    assert!(!host.0.join("called").exists());
}

/// Runs a hook as XAPI does; `xl-vusb` on its path is ours with the test's socket.
fn hook(host: &Host, name: &str) -> Output {
    host.program(
        "xl-vusb",
        &format!(
            "exec {} --socket {} \"$@\"",
            env!("CARGO_BIN_EXE_xl-vusb"),
            host.socket().display()
        ),
    );
    let hook = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("xapi")
        .join(name);
    host.run(hook, &["-vmuuid", VM, "-reason", "source"])
}

#[test]
fn the_pre_migrate_hook_aborts_only_what_is_refused() {
    let host = Host::new();
    let daemon = host.daemon(check(Outcome::Refused));
    let output = hook(&host, "vm-pre-migrate");
    assert_eq!(status(&output), 2);
    assert!(
        stdout(&output).starts_with("xen-vusb: pi4/1-1.2"),
        "{}",
        stdout(&output)
    );
    assert_eq!(daemon.join().unwrap(), Request::Check { domain: VM.into() });

    let host = Host::new();
    let _daemon = host.daemon(check(Outcome::Replug));
    assert_eq!(status(&hook(&host, "vm-pre-migrate")), 0);

    // Without vusbd: logged, and the migration goes on.
    let output = hook(&Host::new(), "vm-pre-migrate");
    assert_eq!(status(&output), 1);
    assert!(stdout(&output).contains("systemctl start vusbd"));
}

#[test]
fn the_post_migrate_hook_never_endangers_the_vm() {
    for response in [None, Some(check(Outcome::Refused))] {
        let host = Host::new();
        host.program("logger", &format!("cat >{}/log", host.0.display()));
        let daemon = response.map(|response| host.daemon(response));
        assert_eq!(status(&hook(&host, "vm-post-migrate")), 0);
        let log = fs::read_to_string(host.0.join("log")).unwrap();
        let expected = if daemon.is_some() {
            "pi4/1-1.2"
        } else {
            "not running"
        };
        assert!(log.contains(expected), "{log}");
    }
}

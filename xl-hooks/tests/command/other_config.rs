// SPDX-License-Identifier: GPL-3.0-or-later
//! `apply-other-config`, with an `xe` and an `xl-vusb` that note how they are called.

use crate::*;

const OTHER: &str = "00000000-1111-2222-3333-444444444444";

/// `other` is what `other-config:xen-vusb` of each VM is, as a piece of shell with the VM's uuid in `$vm`; `attached`
/// are devices of [`VM`], by their ports.
fn apply(host: &Host, other: &str, attached: &[(&str, u8, &str)], arguments: &[&str]) -> Output {
    let attachments: Vec<_> = attached
        .iter()
        .map(|(persistence, port, serial)| {
            serde_json::json!({
                "vm": VM, "exporter": "pi4", "persistence": persistence, "controller": 64, "port": port,
                "device": {"id": "1-1.2", "vendor": 0x0951, "product": 0x1666, "serial": serial},
            })
        })
        .collect();
    let list = serde_json::json!({ "attachments": attachments }).to_string();
    fs::write(host.0.join("list"), list).unwrap();
    fs::write(
        host.0.join("inventory"),
        "A='b'\nINSTALLATION_UUID='h0st'\n",
    )
    .unwrap();
    let dir = host.0.display();
    host.program(
        "xl-vusb",
        &format!(
            "shift 2; case $1 in list) cat {dir}/list ;; *) echo \"$@\" >>{dir}/called; \
             case \"$*\" in *:bad*) echo 'no such device' >&2; exit 1 ;; esac ;; esac"
        ),
    );
    host.program(
        "xe",
        &format!(
            "case $1 in vm-list) [ \"$2\" = resident-on=h0st ] && echo {VM},{OTHER} ;;\n\
             vm-param-get) vm=${{2#uuid=}}; {other} ;; esac"
        ),
    );
    host.program(
        "apply",
        &format!(
            "XENSOURCE_INVENTORY={dir}/inventory exec {} --socket /s apply-other-config \"$@\"",
            env!("CARGO_BIN_EXE_xl-vusb")
        ),
    );
    host.run(host.0.join("bin/apply"), arguments)
}

fn called(host: &Host) -> String {
    fs::read_to_string(host.0.join("called")).unwrap_or_default()
}

const NONE: &str = "echo 'Error: Key xen-vusb not found in map' >&2; exit 1";

#[test]
fn exactly_what_is_declared_is_attached() {
    let host = Host::new();
    let other =
        format!("[ $vm = {VM} ] && {{ echo 'pi4/0951:1666:A, pi4/0951:1666:B'; exit 0; }}; {NONE}");
    let there = [
        ("persistent", 1, "A"),
        ("persistent", 2, "C"),
        ("temporary", 3, "D"),
        ("rule", 4, "E"),
    ];
    let output = apply(&host, &other, &there, &[]);
    assert_eq!(status(&output), 0, "{}", stderr(&output));
    let expected =
        format!("detach {VM} 2 --controller 64\nattach {VM} pi4/0951:1666:B --persistent\n");
    assert_eq!(called(&host), expected);

    // Again, when that is done.
    let host = Host::new();
    let there = [("persistent", 1, "A"), ("persistent", 2, "B")];
    assert_eq!(status(&apply(&host, &other, &there, &[VM])), 0);
    assert_eq!(called(&host), "");
}

#[test]
fn a_vm_without_the_key_is_left_alone_and_an_empty_value_is_none() {
    let there = [("persistent", 1, "A")];
    let host = Host::new();
    assert_eq!(status(&apply(&host, NONE, &there, &[])), 0);
    assert_eq!(called(&host), "");
    let host = Host::new();
    assert_eq!(status(&apply(&host, "echo", &there, &[VM])), 0);
    assert_eq!(called(&host), format!("detach {VM} 1 --controller 64\n"));
}

/// Nothing of its VM is touched, and other VMs get what they declare.
#[test]
fn a_bad_value_says_what_is_wrong_and_keeps_nobody_else_from_his_devices() {
    let host = Host::new();
    let other = format!("[ $vm = {VM} ] && echo stick || echo pi4/1-7");
    let output = apply(&host, &other, &[("persistent", 1, "A")], &[]);
    assert_eq!(status(&output), 1);
    for part in [
        VM,
        "other-config:xen-vusb",
        "'stick' names no exporter",
        "nothing was changed",
    ] {
        assert!(
            stderr(&output).contains(part),
            "{part}: {}",
            stderr(&output)
        );
    }
    assert_eq!(
        called(&host),
        format!("attach {OTHER} pi4/1-7 --persistent\n")
    );
}

#[test]
fn what_cannot_be_asked_or_attached_ends_nothing() {
    // xe fails, which is not "no such key".
    let host = Host::new();
    let output = apply(
        &host,
        "echo 'Lost connection' >&2; exit 1",
        &[("persistent", 1, "A")],
        &[VM],
    );
    assert_eq!(status(&output), 1);
    assert!(
        stderr(&output).contains("Lost connection"),
        "{}",
        stderr(&output)
    );
    assert_eq!(called(&host), "");
    // One of two devices is not there.
    let host = Host::new();
    let output = apply(&host, "echo pi4/0951:1666:bad,pi4/0951:1666:B", &[], &[VM]);
    assert_eq!(status(&output), 1);
    assert!(
        stderr(&output).contains("no such device"),
        "{}",
        stderr(&output)
    );
    assert!(called(&host).ends_with("pi4/0951:1666:B --persistent\n"));
    // There is no vusbd, and no xe.
    let host = Host::new();
    host.program("xe", "echo pi4/1-2");
    let output = host.xl_vusb(&["apply-other-config", VM]);
    assert_eq!(status(&output), 2, "{}", stderr(&output));
}

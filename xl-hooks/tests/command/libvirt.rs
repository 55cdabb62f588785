// SPDX-License-Identifier: GPL-3.0-or-later
//! The hook that libvirt runs on the destination of a migration.

use std::io::Write;
use std::process::Stdio;

use crate::*;

/// Runs the hook as libvirt does, with an `xl-vusb` that answers `status` and `check` with these outputs and
/// exit statuses.
fn hook(host: &Host, arguments: [&str; 4], xml: &str, status: &str, check: &str) -> Output {
    let called = host.0.join("called");
    let script = format!(
        "echo \"$@\" >>{}\ncase $1 in\nstatus) {status} ;;\ncheck) {check} ;;\nesac",
        called.display()
    );
    host.program("xl-vusb", &script);
    let path = std::env::var("PATH").unwrap_or_default();
    let mut hook = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("libvirt/libxl"))
        .args(arguments)
        .env("PATH", format!("{}:{path}", host.0.join("bin").display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may end without reading all of it.
    let _ = hook.stdin.take().unwrap().write_all(xml.as_bytes());
    hook.wait_with_output().unwrap()
}

fn xml() -> String {
    format!(
        "<domain type='xen'>\n  <name>web</name>\n  <uuid>{VM}</uuid>\n  <metadata><uuid>other</uuid></metadata>\n\
         </domain>\n"
    )
}

const BEGIN: [&str; 4] = ["web", "migrate", "begin", "-"];
const ON_XEN2: &str = "printf 'vusbd 0.1.0 on xen2\\n\\nmore\\n'";

#[test]
fn what_would_be_lost_here_is_refused_and_nothing_else() {
    for (check, expected, said) in [
        ("exit 0", 0, ""),
        (
            "echo 'to xen2: pi4/1-1: no'; exit 1",
            1,
            "xen-vusb: to xen2: pi4/1-1: no\n",
        ),
        (
            "echo 'xl-vusb: exporter is silent' >&2; exit 1",
            1,
            "exporter is silent",
        ),
        (
            "echo 'xl-vusb: vusbd is not running' >&2; exit 2",
            1,
            "not running",
        ),
    ] {
        let host = Host::new();
        let output = hook(&host, BEGIN, &xml(), ON_XEN2, check);
        assert_eq!(status(&output), expected, "{check}");
        assert!(stderr(&output).contains(said), "{}", stderr(&output));
        // It would replace the domain's XML.
        assert_eq!(stdout(&output), "");
        let called = fs::read_to_string(host.0.join("called")).unwrap();
        let asked = format!("status\ncheck --quiet --toolstack libvirt --to xen2 -- {VM}\n");
        assert_eq!(called, asked);
    }
}

#[test]
fn what_cannot_be_found_out_is_refused() {
    for (xml, status_of, part) in [
        (
            xml(),
            "echo 'vusbd is not running' >&2; exit 2",
            "not running",
        ),
        (xml(), "echo nonsense", "which host this is"),
        ("<domain/>".to_owned(), ON_XEN2, "no uuid of domain web"),
    ] {
        let host = Host::new();
        let output = hook(&host, BEGIN, &xml, status_of, "exit 0");
        assert_eq!(status(&output), 1);
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
    }
}

#[test]
fn nothing_but_a_migration_is_looked_at() {
    for (operation, suboperation) in [
        ("prepare", "begin"),
        ("started", "begin"),
        ("release", "end"),
    ] {
        let host = Host::new();
        let output = hook(
            &host,
            ["web", operation, suboperation, "-"],
            &xml(),
            "exit 2",
            "exit 2",
        );
        assert_eq!((status(&output), stderr(&output)), (0, ""));
        assert!(!host.0.join("called").exists());
    }
}
